"""Tools that make, choose, list and end sessions. Their docstrings, and those of their answers, are sent to models."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from .calls import Call
from .named_session import NamedSession
from .tool import tool

Name = Annotated[str, Field(description="The session's name.", max_length=256)]
NewName = Annotated[str | None, Field(description="1 to 64 letters, digits, '_', '-' and '.'. Without it one is made.", max_length=256)]
Description = Annotated[str, Field(description="What the session is for.", max_length=10_000)]
Shared = Annotated[bool, Field(description="Whether the server's other clients reach it too, by this name.")]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What was said of a session."""

    description: str
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedAnswer:
    """A session that was made."""

    session_id: str
    status: Literal["created"]
    description: str
    shared: bool
    metadata: Metadata
    timestamp: datetime
    active_session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchedAnswer:
    """Which session is the active one now, and which was."""

    previous_session: str
    current_session: str
    status: Literal["switched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAnswer:
    """A session in a list."""

    description: str
    active: bool
    current: bool
    shared: bool
    health: Literal["healthy", "not started"]
    busy: bool
    execution_count: int
    uptime: float
    created: datetime
    metadata: Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsAnswer:
    """All sessions that this client reaches."""

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


async def create_session(call: Call, session_id: NewName = None, description: Description = "", shared: Shared = False) -> CreatedAnswer:
    """Make a session: a Python of its own, with its own variables and files. switch_session makes it the active one.

    Other clients do not reach it, unless it is made with shared=true; a shared one takes no part in the shared outputs/.
    """
    named = call.client.create(session_id, description, shared=shared)
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
    """Make a session the active one: the one that tools use where no session_id is given."""
    previous = call.client.switch(session_id)
    return SwitchedAnswer(previous_session=previous, current_session=session_id, status="switched")


async def list_sessions(call: Call) -> SessionsAnswer:
    """List your sessions and those that other clients share, and which of them is the active one."""
    active = call.client.find(None)
    sessions = {name: _answer(named, current=named is active) for name, named in call.client.sessions().items()}
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


def _answer(named: NamedSession, *, current: bool) -> SessionAnswer:
    return SessionAnswer(
        description=named.description,
        active=named.begun,
        current=current,
        shared=named.shared,
        health="healthy" if named.begun else "not started",
        busy=named.busy_for is not None,
        execution_count=named.executions,
        uptime=named.uptime,
        created=named.created,
        metadata=_metadata(named),
    )


def _metadata(named: NamedSession) -> Metadata:
    return Metadata(named.description, named.shared)


TOOLS = (
    tool(create_session, "Make a session", "changes"),
    tool(switch_session, "Choose the active session", "changes", repeatable=True),
    tool(list_sessions, "List sessions", "reads"),
    tool(delete_session, "End a session", "destroys"),
)
