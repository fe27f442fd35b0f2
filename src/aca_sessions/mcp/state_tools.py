"""Tools for the state of a session: variables, completion, checkpoints and branches. Their docstrings are sent to models."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ..client.session import Session
from ..errors import ExecutionError
from ..models import Checkpoint
from .named_session import NamedSession
from .session_tools import NewName
from .tool import Call, SessionName, tool

_LONGEST = 10_000

Text = Annotated[str, Field(description="Source text.", max_length=100_000)]
Cursor = Annotated[int, Field(description="A position in it, in characters from its beginning.", ge=0)]
Detail = Annotated[int, Field(description="1 shows the source too.", ge=0, le=1)]
Label = Annotated[str | None, Field(description="A name for rollback.", max_length=100)]
Which = Annotated[str | None, Field(description="A checkpoint's name or id. By default the latest.", max_length=100)]


@dataclass(frozen=True, slots=True)
class VariableAnswer:
    """A variable."""

    name: str
    type: str
    shape: tuple[int, ...] | None
    size: int
    text: str


@dataclass(frozen=True, slots=True)
class VariablesAnswer:
    """A session's variables, without modules."""

    session_id: str
    variables: list[VariableAnswer]


@dataclass(frozen=True, slots=True)
class InspectedAnswer:
    """The documentation of a name."""

    session_id: str
    found: bool
    text: str


@dataclass(frozen=True, slots=True)
class CompletionAnswer:
    """Replacements for the characters from cursor_start to cursor_end."""

    session_id: str
    matches: list[str]
    cursor_start: int
    cursor_end: int


@dataclass(frozen=True, slots=True)
class StatusAnswer:
    """Confirmation of an operation."""

    session_id: str
    status: Literal["interrupted", "nothing was running", "ok"]


@dataclass(frozen=True, slots=True)
class CheckpointAnswer:
    """The saved state of a session."""

    session_id: str
    id: str
    name: str | None
    created: datetime
    size: int
    left_behind: list[str]


@dataclass(frozen=True, slots=True)
class BranchedAnswer:
    """A session that continues from another."""

    session_id: str
    branched_from: str
    status: Literal["created"]


async def list_variables(call: Call, session_id: SessionName = None) -> VariablesAnswer:
    """List a session's variables: type, shape, size in bytes, and the value of plain ones."""
    named = call.client.find_unexpired(session_id)
    if not named.is_started:
        return VariablesAnswer(named.name, [])
    async with _lookup(call, named) as session:
        found = await session.variables()
    return VariablesAnswer(named.name, [VariableAnswer(one.name, one.type, one.shape, one.size, one.text) for one in found])


async def inspect_object(
    call: Call, code: Text, cursor_pos: Cursor, detail_level: Detail = 0, session_id: SessionName = None
) -> InspectedAnswer:
    """Return what IPython shows about the name at a position in a text: signature, docstring, and the source with detail_level 1."""
    named = call.client.find_started(session_id)
    async with _lookup(call, named) as session:
        text = await session.inspect(code, cursor_pos, detail=detail_level)
    return InspectedAnswer(named.name, text is not None, (text or "")[:_LONGEST])


async def code_completion(call: Call, code: Text, cursor_pos: Cursor, session_id: SessionName = None) -> CompletionAnswer:
    """Return IPython's completions of a text at a position."""
    named = call.client.find_started(session_id)
    async with _lookup(call, named) as session:
        found = await session.complete(code, cursor_pos)
    return CompletionAnswer(named.name, list(found.matches), found.start, found.end)


@asynccontextmanager
async def _lookup(call: Call, named: NamedSession) -> AsyncIterator[Session]:
    """Lease a session for a call that only reads its variables. Raise ExecutionError if the call takes longer than `lookup_seconds`.

    The lookup is interrupted then. It is never killed, so the session keeps its variables.
    """
    seconds = call.client.options.lookup_seconds
    try:
        async with asyncio.timeout(seconds), call.client.lease(named) as session:
            yield session
    except TimeoutError as error:
        why = "a cell runs in the session" if named.busy_for is not None else "an object of the session, or this machine, is slow"
        raise ExecutionError(f"nothing was found within {seconds:g} s, because {why}. Variables are kept: try again later") from error


async def interrupt(call: Call, session_id: SessionName = None) -> StatusAnswer:
    """Interrupt the cell that a session runs now; its variables stay."""
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        can_interrupt, running = await session.supports("interrupt"), next(iter(named.executing), None)
        # What runs here, if anything, is a call that reads variables. Another server may run a cell in a session that both use.
        if can_interrupt and named.busy_for is None and not call.client.shares_sessions:
            return StatusAnswer(named.name, "nothing was running")
        await (running.cancel() if can_interrupt and running is not None else session.interrupt())
    return StatusAnswer(named.name, "interrupted")


async def ping(call: Call) -> StatusAnswer:
    """Check that the server responds."""
    return StatusAnswer(call.client.find(None).name, "ok")


async def checkpoint(call: Call, name: Label = None, session_id: SessionName = None) -> CheckpointAnswer:
    """Save a session's variables and files as they are now, for rollback."""
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        return _answer(named.name, await session.checkpoint(name))


async def rollback(call: Call, checkpoint: Which = None, session_id: SessionName = None) -> CheckpointAnswer:
    """Return a session's variables and files to a checkpoint, by default the latest. The checkpoint stays."""
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        answer = _answer(named.name, await session.rollback(checkpoint))
    named.record_restart("rolled back")
    call.client.outputs.forget(named)
    await call.resources_changed([])
    return answer


async def branch(call: Call, new_session_id: NewName = None, session_id: SessionName = None) -> BranchedAnswer:
    """Create a session that continues from another one, with its own variables and files. Together they have the limits of one."""
    named = call.client.find(session_id)
    made = await call.client.branch(named, new_session_id)
    return BranchedAnswer(made.name, named.name, "created")


def _answer(name: str, one: Checkpoint) -> CheckpointAnswer:
    return CheckpointAnswer(name, one.id, one.name, one.created, one.size, list(one.left_behind))


TOOLS = (
    tool(list_variables, "List variables", "reads"),
    tool(inspect_object, "Inspect a name", "reads"),
    tool(code_completion, "Complete code", "reads"),
    tool(interrupt, "Interrupt a cell", "changes"),
    tool(ping, "Is the server there?", "reads"),
    tool(checkpoint, "Keep a session as it is", "changes"),
    tool(rollback, "Go back to a checkpoint", "destroys"),
    tool(branch, "Branch a session", "changes"),
)
