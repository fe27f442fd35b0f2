"""A sandbox is the tree, the limits and the files; an interpreter is one live process in it. Files outlive interpreters."""

import asyncio
import sys
from typing import Self

from anyio import to_thread

from ..errors import GuestDiedError
from ..models import State
from ..tasks import Tasks
from .environment import installed
from .files import Files
from .forkserver import ForkServer, Tree
from .interpreter import Interpreter
from .policy import Limits, Policy
from .proxy import Proxy


class Sandbox:
    """One session's isolated place, with an interpreter in it whenever one is asked for."""

    def __init__(self, fork_server: ForkServer, tree: Tree, limits: Limits, proxy: Proxy | None) -> None:
        """Takes over a tree; `Sandboxes.open` makes one."""
        self._fork_server = fork_server
        self._tree = tree
        self._limits = limits
        self._proxy = proxy
        self._interpreter: Interpreter | None = None
        self._loss: State | None = None
        self._closed = False
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self.files = Files(tree)

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

    async def reset(self) -> None:
        """Ends the interpreter and all that its cells left running; the next cell gets a fresh one, and nothing is told as lost."""
        await self._tasks.to_its_end(self._reset())

    async def close(self) -> None:
        """Ends every process and gives the memory back."""
        self._closed = True
        await self._tasks.to_its_end(self._end())

    async def _ensure_interpreter(self) -> Interpreter:
        async with self._turn:
            if self._closed:
                raise GuestDiedError("the session was ended; the next call begins a new one")
            if self._interpreter is not None and not self._interpreter.alive:
                self._loss = self._interpreter.untold_death
                await self._end_interpreter()
            if self._interpreter is None:
                spawned = await to_thread.run_sync(self._fork_server.spawn, self._tree, self._limits)
                self._interpreter = await Interpreter.start(spawned, self._limits, self._proxy)
            return self._interpreter

    async def _reset(self) -> None:
        async with self._turn:
            self._loss = None
            await self._end_interpreter()

    async def _end(self) -> None:
        async with self._turn:
            await self._end_interpreter()
            await to_thread.run_sync(self._fork_server.drop_tree, self._tree)

    async def _end_interpreter(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            await interpreter.close()


class Sandboxes:
    """Opens sandboxes under one policy, on a fork server that lives."""

    def __init__(self, policy: Policy, proxy: Proxy | None = None) -> None:
        """Starts nothing yet. Where the policy names domains, they are reached by the given proxy, or one of our own."""
        self._policy = policy
        self._proxy = proxy or (Proxy(policy.network) if policy.network.kind == "allow" else None)
        self._fork_servers: list[ForkServer] = []
        self._tasks = Tasks()

    @property
    def alive(self) -> bool:
        """Whether the fork server in use lives; a dead one is replaced when the next sandbox is opened."""
        return bool(self._fork_servers) and self._fork_servers[-1].alive

    def environment(self) -> tuple[str, list[tuple[str, str]]]:
        """The guests' Python and the packages that they find. Blocking."""
        return installed(self._policy.python or sys.executable)

    async def start(self) -> None:
        """Begins to start the fork server, which goes on by itself."""
        if not self.alive:
            self._fork_servers.append(await to_thread.run_sync(ForkServer.shared, self._policy))

    async def wait_until_ready(self) -> None:
        """IsolationError where this host does not let it."""
        await to_thread.run_sync(self._fork_servers[-1].wait_until_ready)

    async def open(self) -> Sandbox:
        """A new, empty sandbox."""
        return await self._tasks.to_its_end(self._open())

    async def close(self) -> None:
        """Lets go of the fork server; sandboxes are closed before."""
        await self._tasks.finish()
        for fork_server in self._fork_servers:
            await to_thread.run_sync(fork_server.release)

    async def _open(self) -> Sandbox:
        await self.start()
        fork_server, limits = self._fork_servers[-1], self._policy.limits
        return Sandbox(fork_server, await to_thread.run_sync(fork_server.make_tree, limits), limits, self._proxy)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
