"""Make sandboxes under one policy. A few spare ones are made in advance, so that a new session starts fast.

The first sandboxes come from a fork server that starts fast. All later ones come from a second fork server, which imports libraries that
most sessions use, such as numpy, and so takes seconds to start.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Self

from anyio import to_thread

from ..errors import ACASessionsError, GuestDiedError
from ..lifetime import Tasks, create_in_thread, run_in_thread
from ..network.rules import Network
from ..network.secrets import SecretStore
from . import environment
from .forkserver import ForkServer, limiter
from .images import images
from .images.image_python import ASK, ImagePython
from .packages.store import Packages
from .policy import Policy
from .proxy.addresses import Dialer
from .proxy.proxy import Proxy
from .proxy.session_network import SessionNetwork
from .sandbox import Sandbox

_PRELOAD_AFTER = 1.0  # seconds; a program that only runs a cell or two neither waits nor pays for it
_REFILL_AFTER = 0.1  # seconds; a first cell goes before the next spare
_REFILL_PACE = 0.02
_IMAGE_SECONDS = 30.0
_TRIES = 3
_logger = logging.getLogger("aca_sessions")


class Generation:
    """A fork server and the sandboxes that it made.

    After another fork server has replaced this one, this one still runs until all its sandboxes are closed.
    """

    def __init__(self, fork_server: ForkServer, on_death: Callable[[int | None], None]) -> None:
        """Watch a fork server. If it dies before it is released, call `on_death` with its exit code (-9 if SIGKILL ended it)."""
        self.fork_server = fork_server
        self._on_death = on_death
        self._loop, self._pidfd = asyncio.get_running_loop(), -1
        # It may have died already, and has no sessions then. Without a free descriptor, its death is noticed when it is used next.
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(fork_server.process.pid)
            self._loop.add_reader(self._pidfd, self._notice_death)  # readable when the process ends: pidfd_open(2)
        self._sandboxes: set[Sandbox] = set()
        self._superseded = self._released = False
        self._tasks = Tasks()

    def adopt(self, sandbox: Sandbox) -> Sandbox:
        """Track a sandbox and all its later branches, so that the fork server runs until they are closed. Return the sandbox."""
        self._sandboxes.add(sandbox)
        sandbox.set_callbacks(partial(self._remove_closed, sandbox), self.adopt)
        return sandbox

    def supersede(self) -> None:
        """Release the fork server as soon as all its sandboxes are closed. Call this when another fork server has replaced this one."""
        self._superseded = True
        self._release_if_done()

    def retire(self) -> None:
        """Prepare to end the fork server with all its sandboxes, which frees their memory faster (see `ForkServer.retire`).

        Do nothing if the fork server is released already.
        """
        if not self._released:
            self.fork_server.retire()

    async def finish(self) -> None:
        """Wait until the fork server is released. Return at once if its release has not begun."""
        await self._tasks.finish()

    def abandon(self) -> None:
        """End all processes without waiting. Call this when the sandboxes' event loop is closed."""
        released, self._released = self._released, True
        self._stop_watching()
        for sandbox in [*self._sandboxes]:
            sandbox.abandon()
        if not released:
            self.fork_server.release()

    def _notice_death(self) -> None:
        self._stop_watching()
        self._on_death(self.fork_server.process.poll())

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _remove_closed(self, sandbox: Sandbox) -> None:
        self._sandboxes.discard(sandbox)
        self._release_if_done()

    def _release_if_done(self) -> None:
        if self._superseded and not self._sandboxes and not self._released:
            self._released = True
            self._stop_watching()
            self._tasks.start(to_thread.run_sync(self.fork_server.release, limiter=limiter()))


class Sandboxes:
    """Makes sandboxes under one policy. If its fork server has died, opening the next sandbox starts another."""

    def __init__(self, policy: Policy, dialer: Dialer | None = None) -> None:
        """Create the object without starting a fork server. `dialer` connects the proxies of sessions to hosts."""
        self.policy = policy
        self.on_fork_server_death: Callable[[int | None], None] = lambda _exit_code: None
        self._dialer = dialer or Dialer()
        self._secrets = SecretStore(policy.network.secrets)
        self._packages = Packages(policy, self._image_python if policy.image is not None else None)
        self._image_description: ImagePython | None = None
        self._generations: list[Generation] = []
        self._spares: deque[Sandbox] = deque()
        self._tasks = Tasks()
        self._background = Tasks()
        self._starting = Tasks()
        self._preloading: asyncio.Task[None] | None = None
        self._starting_heavy: ForkServer | None = None
        self._isolated: Sandboxes | None = None  # for sessions without the host's network, if the policy has it
        self._refilling = False
        self._closed = False

    @property
    def alive(self) -> bool:
        """Return whether the latest fork server is alive. A dead one is replaced when the next sandbox is opened."""
        return bool(self._generations) and self._generations[-1].fork_server.alive

    async def environment(self) -> tuple[str, list[tuple[str, str]]]:
        """Return the version of the guests' Python, and the names and versions of its packages."""
        if self.policy.image is not None:
            image = await self._image_python()
            return image.version, [*image.packages.items()]
        found = await run_in_thread(environment.survey, self.policy.python or sys.executable)
        return found.version, found.packages

    async def start(self) -> None:
        """Start a fork server if none is alive, without waiting until it is ready. Unpack the image first, if there is one."""
        if self.alive:
            return
        if self.policy.image is not None:
            self.policy = replace(self.policy, image=await to_thread.run_sync(images.root_of, self.policy.image))
        fork_server = await _shared_fork_server(replace(self.policy, preload=self.policy.preload or ()))
        if self.alive:  # another one began meanwhile
            await self._tasks.run_shielded(to_thread.run_sync(fork_server.release, limiter=limiter()))
            return
        self._use_fork_server(fork_server)
        if self.policy.preload is None and (self._preloading is None or self._preloading.done()):
            self._preloading = self._background.start(self._replace_by_heavy())

    async def wait_until_ready(self) -> None:
        """Wait until sandboxes can be opened. Call `start` first.

        Raise IsolationError if this host refuses a part of the isolation, and GuestDiedError if the fork server dies.
        """
        while True:
            latest = self._generations[-1]
            try:
                return await to_thread.run_sync(latest.fork_server.wait_until_ready, limiter=limiter())
            except GuestDiedError:
                if latest is self._generations[-1]:  # otherwise a newer one replaced this one before it was ready
                    raise

    async def open(self, network: Network | None = None) -> Sandbox:
        """Return a new, empty sandbox: a spare, or one that is made now. If the fork server turns out to be dead, replace it.

        `network` is what the session can reach, by default the network of the policy.
        """
        if network is not None and network.kind != "host" and self.policy.network.kind == "host":
            return await self._isolated_sandboxes().open(network)
        for _ in range(_TRIES - 1):
            try:
                return await self._open(network)
            except GuestDiedError:
                if await to_thread.run_sync(self._generations[-1].fork_server.ping, limiter=limiter()):
                    raise
        return await self._open(network)

    def _isolated_sandboxes(self) -> "Sandboxes":
        if self._isolated is None:
            self._isolated = Sandboxes(replace(self.policy, network=Network.none(), spares=0), self._dialer)
            self._isolated.on_fork_server_death = lambda exit_code: self.on_fork_server_death(exit_code)
            self._isolated._closed = self._closed
        return self._isolated

    async def _open(self, network: Network | None) -> Sandbox:
        await self.start()
        self._refill()
        while self._spares and (network is None or self._spares[0].fits(network)):
            sandbox = self._spares.popleft()
            if sandbox.usable and sandbox.running is not None and sandbox.running.alive:
                if network is not None and sandbox.network is not None:
                    sandbox.network.replace(network, self._secrets_of(network))
                return sandbox
            await self._tasks.run_shielded(sandbox.close())
        forking = self._tasks.start_awaited(self._fork(network))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:  # it is forked anyway, and no caller would close it
            self._tasks.start(_close_when_forked(forking))
            raise

    def retire(self) -> None:
        """Prepare to close all sandboxes: their fork servers will free all workspaces at once when they end, which is faster."""
        for generation in self._generations:
            generation.retire()
        if self._isolated is not None:
            self._isolated.retire()

    async def close(self) -> None:
        """Close the spare sandboxes and release the fork servers. The caller must close all other sandboxes first."""
        self._closed = True
        if self._isolated is not None:
            await self._isolated.close()
        await self._background.cancel()
        await self._secrets.aclose()
        await self._starting.finish()
        if self._starting_heavy is not None:  # first of all: a task may still wait for it to be ready
            await to_thread.run_sync(self._starting_heavy.release, limiter=limiter())
        await self._discard_spares()
        await self._tasks.finish()
        for generation in self._generations:
            generation.supersede()
            await generation.finish()

    def abandon(self) -> None:
        """End all processes without waiting. Call this when the sandboxes' event loop is closed: `close` would wait forever then."""
        self._closed = True
        if self._isolated is not None:
            self._isolated.abandon()
        if self._starting_heavy is not None:
            self._starting_heavy.release()
        for generation in self._generations:
            generation.abandon()

    def _use_fork_server(self, fork_server: ForkServer) -> None:
        for earlier in self._generations:
            earlier.supersede()
        self._generations.append(Generation(fork_server, lambda exit_code: self.on_fork_server_death(exit_code)))

    async def _replace_by_heavy(self) -> None:
        """Start a fork server that imports the libraries that most sessions use. Once it is ready, make new sandboxes from it."""
        await asyncio.sleep(_PRELOAD_AFTER)
        modules = await self._worth_preloading()
        if not modules:
            return
        for is_last_try in (False, True):
            try:
                heavy = await self._start_heavy_and_wait(modules)
                break
            except ACASessionsError as error:
                if is_last_try or not isinstance(error, GuestDiedError):  # one that died may have lacked memory for a moment
                    _logger.warning(
                        "cannot preload the usual libraries (%s): sessions start without them, and import them more slowly",
                        type(error).__name__,
                    )
                    return
        self._starting_heavy = None
        self._use_fork_server(heavy)
        self._tasks.start(self._discard_spares())  # not awaited: if this one dies, `start` must find this task done

    async def _start_heavy_and_wait(self, modules: tuple[str, ...]) -> ForkServer:
        """Start a fork server that imports `modules`, and return it once it is ready. Release it if it fails to start."""
        heavy = await self._starting.run_shielded(self._start_heavy(modules))
        try:
            await self._tasks.run_shielded(to_thread.run_sync(heavy.wait_until_ready, limiter=limiter()))
        except ACASessionsError:
            self._starting_heavy = None
            self._tasks.start(to_thread.run_sync(heavy.release, limiter=limiter()))
            raise
        return heavy

    async def _worth_preloading(self) -> tuple[str, ...]:
        if self.policy.image is None:
            return await run_in_thread(environment.worth_preloading, self.policy.python or sys.executable)
        return (await self._image_python()).heavy

    async def _image_python(self) -> ImagePython:
        """Return the description of the image's Python, such as its version and packages.

        The first call runs code in a session to get it, because an image's Python must run only in sessions.
        """
        if self._image_description is None:
            sandbox = await self.open()
            try:
                interpreter = await sandbox.interpreter()
                self._image_description = ImagePython.parse((await interpreter.run("environment", ASK, _IMAGE_SECONDS)).stdout)
            finally:
                await self._tasks.run_shielded(sandbox.close())
        return self._image_description

    async def _start_heavy(self, modules: tuple[str, ...]) -> ForkServer:
        self._starting_heavy = await _shared_fork_server(replace(self.policy, preload=modules))
        return self._starting_heavy

    async def _fork(self, network: Network | None = None) -> Sandbox:
        generation, limits = self._generations[-1], self.policy.limits
        server = generation.fork_server
        workspace, memory = await create_in_thread(lambda: server.make_session_resources(limits), server.drop_session_resources, limiter())
        network = network or self.policy.network
        proxy = None
        if network.is_proxied:
            rules = SessionNetwork(network, secrets=self._secrets_of(network))
            proxy = Proxy(rules, self._dialer, lambda: server.authority)
        return generation.adopt(Sandbox(server, workspace, limits, memory=memory, proxy=proxy, packages=self._packages))

    def _secrets_of(self, network: Network) -> SecretStore:
        """Return the store of a network's secrets. All sessions with the policy's network share one store and its values."""
        return self._secrets if network is self.policy.network else SecretStore(network.secrets)

    def _refill(self) -> None:
        if self.policy.spares and not self._refilling and not self._closed:
            self._refilling = True
            self._background.start(self._make_spares())

    async def _make_spares(self) -> None:
        try:
            await asyncio.sleep(_REFILL_AFTER)
            while len(self._spares) < self.policy.spares and self.alive:
                await self._tasks.run_shielded(self._add_spare())
                await asyncio.sleep(_REFILL_PACE)
        except ACASessionsError as error:
            _logger.info("no session is kept ready: %s", type(error).__name__)
        finally:
            self._refilling = False

    async def _add_spare(self) -> None:
        """Make a spare sandbox. Close it at once if this object was closed, or another fork server was started, while it was made."""
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
    return await create_in_thread(lambda: ForkServer.shared(policy), ForkServer.release, limiter())
