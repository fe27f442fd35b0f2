"""One session of a server: its sandbox, its executions, its ledger and its network."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from ..contract.records import ProblemError
from ..ledger import Ledger
from ..network.rules import Network
from ..network.secrets import SecretStore
from ..sandbox.limits.memory import MemoryLimit
from ..sandbox.proxy.session_network import SessionNetwork
from ..sandbox.sandbox import Sandbox
from ..sandbox.sandboxes import Sandboxes
from .executions import Executions
from .journal import Journal, NetworkRecorder
from .saved_sessions import SavedSessions
from .session_saves import SessionCheckpoints, SessionSaves

_FIXED = (
    "this session cannot get this network: {}, and it has variables or files already. Give it the network when it begins, or end it first"
)


@dataclass(frozen=True, slots=True)
class GivenNetwork:
    """A network that a client gave to a session, and the version that names it in the client's requests."""

    network: Network
    version: str


class HostedNetwork:
    """The network of one session and of its branches: that of the policy, or one that a client gave.

    The rules, and the use of their limits, outlive a sandbox: the sandbox that replaces it continues with them.
    """

    def __init__(self, recorder: NetworkRecorder, given: GivenNetwork | None = None) -> None:
        self.given = given
        self.recorder = recorder
        self._rules: SessionNetwork | None = None

    @property
    def version(self) -> str | None:
        """Return the version of the network that a client gave, or None if no client gave one."""
        return None if self.given is None else self.given.version

    async def open_sandbox(self, sandboxes: Sandboxes) -> Sandbox:
        """Return a new sandbox with this network."""
        while True:
            given = self.given
            sandbox = await sandboxes.open(None if given is None else given.network)
            if given is self.given:
                break
            await sandbox.close()  # a client gave another network meanwhile, and this sandbox may not fit it
        if (opened := sandbox.network) is not None:
            if self._rules is None:
                self._rules = opened
                opened.record = self.recorder.record
            else:
                if self._rules.network is not opened.network:
                    self._rules.replace(opened.network, opened.secrets)
                sandbox.use_network(self._rules)
        return sandbox

    def try_to_replace(self, sandbox: Sandbox, given: GivenNetwork) -> bool:
        """Use another network from now on, if the sandbox can have it. Return whether it can."""
        if not sandbox.fits(given.network):
            return False
        if self._rules is not None:
            earlier = self._rules.secrets.values() if self._rules.secrets is not None else ()  # still masked in responses
            self._rules.replace(given.network, SecretStore(given.network.secrets, earlier=earlier))
        self.given = given
        return True


class HostedSession:
    """A session of this server: its sandbox, its executions, and its ledger (the list of what happened to it)."""

    def __init__(
        self,
        identifier: str,
        ledger: Ledger,
        opening: "asyncio.Future[Sandbox]",
        default_timeout: float,
        *,
        journal: Journal,
        network: HostedNetwork | None = None,
        saved: SavedSessions | None = None,
        reopen: Callable[[], "asyncio.Future[Sandbox]"] | None = None,
    ) -> None:
        """Create a session whose sandbox is still being opened.

        Args:
            identifier: The name of the session, which is a secret.
            ledger: The list of what happened to all sessions that had this identifier.
            opening: A future for the sandbox. It gets an exception if the sandbox cannot be opened.
            default_timeout: The time limit in seconds of cells that have none of their own.
            journal: The server's metrics and audit log.
            network: The network of the session, or None for the policy's.
            saved: The store of saved sessions, or None.
            reopen: Opens another sandbox if this one dies before the session has anything to lose, such as variables or files.
        """
        self.identifier = identifier
        self.ledger = ledger
        self.network = network or HostedNetwork(journal.network_recorder(identifier))
        self.saves = SessionSaves(self, saved)
        self.checkpoints = SessionCheckpoints(self, saved)
        self.has_state = False  # whether anything would be lost with it
        self.ended = False
        self.name: str | None = None  # that people gave it
        self.executions = Executions(self, default_timeout, journal=journal)
        self.created = self.last_used = datetime.now(UTC)
        self.etag = uuid.uuid4().hex
        self.is_new = True  # until the first response about it
        self._user_count = 0
        self._opening = opening
        self._reopen = reopen

    async def sandbox(self) -> Sandbox:
        """Wait until the sandbox is open and return it. If it could not be opened, raise the error."""
        # A caller that is cancelled must not cancel the opening for all.
        return await asyncio.shield(self._opening)

    async def replace_dead_sandbox(self) -> bool:
        """If the fork server died before the session had anything to lose, such as variables or files, open another sandbox for it.

        Return whether another sandbox was opened.
        """
        if self.has_state or self._reopen is None:
            return False
        sandbox = await self.sandbox()
        # Both are checked again after the await: a cell or an end may have come meanwhile.
        if await sandbox.fork_server_answers() or self.has_state or self.ended:
            return False
        self._opening = self._reopen()
        await sandbox.close()
        return True

    def use_sandbox(self, sandbox: Sandbox) -> None:
        """Use another sandbox, which has the state that the session is rolled back to. The caller closes the earlier one."""
        self._opening = asyncio.get_running_loop().create_future()
        self._opening.set_result(sandbox)
        sandbox.ledger, self.has_state = self.ledger, True

    async def set_network(self, given: GivenNetwork) -> None:
        """Use a network that a client gives, from now on. If the network needs another sandbox, open one.

        Raise ProblemError (409) if it needs another sandbox, but this one has variables or files.
        """
        if self.network.version == given.version:  # the request is repeated
            return
        sandbox = await self.sandbox()
        if self.network.try_to_replace(sandbox, given):
            return
        self._check_can_restart(sandbox)
        await self.executions.run_in_turn(lambda sandbox: self._restart_with(given, sandbox))

    def _check_can_restart(self, sandbox: Sandbox) -> None:
        if self.has_state or self._reopen is None or self.executions.unfinished_count:
            missing = "it runs without a proxy" if sandbox.network is None else "it does not trust the certificates that these rules need"
            raise ProblemError(409, "NetworkFixed", _FIXED.format(missing))

    async def _restart_with(self, given: GivenNetwork, sandbox: Sandbox) -> None:
        # Everything is checked again, because this call has waited for its turn.
        if self.network.version == given.version or self.network.try_to_replace(sandbox, given):
            return
        self._check_can_restart(sandbox)
        assert self._reopen is not None  # noqa: S101 - just checked
        self.network = HostedNetwork(self.network.recorder, given)  # a new one: branches of the unused session keep theirs
        self._opening = self._reopen()
        await sandbox.close()

    @property
    def in_use(self) -> bool:
        """Return whether a cell of the session runs or waits for its turn, or a request uses the session now."""
        return self._user_count > 0 or self.executions.unfinished_count > 0

    @property
    def usable(self) -> bool:
        """Return whether the session can run cells: its sandbox is being opened, or is open and the fork server is alive."""
        if not self._opening.done():
            return True
        return not self._opening.cancelled() and self._opening.exception() is None and self._opening.result().usable

    @property
    def is_starting(self) -> bool:
        """Return whether the sandbox is being opened, or a request waits for the session's interpreter to start."""
        if not self._opening.done():
            return True
        return self.usable and self.in_use and self._opening.result().running is None

    @property
    def memory(self) -> MemoryLimit | None:
        """Return the object that measures and limits the memory of the session, or None if the sandbox is not open."""
        there = self._opening.done() and not self._opening.cancelled() and self._opening.exception() is None
        return self._opening.result().memory if there else None

    @contextmanager
    def keep_in_use(self) -> Iterator[None]:
        """Mark the session as in use during the `with` block.

        The server does not end a session in use when its cool-down is over or when another session needs its place.
        """
        self._user_count += 1
        self.touch()
        try:
            yield
        finally:
            self._user_count -= 1
            self.touch()

    def touch(self) -> None:
        """Restart the session's cool-down, the time without use after which it ends."""
        self.last_used = datetime.now(UTC)

    def record_loss(self) -> None:
        """If the fork server died, record once in the session's ledger and in the metrics that variables and files are lost.

        The ledger is the list of what happened to the session. Do nothing if the session had nothing to lose.
        """
        if self.has_state and self.memory is not None:
            self._opening.result().record_lost_workspace()
            self.executions.count_losses()

    async def close(self, cause: str = "killed") -> None:
        """End the sandbox and wait until all executions have results. If this stops a cell, the cell's result names `cause`."""
        try:
            sandbox = await self._opening
        except Exception:
            return  # it failed to open
        self.saves.stop()
        await sandbox.close(cause)
        await self.executions.finish()
        await self.saves.finish()
        self.network.recorder.finish()
