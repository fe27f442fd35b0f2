"""One leased session: what a caller does with it."""

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
_BRANCH = "~branch-"  # proxies that shard sessions by name find a branch where its session is: by what stands before this
_PACKAGE_INDEX = "https://pypi.org/simple/pip/"


class Session:
    """A live interpreter with state, named by its `session_id`."""

    def __init__(self, interpreter: CodeInterpreter, session_id: str) -> None:
        """A handle; the session itself begins with its first use."""
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
        """What became of a cell. Cancelling the call interrupts the cell and keeps the variables.

        What is missing of the libraries is installed first; where that fails, its result is the answer and the cell is not run. A
        transactional cell that fails, runs too long or is killed leaves variables and files as they were.
        """
        if libraries and not (installed := await self.install_missing(*libraries)).success:
            return installed
        request = CodeExecutionRequest(
            session_id=self.session_id, code=code, timeout=timeout, sanitize_input=sanitize, transactional=transactional
        )
        amend = self._noting(code, sanitize)
        return amend(await self._interpreter.execute_for(self._caller, request))

    async def run_by(self, run: Callable[[str], Awaitable[CodeExecutionResult]], code: str) -> CodeExecutionResult:
        """What became of a cell that a function runs, by cells of ours: noted like any other. The function gets the code out of fences."""
        refused = refusal(code)
        if refused is not None:
            return CodeExecutionResult(session_id=self.session_id, error=refused, stderr=str(refused))
        amend = self._noting(code, True)
        return amend(await self._interpreter.execute_by(self.session_id, self._caller, lambda: run(take_out_of_fences(code))))

    async def run_own(
        self, name: str, *arguments: str | int, timeout: float | None = None, caller: Delivered | None = None
    ) -> CodeExecutionResult:
        """Run a cell of the client, by its name. A loss that it hears of is reported with the user's next cell."""
        caller = caller or self._caller.copy()
        return await self._interpreter.execute_own(self.session_id, name, *arguments, timeout=timeout, caller=caller)

    def new_caller(self) -> Delivered:
        """Return a caller of its own for cells of the client that follow each other: each hears what happened since the one before."""
        return self._caller.copy()

    def take_back(self, result: CodeExecutionResult) -> None:
        """Note that the user did not get a result after all, so that a loss that it reported is reported again."""
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
        """A cell that runs in the background, until it ends or is cancelled.

        `on_input` answers what it asks while its events are read, `on_call` what it calls outside: JSON in, JSON out.
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
        """What a cell does, while it does it; the last event is its result. Leaving the loop early interrupts the cell."""
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
        """A cell that was started earlier, by its id, to go on with it after a pause or from another program."""
        return self._interpreter.execution(self.session_id, execution_id, on_input=on_input, caller=self._caller)

    async def cancel_quietly(self, execution: Execution) -> None:
        """Interrupts a cell that nobody follows any more, on the way out: even if the caller is cancelled again meanwhile."""
        await self._interpreter.cancel_quietly(execution)

    async def interrupt(self) -> None:
        """Interrupts the cell that runs now, whoever started it; its result says what that did."""
        await self._interpreter.interrupt(self.session_id)

    async def upload_file(self, name: str, data: bytes | str | Path) -> RemoteFile:
        """Writes a file into /mnt/data. A Path is sent without being read whole."""
        uploaded_file = await self._interpreter.upload_file(self.session_id, name, data)
        self.history.note(await uploaded(name, checked_data(data)))
        return uploaded_file

    async def download_file(self, name: str) -> bytes:
        """A file's content."""
        return await self._interpreter.download_file(self.session_id, name)

    async def save_file(self, name: str, path: Path) -> int:
        """Write a file's content to a path on this machine and return its size. What is there is replaced whole or not at all."""
        return await self._interpreter.save_file(self.session_id, name, path)

    async def list_files(self, folder: str = "") -> list[RemoteFile]:
        """The files in /mnt/data, or in a folder of it."""
        return await self._interpreter.list_files(self.session_id, folder)

    async def delete_file(self, name: str) -> None:
        """Deletes a file."""
        await self._interpreter.delete_file(self.session_id, name)
        self.history.note(Deleted(name))

    async def reset(self) -> None:
        """Clears the variables and keeps the files. Where the endpoint can, in a fresh interpreter: even in the middle of a cell."""
        await self._interpreter.reset(self.session_id, caller=self._caller)
        self.history.note(Reset())

    def to_notebook(self) -> dict[str, Any]:
        """What was done through this object, as a notebook of nbformat 4: cells with their outputs, and the files that were uploaded."""
        return to_notebook(self.history)

    def write_notebook(self, path: str | Path) -> None:
        """The same as an .ipynb file; `replay` does it again in any session."""
        Path(path).write_text(json.dumps(self.to_notebook(), indent=1) + "\n", encoding="utf-8")

    def write_script(self, path: str | Path) -> None:
        """The cells as Python in the percent format, without outputs and files."""
        Path(path).write_text(to_script(self.history), encoding="utf-8", errors="backslashreplace")

    async def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keeps variables and files as they are now; SnapshotError says what is in the way. The oldest ones go first."""
        checkpoint = await self._interpreter.timeline.take(self.session_id, checked_moment(name))
        self.history.mark(checkpoint.id)
        return checkpoint

    async def checkpoints(self) -> list[Checkpoint]:
        """What `rollback` can go back to, the oldest first."""
        return await self._interpreter.timeline.all(self.session_id)

    async def rollback(self, checkpoint: Checkpoint | str | None = None) -> Checkpoint:
        """Make variables and files what they were at a checkpoint, or at the latest one. The checkpoint stays.

        A text is the name of a checkpoint, or else the id of one.
        """
        by_id = isinstance(checkpoint, Checkpoint)
        id = checkpoint.id if isinstance(checkpoint, Checkpoint) else checked_moment(checkpoint)
        name = None if by_id else id
        reached, entry = await self._interpreter.timeline.roll_back(self.session_id, id, name)
        self._interpreter.note_asked(self.session_id, self._caller, *entry)
        self.history.go_back(reached.id)
        return reached

    async def undo(self) -> Checkpoint:
        """Back to the latest checkpoint, which is used up: once more goes further back."""
        checkpoint = await self.rollback()
        await self._interpreter.timeline.drop(self.session_id, checkpoint.id)
        return checkpoint

    async def branch(self, count: int = 1, *, reseed: bool = True) -> "list[Branch]":
        """So many sessions that go on from here, each with its own variables and files; with random numbers of their own, or the same.

        Together they have the limits of one session, and their cells take turns. Packages that were installed are there.
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
        """The user's variables, by name; modules are none."""
        return variables_of(answer(await self.run_own("variables")))

    async def complete(self, code: str, cursor: int) -> Completions:
        """What IPython would complete a text to, at a position in it."""
        return completions_of(answer(await self.run_own("complete", code, cursor)))

    async def inspect(self, code: str, cursor: int, *, detail: int = 0) -> str | None:
        """What IPython shows of the name at a position in a text, with its source from `detail` 1 on; None where it is not known."""
        return inspection_of(answer(await self.run_own("inspect", code, cursor, detail)))

    async def health(self, *, timeout: float = 5.0) -> SessionHealth:
        """How the session fares; it is not responsive if it does not answer in time, and its cells are left alone."""
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
        """What became of a command of the session's shell, in /mnt/data or wherever its code has gone."""
        if not isinstance(command, str) or not command.strip():
            raise InvalidArgumentError("a command is text for the shell, such as 'ls -la'")
        return command_result_of(await self.run_own("command", command, timeout=timeout))

    async def install(self, *requirements: str, timeout: float = INSTALL_SECONDS) -> CodeExecutionResult:
        """What became of installing packages; what is there already is left alone. NotSupportedError where no package index is reached."""
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
        """What became of taking away what was installed here; what is imported of it stays until the session is reset."""
        return await self._interpreter.uninstall(self.session_id, *names)

    async def packages(self) -> list[Package]:
        """What was installed here, beside what the session's environment has."""
        return await self._interpreter.packages(self.session_id)

    async def install_missing(self, *libraries: str) -> CodeExecutionResult:
        """The same for what is not there yet: where all are, no package index is needed."""
        checked_requirements(libraries)
        if not await self._interpreter.supports("packages"):
            missing = names_of(answer(await self.run_own("missing", *libraries)))
            if not missing:
                return CodeExecutionResult(session_id=self.session_id)
        return await self.install(*libraries)

    async def supports(self, capability: str) -> bool:
        """Whether this session has something that not every endpoint gives, by name; found out by trying where nothing says so."""
        if capability in _FROM_PLAIN_CODE:
            return True
        if capability != "install" or await self._interpreter.supports("packages"):
            return await self._interpreter.supports("packages" if capability == "install" else capability)
        return answer(await self.run_own("reach", _PACKAGE_INDEX)) is True

    def _noting(self, code: object, sanitize: bool) -> Callable[[CodeExecutionResult], CodeExecutionResult]:
        """Notes a cell as it is sent; what is called with its result notes that as well."""
        number = self.history.begin(take_out_of_fences(code) if sanitize and isinstance(code, str) else str(code))
        return lambda result: self.history.end(number, result)

    def __repr__(self) -> str:
        return "<Session>"  # its name is a secret: whoever has it owns the session


class Branch(Session):
    """A session that goes on from where another was; it ends with `close`, or with its block."""

    async def close(self) -> None:
        """End it, if it is still there; the session that it came from goes on."""
        if not self._interpreter.is_closed:
            with contextlib.suppress(NotFoundError):
                await self._interpreter.delete_session(self.session_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
