"""Cells of a client: their events are sent while they run, a cancelled call interrupts them, and their outputs reach the other sessions."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import quote

import anyio
from mcp import types
from pydantic import AnyUrl

from ...client.session import Session
from ...guest_text import shown_name
from ...models import CodeExecutionRequest, CodeExecutionResult, Display
from ...rendering import clip, render
from .calls import Call
from .named_session import NamedSession
from .outputs import Taken

_IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_MOST_IMAGE_CHARACTERS = 4 << 20  # of all images of a result in base64; clients have limits of about that size
_MOST_LINKS = 20
_MOST_NAMED = 10
_PLAIN = "text/plain"
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """The exception that ended a cell."""

    name: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellAnswer:
    """The result of a cell."""

    session_id: str
    success: bool
    stdout: str
    stderr: str
    results: list[str] = field(metadata={"description": "The value of the last expression, as text"})
    error: ErrorAnswer | None
    state: str
    execution_time: float
    outputs: list[str]
    new_files: list[str]
    changed_files: list[str]
    deleted_files: list[str]
    shared_files: list[str]


async def run_cell(
    call: Call, named: NamedSession, request: CodeExecutionRequest, answer: Callable[[CodeExecutionResult, Taken], Awaitable[Answer]]
) -> Answer:
    """Run a cell and return what `answer` returns for its result and for the files that it left below outputs/.

    Args:
        call: The call of the tool.
        named: The session.
        request: The cell.
        answer: Makes the tool's answer.
    """
    outputs = call.client.outputs
    async with call.client.lease(named) as session:
        await outputs.bring(session, named)
        with named.running():
            result = await _follow(call, session, named, request)
        named.learn(result)
        try:
            return await answer(result, await outputs.take(session, named))
        except BaseException:
            session.take_back(result)  # the client does not get it
            raise


async def _follow(call: Call, session: Session, named: NamedSession, request: CodeExecutionRequest) -> CodeExecutionResult:
    answer = call.ask if call.can_ask else None
    execution = await session.start(
        request.code,
        timeout=request.timeout,
        sanitize=request.sanitize_input,
        on_input=answer,
        transactional=request.transactional,
    )
    ended = False
    try:
        async for event in execution.events():
            ended = event.result is not None
            if event.result is not None:
                return event.result
            await call.tell(event)
    finally:
        if not ended:
            with anyio.CancelScope(shield=True):
                await session.cancel_quietly(execution)
    raise AssertionError("the last event of every cell is its result")


async def answer_cell(call: Call, named: NamedSession, result: CodeExecutionResult, taken: Taken) -> CellAnswer:
    """Show the model the result's text, images and links to further resources, and return the structured answer."""
    text = render(replace(result, max_output=call.client.options.max_output))
    call.show(types.TextContent(type="text", text="\n".join([text, *_notes(taken)])))
    images, others = _told_apart(result.displays)
    call.show(*images)
    uris = [_keep(call, named, display) for display in others]
    files = [file.path for file in result.files if file.kind != "deleted"]
    call.show(*(_link(file_uri(named, path), shown_name(path)) for path in files[:_MOST_LINKS]))
    if uris or result.files:
        await call.resources_changed([file_uri(named, file.path) for file in result.files])
    return _answer(named, result, taken, uris, room=call.client.options.max_output)


def _answer(named: NamedSession, result: CodeExecutionResult, taken: Taken, uris: list[str], *, room: int) -> CellAnswer:
    failed = result.error
    by_kind = {kind: [file.path for file in result.files if file.kind == kind] for kind in ("created", "changed", "deleted")}
    return CellAnswer(
        session_id=named.name,
        success=result.success,
        stdout=clip(result.stdout, room),
        stderr=clip(result.stderr, room),
        results=[clip(result.text, room)] if result.text else [],
        error=ErrorAnswer(failed.name, clip(failed.message, room), clip(failed.traceback, room)) if failed else None,
        state=str(result.state),
        execution_time=result.duration,
        outputs=uris,
        new_files=by_kind["created"],
        changed_files=by_kind["changed"],
        deleted_files=by_kind["deleted"],
        shared_files=list(taken.shared),
    )


def file_uri(named: NamedSession, path: str) -> str:
    """Return the URI of a file's resource."""
    return f"session://{named.name}/files/{quote(path)}"


def _notes(taken: Taken) -> list[str]:
    notes = []
    if taken.shared:
        notes.append(f"[outputs] your other sessions have these before their next cells: {_named(taken.shared)}")
    if taken.left:
        notes.append(f"[outputs] not handed on to your other sessions, for its size or name: {_named(taken.left)}")
    return notes


def _named(paths: tuple[str, ...]) -> str:
    rest = len(paths) - _MOST_NAMED
    return ", ".join(map(shown_name, paths[:_MOST_NAMED])) + (f" and {rest} more" if rest > 0 else "")


def _told_apart(displays: tuple[Display, ...]) -> tuple[list[types.ImageContent], list[Display]]:
    """Return the images that fit the limit, and the other displays. A display that is text alone is in the result's text and left out."""
    images: list[types.ImageContent] = []
    others, room = [], _MOST_IMAGE_CHARACTERS
    for display in displays:
        image = _image(display)
        if image is not None and len(image.data) <= room:
            room -= len(image.data)
            images.append(image)
        elif set(display.data) - {_PLAIN}:
            others.append(display)
    return images, others


def _image(display: Display) -> types.ImageContent | None:
    for kind in _IMAGES:
        data = display.data.get(kind)
        if isinstance(data, str) and Display({"image/png": data}).png:
            return types.ImageContent(type="image", data="".join(data.split()), mimeType=kind)
    return None


def _keep(call: Call, named: NamedSession, display: Display) -> str:
    number = named.keep(display)
    uri = f"session://{named.name}/displays/{number}"
    call.show(_link(uri, f"display {number}: {', '.join(map(shown_name, sorted(set(display.data) - {_PLAIN})))}"[:200]))
    return uri


def _link(uri: str, name: str) -> types.ResourceLink:
    return types.ResourceLink(type="resource_link", uri=AnyUrl(uri), name=name)
