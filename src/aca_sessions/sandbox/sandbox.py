"""A sandbox is the tree, the limits and the files; an interpreter is one live process in it. Files outlive interpreters."""

import asyncio
from typing import Self

from anyio import to_thread

from ..errors import GuestDiedError
from ..models import State
from .files import Files
from .forkserver import ForkServer, Tree
from .interpreter import Interpreter
from .policy import Limits


class Sandbox:
    """One session's isolated place, with an interpreter in it whenever one is asked for."""

    def __init__(self, fork_server: ForkServer, tree: Tree, limits: Limits) -> None:
        """Takes over a tree; `open` makes one."""
        self._fork_server = fork_server
        self._tree = tree
        self._limits = limits
        self._interpreter: Interpreter | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._loss: State | None = None
        self.files = Files(tree)

    @classmethod
    async def open(cls, fork_server: ForkServer, limits: Limits) -> Self:
        """A new, empty sandbox."""
        return cls(fork_server, await to_thread.run_sync(fork_server.make_tree, limits), limits)

    async def interpreter(self) -> Interpreter:
        """The live interpreter: the one there is, or a fresh one where it has ended."""
        async with self._starting:
            if self._closed:
                raise GuestDiedError("the session was ended; the next call begins a new one")
            if self._interpreter is not None and not self._interpreter.alive:
                self._loss = self._interpreter.untold_death
                await self._end_interpreter()
            if self._interpreter is None:
                spawned = await to_thread.run_sync(self._fork_server.spawn, self._tree, self._limits)
                self._interpreter = await Interpreter.start(spawned, self._limits)
            return self._interpreter

    def take_loss(self) -> State | None:
        """How the last interpreter ended, if that was between two cells; once."""
        loss, self._loss = self._loss, None
        return loss

    async def reset(self) -> None:
        """Ends the interpreter and every process it left; files stay."""
        async with self._starting:
            await self._end_interpreter()

    async def close(self) -> None:
        """Ends everything and gives the memory back."""
        self._closed = True
        await self.reset()
        await to_thread.run_sync(self._fork_server.drop_tree, self._tree)

    async def _end_interpreter(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            await interpreter.close()
