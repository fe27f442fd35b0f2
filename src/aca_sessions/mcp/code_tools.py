"""Tools that run code and install packages. Their docstrings are sent to models."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal, TypeVar

import anyio
from mcp import types
from pydantic import AnyUrl, Field

from ..client.session import Session
from ..client.snippet_results import decode_command_result
from ..client.snippets import snippet
from ..errors import InvalidArgumentError, NotFoundError
from ..guest_text import for_model, shown_name
from ..hints import Remedies, hint
from ..models import CodeExecutionRequest, CodeExecutionResult, Display
from ..rendering import clip, error_text, render, share
from .named_session import KEPT_DISPLAYS, NamedSession
from .outputs import CollectedFiles
from .resources import checked
from .tool import Call, SessionName, Words, tool

SCRIPTS = "scripts"
_SCRIPT_NAME = re.compile(r"[\w][\w.-]{0,99}", re.ASCII)
_IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_MOST_IMAGE_CHARACTERS = 4 << 20  # of all images of a result in base64; clients have limits of about that size
_MOST_LINKS = 20
_MOST_NAMED = 10
_MOST_PATH_CHARACTERS = 2000  # of one list of files
_PLAIN = "text/plain"
_LONGEST_MESSAGE = 2000  # of an error
_REMEDIES = Remedies("install a missing package with the tool install_dependencies, then run the code again")
Answer = TypeVar("Answer")

Code = Annotated[str, Field(description="Python source, as in a notebook cell; plain text without Markdown fences.", max_length=1_000_000)]
Seconds = Annotated[float | None, Field(description="Interrupt it after this many seconds.", gt=0, le=86_400)]
Transactional = Annotated[bool, Field(description="If it fails, restore variables and files as they were before.")]
Packages = Annotated[Words, Field(description="As in lines of requirements.txt: ['humanize', 'numpy<3'].", min_length=1)]
ScriptName = Annotated[str, Field(description="Letters, digits, '_', '-' and '.'; '.py' is added if it is missing.", max_length=100)]
ScriptPath = Annotated[str, Field(description="A saved script's name, or the path of a file below /mnt/data.", max_length=4096)]
Source = Annotated[str, Field(description="Python source.", max_length=1_000_000)]


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """The exception that ended a cell. `traceback` has only the frames in the code that was sent, without the message."""

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
    more_files: int = field(metadata={"description": "How many files are left out of the lists"})
    hint: str = field(metadata={"description": "What to do about a missing package or network"})


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledAnswer:
    """The result of installing packages."""

    session_id: str
    success: bool
    status: Literal["installed", "failed"]
    packages: list[str]
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedAnswer:
    """Where a script was written."""

    session_id: str
    script: str
    status: Literal["saved"]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RanAnswer:
    """The result of a script."""

    session_id: str
    success: bool
    returncode: int
    stdout: str
    stderr: str
    new_files: list[str]
    state: str
    execution_time: float
    hint: str


async def run_python_code(
    call: Call, code: Code, session_id: SessionName = None, timeout: Seconds = None, transactional: Transactional = False
) -> CellAnswer:
    """Run Python in a session: an isolated Linux process with IPython, whose variables, imports and files stay for the next call.

    You get what it printed, the value of its last expression, its figures as images, and the error if it failed. Files are in /mnt/data,
    the working directory. Files below outputs/ are copied to your other sessions.
    """
    named = call.client.find(session_id)
    request = CodeExecutionRequest(session_id=named.id, code=code, timeout=timeout, transactional=transactional)
    return await run_cell(call, named, request, partial(answer_cell, call, named))


async def install_dependencies(call: Call, packages: Packages, session_id: SessionName = None) -> InstalledAnswer:
    """Install Python packages into a session. Packages that are installed already are skipped, and a failure changes nothing. Other
    sessions do not see them.
    """
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        await call.client.outputs.copy_in(session, named)
        with named.running():
            result = await session.install(*packages)
    named.record_result(result)
    output = "\n".join(part for part in (result.output, result.stderr) if part)
    return InstalledAnswer(
        session_id=named.name,
        success=result.success,
        status="installed" if result.success else "failed",
        packages=packages,
        output=clip(output, call.client.options.max_output),
    )


async def save_script(call: Call, name: ScriptName, content: Source, session_id: SessionName = None) -> SavedAnswer:
    """Save Python source as scripts/NAME.py in a session, for run_script or to import it."""
    if not _SCRIPT_NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"name must be up to 100 letters, digits, '_', '-' and '.', begin with a letter, digit or '_', and name no folder, got "
            f"{name!r:.110}: choose one such as 'report.py'"
        )
    named = call.client.find(session_id)
    path = f"{SCRIPTS}/{name.removesuffix('.py')}.py"
    async with call.client.lease(named) as session:
        file = await session.upload_file(path, content)
    await call.resources_changed([named.file_uri(path)])
    return SavedAnswer(session_id=named.name, script=path, status="saved", size=file.size)


async def run_script(
    call: Call, path: ScriptPath, args: Words | None = None, timeout: Seconds = None, session_id: SessionName = None
) -> RanAnswer:
    """Run a Python file in a new process of a session, in /mnt/data. It does not have the session's variables.

    A script from save_script is found by its name alone.
    """
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        found = await _find_script(session, checked(path))
    cell = snippet("run_script", found, *(args or []))
    request = CodeExecutionRequest(session_id=named.id, code=cell, timeout=timeout, sanitize_input=False)
    return await run_cell(call, named, request, partial(_answer_script, call, named))


async def _answer_script(call: Call, named: NamedSession, result: CodeExecutionResult, _collected: CollectedFiles) -> RanAnswer:
    done = decode_command_result(result)
    room = share(call.client.options.max_output, bool(done.stdout) + bool(done.stderr))
    printed = replace(result, stdout=done.stdout, stderr=done.stderr)
    if result.files:
        await call.resources_changed([named.file_uri(file.path) for file in result.files])
    return RanAnswer(
        session_id=named.name,
        success=done.success,
        returncode=done.exit_code,
        stdout=clip(done.stdout, room),
        stderr=clip(done.stderr, room),
        new_files=_first_paths([file.path for file in result.files if file.kind == "created"]),
        state=str(result.state),
        execution_time=result.duration,
        hint=hint(printed, call.client.server.pool.access, _REMEDIES),
    )


async def _find_script(session: Session, path: str) -> str:
    """Return the path of the script that a model named, with or without `.py`.

    If the name has no folder, look in scripts/ first, then in /mnt/data. Raise InvalidArgumentError if there is no such script.
    """
    folder, _, name = path.rpartition("/")
    places = [(folder, name)] if folder else [(SCRIPTS, name), ("", name)]
    for place, wanted in [(place, ending) for place, name in places for ending in (name, f"{name}.py")]:
        try:
            names = {file.name for file in await session.list_files(place) if not file.is_directory}
        except NotFoundError:
            continue
        if wanted in names:
            return f"{place}/{wanted}" if place else f"./{wanted}"  # with a folder in front, Python cannot take it for an option
    raise InvalidArgumentError(
        f"there is no script {shown_name(path)} in scripts/ or below /mnt/data: save it with save_script, or write the file first"
    )


async def run_cell(
    call: Call,
    named: NamedSession,
    request: CodeExecutionRequest,
    answer: Callable[[CodeExecutionResult, CollectedFiles], Awaitable[Answer]],
) -> Answer:
    """Run a cell in a leased session, and return what `answer` returns.

    First copy the files that the client's other sessions share into the session. Send the cell's events to the client while it runs.
    Cancelling the call interrupts the cell.

    Args:
        call: The tool call that runs the cell.
        named: The session.
        request: The code and its options.
        answer: Converts the cell's result, and the files that changed below outputs/, to the answer of the tool.
    """
    outputs = call.client.outputs
    async with call.client.lease(named) as session:
        await outputs.copy_in(session, named)
        with named.running():
            result = await _follow(call, session, named, request)
        named.record_result(result)
        try:
            return await answer(result, await outputs.collect(session, named))
        except BaseException:
            session._undo_delivery(result)  # the client does not get it
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
            await call.report(event)
    finally:
        if not ended:
            with anyio.CancelScope(shield=True):
                await session._cancel_quietly(execution)
    raise AssertionError("the last event of every cell is its result")


async def answer_cell(call: Call, named: NamedSession, result: CodeExecutionResult, collected: CollectedFiles) -> CellAnswer:
    """Convert a cell's result to the answer of a tool, and notify the client if resources have changed.

    Also add content to `call` for the client to show: the result's text, its images, and links to its other displays and to files.
    """
    told = hint(result, call.client.server.pool.access, _REMEDIES)
    result = replace(result, max_output=call.client.options.max_output, hint=told)
    text = render(result)
    call.show(types.TextContent(type="text", text="\n".join([text, *_notes(collected)])))
    images, others = _split_images(result.displays)
    call.show(*images)
    uris = [_keep(call, named, display) for display in others[-KEPT_DISPLAYS:]]
    files = [file.path for file in result.files if file.kind != "deleted"]
    call.show(*(_link(named.file_uri(path), shown_name(path)) for path in files[:_MOST_LINKS]))
    if uris or result.files:
        await call.resources_changed([named.file_uri(file.path) for file in result.files])
    return _answer(named, result, collected, uris)


def _answer(named: NamedSession, result: CodeExecutionResult, collected: CollectedFiles, uris: list[str]) -> CellAnswer:
    """Convert a cell's result to the answer of a tool. `uris` are the links to its displays.

    The answer is about as long as the text that `render` returns, because some clients give the model the answer in place of that text.
    """
    failed, stderr, text = result.error, result.written_to_stderr, result.text or ""
    traceback = error_text(result).removesuffix(for_model(str(failed))).rstrip("\n") if failed and failed.traceback else ""
    room = share(result.max_output - len(traceback), sum(map(bool, (result.stdout, stderr, text))))
    by_kind = {kind: [file.path for file in result.files if file.kind == kind] for kind in ("created", "changed", "deleted")}
    by_kind["shared"] = [*collected.shared]
    listed = {kind: _first_paths(paths) for kind, paths in by_kind.items()}
    return CellAnswer(
        session_id=named.name,
        success=result.success,
        stdout=clip(result.stdout, room),
        stderr=clip(stderr, room),
        results=[clip(text, room)] if text else [],
        error=ErrorAnswer(failed.name, clip(failed.message, _LONGEST_MESSAGE), clip(traceback, result.max_output)) if failed else None,
        state=str(result.state),
        execution_time=result.duration,
        outputs=uris,
        new_files=listed["created"],
        changed_files=listed["changed"],
        deleted_files=listed["deleted"],
        shared_files=listed["shared"],
        more_files=sum(len(paths) - len(listed[kind]) for kind, paths in by_kind.items()),
        hint=result.hint,
    )


def _first_paths(paths: list[str]) -> list[str]:
    """Return the first paths, to be listed in an answer: at most 20, with at most about 2,000 characters together."""
    room = _MOST_PATH_CHARACTERS
    for number, path in enumerate(paths[:_MOST_LINKS]):
        room -= len(path)
        if room < 0:
            return paths[:number]
    return paths[:_MOST_LINKS]


def _notes(collected: CollectedFiles) -> list[str]:
    notes = []
    if collected.shared:
        notes.append(f"[outputs] your other sessions get these before their next cells: {_named(collected.shared)}")
    if collected.left:
        notes.append(f"[outputs] not copied to your other sessions, because of the size or the name: {_named(collected.left)}")
    return notes


def _named(paths: tuple[str, ...]) -> str:
    rest = len(paths) - _MOST_NAMED
    return ", ".join(map(shown_name, paths[:_MOST_NAMED])) + (f" and {rest} more" if rest > 0 else "")


def _split_images(displays: tuple[Display, ...]) -> tuple[list[types.ImageContent], list[Display]]:
    """Split displays into images that are sent in the tool's result, and other displays. Leave out displays that are only plain text.

    The images have a common size limit. An image that exceeds what is left of it is returned among the other displays.
    """
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


RUN_CODE = ("run_python_code", "run_script")
INSTALL = "install_dependencies"
TOOLS = (
    tool(run_python_code, "Run Python", "destroys", outside=True),
    tool(install_dependencies, "Install packages", "changes", repeatable=True, outside=True),
    tool(save_script, "Keep a script", "changes", repeatable=True),
    tool(run_script, "Run a script", "destroys", outside=True),
)
