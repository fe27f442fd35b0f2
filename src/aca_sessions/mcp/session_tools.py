"""Tools that create, choose, list, check, restart and end sessions. Their docstrings, and those of their answers, are sent to models."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ..errors import ExecutionError, NotFoundError, NotSupportedError, ServiceError, SnapshotError
from ..guest_text import for_model
from ..models import SessionHealth
from ..rendering import clip
from .clients import MB
from .named_session import NamedSession
from .tool import Call, SessionName, tool

_HEALTH_SECONDS = 5.0

Name = Annotated[str, Field(description="The session's name.", max_length=256)]
NewName = Annotated[str | None, Field(description="1 to 64 letters, digits, '_', '-' and '.'. By default a new name.", max_length=256)]
Description = Annotated[str, Field(description="What the session is for.", max_length=10_000)]
Shared = Annotated[bool, Field(description="Whether the server's other clients can use it too, by this name.")]
Wait = Annotated[float, Field(description="Seconds to wait for a response.", gt=0, le=60)]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the client gave when it created a session."""

    description: str
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedAnswer:
    """A new session."""

    session_id: str
    status: Literal["created"]
    description: str
    shared: bool
    metadata: Metadata
    timestamp: datetime
    active_session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchedAnswer:
    """The session that is active now, and the one before."""

    previous_session: str
    current_session: str
    status: Literal["switched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAnswer:
    """A session in a list."""

    description: str
    active: bool
    started: bool
    shared: bool
    health: Literal["healthy", "not started", "expired"]
    busy: bool
    execution_count: int
    uptime: float
    created: datetime
    metadata: Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsAnswer:
    """All sessions that this client can use."""

    sessions: dict[str, SessionAnswer]
    active_session: str
    total_sessions: int
    max_sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedAnswer:
    """A session that was ended."""

    session_id: str
    status: Literal["deleted"]
    was_active: bool
    new_active_session: str


@dataclass(frozen=True, slots=True)
class RestartedAnswer:
    """A session with a new interpreter."""

    session_id: str
    restarted: Literal[True]
    preserved: bool
    preserved_vars: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessAnswer:
    """The interpreter's process. All values are null if it did not respond."""

    memory_mb: float | None
    cpu_seconds: float | None
    cpu_percent: float | None  # over its whole life
    num_threads: int | None
    create_time: float | None  # seconds since 1970


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthAnswer:
    """The health of a session. Memory is in bytes and times are in seconds. `busy` means that a cell runs: what only the interpreter
    knows is null then. `memory_usage` is what all processes of the session use. `uptime` counts from the creation of the session.
    """

    session_id: str
    status: Literal["healthy", "busy", "unresponsive"]
    started: bool
    responsive: bool
    busy_for: float | None
    memory_usage: int | None = None  # left out if it is not known, so that `.get("memory_usage", 0)` is a number
    cpu_time: float | None
    uptime: float
    execution_count: int
    last_execution_time: datetime | None
    average_execution_time: float | None
    last_error: str | None
    restarts: int
    restart_causes: list[str]
    isolation: str | None
    kernel_process: ProcessAnswer
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsivenessAnswer:
    """Whether a session would start a cell now."""

    session_id: str
    responsive: bool
    busy: bool
    busy_for: float | None
    response_time: float
    timeout: float


async def create_session(call: Call, session_id: NewName = None, description: Description = "", shared: Shared = False) -> CreatedAnswer:
    """Create a session: an isolated Python with its own variables and files. switch_session makes it the active one.

    Other clients cannot use it, unless it was created with shared=true. A shared session does not share outputs/ with your other sessions.
    """
    named = await call.client.create(session_id, description, shared=shared)
    return CreatedAnswer(
        session_id=named.name,
        status="created",
        description=named.description,
        shared=named.shared,
        metadata=_metadata(named),
        timestamp=named.created,
        active_session=call.client.find(None).name,
    )


async def switch_session(call: Call, session_id: Name) -> SwitchedAnswer:
    """Make a session the active one, which tools use if no session_id is given."""
    previous = call.client.switch(session_id)
    return SwitchedAnswer(previous_session=previous, current_session=session_id, status="switched")


async def list_sessions(call: Call) -> SessionsAnswer:
    """List your sessions and those that other clients share, and which one is active."""
    active = call.client.find(None)
    sessions = {name: _answer(named, active=named is active) for name, named in call.client.sessions().items()}
    return SessionsAnswer(
        sessions=sessions,
        active_session=active.name,
        total_sessions=len(sessions),
        max_sessions=call.client.options.sessions_per_client,
    )


async def delete_session(call: Call, session_id: Name) -> DeletedAnswer:
    """End a session, with its variables and files, even in the middle of a cell. The session 'default' cannot be deleted."""
    was_active = await call.client.delete(session_id)
    await call.resources_changed([])
    return DeletedAnswer(session_id=session_id, status="deleted", was_active=was_active, new_active_session=call.client.find(None).name)


async def restart_kernel(call: Call, preserve_state: bool = False, session_id: SessionName = None) -> RestartedAnswer:
    """Start a new interpreter for a session; its files stay. Without preserve_state this works even while a cell runs.

    With preserve_state the new interpreter has the old one's variables. If that fails, nothing changes and the error says why.
    """
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        if preserve_state:
            # A cell that fails is undone by a checkpoint of its own, which removes none of the user's as another checkpoint could.
            undone = await session.run("raise Exception", transactional=True)
            if undone.state.variables != "rolled_back":
                session._undo_delivery(undone)  # the user's next cell reports a loss again
                refused = undone.error if undone.state.kind == "kept" else None  # it says why no checkpoint could be taken
                reason = clip(for_model(refused.message.removeprefix("the cell was not run: ")), 1000) if refused else str(undone.state)
                why = f"the session was not restarted, because its variables cannot be preserved: {reason}"
                raise SnapshotError(f"{why}. To restart it without them, leave preserve_state out")
        else:
            await session.reset()
        names = [one.name for one in await session.variables()] if preserve_state else []
    named.record_restart("asked for, variables kept" if preserve_state else "asked for")
    return RestartedAnswer(named.name, True, preserve_state, names)


async def get_kernel_health(call: Call, session_id: SessionName = None) -> HealthAnswer:
    """Report the health of a session: memory, processor time, uptime, how many cells it ran and how long they took, its last error, and
    why its interpreter was replaced.
    """
    named = call.client.find(session_id)
    memory, health = await _check_health(call, named, _HEALTH_SECONDS) if named.is_started else (None, None)
    busy_for, responds = named.busy_for, health is None or health.responsive
    return HealthAnswer(
        session_id=named.name,
        status="busy" if busy_for is not None else "healthy" if responds else "unresponsive",
        started=named.is_started,
        responsive=busy_for is None and responds,
        busy_for=busy_for,
        memory_usage=health.memory if memory is None and health and health.responsive else memory,
        cpu_time=health.cpu if health and health.responsive else None,
        uptime=named.uptime,
        execution_count=named.executions,
        last_execution_time=named.last_execution,
        average_execution_time=named.seconds / named.executions if named.executions else None,
        last_error=named.last_error,
        restarts=len(named.restarts),
        restart_causes=named.restarts,
        isolation=health.isolation.get("level") if health and health.isolation else None,
        kernel_process=_process(health),
        metadata={"description": named.description},
    )


async def check_kernel_responsiveness(call: Call, timeout: Wait = _HEALTH_SECONDS, session_id: SessionName = None) -> ResponsivenessAnswer:
    """Check whether a session would start a cell now. While a cell runs this returns false at once, with the time that it has run."""
    named = call.client.find(session_id)
    started, busy_for = time.perf_counter(), named.busy_for
    responsive = busy_for is None and await _is_responsive(call, named, timeout)
    return ResponsivenessAnswer(
        session_id=named.name,
        responsive=responsive,
        busy=busy_for is not None,
        busy_for=busy_for,
        response_time=time.perf_counter() - started,
        timeout=timeout,
    )


def _answer(named: NamedSession, *, active: bool) -> SessionAnswer:
    return SessionAnswer(
        description=named.description,
        active=active,
        started=named.is_started,
        shared=named.shared,
        health="healthy" if named.is_started else "expired" if named.is_expired else "not started",
        busy=named.busy_for is not None,
        execution_count=named.executions,
        uptime=named.uptime,
        created=named.created,
        metadata=_metadata(named),
    )


def _metadata(named: NamedSession) -> Metadata:
    return Metadata(named.description, named.shared)


async def _is_responsive(call: Call, named: NamedSession, timeout: float) -> bool:
    """Return whether a session can be leased and responds, both within `timeout` seconds. A session that is not started stays so."""
    try:
        async with asyncio.timeout(timeout), call.client.lease(named) as session:
            if named.is_started:
                await session._measure()
    except (TimeoutError, ExecutionError, ServiceError):
        return False
    return True


async def _check_health(call: Call, named: NamedSession, timeout: float) -> tuple[int | None, SessionHealth | None]:
    """Return the bytes of memory that a session uses, as its server counts them, and its health as its interpreter reports it.

    Either is None if it is not known. The interpreter is not asked while a cell runs, nor if the server has no such session: that would
    start one. If leasing and checking the session together take more than `timeout` seconds, the health has `responsive` set to False.
    """
    started = time.perf_counter()
    async with AsyncExitStack() as held:
        memory = None
        try:
            async with asyncio.timeout(timeout):
                session = await held.enter_async_context(call.client.lease(named))
                memory = (await session._interpreter.get_session(session.session_id)).memory
        except TimeoutError:  # the pool is full
            return None, SessionHealth(responsive=False, response_time=timeout)
        except NotFoundError:
            return None, None
        except (NotSupportedError, ServiceError):
            pass  # an older api-version, for example
        if named.busy_for is not None:
            return memory, None
        return memory, await session.health(timeout=max(0.001, timeout - (time.perf_counter() - started)))


def _process(health: SessionHealth | None) -> ProcessAnswer:
    if health is None or not health.responsive:
        return ProcessAnswer(memory_mb=None, cpu_seconds=None, cpu_percent=None, num_threads=None, create_time=None)
    return ProcessAnswer(
        memory_mb=health.memory / MB,
        cpu_seconds=health.cpu,
        cpu_percent=100 * health.cpu / health.uptime if health.uptime else None,
        num_threads=health.threads,
        create_time=time.time() - health.uptime if health.uptime else None,
    )


NEEDS_CONNECTION = (switch_session.__name__,)
TOOLS = (
    tool(create_session, "Make a session", "changes"),
    tool(switch_session, "Choose the active session", "changes", repeatable=True),
    tool(list_sessions, "List sessions", "reads"),
    tool(delete_session, "End a session", "destroys"),
    tool(restart_kernel, "Restart a session", "destroys"),
    tool(get_kernel_health, "Health of a session", "reads"),
    tool(check_kernel_responsiveness, "Is a session responsive?", "reads"),
)
