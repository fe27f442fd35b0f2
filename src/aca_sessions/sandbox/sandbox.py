"""A sandbox: the workspace, the limits and the interpreter of one session. The files remain when the interpreter's process ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from anyio import to_thread

from ..durable.chunks import Data
from ..errors import ACASessionsError, GuestDiedError, PartlyRestoredError, SnapshotError
from ..ledger import Ledger
from ..lifetime import Tasks, create_in_thread
from ..models import CodeExecutionResult, RemoteFile, RunningProcess
from ..network.rules import Network, split_host
from .forkserver import ForkServer, limiter
from .limits.memory import MemoryLimit
from .packages.store import Packages, SessionPackages
from .policy import Limits
from .proxy.proxy import Proxy
from .proxy.session_network import SessionNetwork
from .session import copies, saved_state
from .session.cell import CellNotSentError
from .session.checkpoints import Checkpoints, SessionCheckpoint, find_checkpoint
from .session.copies import deleted_open_files, restore
from .session.descriptors import SpawnedSession, Workspace, host_pid, time_at_rest
from .session.files import Files
from .session.interpreter import Interpreter, fork, start
from .session.processes import KillResult
from .session.runtime import SharedRuntime
from .session.saved_state import StateReader

Result = TypeVar("Result")
Run = Callable[[Interpreter], Awaitable[CodeExecutionResult]]

_OWN_HOSTS = ("localhost", "127.0.0.1", "::1")  # addresses of the session itself, unless a rule names this machine by one of them
_SAVED_BELOW = 0.9  # of the memory limit: above, no save runs beside a cell
_UNKNOWN_DELETED_FILES = ("maybe some, this host cannot tell which",)


@dataclass(slots=True)
class MemoryUsers:
    """A count of the sandboxes that share one `MemoryLimit`: a session's own and those of its branches."""

    count: int = 0


class Sandbox:
    """The isolation around one session. Its interpreter is started when it is first needed.

    Its `ledger` records what happens to the session's variables, files and processes. Each entry has a position (its number).
    """

    def __init__(
        self,
        fork_server: ForkServer,
        workspace: Workspace,
        limits: Limits,
        *,
        memory: MemoryLimit,
        proxy: Proxy | None,
        packages: Packages,
        memory_users: "MemoryUsers | None" = None,
    ) -> None:
        """Create a sandbox that owns `workspace`: closing the sandbox removes it.

        Args:
            fork_server: Starts the interpreter.
            workspace: Where the session's files are.
            limits: The limits of the session.
            memory: The limit on its memory. A session and its branches share one.
            proxy: Connects the session to the hosts of its rules. None if its network has no rules.
            packages: The package cache and resolver, with which the session installs packages.
            memory_users: Counts the sandboxes that share `memory`. None makes a new count.
        """
        self._all_packages = packages
        self._fork_server = fork_server
        self._workspace = workspace
        self._limits = limits
        self.memory = memory
        self._proxy = proxy
        self.running: Interpreter | None = None  # the current interpreter
        self.ledger = Ledger()
        self._closed = self._is_workspace_lost = False
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self._on_close: Callable[[], None] = lambda: None
        self._on_branch: Callable[[Sandbox], Sandbox] = lambda branch: branch
        self._memory_users = memory_users or MemoryUsers()
        self._memory_users.count += 1
        self.files = Files(workspace, lambda: min(fork_server.free_file_bytes(workspace, limits), memory.free_file_bytes()))
        self._checkpoints = Checkpoints(fork_server, workspace, self.files, limits)
        self.packages = SessionPackages(packages, self._add_packages)

    @property
    def usable(self) -> bool:
        """Return whether the sandbox can still run an interpreter: it is not closed, and its fork server is alive."""
        server = self._fork_server
        return not (self._closed or server.broken or server.process.poll() is not None)

    @property
    def network(self) -> SessionNetwork | None:
        """Return the network of the session and its branches, or None if it has no proxy."""
        return None if self._proxy is None else self._proxy.network

    def use_network(self, network: SessionNetwork) -> None:
        """Use the rules and counters of a sandbox that this one replaces. Do nothing if this one has no proxy."""
        if self._proxy is not None:
            self._proxy.network = network

    def fits(self, network: Network) -> bool:
        """Return whether this sandbox can have a network. Otherwise, the session needs another sandbox."""
        if self._proxy is None:
            return network.kind == self._fork_server.network
        if not network.is_inspected or not network.is_proxied:
            return network.kind != "host"
        if self._turn.locked():  # its interpreter may already be starting without the authority
            return False
        return self.running is None or self.running.runtime.trusts_authority

    async def interpreter(self) -> Interpreter:
        """Return the live interpreter. If there is none, fork one from the latest checkpoint, or else start a fresh one.

        Raise GuestDiedError if the sandbox is closed.
        """
        if self.running is not None and self.running.alive and not self._turn.locked():
            return self.running
        return await self._tasks.run_shielded(self._ensure_interpreter())

    async def write(self, name: str, chunks: Iterable[bytes], folder: str = "") -> RemoteFile:
        """Write a file into the workspace, and return its description. Create `folder` if it is missing.

        Start the interpreter first if none runs. The session itself allocates the file's memory, so that its memory limit counts it.
        """
        runtime = (await self.interpreter()).runtime
        return await to_thread.run_sync(self.files.write, name, chunks, folder, runtime.allocate)

    def set_callbacks(self, on_close: Callable[[], None], on_branch: "Callable[[Sandbox], Sandbox]") -> None:
        """Set the functions to call when this sandbox is closed and when it gets a branch.

        Args:
            on_close: Called after the sandbox was closed.
            on_branch: Called with each new branch of the sandbox. It must return that branch.
        """
        self._on_close, self._on_branch = on_close, on_branch

    async def checkpoint(self, name: str | None = None, *, id: str | None = None) -> SessionCheckpoint:
        """Save the variables and files as a checkpoint, and return it. If that is impossible, raise SnapshotError with the reason.

        Its id is `id`, or else the next number.
        """
        try:
            return await self._tasks.run_shielded(self._take_checkpoint(name, id=id))
        except CellNotSentError as error:
            raise SnapshotError(
                "cannot take the checkpoint, because the session was reset or its interpreter ended first: take it again"
            ) from error

    async def roll_back(self, id: str | None = None, name: str | None = None) -> tuple[SessionCheckpoint, int]:
        """Roll back to the checkpoint with this id or name, or to the latest one if both are None.

        Return the checkpoint, and the position of the rollback in the ledger. The checkpoint can be used again. Raise SnapshotError if it
        does not exist or cannot be restored.
        """
        return await self._tasks.run_shielded(self._roll_back_to(id, name))

    async def checkpoints(self) -> list[SessionCheckpoint]:
        """Return the checkpoints that users can roll back to, the oldest first. Leave out those that transactional cells make."""
        return self._checkpoints.usable

    async def forget(self, id: str) -> None:
        """Remove the checkpoint with this id. Raise SnapshotError if no such checkpoint exists."""
        await self._checkpoints.drop(find_checkpoint(self._checkpoints.usable[::-1], id, None))

    async def execute(self, run: Run, *, transactional: bool = False) -> CodeExecutionResult:
        """Run a cell by calling `run` with the interpreter, and return its result.

        If `transactional` is true, take a checkpoint before the cell, and roll back to it if the cell fails. Raise SnapshotError if the
        checkpoint cannot be taken. If the interpreter dies in a cell that is not transactional, continue from the latest checkpoint. The
        ledger records rollbacks and deaths.
        """
        if transactional:
            return await self._execute_transactional(run)
        result = await run(await self.interpreter())
        if result.state.variables == "lost":
            await self._tasks.run_shielded(self._replace_dead())
        return result

    async def _execute_transactional(self, run: Run) -> CodeExecutionResult:
        checkpoint = await self._tasks.run_shielded(self._take_checkpoint(None, hidden=True))
        result = None
        try:
            result = await run(await self.interpreter())
        finally:
            if result is None or result.success:  # the cell was not started, or it succeeded
                self._checkpoints.remove_hidden(checkpoint)
        if not result.success:
            undone = await self._tasks.run_shielded(self._undo(checkpoint, result.state.reason))
            result = replace(result, variables=(), files=(), processes=()) if undone else result
        return result

    async def _undo(self, checkpoint: SessionCheckpoint, cause: str | None) -> bool:
        """Roll back to `checkpoint` after a transactional cell failed. Return whether that succeeded.

        If it did not, record that in the ledger. `cause` is why the cell failed, for the ledger's entry about the rollback.
        """
        try:
            if self.ledger.contains("reset", since=checkpoint.position):
                await self._roll_back_files(checkpoint, cause)
            else:
                await self._roll_back(checkpoint, cause, with_files=True)
            return True
        except ACASessionsError:
            if not self._closed:
                # A dead interpreter's entry has recorded the lost variables already.
                variables = "unknown" if self.running is not None and self.running.alive else "kept"
                self.ledger.append("not_undone", cause="not undone", variables=variables, files="unknown")
            return False
        finally:
            self._checkpoints.remove_hidden(checkpoint, is_in_use=checkpoint.interpreter is self.running)

    async def branch(self, *, reseed: bool = True) -> "Sandbox":
        """Return a new sandbox with a copy of the variables and files of this one.

        Both sandboxes share the limits, and their cells take turns. If `reseed` is False, both continue with the same random numbers. Raise
        SnapshotError if copying is impossible.
        """
        return await self._tasks.run_shielded(self._branch(reseed))

    async def save(
        self, receive: "Callable[[StateReader], Awaitable[Result]]", *, timeout: float, on_forked: Callable[[], None] | None = None
    ) -> "Result":
        """Let a fork of the interpreter write the variables, files and settings of the session. Return what `receive` makes of them.

        If `on_forked` is given, call it when cells may run again, although the fork still writes. Raise SnapshotError if saving is
        impossible, or not complete within `timeout` seconds.
        """
        most = int(self._limits.memory * _SAVED_BELOW)
        interpreter, tasks = await self.interpreter(), self._tasks
        return await saved_state.save(interpreter, receive, timeout=timeout, tasks=tasks, on_forked=on_forked, most_memory=most)

    def time_at_rest(self) -> int | None:
        """Return the processor time of the session's only process in nanoseconds, or None if it has other processes or threads.

        While it stays the same, the session is unchanged, except by the host.
        """
        return None if self.running is None else time_at_rest(self.running.runtime.init, self.running.pidfd)

    async def restore(self, chunks: "AsyncIterator[Data]", *, timeout: float) -> dict[str, str]:
        """Restore what `save` received, in a sandbox that has run no cell. Return the names of what is missing, with the reasons.

        Raise SnapshotError if that fails. The sandbox may have a part of the state then, and must be closed.
        """
        return await saved_state.restore(await self.interpreter(), chunks, timeout=timeout)

    async def warm_up(self) -> None:
        """Start the interpreter and make it touch the memory that cells need, so that the first cell is fast."""
        await (await self.interpreter()).warm_up()

    async def reset(self) -> int:
        """End the interpreter and its processes, but keep the files.

        Return the position of the reset in the ledger.
        """
        return await self._tasks.run_shielded(self._reset())

    async def close(self, cause: str = "killed") -> None:
        """End every process and free the memory. Do nothing if closed already.

        The result of a cell that is still running gives `cause` as the reason.
        """
        if not self._closed:
            self._closed = True
            self._leave_ledger()
            await self._tasks.run_shielded(self._end(cause))

    def _leave_ledger(self) -> None:
        """Record nothing more in the session's ledger: it goes on with the session's next sandbox, while a rollback may still run here."""
        self.ledger = Ledger()

    async def fork_server_answers(self) -> bool:
        """Send a request to the fork server, and return whether it is alive. Unlike `usable`, this notices at once if it has died."""
        return await to_thread.run_sync(self._fork_server.ping, limiter=limiter())

    def record_lost_workspace(self) -> None:
        """If the fork server has died, record in the ledger that variables and files are lost, but only once. Do nothing if closed."""
        if not self._fork_server.alive and not self._is_workspace_lost and not self._closed:
            self._is_workspace_lost = True
            self.ledger.append("ended", cause="crash", variables="lost", files="lost", processes="ended")
            self._leave_ledger()

    def _on_death(self, interpreter: Interpreter, cause: str) -> None:
        """Record in the ledger that an interpreter died.

        Do nothing if another interpreter has replaced it, or if the ledger already records that variables and files are lost.
        """
        if interpreter is self.running and not self._closed and not self._is_workspace_lost:
            variables, processes = ("lost", "ended") if interpreter.has_run_cells else ("kept", "kept")
            kind = "killed" if cause in ("killed", "memory") else "died"
            self.ledger.append(kind, cause=cause, variables=variables, processes=processes)

    def _use_interpreter(self, interpreter: Interpreter) -> None:
        self.running = interpreter
        interpreter.on_dead = self._on_death

    def abandon(self) -> None:
        """End every process without waiting. Call this in place of `close` when the sandbox's event loop is closed."""
        self._closed = True
        self._checkpoints.abandon()
        if self.running is not None:
            self.running.abandon()
        self.files.close()
        self._memory_users.count -= 1
        try:
            self._fork_server.drop_workspace(self._workspace)
        finally:
            if self._memory_users.count == 0:
                self.memory.remove()
            self._on_close()

    async def _add_packages(self, paths: Sequence[str], replaced: Sequence[str]) -> CodeExecutionResult:
        return await (await self.interpreter()).extend(paths, replaced)

    async def _add_packages_again(self, interpreter: Interpreter) -> None:
        """Make installed packages importable in a new interpreter. Do nothing if the session never installed any."""
        if self.packages.ever_changed:
            await interpreter.extend(self.packages.paths)

    async def _take_checkpoint(self, name: str | None, *, id: str | None = None, hidden: bool = False) -> SessionCheckpoint:
        live = await self.interpreter()
        position = self.ledger.position  # a death after this does not belong to the checkpoint
        ids = self.ledger.checkpoint_numbers if id is None else iter([id])
        checkpoint = await self._checkpoints.take(live, name, ids, hidden=hidden)
        checkpoint.position = position
        self.ledger.append("checkpoint", checkpoint=None if hidden else checkpoint.id)
        return checkpoint

    async def _roll_back_to(self, id: str | None, name: str | None) -> tuple[SessionCheckpoint, int]:
        checkpoint = find_checkpoint(self._checkpoints.usable[::-1], id, name)
        return checkpoint, await self._roll_back(checkpoint, "rollback", with_files=True)

    async def _roll_back(self, checkpoint: SessionCheckpoint, cause: str | None, *, with_files: bool) -> int:
        async with self._turn:
            return await self._replace_by_checkpoint(checkpoint, cause, with_files=with_files)

    async def _replace_by_checkpoint(self, checkpoint: SessionCheckpoint, cause: str | None, *, with_files: bool) -> int:
        """Replace the live interpreter by one with the variables of a checkpoint. Restore the files too if `with_files` is true.

        Return the position of the new entry in the ledger, which has `cause` as its reason. The live interpreter is paused during the
        replacement. If the replacement fails, that interpreter continues. If files were changed by then, the ledger records this.
        """
        self._check_not_ended()
        target, live = await self._checkpoints.prepare_interpreter(checkpoint), self.running
        runtime = live.runtime if live is not None else target.runtime
        try:
            await self._add_packages_again(target)
            async with runtime.all_stopped(self._workspace.number):
                cut: tuple[str, ...] | None = ()
                if with_files:
                    await self._restore_files(checkpoint, runtime)
                    cut = await to_thread.run_sync(deleted_open_files, host_pid(target.pidfd), self.files) if target.alive else ()
                self._check_not_ended()
                if not target.alive:
                    if with_files:  # they are those of the checkpoint, and the variables are not
                        self.ledger.append("rolled_back", files="rolled_back", to=checkpoint.position)
                    raise SnapshotError("the checkpoint's interpreter died before it could take over: roll back to another checkpoint")
                # No await from here until the entry is written: the old state ends and the new one begins at once.
                self._use_interpreter(target)
                position = self.ledger.append(
                    "rolled_back",
                    cause=cause,
                    variables="rolled_back",
                    files="rolled_back" if with_files else "kept",
                    to=checkpoint.position,
                    checkpoint=None if checkpoint.hidden else checkpoint.id,
                    cut_off=_UNKNOWN_DELETED_FILES if cut is None else cut,
                ).position
                if live is not None:
                    await self._kill(live)
        except BaseException:
            if target not in (checkpoint.interpreter, self.running):
                await target.close()
            raise
        if live is not None:
            await live.close()
        return position

    def _check_not_ended(self) -> None:
        if self._closed or self._is_workspace_lost:
            raise SnapshotError("cannot roll back, because the session was ended meanwhile: the next call starts a new one")

    def _record_killed_processes(self, killed: KillResult) -> None:
        """Record in the ledger whether a kill ended processes, and whether some survived it, which may still change files."""
        if killed.ended:
            self.ledger.append("killed", processes="ended")
        if killed.survivors:
            self.ledger.append("died", cause="processes that cannot be ended", files="unknown", processes="unknown")

    async def _roll_back_files(self, checkpoint: SessionCheckpoint, cause: str | None) -> None:
        """Restore only the files of a checkpoint, after the session was reset during a transactional cell.

        The reset has discarded the variables. `cause` is the reason in the ledger's entry.
        """
        async with self._turn:
            await self._restore_files(checkpoint, checkpoint.interpreter.runtime)
            self._check_not_ended()
            self.ledger.append("rolled_back", cause=cause, files="rolled_back", to=checkpoint.position)

    async def _restore_files(self, checkpoint: SessionCheckpoint, runtime: SharedRuntime) -> None:
        try:
            await to_thread.run_sync(restore, checkpoint.files, self.files, runtime.allocate)
        except PartlyRestoredError:
            self.ledger.append("not_undone", cause="not undone", files="unknown")
            raise

    async def _replace_dead(self) -> None:
        """Replace a dead interpreter by a fork of the latest checkpoint. Do nothing if there is no checkpoint.

        If the fork server has died too, only record in the ledger that variables and files are lost.
        """
        async with self._turn:
            if self._closed or (self.running is not None and self.running.alive):
                return
            if not await self.fork_server_answers():
                self.record_lost_workspace()
                return
            await self._fork_from_checkpoint()

    async def _fork_from_checkpoint(self) -> None:
        """Replace a dead interpreter by a fork of the latest checkpoint that still works, if there is one. Keep the files."""
        died_of = self.running.cause_of_death if self.running is not None else "killed"
        which = "the last"
        for checkpoint in reversed(self._checkpoints.usable):
            with contextlib.suppress(ACASessionsError):
                await self._replace_by_checkpoint(checkpoint, f"{died_of}, to {which} checkpoint", with_files=False)
                return
            which = "an earlier"

    async def _branch(self, reseed: bool) -> "Sandbox":
        live = await self.interpreter()
        server, limits = self._fork_server, self._limits
        workspace = await create_in_thread(
            lambda: server.make_workspace(limits, user=self._workspace.user), server.drop_workspace, limiter()
        )
        # A branch shares the network namespace, and so its proxy's listener, until it is reset.
        options = {"memory": self.memory, "proxy": self._proxy, "packages": self._all_packages, "memory_users": self._memory_users}
        branch = self._on_branch(Sandbox(server, workspace, limits, **options))  # type: ignore[arg-type]
        try:
            most, allocate = limits.checkpoint_files, live.runtime.allocate
            await to_thread.run_sync(lambda: copies.copy(self.files, branch.files, most=most, allocate=allocate))
            branch.packages.inherit(self.packages)
            twin, _ = await fork(live, workspace, limits, reseed=reseed)
            branch._use_interpreter(twin)
        except BaseException:
            await branch.close()
            raise
        return branch

    async def _ensure_interpreter(self) -> Interpreter:
        async with self._turn:
            if self._closed:
                raise GuestDiedError("the session was ended: call again, which starts a new one")
            if self.running is not None and not self.running.alive:
                await self._fork_from_checkpoint()
            if self.running is None or not self.running.alive:
                if self.running is not None:
                    self._record_killed_processes(await self.running.kill())
                    await self.running.close()  # before it is replaced: so its death is recorded, if it was not yet
                self._use_interpreter(await self._start_interpreter())
                self.ledger.append("started")
            assert self.running is not None  # noqa: S101
            return self.running

    async def _start_interpreter(self) -> Interpreter:
        inspected = self._proxy is not None and self._proxy.network.network.is_inspected
        spawned = await create_in_thread(lambda: self._spawn(inspected), SpawnedSession.close, limiter())
        interpreter = await start(
            spawned,
            self._limits,
            workspace=self._workspace.number,
            memory=self.memory,
            proxy=self._proxy,
            mount=self._fork_server.mount_workspace,
        )
        interpreter.runtime.trusts_authority = inspected
        await self._add_packages_again(interpreter)
        return interpreter

    def _spawn(self, inspected: bool) -> SpawnedSession:
        server, network = self._fork_server, self._fork_server.network if self._proxy is None else "allow"
        named = () if self._proxy is None else {split_host(host)[0] for host in self._proxy.network.network.domains}
        no_proxy = ",".join(host for host in _OWN_HOSTS if host not in named)
        authority = server.authority.pem if inspected else ""
        return server.spawn(self._workspace, self._limits, network=network, authority=authority, no_proxy=no_proxy)

    async def _reset(self) -> int:
        async with self._turn:
            live, self.running = self.running, None
            position = self.ledger.append("reset", cause="reset", variables="lost", processes="ended").position
            if live is not None:
                await self._kill(live, "reset")
            await self._checkpoints.clear(include_hidden=False)
            if live is not None:
                await live.close("reset")
            return position

    async def _kill(self, live: Interpreter, cause: str = "killed") -> None:
        """Kill an interpreter that was replaced, and record in the ledger whether its processes ended.

        If `cause` is `reset`, record only processes that survived: the ledger's entry about the reset covers those that ended.
        """
        try:
            killed = await live.kill(cause)
        except ACASessionsError:  # no descriptor is left to look at them
            killed = KillResult(survivors=(RunningProcess(0, "unknown"),))
        self._record_killed_processes(KillResult(survivors=killed.survivors) if cause == "reset" else killed)

    async def _end(self, cause: str) -> None:
        if self.running is not None:  # an installation may wait for the end of its cell
            await self._kill(self.running, cause)
        await self.packages.close()
        async with self._turn:
            await self._checkpoints.clear()
            await self._end_interpreter(cause)
            await to_thread.run_sync(self.files.close)
            self._memory_users.count -= 1
            try:
                await to_thread.run_sync(self._fork_server.drop_workspace, self._workspace, limiter=limiter())
            finally:
                if self._memory_users.count == 0:
                    self.memory.remove()
                self._on_close()

    async def _end_interpreter(self, cause: str) -> None:
        interpreter, self.running = self.running, None
        if interpreter is not None:
            await interpreter.close(cause)
