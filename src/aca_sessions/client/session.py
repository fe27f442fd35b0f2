"""One session, as its caller uses it."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

from ..errors import ExecutionError, InvalidArgumentError, NotFoundError, NotSupportedError, ServiceError
from ..models import (
    Checkpoint,
    CodeExecutionRequest,
    CodeExecutionResult,
    CommandResult,
    Completions,
    Event,
    Package,
    RemoteFile,
    SessionHealth,
    Variable,
)
from .arguments import checked_count, checked_data, checked_moment, checked_requirements, refusal
from .delivered import Delivered
from .execution import AnswerCall, AnswerInput, Execution
from .history import Deleted, History, Installed, Reset, uploaded
from .interpreter import CodeInterpreter
from .notebook import to_notebook, to_script
from .own_cells import answer, command_result_of, completions_of, health_of, inspection_of, names_of, variables_of
from .packages import INSTALL_SECONDS
from .sanitize import sanitize as take_out_of_fences

_FROM_PLAIN_CODE = frozenset({"reset", "variables"})
_BRANCH = "~branch-"  # proxies that shard sessions by name hash only what stands before this: a branch is on its session's server
_PACKAGE_INDEX = "https://pypi.org/simple/pip/"


class Session:
    """A session that runs cells and keeps files: an interpreter with state, named by its `session_id`.

    Each object reports a loss of the session until its caller received one result. Two objects of one session report it each.
    """

    def __init__(self, interpreter: CodeInterpreter, session_id: str) -> None:
        self._interpreter = interpreter
        self.session_id = session_id
        self.history = History()
        self._caller = interpreter.caller(session_id)

    async def run(
        self,
        code: str,
        *,
        libraries: Sequence[str] = (),
        timeout: float | None = None,
        sanitize: bool = True,
        transactional: bool = False,
    ) -> CodeExecutionResult:
        """Run a cell and return its result.

        Cancelling the call interrupts the cell and keeps its variables, unless the cell has to be killed. At endpoints that cannot
        interrupt cells, such as Azure, the cell runs on.

        Args:
            code: The source text.
            libraries: Packages to install first, if they are missing. If that fails, its result is returned and the cell is not run.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
            transactional: Undo the cell if it fails, runs too long or is killed. `state` reports if that was not possible.
        """
        if libraries and not (installed := await self.install_missing(*libraries)).success:
            return installed
        request = CodeExecutionRequest(
            session_id=self.session_id, code=code, timeout=timeout, sanitize_input=sanitize, transactional=transactional
        )
        amend = self._noting(code, sanitize)
        return amend(await self._interpreter.execute_for(self._caller, request))

    async def run_by(self, run: Callable[[str], Awaitable[CodeExecutionResult]], code: str) -> CodeExecutionResult:
        """Run a cell by a function that uses cells of the client, and return its result. The history notes it like any other cell."""
        refused = refusal(code)
        if refused is not None:
            return CodeExecutionResult(session_id=self.session_id, error=refused, stderr=str(refused))
        amend = self._noting(code, True)
        return amend(await self._interpreter.execute_by(self.session_id, self._caller, lambda: run(take_out_of_fences(code))))

    async def run_own(
        self, name: str, *arguments: str | int, timeout: float | None = None, caller: Delivered | None = None
    ) -> CodeExecutionResult:
        """Run a cell of the client, by its name, and return its result. A loss that it detects is also reported with the user's next cell.

        Args:
            name: A module of `cells`.
            arguments: The arguments of its `main`.
            timeout: The time limit in seconds, by default the endpoint's.
            caller: The position that the result's state starts from, by default this object's.
        """
        caller = caller or self._caller.copy()
        return await self._interpreter.execute_own(self.session_id, name, *arguments, timeout=timeout, caller=caller)

    def new_caller(self) -> Delivered:
        """Return a position for a series of cells of the client: each of them reports what happened since the one before."""
        return self._caller.copy()

    def take_back(self, result: CodeExecutionResult) -> None:
        """Note that the user did not get a result, so that a loss in it is reported again."""
        self._interpreter.take_back(self.session_id, self._caller, result)

    async def start(
        self,
        code: str,
        *,
        timeout: float | None = None,
        sanitize: bool = True,
        on_input: AnswerInput | None = None,
        on_call: AnswerCall | None = None,
        transactional: bool = False,
    ) -> Execution:
        """Start a cell in the background and return its execution.

        Args:
            code: The source text.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
            on_input: Answers `input()` while the events are read. It returns the line, or None for an EOFError in the cell.
            on_call: Answers host calls while the events are read: JSON in, JSON out.
            transactional: Undo the cell if it fails, runs too long or is killed.
        """
        execution = await self._interpreter.start(
            self.session_id,
            code,
            timeout=timeout,
            sanitize=sanitize,
            on_input=on_input,
            on_call=on_call,
            transactional=transactional,
            caller=self._caller,
        )
        return execution.amending(self._noting(code, sanitize))

    async def stream(
        self,
        code: str,
        *,
        timeout: float | None = None,
        sanitize: bool = True,
        on_input: AnswerInput | None = None,
        transactional: bool = False,
    ) -> AsyncIterator[Event]:
        """Run a cell and yield its events while it runs; the last one is its result. Leaving the loop early interrupts the cell.

        Args:
            code: The source text.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
            on_input: Answers `input()`. It returns the line, or None for an EOFError in the cell.
            transactional: Undo the cell if it fails, runs too long or is killed.
        """
        execution = await self.start(code, timeout=timeout, sanitize=sanitize, on_input=on_input, transactional=transactional)
        ended = False
        try:
            async for event in execution.events():
                ended = event.kind == "result"
                yield event
        finally:
            if not ended:
                await self.cancel_quietly(execution)

    def execution(self, execution_id: str, *, on_input: AnswerInput | None = None) -> Execution:
        """Return an execution that was started earlier, by its id: here or by another program.

        The server keeps its result until it was fetched, and for some time after that.
        """
        return self._interpreter.execution(self.session_id, execution_id, on_input=on_input, caller=self._caller)

    async def cancel_quietly(self, execution: Execution) -> None:
        """Interrupt a cell while its call is being cancelled, even if the caller is cancelled once more meanwhile."""
        await self._interpreter.cancel_quietly(execution)

    async def interrupt(self) -> None:
        """Interrupt the cell that runs now, even if another caller started it. Its result shows what that did."""
        await self._interpreter.interrupt(self.session_id)

    async def upload_file(self, name: str, data: bytes | str | Path) -> RemoteFile:
        """Write a file into /mnt/data and return its description.

        Args:
            name: The file's name, which may have folders in front. A name outside /mnt/data raises InvalidArgumentError.
            data: The content. A Path is sent without reading the file whole.
        """
        uploaded_file = await self._interpreter.upload_file(self.session_id, name, data)
        self.history.note(await uploaded(name, checked_data(data)))
        return uploaded_file

    async def download_file(self, name: str) -> bytes:
        """Return a file's content.

        Parts of a large file are of one version. If the file keeps changing, ServiceError (`FileChanged`) is raised.
        """
        return await self._interpreter.download_file(self.session_id, name)

    async def save_file(self, name: str, path: Path) -> int:
        """Write a file's content to a path on this machine and return its size. A file at that path is replaced whole or not at all."""
        return await self._interpreter.save_file(self.session_id, name, path)

    async def list_files(self, folder: str = "") -> list[RemoteFile]:
        """Return the files in /mnt/data, or in a folder of it."""
        return await self._interpreter.list_files(self.session_id, folder)

    async def delete_file(self, name: str) -> None:
        """Delete a file."""
        await self._interpreter.delete_file(self.session_id, name)
        self.history.note(Deleted(name))

    async def reset(self) -> None:
        """Clear the variables and keep the files.

        Our own server starts a fresh interpreter, even in the middle of a cell. It also ends background processes and removes all
        checkpoints. Other endpoints clear the variables by a cell, which waits for the one that runs.
        """
        await self._interpreter.reset(self.session_id, caller=self._caller)
        self.history.note(Reset())

    def to_notebook(self) -> dict[str, Any]:
        """Return what was done through this object as a notebook (nbformat 4): cells with outputs, and the files that were uploaded."""
        return to_notebook(self.history)

    def write_notebook(self, path: str | Path) -> None:
        """Write what was done through this object as an .ipynb file. `replay` repeats it in any session."""
        Path(path).write_text(json.dumps(self.to_notebook(), indent=1) + "\n", encoding="utf-8")

    def write_script(self, path: str | Path) -> None:
        """Write the cells as Python in the percent format, without outputs and files."""
        # The history has refused code too, which may hold lone surrogates. UTF-8 cannot encode them.
        Path(path).write_text(to_script(self.history), encoding="utf-8", errors="backslashreplace")

    async def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keep variables and files in /mnt/data as they are now, and return the checkpoint. With too many, the oldest is removed.

        Raise SnapshotError, with the reason, if the session cannot be kept as it is.
        """
        checkpoint = await self._interpreter.timeline.take(self.session_id, checked_moment(name))
        self.history.mark(checkpoint.id)
        return checkpoint

    async def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints, the oldest first."""
        return await self._interpreter.timeline.all(self.session_id)

    async def rollback(self, checkpoint: Checkpoint | str | None = None) -> Checkpoint:
        """Return variables and all files in /mnt/data to a checkpoint, and end background processes. The checkpoint stays.

        If the rollback fails, SnapshotError is raised and the session continues as it was. The state of the next result reports what could
        not be kept so.

        Args:
            checkpoint: A checkpoint, its name or its id, by default the latest. A text is looked up as a name first, then as an id.
        """
        by_id = isinstance(checkpoint, Checkpoint)
        id = checkpoint.id if isinstance(checkpoint, Checkpoint) else checked_moment(checkpoint)
        name = None if by_id else id
        reached, entry = await self._interpreter.timeline.roll_back(self.session_id, id, name)
        self._interpreter.note_asked(self.session_id, self._caller, *entry)
        self.history.go_back(reached.id)
        return reached

    async def undo(self) -> Checkpoint:
        """Roll back to the latest checkpoint and remove it, so that the next call goes further back. Return that checkpoint."""
        checkpoint = await self.rollback()
        await self._interpreter.timeline.drop(self.session_id, checkpoint.id)
        return checkpoint

    async def branch(self, count: int = 1, *, reseed: bool = True) -> "list[Branch]":
        """Return new sessions that continue from here, each with its own variables and files in /mnt/data, and with the same packages.

        Together they have the limits of one session, and share /tmp. Their cells take turns: while one runs, processes of the others stand
        still. All branches are made, or none.

        Args:
            count: How many, 1 to 64.
            reseed: Let each draw other random numbers.
        """
        origin = self.session_id.partition(_BRANCH)[0]
        names = [f"{origin}{_BRANCH}{uuid.uuid4()}" for _ in range(checked_count(count))]
        origin_record, positions = await self._interpreter.timeline.branch(self.session_id, names, self._caller, reseed=reseed)
        branches = [Branch(self._interpreter, name) for name in names]
        for branch in branches:
            branch.history = self.history.copy()
            branch._caller = Delivered.parsed(positions[branch.session_id], first=self._caller.state_of(origin_record))
        return branches

    async def variables(self) -> list[Variable]:
        """Return the user's variables, by name, without modules."""
        return variables_of(answer(await self.run_own("variables")))

    async def complete(self, code: str, cursor: int) -> Completions:
        """Return IPython's completions of a text at a position, counted in characters from its beginning."""
        return completions_of(answer(await self.run_own("complete", code, cursor)))

    async def inspect(self, code: str, cursor: int, *, detail: int = 0) -> str | None:
        """Return what IPython shows about the name at a position in a text, or None if the name is unknown.

        `detail` 1 adds the source.
        """
        return inspection_of(answer(await self.run_own("inspect", code, cursor, detail)))

    async def health(self, *, timeout: float = 5.0) -> SessionHealth:
        """Return how the session is doing.

        If it does not answer within `timeout` seconds it is not responsive; its cells are left alone.
        """
        isolation = await self._interpreter.isolation()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(timeout):
                told = health_of(answer(await self.run_own("health")))
        except (TimeoutError, ExecutionError, ServiceError):
            return SessionHealth(responsive=False, response_time=time.perf_counter() - started, isolation=isolation)
        seconds = time.perf_counter() - started
        return SessionHealth(responsive=True, response_time=seconds, isolation=isolation, **told)

    async def execute_command(self, command: str, *, timeout: float | None = None) -> CommandResult:
        """Run a command in the session's shell, in the current directory of its code, and return its result."""
        if not isinstance(command, str) or not command.strip():
            raise InvalidArgumentError("a command is text for the shell, such as 'ls -la'")
        return command_result_of(await self.run_own("command", command, timeout=timeout))

    async def install(self, *requirements: str, timeout: float = INSTALL_SECONDS) -> CodeExecutionResult:
        """Install packages and return the result. A requirement that is met installs nothing.

        Raise NotSupportedError if the session reaches no package index.
        """
        result = await self._install(*requirements, timeout=timeout)
        if result.success:
            self.history.note(Installed(requirements))
        return result

    async def _install(self, *requirements: str, timeout: float) -> CodeExecutionResult:
        checked_requirements(requirements)
        if await self._interpreter.supports("packages"):
            return await self._interpreter.install(self.session_id, *requirements, timeout=timeout)
        if not await self.supports("install"):
            raise NotSupportedError("this session reaches no package index: use a pool with egress enabled, or packages that are installed")
        return await self.run_own("install", *requirements, timeout=timeout)

    async def uninstall(self, *names: str) -> CodeExecutionResult:
        """Uninstall packages that were installed here and return the result. Imported modules stay until the session is reset."""
        return await self._interpreter.uninstall(self.session_id, *names)

    async def packages(self) -> list[Package]:
        """Return the packages that were installed here, beside those of the session's environment."""
        return await self._interpreter.packages(self.session_id)

    async def install_missing(self, *libraries: str) -> CodeExecutionResult:
        """Install the libraries that are missing and return the result. If none is missing, no package index is needed."""
        checked_requirements(libraries)
        if not await self._interpreter.supports("packages"):
            missing = names_of(answer(await self.run_own("missing", *libraries)))
            if not missing:
                return CodeExecutionResult(session_id=self.session_id)
        return await self.install(*libraries)

    async def supports(self, capability: str) -> bool:
        """Return whether this session has a capability that not every endpoint has, by its name.

        `install` may be found out by a cell that tries to reach the package index.
        """
        if capability in _FROM_PLAIN_CODE:
            return True
        if capability != "install" or await self._interpreter.supports("packages"):
            return await self._interpreter.supports("packages" if capability == "install" else capability)
        return answer(await self.run_own("reach", _PACKAGE_INDEX)) is True

    def _noting(self, code: object, sanitize: bool) -> Callable[[CodeExecutionResult], CodeExecutionResult]:
        """Note a cell as it is sent. Return a function that notes its result and returns it."""
        number = self.history.begin(take_out_of_fences(code) if sanitize and isinstance(code, str) else str(code))
        return lambda result: self.history.end(number, result)

    def __repr__(self) -> str:
        return "<Session>"  # its name is a secret: it gives access to the session


class Branch(Session):
    """A session that continues from the state of another. It ends with `close`, or with its block."""

    async def close(self) -> None:
        """End the branch with its background processes, if it still exists. The session that it came from stays."""
        if not self._interpreter.is_closed:
            with contextlib.suppress(NotFoundError):
                await self._interpreter.delete_session(self.session_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
