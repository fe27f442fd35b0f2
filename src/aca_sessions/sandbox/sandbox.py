"""A sandbox: the workspace, the limits and the files of one session. An interpreter is a live process in it; files outlive interpreters."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from anyio import to_thread

from ..errors import ACASessionsError, GuestDiedError, PartlyRestoredError, SnapshotError
from ..ledger import Ledger
from ..models import CodeExecutionResult, RemoteFile, RunningProcess
from ..tasks import Tasks, made_in_thread
from . import copies
from .cell import CellNotSentError
from .ends import Spawned, Tree, host_pid
from .files import Files
from .forkserver import ForkServer, limiter
from .home import Home
from .interpreter import Interpreter
from .memory import Memory
from .packages import Packages
from .policy import Limits
from .processes import Ended
from .proxy import Proxy
from .restore import cut_off, restore
from .session_packages import SessionPackages
from .starting import fork, start
from .timeline import Moment, Timeline

Run = Callable[[Interpreter], Awaitable[CodeExecutionResult]]

_UNKNOWN_CUT_OFF = ("maybe some, this host cannot tell which",)


@dataclass(slots=True)
class Kin:
    """The number of sandboxes that share a memory: a session and its branches."""

    count: int = 0


class Sandbox:
    """The isolation around one session. It starts an interpreter when one is asked for."""

    def __init__(
        self,
        fork_server: ForkServer,
        tree: Tree,
        limits: Limits,
        *,
        memory: Memory,
        proxy: Proxy | None,
        packages: Packages,
        kin: "Kin | None" = None,
    ) -> None:
        """Take over a workspace. `Sandboxes.open` makes one, and `branch` makes one that shares the memory."""
        self._all_packages = packages
        self._fork_server = fork_server
        self._tree = tree
        self._limits = limits
        self.memory = memory
        self._proxy = proxy
        self._interpreter: Interpreter | None = None
        self.ledger = Ledger()
        self._closed = self._is_workspace_lost = False
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self._on_close: Callable[[], None] = lambda: None
        self._adopt: Callable[[Sandbox], Sandbox] = lambda branch: branch
        self._kin = kin or Kin()
        self._kin.count += 1
        self.files = Files(tree, lambda: min(fork_server.room_for(tree, limits), memory.room()))
        self.timeline = Timeline(fork_server, tree, self.files, limits)
        self.packages = SessionPackages(packages, self._show)

    @property
    def usable(self) -> bool:
        """Return whether the sandbox can still have an interpreter. It cannot once it is closed or its fork server has died."""
        return not self._closed and self._fork_server.alive

    @property
    def running(self) -> Interpreter | None:
        """Return the current interpreter, or None. This never starts one."""
        return self._interpreter

    async def interpreter(self) -> Interpreter:
        """Return the live interpreter. If it has ended, continue from the latest checkpoint, or start a fresh one."""
        if self._interpreter is not None and self._interpreter.alive and not self._turn.locked():
            return self._interpreter
        return await self._tasks.to_its_end(self._ensure_interpreter())

    async def write(self, name: str, chunks: Iterable[bytes], folder: str = "") -> RemoteFile:
        """Write a file into the workspace.

        Start the interpreter first if it does not run: its control group is charged for the file's memory.
        """
        home = (await self.interpreter()).home
        return await to_thread.run_sync(self.files.write, name, chunks, folder, home.allocate)

    def when_closed(self, tell: Callable[[], None], adopt: "Callable[[Sandbox], Sandbox]") -> None:
        """Call `tell` once the sandbox is closed, and `adopt` with each of its branches."""
        self._on_close, self._adopt = tell, adopt

    async def checkpoint(self, name: str | None = None) -> Moment:
        """Make a checkpoint of the variables and files. Raise SnapshotError with the reason if that is impossible."""
        try:
            return await self._tasks.to_its_end(self._take(name))
        except CellNotSentError as error:
            raise SnapshotError("the session was reset, or its interpreter ended, before the checkpoint: take it again") from error

    async def roll_back(self, id: str | None = None, name: str | None = None) -> tuple[Moment, int]:
        """Return to a checkpoint, by its id or name, or else to the latest. It stays. Return it, and the position of the ledger's entry."""
        return await self._tasks.to_its_end(self._roll_back_to(id, name))

    async def checkpoints(self) -> list[Moment]:
        """Return the checkpoints, the oldest first."""
        return self.timeline.moments

    async def forget(self, id: str) -> None:
        """Remove a checkpoint. Raise SnapshotError if it does not exist."""
        await self.timeline.drop(self.timeline.find(id))

    async def execute(self, run: Run, *, transactional: bool = False) -> CodeExecutionResult:
        """Run a cell with the function `run`, and return its result. The ledger records what happens to the session meanwhile.

        If a transactional cell fails, its changes are undone. Raise SnapshotError before it runs if that cannot be promised. If any other
        cell loses its interpreter, the session continues from the latest checkpoint.
        """
        if transactional:
            return await self._attempt(run)
        result = await run(await self.interpreter())
        if result.state.kind == "lost":
            await self._tasks.to_its_end(self._after_death())
        return result

    async def _attempt(self, run: Run) -> CodeExecutionResult:
        moment = await self._tasks.to_its_end(self._take(None, hidden=True))
        result = None
        try:
            result = await run(await self.interpreter())
        finally:
            if result is None or result.success:  # the cell was not started, or it succeeded
                self.timeline.use_up(moment)
        if not result.success:
            undone = await self._tasks.to_its_end(self._undo(moment, result.state.reason))
            result = replace(result, variables=(), files=(), processes=()) if undone else result
        return result

    async def _undo(self, moment: Moment, cause: str | None) -> bool:
        """Undo a transactional cell that failed, and return whether that worked. Record in the ledger if it did not."""
        try:
            if self.ledger.contains("reset", since=moment.position):
                await self._roll_back_files(moment, cause)
            else:
                await self._roll_back(moment, cause, with_files=True)
            return True
        except ACASessionsError:
            if not self._closed:
                # A dead interpreter's entry has recorded the lost variables already.
                variables = "unknown" if self._interpreter is not None and self._interpreter.alive else "kept"
                self.ledger.append("not_undone", cause="not undone", variables=variables, files="unknown")
            return False
        finally:
            self.timeline.use_up(moment, returned_to=moment.interpreter is self._interpreter)

    async def branch(self, *, reseed: bool = True) -> "Sandbox":
        """Return another sandbox with the same variables and files, which shares the limits. The cells of both take turns.

        `reseed` seeds the random numbers of the branch anew. Otherwise it draws the same ones.
        """
        return await self._tasks.to_its_end(self._branch(reseed))

    async def warm_up(self) -> None:
        """Start the interpreter before its first cell, and make it touch the memory that a cell needs."""
        await (await self.interpreter()).warm_up()

    async def reset(self) -> int:
        """End the interpreter and all that its cells left running. Return the position of the ledger's entry.

        The next cell gets a fresh interpreter.
        """
        return await self._tasks.to_its_end(self._reset())

    async def close(self, cause: str = "killed") -> None:
        """End every process and free the memory. `cause` is recorded as the reason why the interpreter ended."""
        if not self._closed:
            self._closed = True
            await self._tasks.to_its_end(self._end(cause))

    async def fork_server_answers(self) -> bool:
        """Return whether the fork server still answers. This notices its death before its process has ended."""
        return await to_thread.run_sync(self._fork_server.answers, limiter=limiter())

    def note_lost_workspace(self) -> None:
        """Record, once, that the fork server has died, and with it the session's variables and files."""
        if not self._fork_server.alive and not self._is_workspace_lost and not self._closed:
            self._is_workspace_lost = True
            self.ledger.append("ended", cause="crash", variables="lost", files="lost", processes="ended")

    def _on_death(self, interpreter: Interpreter, cause: str) -> None:
        """Record the death of the live interpreter. One that was replaced, or lost with its workspace, has its entry already."""
        if interpreter is self._interpreter and not self._closed and not self._is_workspace_lost:
            variables, processes = ("lost", "ended") if interpreter.has_run_cells else ("kept", "kept")
            kind = "killed" if cause in ("killed", "memory") else "died"
            self.ledger.append(kind, cause=cause, variables=variables, processes=processes)

    def _go_on_with(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        interpreter.when_dead = self._on_death

    def abandon(self) -> None:
        """End every process at once, for use when the sandbox's event loop is closed."""
        self._closed = True
        self.timeline.abandon()
        if self._interpreter is not None:
            self._interpreter.abandon()
        self.files.close()
        self._kin.count -= 1
        try:
            self._fork_server.drop_tree(self._tree)
        finally:
            if self._kin.count == 0:
                self.memory.remove()
            self._on_close()

    async def _show(self, paths: Sequence[str], replaced: Sequence[str]) -> CodeExecutionResult:
        return await (await self.interpreter()).extend(paths, replaced)

    async def _show_again(self, interpreter: Interpreter) -> None:
        """Make installed packages importable in an interpreter that takes over."""
        if self.packages.ever_changed:
            await interpreter.extend(self.packages.paths)

    async def _take(self, name: str | None, *, hidden: bool = False) -> Moment:
        live = await self.interpreter()
        position = self.ledger.position  # a death after this does not belong to the checkpoint
        moment = await self.timeline.take(live, name, self.ledger.checkpoint_numbers, hidden=hidden)
        moment.position = position
        self.ledger.append("checkpoint", checkpoint=None if hidden else moment.id)
        return moment

    async def _roll_back_to(self, id: str | None, name: str | None) -> tuple[Moment, int]:
        moment = self.timeline.find(id, name)
        return moment, await self._roll_back(moment, "rollback", with_files=True)

    async def _roll_back(self, moment: Moment, cause: str | None, *, with_files: bool) -> int:
        async with self._turn:
            return await self._return_to(moment, cause, with_files=with_files)

    async def _return_to(self, moment: Moment, cause: str | None, *, with_files: bool) -> int:
        """Make a checkpoint the session's state, and return the position of the ledger's entry.

        What can fail is done first, while the live interpreter stands still. If something fails, the live interpreter continues. If files
        were changed by then, an entry records it.
        """
        if self._closed:
            raise SnapshotError("the session was ended meanwhile: the next call begins a new one")
        target, live = await self.timeline.prepare(moment), self._interpreter
        home = live.home if live is not None else target.home
        try:
            await self._show_again(target)
            async with home.standstill(self._tree.number):
                cut: tuple[str, ...] | None = ()
                if with_files:
                    await self._restore_files(moment, home)
                    cut = await to_thread.run_sync(cut_off, host_pid(target.pidfd), self.files) if target.alive else ()
                if not target.alive:
                    self._note_mixed(moment, with_files)
                    raise SnapshotError("the checkpoint's interpreter died before it could take over: roll back to another checkpoint")
                # No await from here until the entry is written: the old state ends and the new one begins at once.
                self._go_on_with(target)
                position = self.ledger.append(
                    "rolled_back",
                    cause=cause,
                    variables="rolled_back",
                    files="rolled_back" if with_files else "kept",
                    to=moment.position,
                    checkpoint=None if moment.hidden else moment.id,
                    cut_off=_UNKNOWN_CUT_OFF if cut is None else cut,
                ).position
                if live is not None:
                    await self._kill(live)
        except BaseException:
            if target not in (moment.interpreter, self._interpreter):
                await target.close()
            raise
        if live is not None:
            await live.close()
        return position

    def _note_processes(self, killed: Ended) -> None:
        """Record that processes were ended, and that some are still alive although they were killed: those may change files."""
        if killed.ended:
            self.ledger.append("killed", processes="ended")
        if killed.left:
            self.ledger.append("died", cause="processes that cannot be ended", files="unknown", processes="unknown")

    def _note_mixed(self, moment: Moment, with_files: bool) -> None:
        """Record that the files are those of the checkpoint, but the variables are not."""
        if with_files:
            self.ledger.append("rolled_back", files="rolled_back", to=moment.position)

    async def _roll_back_files(self, moment: Moment, cause: str | None) -> None:
        """Restore only the files, after a reset during a transactional cell: the reset asked for the loss of the variables."""
        async with self._turn:
            await self._restore_files(moment, moment.interpreter.home)
            self.ledger.append("rolled_back", cause=cause, files="rolled_back", to=moment.position)

    async def _restore_files(self, moment: Moment, home: Home) -> None:
        try:
            await to_thread.run_sync(restore, moment.files, self.files, home.allocate)
        except PartlyRestoredError:
            self.ledger.append("not_undone", cause="not undone", files="unknown")
            raise

    async def _after_death(self) -> None:
        """Continue from the latest checkpoint, if there is one. If the fork server died as well, record the loss of the workspace."""
        async with self._turn:
            if self._closed or (self._interpreter is not None and self._interpreter.alive):
                return
            if not await self.fork_server_answers():
                self.note_lost_workspace()
                return
            await self._fall_back()

    async def _fall_back(self) -> None:
        """Replace a dead interpreter by a fork of the latest checkpoint that answers. Do nothing if none does."""
        died_of = self._interpreter.cause_of_death if self._interpreter is not None else "killed"
        which = "the last"
        for moment in reversed(self.timeline.moments):
            with contextlib.suppress(ACASessionsError):
                await self._return_to(moment, f"{died_of}, to {which} checkpoint", with_files=False)
                return
            which = "an earlier"

    async def _branch(self, reseed: bool) -> "Sandbox":
        live = await self.interpreter()
        server, limits = self._fork_server, self._limits
        tree = await made_in_thread(lambda: server.make_tree(limits, user=self._tree.user), server.drop_tree, limiter())
        options = {"memory": self.memory, "proxy": self._proxy, "packages": self._all_packages, "kin": self._kin}
        branch = self._adopt(Sandbox(server, tree, limits, **options))  # type: ignore[arg-type]
        try:
            most, allocate = limits.checkpoint_files, live.home.allocate
            await to_thread.run_sync(lambda: copies.copy(self.files, branch.files, most=most, allocate=allocate))
            branch.packages.inherit(self.packages)
            twin, _ = await fork(live, tree, limits, reseed=reseed)
            branch._go_on_with(twin)
        except BaseException:
            await branch.close()
            raise
        return branch

    async def _ensure_interpreter(self) -> Interpreter:
        async with self._turn:
            if self._closed:
                raise GuestDiedError("the session was ended; the next call begins a new one")
            if self._interpreter is not None and not self._interpreter.alive:
                await self._fall_back()
            if self._interpreter is None or not self._interpreter.alive:
                if self._interpreter is not None:
                    self._note_processes(await self._interpreter.kill())
                    await self._interpreter.close()  # before it is replaced: so its death is recorded, if it was not yet
                self._go_on_with(await self._start_interpreter())
                self.ledger.append("started")
            assert self._interpreter is not None  # noqa: S101
            return self._interpreter

    async def _start_interpreter(self) -> Interpreter:
        spawned = await made_in_thread(lambda: self._fork_server.spawn(self._tree, self._limits), Spawned.close, limiter())
        interpreter = await start(
            spawned, self._limits, tree=self._tree.number, memory=self.memory, proxy=self._proxy, show=self._fork_server.show_tree
        )
        await self._show_again(interpreter)
        return interpreter

    async def _reset(self) -> int:
        async with self._turn:
            live, self._interpreter = self._interpreter, None
            position = self.ledger.append("reset", cause="reset", variables="lost", processes="ended").position
            if live is not None:
                await self._kill(live, "reset")
            await self.timeline.clear(hidden=False)
            if live is not None:
                await live.close("reset")
            return position

    async def _kill(self, live: Interpreter, cause: str = "killed") -> None:
        """Kill an interpreter that was replaced, and record what happened to its processes.

        A reset is meant to end them. So after a reset, only those that are still alive are recorded.
        """
        try:
            killed = await live.kill(cause)
        except ACASessionsError:  # no descriptor is left to look at them
            killed = Ended(left=(RunningProcess(0, "unknown"),))
        self._note_processes(Ended(left=killed.left) if cause == "reset" else killed)

    async def _end(self, cause: str) -> None:
        await self.packages.close()
        async with self._turn:
            await self.timeline.clear()
            await self._end_interpreter(cause)
            await to_thread.run_sync(self.files.close)
            self._kin.count -= 1
            try:
                await to_thread.run_sync(self._fork_server.drop_tree, self._tree, limiter=limiter())
            finally:
                if self._kin.count == 0:
                    self.memory.remove()
                self._on_close()

    async def _end_interpreter(self, cause: str) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            await interpreter.close(cause)
