"""Tools that run code and install packages. Their docstrings are sent to models."""

import keyword
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal, TypeVar

import anyio
from mcp import types
from pydantic import Field

from ..client.session import Session
from ..client.snippet_results import decode_command_result
from ..client.snippets import snippet
from ..errors import InvalidArgumentError, NotFoundError
from ..guest_text import shown_caption, shown_name
from ..hints import Remedies, hint
from ..models import CodeExecutionRequest, CodeExecutionResult, Display
from ..rendering import render
from . import apps
from .named_session import DISPLAYS_KEPT, NamedSession
from .outputs import SCRIPTS, CollectedFiles
from .resources import MOST_IMAGE_CHARACTERS, checked, display_resource, file_resource, link_to
from .tool import Call, SessionName, Words, tool

_SCRIPT_NAME = re.compile(r"[\w][\w.-]{0,99}", re.ASCII)
_IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_MOST_LINKS = 20
_MOST_NAMED = 10
_MOST_PATH_CHARACTERS = 2000  # of one list of files
_PLAIN = "text/plain"
_REMEDIES = Remedies("install a missing package with the tool install_dependencies, then run the code again")
Answer = TypeVar("Answer")

Code = Annotated[str, Field(description="Python source, as in a notebook cell; plain text without Markdown fences.", max_length=1_000_000)]
Seconds = Annotated[float | None, Field(description="Interrupt it after this many seconds.", gt=0, le=86_400)]
Transactional = Annotated[bool, Field(description="If it fails, restore variables and files as they were before.")]
Packages = Annotated[Words, Field(description="As in lines of requirements.txt: ['humanize', 'numpy<3'].", min_length=1)]
ScriptName = Annotated[str, Field(description="Letters, digits, '_', '-' and '.'; '.py' is added if it is missing.", max_length=100)]
ScriptPath = Annotated[str, Field(description="A saved script's name, or the path of a file below /mnt/data.", max_length=4096)]
Source = Annotated[str, Field(description="Python source.", max_length=1_000_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAnswer:
    """An image that the cell displayed. If it is too large to send, read the resource `uri`. Without `uri` it is not kept."""

    sent: bool
    uri: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class RunningAnswer:
    """A process that still runs."""

    pid: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellAnswer:
    """The result of a cell, for programs, without what its text says. `error` is the name of the exception, `outputs` are the URIs of
    displays that are not images, and `more_files` counts the files that are left out of the lists. A field with its default is left out.
    """

    session_id: str
    success: bool
    state: str
    execution_time: float
    error: str = ""
    images: list[ImageAnswer] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    new_files: list[str] = field(default_factory=list)
    changed_files: list[str] = field(default_factory=list)
    deleted_files: list[str] = field(default_factory=list)
    shared_files: list[str] = field(default_factory=list)
    more_files: int = 0
    processes: list[RunningAnswer] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledAnswer:
    """The result of installing packages."""

    session_id: str
    success: bool
    status: Literal["installed", "failed"]
    packages: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedAnswer:
    """Where a script was written. `shared` is whether your other sessions get it too, before their next cells."""

    session_id: str
    script: str
    status: Literal["saved"]
    size: int
    shared: bool
    how_to_import: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RanAnswer:
    """The result of a script. `returncode` is null if the script did not end by itself: `error` says why."""

    session_id: str
    success: bool
    returncode: int | None
    state: str
    execution_time: float
    error: str = ""
    new_files: list[str] = field(default_factory=list)


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
        await call.client.copy_in(session, named)
        with named.running():
            result = await session.install(*packages)
            call.undo_delivery = partial(session._undo_delivery, result)
    named.record_result(result)
    done = f"installed: {shown_name(', '.join(packages))}" if result.success and not result.stdout else ""
    call.show_text(done or render(replace(result, max_output=call.client.options.max_output)))
    return InstalledAnswer(
        session_id=named.name,
        success=result.success,
        status="installed" if result.success else "failed",
        packages=packages,
    )


async def save_script(call: Call, name: ScriptName, content: Source, session_id: SessionName = None) -> SavedAnswer:
    """Save Python source as scripts/NAME.py in your sessions, for run_script, or for code to import it: `import NAME`."""
    if not _SCRIPT_NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"name must be up to 100 letters, digits, '_', '-' and '.', begin with a letter, digit or '_', and name no folder, got "
            f"{name!r:.110}: choose one such as 'report.py'"
        )
    named = call.client.find(session_id)
    module = name.removesuffix(".py")
    path = f"{SCRIPTS}/{module}.py"
    call.client.outputs.share_scripts()
    async with call.client.lease(named) as session:
        await call.client.copy_in(session, named)
        file = await session.upload_file(path, content)
        named.has_scripts = True
        collected = await call.client.collect(session, named, [path])
    await call.resources_changed([named.file_uri(path)])
    shared = path in collected.shared
    return SavedAnswer(session_id=named.name, script=path, status="saved", size=file.size, shared=shared, how_to_import=_import_of(module))


def _import_of(module: str) -> str:
    """Return the statement that imports a script, or '' if its name cannot be in one. Modules of Python come before those in scripts/."""
    if not module.isidentifier() or keyword.iskeyword(module):
        return ""
    return f"from {SCRIPTS} import {module}" if module in sys.stdlib_module_names else f"import {module}"


async def run_script(
    call: Call, path: ScriptPath, args: Words | None = None, timeout: Seconds = None, session_id: SessionName = None
) -> RanAnswer:
    """Run a Python file in a new process of a session, in /mnt/data. It does not have the session's variables.

    A script from save_script is found by its name alone.
    """
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        await call.client.copy_in(session, named)  # the script may be of another session
        found = await _find_script(session, checked(path, call.mounts))
    cell = snippet("run_script", found, *(args or []))
    request = CodeExecutionRequest(session_id=named.id, code=cell, timeout=timeout, sanitize_input=False)
    return await run_cell(call, named, request, partial(_answer_script, call, named))


async def _answer_script(call: Call, named: NamedSession, result: CodeExecutionResult, collected: CollectedFiles) -> RanAnswer:
    done, most = decode_command_result(result), call.client.options.max_output
    ran = replace(result, stdout=done.stdout, displays=(), max_output=most)
    ran = replace(ran, hint=hint(ran, call.client.server.pool._access_of(named.id), _REMEDIES))
    code = None if result.error else done.exit_code
    call.show_text("\n".join([render(ran), *([f"[exit code] {code}"] if code else []), *_notes(collected)]))
    call.show(*_links(named, result))
    if result.files:
        await call.resources_changed([named.file_uri(file.path) for file in result.files])
    return RanAnswer(
        session_id=named.name,
        success=done.success,
        returncode=code,
        error=result.error.name if result.error else "",
        new_files=_first_paths([file.path for file in result.files if file.kind == "created"]),
        state=str(result.state),
        execution_time=result.duration,
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
        f"script {shown_name(path)} was not found in scripts/ or below /mnt/data: save it with save_script, or write the file first"
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
    async with call.client.lease(named) as session:
        await call.client.copy_in(session, named)
        with named.running():
            if named.has_scripts and not named.finds_scripts:
                await _let_find_scripts(session, named)
            result = await _follow(call, session, named, request)
        named.record_result(result)
        call.undo_delivery = partial(session._undo_delivery, result)
        try:
            return await answer(result, await call.client.collect(session, named, [file.path for file in result.files]))
        except BaseException:
            call.undo_delivery()  # the client does not get it
            raise


async def _let_find_scripts(session: Session, named: NamedSession) -> None:
    """Add scripts/ to the import path of a session's interpreter. This is a cell and not a setting, so that it works at every endpoint."""
    before = named.restarts
    result = await session._run_snippet("add_import_folder", SCRIPTS)
    named.finds_scripts = result.success and named.restarts is before  # a new interpreter does not have it


async def _follow(call: Call, session: Session, named: NamedSession, request: CodeExecutionRequest) -> CodeExecutionResult:
    answers = {"on_input": call.ask, "on_denied": call.decide} if call.can_ask else {}
    execution = await session.start(
        request.code,
        timeout=request.timeout,
        sanitize=request.sanitize_input,
        transactional=request.transactional,
        **answers,  # type: ignore[arg-type]
    )
    ended = False
    named.executing.append(execution)
    try:
        if named.is_deleted:
            raise InvalidArgumentError("the session was deleted before the code ran in it")
        async for event in execution.events():
            ended = event.result is not None
            if event.result is not None:
                return event.result
            await call.report(event)
    finally:
        named.executing.remove(execution)
        if not ended:
            with anyio.CancelScope(shield=True):
                await session._cancel_quietly(execution)
    raise AssertionError("the last event of every cell is its result")


@dataclass(frozen=True, slots=True)
class _ShownImage:
    """An image of a result, with the number under which the session stores it."""

    number: int
    title: str
    content: types.ImageContent
    sent: bool


@dataclass(frozen=True, slots=True)
class _Shown:
    """How the displays of a result are shown. Numbers are those under which the session stores displays."""

    described: list[tuple[Display, bool]] = field(default_factory=list)  # in the result's text, and whether it is an image
    images: list[_ShownImage] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    linked: list[int] = field(default_factory=list)

    def notes(self, named: NamedSession) -> list[str]:
        """Return the notes on the images that are not sent, and on those of them that the session does not keep."""
        left = [one for one in self.images if not one.sent]
        gone = [one for one in left if one.number not in named.displays]
        room = f"a result has room for {MOST_IMAGE_CHARACTERS * 3 / 4e6:.1f} MB of images"
        return [
            *(
                [f"[images] too large to send, because {room}: {_sizes(left)}. Lower the resolution, for example with dpi=100"]
                if left
                else []
            ),
            *([f"[images] not kept either, because {DISPLAYS_KEPT}: {_sizes(gone)}"] if gone else []),
        ]


async def answer_cell(call: Call, named: NamedSession, result: CodeExecutionResult, collected: CollectedFiles) -> CellAnswer:
    """Convert a cell's result to the answer of a tool, and notify the client if resources have changed.

    Also add content to `call` for the client to show: the result's text, its images, and links to its other displays and to files.
    """
    told = hint(result, call.client.server.pool._access_of(named.id), _REMEDIES)
    result = replace(result, max_output=call.client.options.max_output, hint=told)
    shown = _sort_displays(named, result.displays)
    text = render(replace(result, displays=tuple(display for display, _ in shown.described)))
    call.show_text("\n".join([text, *shown.notes(named), *_notes(collected)]))
    call.show(*(one.content for one in shown.images if one.sent))
    call.show(*(link_to(display_resource(named, number)) for number in shown.linked if number in named.displays))
    call.show(*_links(named, result))
    if apps.is_shown_by(call.context):
        call.meta[apps.DISPLAYS_KEY] = apps.for_page(shown.described)
    if shown.images or shown.others or result.files:
        await call.resources_changed([named.file_uri(file.path) for file in result.files])
    return _answer(named, result, collected, shown)


def _answer(named: NamedSession, result: CodeExecutionResult, collected: CollectedFiles, shown: _Shown) -> CellAnswer:
    by_kind = {kind: [file.path for file in result.files if file.kind == kind] for kind in ("created", "changed", "deleted")}
    by_kind["shared"] = [*collected.shared]
    listed = {kind: _first_paths(paths) for kind, paths in by_kind.items()}
    return CellAnswer(
        session_id=named.name,
        success=result.success,
        error=result.error.name if result.error else "",
        state=str(result.state),
        execution_time=result.duration,
        images=[ImageAnswer(sent=one.sent, uri=_uri(named, one.number), title=one.title) for one in shown.images[:_MOST_LINKS]],
        outputs=[uri for number in shown.others if (uri := _uri(named, number))],
        new_files=listed["created"],
        changed_files=listed["changed"],
        deleted_files=listed["deleted"],
        shared_files=listed["shared"],
        more_files=sum(len(paths) - len(listed[kind]) for kind, paths in by_kind.items()),
        processes=[RunningAnswer(one.pid, one.name) for one in result.processes[:_MOST_LINKS]],
    )


def _links(named: NamedSession, result: CodeExecutionResult) -> list[types.ResourceLink]:
    """Return links to the first files that a cell created or changed."""
    files = [file for file in result.files if file.kind != "deleted"]
    return [link_to(file_resource(named, file.path, file.size)) for file in files[:_MOST_LINKS]]


def _uri(named: NamedSession, number: int) -> str:
    """Return the URI of a stored display, or '' if later displays have replaced it."""
    return named.display_uri(number) if number in named.displays else ""


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


def _sort_displays(named: NamedSession, displays: tuple[Display, ...]) -> _Shown:
    """Store a cell's displays, except those that are only plain text, and choose the images to send: the first ones that fit."""
    shown, room = _Shown(), MOST_IMAGE_CHARACTERS
    for display in displays:
        image = _image(display)
        if image is not None:
            one = _ShownImage(named.keep(display), shown_caption(str(display.data.get(_PLAIN, ""))), image, sent=len(image.data) <= room)
            shown.images.append(one)
            room -= len(image.data) if one.sent else 0
        elif set(display.data) - {_PLAIN}:
            shown.others.append(named.keep(display))
            if apps.TABLE not in display.data:  # the result has a table as text
                shown.linked.append(shown.others[-1])
        if image is None or one.sent:
            shown.described.append((display, image is not None))
        else:
            shown.linked.append(one.number)
    return shown


def _sizes(images: list[_ShownImage]) -> str:
    listed = [f"{one.title or 'an image'} ({len(one.content.data) * 3 / 4e6:.1f} MB)" for one in images[:_MOST_NAMED]]
    return "; ".join(listed) + (f"; and {len(images) - _MOST_NAMED} more" if len(images) > _MOST_NAMED else "")


def _image(display: Display) -> types.ImageContent | None:
    for kind in _IMAGES:
        data = display.data.get(kind)
        if isinstance(data, str) and Display({"image/png": data}).png:
            return types.ImageContent(type="image", data="".join(data.split()), mimeType=kind)
    return None


RUN_CODE = ("run_python_code", "run_script")
INSTALL = "install_dependencies"
AS_TASKS = (*RUN_CODE, INSTALL)  # can run as tasks of MCP
TOOLS = (
    tool(run_python_code, "Run Python", "destroys", outside=True, shows=True),
    tool(install_dependencies, "Install packages", "changes", repeatable=True, outside=True, shows=True),
    tool(save_script, "Keep a script", "changes", repeatable=True),
    tool(run_script, "Run a script", "destroys", outside=True, shows=True),
)
