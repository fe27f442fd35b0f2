"""Tools that bring code into a session: packages, and scripts that are kept. Their docstrings are sent to models."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from ...client.own_cells import command_result_of, own_cell
from ...client.session import Session
from ...errors import InvalidArgumentError, NotFoundError
from ...models import CodeExecutionRequest, CodeExecutionResult
from ...rendering import clip
from .calls import Call
from .cell_tools import Seconds
from .cells import file_uri, run_cell
from .named_session import NamedSession
from .outputs import Taken
from .paths import checked
from .tool import SessionName, Words, tool

SCRIPTS = "scripts"
_NAME = re.compile(r"[\w][\w.-]{0,99}", re.ASCII)

Packages = Annotated[Words, Field(description="As in lines of requirements.txt: ['humanize', 'numpy<3'].", min_length=1)]
ScriptName = Annotated[str, Field(description="Letters, digits, '_', '-' and '.'; '.py' is added where it is missing.", max_length=100)]
ScriptPath = Annotated[str, Field(description="A saved script's name, or the path of a file below /mnt/data.", max_length=4096)]
Source = Annotated[str, Field(description="Python source.", max_length=1_000_000)]


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


async def install_dependencies(call: Call, packages: Packages, session_id: SessionName = None) -> InstalledAnswer:
    """Install Python packages into a session. What is there already is left alone; failed, it changed nothing. Other sessions do not see
    them.
    """
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        await call.client.outputs.bring(session, named)
        with named.running():
            result = await session.install(*packages)
    named.learn(result)
    output = "\n".join(part for part in (result.output, result.stderr) if part)
    return InstalledAnswer(
        session_id=named.name,
        success=result.success,
        status="installed" if result.success else "failed",
        packages=packages,
        output=clip(output, call.client.options.max_output),
    )


async def save_script(call: Call, name: ScriptName, content: Source, session_id: SessionName = None) -> SavedAnswer:
    """Keep Python source as a file of a session, scripts/NAME.py, for run_script or to import it from there."""
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError("a script's name is letters, digits, '_', '-' and '.', with no '-' or '.' in front and no folder")
    named = call.client.find(session_id)
    path = f"{SCRIPTS}/{name.removesuffix('.py')}.py"
    async with call.client.lease(named) as session:
        file = await session.upload_file(path, content)
    await call.resources_changed([file_uri(named, path)])
    return SavedAnswer(session_id=named.name, script=path, status="saved", size=file.size)


async def run_script(
    call: Call, path: ScriptPath, args: Words | None = None, timeout: Seconds = None, session_id: SessionName = None
) -> RanAnswer:
    """Run a file of Python in a process of its own within a session, in /mnt/data: it has none of the session's variables.

    A script that save_script kept is found by its bare name.
    """
    named = call.client.find(session_id)
    async with call.client.lease(named) as session:
        found = await _find(session, checked(path))
    cell = own_cell("script", found, *(args or []))
    request = CodeExecutionRequest(session_id=named.id, code=cell, timeout=timeout, sanitize_input=False)
    return await run_cell(call, named, request, partial(_answer_script, call, named))


async def _answer_script(call: Call, named: NamedSession, result: CodeExecutionResult, _taken: Taken) -> RanAnswer:
    done, room = command_result_of(result), call.client.options.max_output
    if result.files:
        await call.resources_changed([file_uri(named, file.path) for file in result.files])
    return RanAnswer(
        session_id=named.name,
        success=done.success,
        returncode=done.exit_code,
        stdout=clip(done.stdout, room),
        stderr=clip(done.stderr, room),
        new_files=[file.path for file in result.files if file.kind == "created"],
        state=str(result.state),
        execution_time=result.duration,
    )


async def _find(session: Session, path: str) -> str:
    """Return the path of a script: as it was named or among the saved scripts, with or without its ending."""
    folder, _, name = path.rpartition("/")
    places = [(folder, name)] if folder else [(SCRIPTS, name), ("", name)]
    for place, wanted in [(place, ending) for place, name in places for ending in (name, f"{name}.py")]:
        try:
            names = {file.name for file in await session.list_files(place) if not file.is_directory}
        except NotFoundError:
            continue
        if wanted in names:
            return f"{place}/{wanted}" if place else f"./{wanted}"  # with a folder in front, Python cannot take it for an option
    raise InvalidArgumentError("there is no such script: save_script keeps one, or write the file below /mnt/data first")


TOOLS = (
    tool(install_dependencies, "Install packages", "changes", repeatable=True, outside=True),
    tool(save_script, "Keep a script", "changes", repeatable=True),
    tool(run_script, "Run a script", "destroys", outside=True),
)
