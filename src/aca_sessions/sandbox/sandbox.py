"""A sandbox is the tree, the limits and the files; an interpreter is one live process in it. Files outlive interpreters."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from anyio import to_thread

from ..errors import GuestDiedError
from ..models import CodeExecutionResult, State
from ..tasks import Tasks, made_in_thread
from . import copies
from .cell import retold
from .ends import Spawned, Tree
from .files import Files
from .forkserver import ForkServer
from .interpreter import Interpreter
from .memory import Memory
from .packages import Packages
from .policy import Limits
from .proxy import Proxy
from .session_packages import SessionPackages
from .starting import fork, start
from .timeline import Moment, Timeline


@dataclass(slots=True)
class Kin:
    """How many sandboxes share a memory: one, and its branches."""

    count: int = 0


class Sandbox:
    """One session's isolated place, with an interpreter in it whenever one is asked for."""

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
        """Takes over a tree; `Sandboxes.open` makes one, and `branch` makes one with the same memory."""
        self._all_packages = packages
        self._fork_server = fork_server
        self._tree = tree
        self._limits = limits
        self.memory = memory
        self._proxy = proxy
        self._interpreter: Interpreter | None = None
        self._loss: State | None = None
        self._closed = False
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self._on_close: Callable[[], None] = lambda: None
        self._adopt: Callable[[Sandbox], Sandbox] = lambda branch: branch
        self._kin = kin or Kin()
        self._kin.count += 1
        self.files = Files(tree)
        self.timeline = Timeline(fork_server, tree, self.files, limits)
        self.packages = SessionPackages(packages, self._show)

    @property
    def usable(self) -> bool:
        """Whether it can still have an interpreter; the fork server may have died."""
        return not self._closed and self._fork_server.alive

    @property
    def running(self) -> Interpreter | None:
        """The interpreter there is; asking starts none."""
        return self._interpreter

    async def interpreter(self) -> Interpreter:
        """The live interpreter: the one there is, or a fresh one where it has ended."""
        if self._interpreter is not None and self._interpreter.alive and not (self._turn.locked() or self.timeline.unsettled):
            return self._interpreter
        return await self._tasks.to_its_end(self._ensure_interpreter())

    def take_loss(self) -> State | None:
        """How the last interpreter ended, if that was between two cells; once."""
        loss, self._loss = self._loss, None
        return loss

    def when_closed(self, tell: Callable[[], None], adopt: "Callable[[Sandbox], Sandbox]") -> None:
        """Tells whoever counts it, and has them count its branches."""
        self._on_close, self._adopt = tell, adopt

    async def checkpoint(self, name: str | None = None) -> Moment:
        """Keeps variables and files as they are now; SnapshotError says what is in the way."""
        return await self._tasks.to_its_end(self._take(name))

    async def roll_back(self, id: str | None = None) -> Moment:
        """Goes back to a checkpoint, or to the latest; it stays."""
        moment = await self.timeline.find(id)
        await self._tasks.to_its_end(self._go_back(moment, with_files=True))
        if self.timeline.problem is not None:
            raise self.timeline.problem
        return moment

    async def checkpoints(self) -> list[Moment]:
        """What can be gone back to, the oldest first."""
        await self.timeline.settled()
        return self.timeline.moments

    async def forget(self, id: str) -> None:
        """Lets go of a checkpoint."""
        await self.timeline.drop(await self.timeline.find(id))

    async def recovered(self, result: CodeExecutionResult) -> CodeExecutionResult:
        """A cell's result; one that lost its interpreter goes on from the latest checkpoint, if there is one; files stay as they are."""
        if result.state.kind != "lost" or not self.timeline.moments:
            return result
        await self._tasks.to_its_end(self._go_back(await self.timeline.find(None), with_files=False))
        return retold(result, fallen_back(result.state), "its variables are as at the last checkpoint, its files are kept")

    async def attempt(self, run: Callable[[Interpreter], Awaitable[CodeExecutionResult]]) -> CodeExecutionResult:
        """What became of a cell that is to leave no trace where it fails. SnapshotError, before it runs, where that cannot be promised."""
        moment = await self._tasks.to_its_end(self._take(None, hidden=True))
        result = None
        try:
            result = await run(await self.interpreter())
        finally:
            if result is not None and result.success:
                self.timeline.use_up(moment)
            else:
                await self._tasks.to_its_end(self._go_back(moment, with_files=True))
        if result.success:
            return result
        if self.timeline.problem is not None:
            return retold(result, State("unknown", "files"), str(self.timeline.problem))
        state = State("rolled_back", result.state.reason)
        return replace(retold(result, state, "variables and files are as before this cell"), files=(), processes=())

    async def branch(self, *, reseed: bool = True) -> "Sandbox":
        """Another sandbox with the same variables and files, on a share of the same limits. Their cells take turns."""
        return await self._tasks.to_its_end(self._branch(reseed))

    async def warm_up(self) -> None:
        """Starts the interpreter ahead of its first cell, and has it touch what a cell needs."""
        await (await self.interpreter()).warm_up()

    async def reset(self) -> None:
        """Ends the interpreter and all that its cells left running; the next cell gets a fresh one, and nothing is told as lost."""
        await self._tasks.to_its_end(self._reset())

    async def close(self) -> None:
        """Ends every process and gives the memory back."""
        if not self._closed:
            self._closed = True
            await self._tasks.to_its_end(self._end())

    async def _show(self, paths: Sequence[str], replaced: Sequence[str]) -> CodeExecutionResult:
        return await (await self.interpreter()).extend(paths, replaced)

    async def _show_again(self, interpreter: Interpreter) -> None:
        """What is installed belongs to the session, whichever of its interpreters goes on."""
        if self.packages.ever_changed:
            await interpreter.extend(self.packages.paths)

    async def _take(self, name: str | None, *, hidden: bool = False) -> Moment:
        return await self.timeline.take(await self.interpreter(), name, hidden=hidden)

    async def _go_back(self, moment: Moment, *, with_files: bool) -> None:
        async with self._turn:
            self._loss = None
            self._interpreter = await self.timeline.go_back(moment, self._interpreter, with_files=with_files)
            await self._show_again(self._interpreter)

    async def _branch(self, reseed: bool) -> "Sandbox":
        live = await self.interpreter()
        server, limits = self._fork_server, self._limits
        tree = await made_in_thread(lambda: server.make_tree(limits, user=self._tree.user), server.drop_tree)
        options = {"memory": self.memory, "proxy": self._proxy, "packages": self._all_packages, "kin": self._kin}
        branch = self._adopt(Sandbox(server, tree, limits, **options))  # type: ignore[arg-type]
        try:
            await to_thread.run_sync(lambda: copies.copy(self.files, branch.files, most=limits.checkpoint_files))
            branch.packages.inherit(self.packages)
            branch._interpreter, _ = await fork(live, tree, limits, reseed=reseed)
        except BaseException:
            await branch.close()
            raise
        return branch

    async def _ensure_interpreter(self) -> Interpreter:
        async with self._turn:
            if self._closed:
                raise GuestDiedError("the session was ended; the next call begins a new one")
            await self.timeline.settled()
            if self._interpreter is not None and not self._interpreter.alive:
                self._loss = self._interpreter.untold_death
                await self._replace_dead(self._interpreter)
            if self._interpreter is None:
                spawned = await made_in_thread(lambda: self._fork_server.spawn(self._tree, self._limits), Spawned.close)
                self._interpreter = await start(
                    spawned, self._limits, tree=self._tree.number, memory=self.memory, proxy=self._proxy, show=self._fork_server.show_tree
                )
                await self._show_again(self._interpreter)
            return self._interpreter

    async def _replace_dead(self, dead: Interpreter) -> None:
        """By the latest checkpoint, if there is one; else the next cell gets a fresh interpreter."""
        self._interpreter = None
        if not self.timeline.moments:
            await dead.close()
            return
        self._interpreter = await self.timeline.go_back(await self.timeline.find(None), dead, with_files=False)
        await self._show_again(self._interpreter)
        await self.timeline.settled()
        self._loss = fallen_back(self._loss) if self._loss else None

    async def _reset(self) -> None:
        async with self._turn:
            self._loss = None
            await self.timeline.clear()
            await self._end_interpreter()

    async def _end(self) -> None:
        await self.packages.close()
        async with self._turn:
            await self.timeline.clear()
            await self._end_interpreter()
            await to_thread.run_sync(self.files.close)
            self._kin.count -= 1
            try:
                await to_thread.run_sync(self._fork_server.drop_tree, self._tree)
            finally:
                if self._kin.count == 0:
                    self.memory.remove()
                self._on_close()

    async def _end_interpreter(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            await interpreter.close()


def fallen_back(loss: State) -> State:
    """What a loss has become where there was a checkpoint to go on from."""
    return State("rolled_back", f"{loss.reason}, to the last checkpoint")
