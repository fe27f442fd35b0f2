"""A sandbox is the tree, the limits and the files; an interpreter is one live process in it. Files outlive interpreters."""

import asyncio
from collections.abc import Callable, Sequence

from anyio import to_thread

from ..errors import GuestDiedError
from ..models import CodeExecutionResult, State
from ..tasks import Tasks, made_in_thread
from .ends import Spawned, Tree
from .files import Files
from .forkserver import ForkServer
from .interpreter import Interpreter
from .memory import Memory
from .packages import Packages
from .policy import Limits
from .proxy import Proxy
from .session_packages import SessionPackages


class Sandbox:
    """One session's isolated place, with an interpreter in it whenever one is asked for."""

    def __init__(
        self, fork_server: ForkServer, tree: Tree, limits: Limits, *, memory: Memory, proxy: Proxy | None, packages: Packages
    ) -> None:
        """Takes over a tree; `Sandboxes.open` makes one."""
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
        self.files = Files(tree)
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
        if self._interpreter is not None and self._interpreter.alive and not self._turn.locked():
            return self._interpreter
        return await self._tasks.to_its_end(self._ensure_interpreter())

    def take_loss(self) -> State | None:
        """How the last interpreter ended, if that was between two cells; once."""
        loss, self._loss = self._loss, None
        return loss

    def when_closed(self, tell: Callable[[], None]) -> None:
        """Tells whoever counts it."""
        self._on_close = tell

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

    async def _ensure_interpreter(self) -> Interpreter:
        async with self._turn:
            if self._closed:
                raise GuestDiedError("the session was ended; the next call begins a new one")
            if self._interpreter is not None and not self._interpreter.alive:
                self._loss = self._interpreter.untold_death
                await self._end_interpreter()
            if self._interpreter is None:
                spawned = await made_in_thread(lambda: self._fork_server.spawn(self._tree, self._limits), Spawned.close)
                self._interpreter = await Interpreter.start(spawned, self._limits, memory=self.memory, proxy=self._proxy)
                if self.packages.paths:
                    await self._interpreter.extend(self.packages.paths)
            return self._interpreter

    async def _reset(self) -> None:
        async with self._turn:
            self._loss = None
            await self._end_interpreter()

    async def _end(self) -> None:
        await self.packages.close()
        async with self._turn:
            await self._end_interpreter()
            await to_thread.run_sync(self.files.close)
            try:
                await to_thread.run_sync(self._fork_server.drop_place, (self._tree, self.memory))
            finally:
                self._on_close()

    async def _end_interpreter(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            await interpreter.close()
