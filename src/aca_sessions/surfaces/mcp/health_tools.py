"""Tools that report how a session is doing. They do not wait for a cell that runs. Their docstrings are sent to models."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ...models import SessionHealth
from .calls import Call
from .named_session import NamedSession
from .tool import SessionName, tool

_MB = 1 << 20
_PATIENCE = 5.0

Patience = Annotated[float, Field(description="Seconds to wait for an answer.", gt=0, le=60)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessAnswer:
    """The interpreter's process, as far as it could be asked."""

    memory_mb: float | None = None
    cpu_seconds: float | None = None
    cpu_percent: float | None = None  # over its whole life
    num_threads: int | None = None
    create_time: float | None = None  # seconds since 1970


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthAnswer:
    """How a session fares. Memory is in bytes and times are in seconds; what only its interpreter knows is null while a cell runs."""

    session_id: str
    status: Literal["healthy", "unresponsive"]
    started: bool
    responsive: bool
    busy_for: float | None
    memory_usage: int
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
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsivenessAnswer:
    """Whether a session would take a cell now."""

    session_id: str
    responsive: bool
    busy: bool
    busy_for: float | None
    response_time: float
    timeout: float


async def get_kernel_health(call: Call, session_id: SessionName = None) -> HealthAnswer:
    """Tell how a session fares: memory, processor time, uptime, how many cells it ran and how long they took, its last error, and why its
    variables began anew if they did.
    """
    named = call.client.find(session_id)
    # It is not asked if it runs a cell or was never used.
    health = await _ask(call, named, _PATIENCE) if named.busy_for is None and named.begun else None
    return HealthAnswer(
        session_id=named.name,
        status="healthy" if health is None or health.responsive else "unresponsive",
        started=named.begun,
        responsive=named.busy_for is None and (health is None or health.responsive),
        busy_for=named.busy_for,
        memory_usage=health.memory if health else 0,
        cpu_time=health.cpu if health and health.responsive else None,
        uptime=health.uptime if health and health.uptime else named.uptime,
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


async def check_kernel_responsiveness(call: Call, timeout: Patience = _PATIENCE, session_id: SessionName = None) -> ResponsivenessAnswer:
    """Find out whether a session would take a cell now. While a cell runs the answer is no, at once, and says for how long it has run."""
    named = call.client.find(session_id)
    started, busy_for = time.perf_counter(), named.busy_for
    responsive = busy_for is None and (await _ask(call, named, timeout)).responsive
    return ResponsivenessAnswer(
        session_id=named.name,
        responsive=responsive,
        busy=busy_for is not None,
        busy_for=busy_for,
        response_time=time.perf_counter() - started,
        timeout=timeout,
    )


async def _ask(call: Call, named: NamedSession, patience: float) -> SessionHealth:
    """Ask a session for its health. It is not responsive if its lease and its answer take longer than `patience` seconds together."""
    started = time.perf_counter()
    async with AsyncExitStack() as held:
        try:
            async with asyncio.timeout(patience):
                session = await held.enter_async_context(call.client.lease(named))
        except TimeoutError:  # the pool is full
            return SessionHealth(responsive=False, response_time=patience)
        return await session.health(timeout=patience - (time.perf_counter() - started))


def _process(health: SessionHealth | None) -> ProcessAnswer:
    if health is None or not health.responsive:
        return ProcessAnswer()
    return ProcessAnswer(
        memory_mb=health.memory / _MB,
        cpu_seconds=health.cpu,
        cpu_percent=100 * health.cpu / health.uptime if health.uptime else None,
        num_threads=health.threads,
        create_time=time.time() - health.uptime if health.uptime else None,
    )


TOOLS = (
    tool(get_kernel_health, "Health of a session", "reads"),
    tool(check_kernel_responsiveness, "Is a session responsive?", "reads"),
)
