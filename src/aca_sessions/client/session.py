"""A session as an object: its cells, files, checkpoints, packages and history."""

import asyncio
import contextlib
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from ..errors import ExecutionError, NotFoundError, NotSupportedError, ServiceError
from ..ledger import CallerPosition
from ..models import (
    Checkpoint,
    CodeExecutionRequest,
    CodeExecutionResult,
    CommandResult,
    Completions,
    Event,
    Package,
    RemoteFile,
    SavedSession,
    SessionHealth,
    Variable,
)
from ..network.denials import OnDenied
from ..network.rules import Network
from .arguments import checked_checkpoint_name, checked_count, checked_requirements, invalid_code_error
from .arguments import sanitize as take_out_of_fences
from .commands import COMMAND_SECONDS, MOST_OUTPUT, OnOutput, execute_command
from .executions import AnswerCall, AnswerInput, Execution
from .filesystem import Filesystem
from .history import CellStep, DeleteStep, History, InstallStep, ResetStep, to_notebook, to_script
from .interpreter import INSTALL_SECONDS, CodeInterpreter
from .snippet_results import (
    decode_completions,
    decode_health,
    decode_inspection,
    decode_names,
    decode_variables,
    parse_printed_json,
)

_FROM_PLAIN_CODE = frozenset({"reset", "variables"})
_BRANCH = "~branch-"  # proxies that shard sessions by name hash only what stands before this: a branch is on its session's server
_MOST_POSITIONS = 10_000
_PACKAGE_INDEX = "https://pypi.org/simple/pip/"


class Session:
    """A session that runs cells and keeps variables and files, named by its `session_id`.

    Each result reports what the session lost since the last result that this object received. If two objects use one session, each object
    reports every loss once.

    Attributes:
        session_id: The identifier of the session.
        history: The latest cells, uploads, installations and other steps of this object.
    """

    def __init__(self, interpreter: CodeInterpreter, session_id: str, *, on_denied: OnDenied | None = None) -> None:
        """Use a session, which begins with its first cell.

        Args:
            interpreter: The client of the endpoint.
            session_id: The name of the session.
            on_denied: Decides about requests of its cells that the rules of its network refuse.
        """
        self._client = interpreter
        self.session_id = session_id
        self.history = History()
        self._on_denied = on_denied
        self._caller = interpreter._new_position(session_id)
        self._network = interpreter._network_of(session_id)

    @property
    def _interpreter(self) -> CodeInterpreter:
        """Return the client for one call, which names the network of this object even if the session has ended."""
        self._client._use_network(self.session_id, self._network)
        return self._client

    async def run(
        self,
        code: str,
        *,
        libraries: Sequence[str] = (),
        timeout: float | None = None,
        sanitize: bool = True,
        transactional: bool = False,
        on_denied: OnDenied | None = None,
    ) -> CodeExecutionResult:
        """Run a cell and return its result.

        Cancelling the call interrupts the cell and keeps its variables, unless the cell has to be killed. At endpoints that cannot
        interrupt cells, such as Azure, the cell continues.

        Args:
            code: The source text.
            libraries: Packages to install first, if they are missing. If the installation fails, its result is returned and the cell is not
                run.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
            transactional: Undo the cell if it fails, runs too long or is killed. The result's `state` reports if that was not possible.
            on_denied: Decides about a request that the rules of the session's network refuse, instead of the session's own function.
                It gets a `Denial` and returns `"once"`, `"always"`, or None to refuse it.
        """
        if libraries and not (installed := await self.install_missing(*libraries)).success:
            return installed
        text = take_out_of_fences(code) if sanitize and isinstance(code, str) else code
        number = self.history.add(CellStep(str(text)))
        request = CodeExecutionRequest(
            session_id=self.session_id, code=text, timeout=timeout, sanitize_input=False, transactional=transactional
        )
        return self.history.set_result(number, await self._interpreter._execute_for(self._caller, request, on_denied or self._on_denied))

    async def _run_with(self, run: Callable[[str], Awaitable[CodeExecutionResult]], code: str) -> CodeExecutionResult:
        """Run a cell by calling `run`, and return its result. The history records the cell.

        `run` gets the code without Markdown fences, and sends it by several snippets (cells that the client writes itself). If `code`
        cannot be run as a cell, do not call `run`, and return a result with the error.
        """
        refused = invalid_code_error(code)
        if refused is not None:
            return CodeExecutionResult(session_id=self.session_id, error=refused, stderr=str(refused))
        text = take_out_of_fences(code)
        number = self.history.add(CellStep(text))
        return self.history.set_result(number, await self._interpreter._execute_with(self.session_id, self._caller, partial(run, text)))

    async def _run_snippet(
        self, name: str, *arguments: str | int, timeout: float | None = None, caller: CallerPosition | None = None
    ) -> CodeExecutionResult:
        """Run a snippet, a cell that the client sends for one of its own features, and return its result.

        If this result reports lost variables or files, the user's next cell reports them too, because the user does not get this result.

        Args:
            name: The name of a function in the module `snippets`.
            arguments: The arguments of that function after its first, `user`, which the session adds.
            timeout: The time limit in seconds, by default the endpoint's.
            caller: A position in the session's ledger, by default this object's. The result's `state` reports what happened after it.
        """
        caller = caller or replace(self._caller)
        result = await self._interpreter._execute_snippet(self.session_id, name, *arguments, timeout=timeout, caller=caller)
        if result.record is not None and self._caller.ledger is None:  # from here on, losses are reported, also before the first cell
            self._caller.ledger, self._caller.position = result.record.ledger, result.record.since
        return result

    def _copy_position(self) -> CallerPosition:
        """Return a copy of this object's position in the session's ledger (the list of what happened to the session).

        Pass it as `caller` to several calls of `_run_snippet`. Each result then reports what happened since the one before.
        """
        return replace(self._caller)

    def _undo_delivery(self, result: CodeExecutionResult) -> None:
        """Count a result as not received, because it did not reach the user. The next result then reports again what the session lost."""
        self._interpreter._undo_delivery(self.session_id, self._caller, result)

    async def start(
        self,
        code: str,
        *,
        timeout: float | None = None,
        sanitize: bool = True,
        on_input: AnswerInput | None = None,
        on_call: AnswerCall | None = None,
        transactional: bool = False,
        on_denied: OnDenied | None = None,
    ) -> Execution:
        """Start a cell in the background and return a handle to its execution.

        Args:
            code: The source text.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
            on_input: Answers `input()` while the events are read. It returns the line, or None for an EOFError in the cell.
            on_call: Answers host calls while the events are read. It gets the call as JSON and returns the answer as JSON.
            transactional: Undo the cell if it fails, runs too long or is killed.
            on_denied: Decides about refused requests while the events are read, as in `run`.
        """
        text = take_out_of_fences(code) if sanitize and isinstance(code, str) else code
        execution = await self._interpreter.start(
            self.session_id,
            text,
            timeout=timeout,
            sanitize=False,
            on_input=on_input,
            on_call=on_call,
            on_denied=on_denied or self._on_denied,
            transactional=transactional,
            caller=self._caller,
        )
        return execution.amending(partial(self.history.set_result, self.history.add(CellStep(str(text)))))

    async def stream(
        self,
        code: str,
        *,
        timeout: float | None = None,
        sanitize: bool = True,
        on_input: AnswerInput | None = None,
        transactional: bool = False,
        on_denied: OnDenied | None = None,
    ) -> AsyncIterator[Event]:
        """Run a cell and yield its events while it runs. The last event has the result. Leaving the loop early interrupts the cell.

        Args:
            code: The source text.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
            on_input: Answers `input()`. It returns the line, or None for an EOFError in the cell.
            transactional: Undo the cell if it fails, runs too long or is killed.
            on_denied: Decides about refused requests, as in `run`.
        """
        options = {"timeout": timeout, "sanitize": sanitize, "transactional": transactional}
        execution = await self.start(code, on_input=on_input, on_denied=on_denied, **options)  # type: ignore[arg-type]
        ended = False
        try:
            async for event in execution.events():
                ended = event.kind == "result"
                yield event
        finally:
            if not ended:
                await self._cancel_quietly(execution)

    def execution(self, execution_id: str, *, on_input: AnswerInput | None = None, on_denied: OnDenied | None = None) -> Execution:
        """Create a handle to an execution that this or another program started, given its id.

        The server keeps the execution's result until the result is fetched, and for some time after that.

        Args:
            execution_id: The id.
            on_input: Answers `input()` while the events are read.
            on_denied: Decides about refused requests while the events are read.
        """
        answers = {"on_input": on_input, "on_denied": on_denied or self._on_denied}
        return self._interpreter.execution(self.session_id, execution_id, caller=self._caller, **answers)  # type: ignore[arg-type]

    async def _cancel_quietly(self, execution: Execution) -> None:
        """Interrupt an execution whose caller was cancelled. Ignore errors.

        Try for at most 10 s, even if the caller is cancelled again.
        """
        await self._interpreter._cancel_quietly(execution)

    async def interrupt(self) -> None:
        """Interrupt the cell that runs now, even if another caller started it.

        The result of that cell shows whether the interrupt stopped it.
        """
        await self._interpreter.interrupt(self.session_id)

    @property
    def filesystem(self) -> Filesystem:
        """Return the session's files anywhere, not only in /mnt/data."""
        return Filesystem(self)

    async def upload_file(self, name: str, data: bytes | str | Path) -> RemoteFile:
        """Write a file into /mnt/data and return its description.

        Args:
            name: The file's name, which may have folders in front. A name outside /mnt/data raises InvalidArgumentError.
            data: The content, or the Path of a file on this machine, which is sent without being read into memory whole.
        """
        remote_file, step = await self._interpreter._upload(self.session_id, name, data)
        self.history.add(step)
        return remote_file

    async def download_file(self, name: str) -> bytes:
        """Return a file's content.

        A large file is read in parts, which all belong to one version of the file. Raise ServiceError (`FileChanged`) if the file keeps
        changing.
        """
        return await self._interpreter.download_file(self.session_id, name)

    async def save_file(self, name: str, path: Path) -> int:
        """Write a file's content to a path on this machine and return its size in bytes.

        If the download fails, a file that exists at the path stays as it was.
        """
        return await self._interpreter.save_file(self.session_id, name, path)

    async def list_files(self, folder: str = "") -> list[RemoteFile]:
        """Return the files and folders directly in /mnt/data, or in a folder of it."""
        return await self._interpreter.list_files(self.session_id, folder)

    async def delete_file(self, name: str) -> None:
        """Delete a file in /mnt/data."""
        await self._interpreter.delete_file(self.session_id, name)
        self.history.add(DeleteStep(name))

    async def set_network(self, network: Network) -> None:
        """Give the session a network of its own, which it keeps until it gets another one or its pool ends it.

        All Session objects of this session in this program share the network, and its branches do as well. This program reads the secrets
        and Azure tokens for the rules before a cell, at most once a minute, and sends their values to the server. If the server ends the
        session, for example after a time without use, the session begins again with this network: no cell runs without it.

        Raise ServiceError if the session cannot have the network: `NetworkFixed` (409) if it has variables or files and its sandbox lacks
        what the rules need, and `NetworkNotAllowed` (403) if the server does not accept the rules. The session then keeps its earlier
        network. Raise NotSupportedError at other endpoints, such as Azure, and SecretError if a secret cannot be read.

        Args:
            network: `Network.none()`, `Network.allow(…)` or `Network.rules(…)`.
        """
        self._network = await self._interpreter._set_network(self.session_id, network)

    async def reset(self) -> None:
        """Clear the variables and keep the files.

        A server of this package starts a fresh interpreter, even in the middle of a cell. It also ends background processes and removes all
        checkpoints that are not durable. Other endpoints run a cell that clears the variables, after the cell that runs now has ended.
        """
        await self._interpreter.reset(self.session_id, caller=self._caller)
        self.history.add(ResetStep())

    def to_notebook(self) -> dict[str, Any]:
        """Return what was done through this object as a notebook (nbformat 4): cells with outputs, and the files that were uploaded."""
        return to_notebook(self.history)

    def write_notebook(self, path: str | Path) -> None:
        """Write what was done through this object as an .ipynb file, which the function `replay` can run again in any session."""
        Path(path).write_text(json.dumps(self.to_notebook(), indent=1) + "\n", encoding="utf-8")

    def write_script(self, path: str | Path) -> None:
        """Write the cells that were sent through this object as a Python script, without outputs and uploaded files.

        The script is in the percent format, which has `# %%` before each cell.
        """
        # The history has refused code too, which may hold lone surrogates. UTF-8 cannot encode them.
        Path(path).write_text(to_script(self.history), encoding="utf-8", errors="backslashreplace")

    async def checkpoint(self, name: str | None = None, *, durable: bool = False) -> Checkpoint:
        """Take a checkpoint of the variables and of the files in /mnt/data, and return it. If there are too many, the oldest is removed.

        Raise SnapshotError, which names the obstacle, if no checkpoint can be taken now.

        Args:
            name: A name for it.
            durable: Save it in the store of the endpoint, too, as `save` does, so that `rollback` finds it after the session has ended.
                NotSupportedError is raised if the service has none.
        """
        checkpoint = await self._interpreter.checkpoint(self.session_id, checked_checkpoint_name(name), durable=durable)
        self.history.mark_checkpoint(checkpoint.id)
        return checkpoint

    async def checkpoints(self) -> list[Checkpoint]:
        """Return the session's checkpoints, the oldest first."""
        return await self._interpreter.checkpoints(self.session_id)

    async def rollback(self, checkpoint: Checkpoint | str | None = None) -> Checkpoint:
        """Roll variables and all files in /mnt/data back to a checkpoint, and end background processes. Keep the checkpoint and return it.

        Raise SnapshotError if the rollback fails. The session then continues as it was. If the rollback failed half-way, the files may have
        changed, and the state of the next result reports that. After a rollback, the state of the next result reports what could not be
        restored, such as open files that are no longer in /mnt/data.

        If the session has ended since it took a durable checkpoint, that is restored as a saved session is. Packages become those of the
        checkpoint, and checkpoints that are not durable are removed. The state of the next result is then `rolled_back`, with what is
        missing and when it was saved.

        Args:
            checkpoint: A checkpoint, its name or its id, by default the latest. A text is looked up as a name first, then as an id.
        """
        by_id = isinstance(checkpoint, Checkpoint)
        id = checkpoint.id if isinstance(checkpoint, Checkpoint) else checked_checkpoint_name(checkpoint)
        name = None if by_id else id
        reached = await self._interpreter._roll_back(self.session_id, self._caller, id=id, name=name)
        self.history.drop_after(reached.id)
        return reached

    async def save(self) -> SavedSession:
        """Save the variables, files, packages and settings in the store of the endpoint, and return what was saved.

        A session with a save is restored when its name is used again after it has ended, also by another program or server with the same
        store. Things that cannot be saved, such as open files and running threads, are named in `lost`. Raise SnapshotError if nothing
        could be saved, and NotSupportedError if the endpoint has no store.
        """
        return await self._interpreter.save(self.session_id)

    async def export(self, path: str | Path) -> SavedSession:
        """Write the session into a file, and return what it has: variables, files, packages, settings and this object's cells.

        The file can be imported at any endpoint: see `SessionPool.import_`. It is replaced whole or not at all. It is not encrypted, and
        has what the session has. Things that cannot be saved are named in `lost`. Raise SnapshotError if the session cannot be exported.
        """
        steps = self.history.steps
        packages = [one for step in steps if isinstance(step, InstallStep) for one in step.requirements]
        notebook = self.to_notebook() if steps else None
        exports = self._interpreter._exports
        return await exports.export(self.session_id, Path(path), self._caller, notebook=notebook, packages=packages)

    async def undo(self) -> Checkpoint:
        """Roll back to the latest checkpoint, remove that checkpoint and return it.

        The next call rolls back to the checkpoint before it.
        """
        checkpoint = await self.rollback()
        await self._interpreter.delete_checkpoint(self.session_id, checkpoint.id)
        return checkpoint

    async def branch(self, count: int = 1, *, reseed: bool = True) -> "list[Branch]":
        """Create and return sessions that continue from the current state of this one.

        Each branch has its own variables and files in /mnt/data, and the same packages. Either all branches are created, or none. The
        session and its branches together have the limits of one session, and they share /tmp. Their cells take turns: while a cell of one
        session runs, the processes of the others are paused.

        Args:
            count: How many branches to create, 1 to 64.
            reseed: Seed the random generators of each branch anew, so that each branch draws different numbers.
        """
        origin = self.session_id.partition(_BRANCH)[0]
        names = [f"{origin}{_BRANCH}{uuid.uuid4()}" for _ in range(checked_count(count))]
        origin_record, positions = await self._interpreter._branch(self.session_id, names, self._caller, reseed=reseed)
        self._interpreter._share_network(self.session_id, names)
        branches = [Branch(self._interpreter, name, on_denied=self._on_denied) for name in names]
        for branch in branches:
            branch.history = self.history.copy()
            branch._caller = CallerPosition.parse(positions[branch.session_id], unreported=self._caller.state_after(origin_record))
        return branches

    async def variables(self) -> list[Variable]:
        """Return at most 500 of the user's variables, sorted by name, without modules."""
        return decode_variables(parse_printed_json(await self._run_snippet("variables")))

    async def complete(self, code: str, cursor: int, *, timeout: float | None = None) -> Completions:
        """Return IPython's completions of the word at a position of a cell.

        Raise ExecutionError if that takes longer than `timeout`. The variables are kept even then: the next cell waits instead.

        Args:
            code: The source text.
            cursor: The position, counted in characters.
            timeout: The time limit in seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                return decode_completions(parse_printed_json(await self._run_snippet("complete", code, cursor)))
        except TimeoutError as error:
            raise ExecutionError(f"there are no completions after {timeout:g} s: try again when the session is idle") from error

    async def inspect(self, code: str, cursor: int, *, detail: int = 0) -> str | None:
        """Return what IPython shows about the name at a position of a cell, or None if the name is unknown.

        Args:
            code: The source text.
            cursor: The position, counted in characters.
            detail: 1 adds the source of the object.
        """
        return decode_inspection(parse_printed_json(await self._run_snippet("inspect", code, cursor, detail)))

    async def health(self, *, timeout: float = 5.0) -> SessionHealth:
        """Return whether the session responds, and if it does, its memory, uptime, threads and processor time.

        A session that does not respond within `timeout` seconds is not `responsive`. Its cells are not interrupted.
        """
        isolation = await self._interpreter.isolation()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(timeout):
                measured = await self._measure()
        except (TimeoutError, ExecutionError, ServiceError):
            return SessionHealth(responsive=False, response_time=time.perf_counter() - started, isolation=isolation)
        seconds = time.perf_counter() - started
        return SessionHealth(responsive=True, response_time=seconds, isolation=isolation, **measured)

    async def _measure(self) -> dict[str, Any]:
        """Return what the session's interpreter knows of its health, as keyword arguments of SessionHealth."""
        return decode_health(parse_printed_json(await self._run_snippet("health")))

    async def execute_command(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | str = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = COMMAND_SECONDS,
        max_output: int = MOST_OUTPUT,
        on_output: OnOutput | None = None,
    ) -> CommandResult:
        """Run a command and return its result. Several commands can run at a time. While a cell runs, a command starts after it.

        At a timeout, or if the call is cancelled, kill the command with the processes that it has started. Processes that it leaves behind
        when it ends continue to run. Raise ExecutionError if the session's interpreter ends meanwhile, which ends the command.

        Args:
            command: Text for the shell, or a program and its arguments.
            stdin: What the command reads from stdin.
            cwd: The folder to run in, relative to /mnt/data. By default it is the working directory of the session's code. Raise PathError
                if it does not exist.
            env: Environment variables, in addition to those of the session.
            timeout: The time limit in seconds, or None for no limit.
            max_output: How many bytes of each stream are kept.
            on_output: Called with `stdout` or `stderr` and a text, as the command writes.
        """
        return await execute_command(
            self, command, stdin=stdin, cwd=cwd, env=env, timeout=timeout, max_output=max_output, on_output=on_output
        )

    async def install(self, *requirements: str, timeout: float = INSTALL_SECONDS) -> CodeExecutionResult:
        """Install packages into the session and return the result. Requirements that are met already are skipped.

        Raise NotSupportedError if no package index can be reached for the session.
        """
        result = await self._install(*requirements, timeout=timeout)
        if result.success:
            self.history.add(InstallStep(requirements))
        return result

    async def _install(self, *requirements: str, timeout: float) -> CodeExecutionResult:
        checked_requirements(requirements)
        if await self._interpreter.supports("packages"):
            return await self._interpreter.install(self.session_id, *requirements, timeout=timeout)
        if not await self.supports("install"):
            raise NotSupportedError(
                "cannot install packages, because this session reaches no package index: use a pool with egress enabled, or packages "
                "that it has"
            )
        return await self._run_snippet("install", *requirements, timeout=timeout)

    async def uninstall(self, *names: str) -> CodeExecutionResult:
        """Uninstall packages that were installed in this session and return the result.

        Modules that were imported stay loaded until the session is reset.
        """
        return await self._interpreter.uninstall(self.session_id, *names)

    async def packages(self) -> list[Package]:
        """Return the packages that were installed in this session, in addition to those of its environment."""
        return await self._interpreter.packages(self.session_id)

    async def install_missing(self, *libraries: str) -> CodeExecutionResult:
        """Install those of the libraries that are missing and return the result.

        If none is missing, no package index is needed.
        """
        checked_requirements(libraries)
        if not await self._interpreter.supports("packages"):
            missing = decode_names(parse_printed_json(await self._run_snippet("print_missing", *libraries)))
            if not missing:
                return CodeExecutionResult(session_id=self.session_id)
        return await self.install(*libraries)

    async def supports(self, capability: str) -> bool:
        """Return whether this session has a capability that not all endpoints offer, given its name, for example `install`.

        To find out about `install`, this may run a cell that tries to reach the package index.
        """
        if capability in _FROM_PLAIN_CODE:
            return True
        if capability != "install" or await self._interpreter.supports("packages"):
            return await self._interpreter.supports("packages" if capability == "install" else capability)
        return parse_printed_json(await self._run_snippet("check_index", _PACKAGE_INDEX)) is True

    def __repr__(self) -> str:
        return "<Session>"  # its name is a secret: it gives access to the session


class Branch(Session):
    """A session that `Session.branch` created from the state of another one. It ends with `close`, or with its `async with` block."""

    async def close(self) -> None:
        """End the branch with its background processes. Do nothing if the branch has ended already. The original session stays."""
        if not self._interpreter.is_closed:
            with contextlib.suppress(NotFoundError):
                await self._interpreter.delete_session(self.session_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class CallerPositions:
    """What one caller knows of each session that it leases again and again, for the 10,000 sessions that it used last.

    Each lease has a new `Session`. With this, its results report what was lost since the caller's last result of any lease.
    """

    def __init__(self) -> None:
        self._positions: OrderedDict[str, CallerPosition] = OrderedDict()

    def continue_in(self, session: Session) -> None:
        """Let `session` report what happened since the position of the caller's earlier object, and share its position from now on."""
        session._caller = self._positions.pop(session.session_id, session._caller)
        self._positions[session.session_id] = session._caller
        if len(self._positions) > _MOST_POSITIONS:
            self._positions.popitem(last=False)

    def forget(self, session_id: str) -> None:
        """Forget a session that the caller has ended, so that its end is not reported as a loss."""
        self._positions.pop(session_id, None)
