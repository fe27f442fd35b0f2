"""The source of sandboxes under one policy. They come from a light fork server at first, and later from one with the heavy libraries.

The light one serves at once. A few sandboxes are made ahead of their use.
"""

import asyncio
import contextlib
import logging
import sys
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Self

from anyio import to_thread

from ..errors import ACASessionsError, GuestDiedError
from ..tasks import Tasks, in_thread, made_in_thread
from . import environment, images
from .forkserver import ForkServer, limiter
from .image_python import ASK, ImagePython
from .packages import Packages
from .policy import Policy
from .proxy import Proxy
from .sandbox import Sandbox

_PATIENCE_FOR_HEAVY = 1.0  # seconds; a program that only runs a cell or two neither waits nor pays for it
_REFILL_AFTER = 0.1  # seconds; a first cell goes before the next spare
_REFILL_PACE = 0.02
_SECONDS_TO_TELL = 30.0
_TRIES = 3
_logger = logging.getLogger("aca_sessions")


class Generation:
    """A fork server and the sandboxes that came from it. Once it is superseded, the fork server is released with the last of them."""

    def __init__(self, fork_server: ForkServer) -> None:
        """Take over one use of the shared fork server."""
        self.fork_server = fork_server
        self._sandboxes: set[Sandbox] = set()
        self._superseded = self._released = False
        self._tasks = Tasks()

    def adopt(self, sandbox: Sandbox) -> Sandbox:
        """Keep a sandbox, and later its branches, until it is closed. Return the sandbox."""
        self._sandboxes.add(sandbox)
        sandbox.when_closed(partial(self._lose, sandbox), self.adopt)
        return sandbox

    def supersede(self) -> None:
        """Release the fork server when its last sandbox is closed: no further one comes from it."""
        self._superseded = True
        self._release_if_done()

    def retire(self) -> None:
        """Have the fork server end with its sandboxes, unless another user shares it."""
        if not self._released:
            self.fork_server.retire()

    async def finish(self) -> None:
        """Wait until a release that has begun is done."""
        await self._tasks.finish()

    def abandon(self) -> None:
        """End all processes at once, without the event loop that they belong to."""
        released, self._released = self._released, True
        for sandbox in [*self._sandboxes]:
            sandbox.abandon()
        if not released:
            self.fork_server.release()

    def _lose(self, sandbox: Sandbox) -> None:
        self._sandboxes.discard(sandbox)
        self._release_if_done()

    def _release_if_done(self) -> None:
        if self._superseded and not self._sandboxes and not self._released:
            self._released = True
            self._tasks.start(to_thread.run_sync(self.fork_server.release, limiter=limiter()))


class Sandboxes:
    """The source of sandboxes. It replaces a fork server that has died."""

    def __init__(self, policy: Policy, proxy: Proxy | None = None) -> None:
        """Prepare without starting anything. If the policy names domains, sessions reach them by `proxy`, or by one that is made here."""
        self.policy = policy
        self._proxy = proxy or (Proxy(policy.network) if policy.network.kind == "allow" else None)
        self._packages = Packages(policy, self._image_python if policy.image is not None else None)
        self._told: ImagePython | None = None
        self._generations: list[Generation] = []
        self._spares: deque[Sandbox] = deque()
        self._tasks = Tasks()
        self._background = Tasks()
        self._starting = Tasks()
        self._preloading: asyncio.Task[None] | None = None
        self._coming: ForkServer | None = None
        self._refilling = False
        self._closed = False

    @property
    def alive(self) -> bool:
        """Return whether the fork server in use is alive. A dead one is replaced when the next sandbox is opened."""
        return bool(self._generations) and self._generations[-1].fork_server.alive

    async def environment(self) -> tuple[str, list[tuple[str, str]]]:
        """Return the version of the guests' Python, and the names and versions of the packages that it finds."""
        if self.policy.image is not None:
            told = await self._image_python()
            return told.version, [*told.packages.items()]
        found = await in_thread(environment.survey, self.policy.python or sys.executable)
        return found.version, found.packages

    async def start(self) -> None:
        """Start a fork server if none is alive, without waiting until it is ready. An image may have to be unpacked first."""
        if self.alive:
            return
        if self.policy.image is not None:
            self.policy = replace(self.policy, image=await to_thread.run_sync(images.root_of, self.policy.image))
        fork_server = await _shared_fork_server(replace(self.policy, preload=self.policy.preload or ()))
        if self.alive:  # another one began meanwhile
            await self._tasks.to_its_end(to_thread.run_sync(fork_server.release, limiter=limiter()))
            return
        self._begin(fork_server)
        if self.policy.preload is None and (self._preloading is None or self._preloading.done()):
            self._preloading = self._background.start(self._begin_heavy())

    async def wait_until_ready(self) -> None:
        """Wait until sandboxes can be opened. Raise IsolationError if this host does not allow it."""
        while True:
            latest = self._generations[-1]
            try:
                return await to_thread.run_sync(latest.fork_server.wait_until_ready, limiter=limiter())
            except GuestDiedError:
                if latest is self._generations[-1]:  # otherwise a newer one replaced this one before it was ready
                    raise

    async def open(self) -> Sandbox:
        """Return a new, empty sandbox: a spare one, or one that is forked now. Replace a fork server that turns out to be dead."""
        for _ in range(_TRIES - 1):
            try:
                return await self._open()
            except GuestDiedError:
                if await to_thread.run_sync(self._generations[-1].fork_server.answers, limiter=limiter()):
                    raise
        return await self._open()

    async def _open(self) -> Sandbox:
        await self.start()
        self._refill()
        while self._spares:
            sandbox = self._spares.popleft()
            if sandbox.usable and sandbox.running is not None and sandbox.running.alive:
                return sandbox
            await self._tasks.to_its_end(sandbox.close())
        forking = self._tasks.own(self._fork())
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:  # it is forked anyway, and no caller would close it
            self._tasks.start(_close_when_forked(forking))
            raise

    def retire(self) -> None:
        """Prepare for the end of all sandboxes, which are closed one by one: their fork servers end with them."""
        for generation in self._generations:
            generation.retire()

    async def close(self) -> None:
        """Release the fork servers. All sandboxes must be closed before."""
        self._closed = True
        await self._background.cancel()
        await self._starting.finish()
        if self._coming is not None:  # first of all: a task may still wait for it to be ready
            await to_thread.run_sync(self._coming.release, limiter=limiter())
        await self._discard_spares()
        await self._tasks.finish()
        for generation in self._generations:
            generation.supersede()
            await generation.finish()

    def abandon(self) -> None:
        """End all processes at once, for use when the event loop that opened them is closed: `close` would wait forever then."""
        self._closed = True
        if self._coming is not None:
            self._coming.release()
        for generation in self._generations:
            generation.abandon()

    def _begin(self, fork_server: ForkServer) -> None:
        """Make new sandboxes come from this fork server."""
        for earlier in self._generations:
            earlier.supersede()
        self._generations.append(Generation(fork_server))

    async def _begin_heavy(self) -> None:
        """Start a fork server with the usual libraries imported, and switch to it once it is ready. Until then, the current one serves."""
        await asyncio.sleep(_PATIENCE_FOR_HEAVY)
        modules = await self._worth_preloading()
        if not modules:
            return
        for is_last_try in (False, True):
            try:
                heavy = await self._ready_heavy(modules)
                break
            except ACASessionsError as error:
                if is_last_try or not isinstance(error, GuestDiedError):  # one that died may have lacked memory for a moment
                    _logger.warning("sessions start without preloaded libraries: %s", type(error).__name__)
                    return
        self._coming = None
        self._begin(heavy)
        self._tasks.start(self._discard_spares())  # not awaited: if this one dies, `start` must find this task done

    async def _ready_heavy(self, modules: tuple[str, ...]) -> ForkServer:
        """Start a fork server that preloads modules, and return it once it is ready. Release it if it fails."""
        heavy = await self._starting.to_its_end(self._start_heavy(modules))
        try:
            await self._tasks.to_its_end(to_thread.run_sync(heavy.wait_until_ready, limiter=limiter()))
        except ACASessionsError:
            self._coming = None
            self._tasks.start(to_thread.run_sync(heavy.release, limiter=limiter()))
            raise
        return heavy

    async def _worth_preloading(self) -> tuple[str, ...]:
        if self.policy.image is None:
            return await in_thread(environment.worth_preloading, self.policy.python or sys.executable)
        return (await self._image_python()).heavy

    async def _image_python(self) -> ImagePython:
        """Return what the image's Python reports about itself. It is asked in a session, since nothing of an image runs anywhere else."""
        if self._told is None:
            sandbox = await self.open()
            try:
                interpreter = await sandbox.interpreter()
                self._told = ImagePython.told((await interpreter.run("environment", ASK, _SECONDS_TO_TELL)).stdout)
            finally:
                await self._tasks.to_its_end(sandbox.close())
        return self._told

    async def _start_heavy(self, modules: tuple[str, ...]) -> ForkServer:
        self._coming = await _shared_fork_server(replace(self.policy, preload=modules))
        return self._coming

    async def _fork(self) -> Sandbox:
        generation, limits = self._generations[-1], self.policy.limits
        server = generation.fork_server
        tree, memory = await made_in_thread(lambda: server.make_place(limits), server.drop_place, limiter())
        return generation.adopt(Sandbox(server, tree, limits, memory=memory, proxy=self._proxy, packages=self._packages))

    def _refill(self) -> None:
        if self.policy.spares and not self._refilling and not self._closed:
            self._refilling = True
            self._background.start(self._make_spares())

    async def _make_spares(self) -> None:
        try:
            await asyncio.sleep(_REFILL_AFTER)
            while len(self._spares) < self.policy.spares and self.alive:
                await self._tasks.to_its_end(self._add_spare())
                await asyncio.sleep(_REFILL_PACE)
        except ACASessionsError as error:
            _logger.info("no session is kept ready: %s", type(error).__name__)
        finally:
            self._refilling = False

    async def _add_spare(self) -> None:
        """Make a sandbox and add it to the spares."""
        generation = self._generations[-1]
        sandbox = await self._fork()
        try:
            await sandbox.warm_up()
        except BaseException:
            await sandbox.close()
            raise
        if self._closed or generation is not self._generations[-1]:
            await sandbox.close()
        else:
            self._spares.append(sandbox)  # here and not in the caller: it may be cancelled by now, and nothing would close the sandbox

    async def _discard_spares(self) -> None:
        while self._spares:
            await self._spares.popleft().close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _close_when_forked(forking: "asyncio.Task[Sandbox]") -> None:
    with contextlib.suppress(ACASessionsError):
        await (await forking).close()


async def _shared_fork_server(policy: Policy) -> ForkServer:
    return await made_in_thread(lambda: ForkServer.shared(policy), ForkServer.release, limiter())
