"""Save the sessions of a server in a store, and restore a session before its first cell on this server."""

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..contract import extensions
from ..contract.records import ELSEWHERE, NO_STORE, ProblemError
from ..durable.saves import Lease, Save, Saves, Writer
from ..errors import ACASessionsError, FencedError, RecordNotFoundError, SaveCorruptedError, SaveKeyError, SnapshotError, StorageError
from ..guest_text import shown_caption, shown_name
from ..ledger import Ledger
from ..lifetime import Tasks, log_failure
from ..models import Checkpoint, SavedSession
from ..sandbox.sandbox import Sandbox
from ..sandbox.sandboxes import Sandboxes
from ..sandbox.session.saved_state import SavedVariables, StateReader

if TYPE_CHECKING:
    from .hosted_session import HostedSession

_FORMAT = 1
_LEASE_SECONDS, _RENEW_SECONDS = 15.0, 5.0
_RENEWED_AT_ONCE = 16
_SAVE_SECONDS = _RESTORE_SECONDS = 300.0
_SAVED_AT_ONCE = 8
_SLOT_SECONDS = 5.0  # a save that lasts longer goes on, but holds up no others: its session may have made it last
# Each restore begins at a position of its ledger that depends on its fence, which is like a time in nanoseconds and never comes again. So
# positions rise from one server to the next. Their digits fit in what clients send.
_FENCE_BITS = 10
_MOST_LISTED = 1000  # names of what is missing, in a save and in a state
SAID_ELSEWHERE = "another server has this session: repeat the request there, or here once that server has ended the session or stopped"
_UNAVAILABLE = "the store of saved sessions does not respond, so it is not known whether this session has a save: try again in a moment"
_logger = logging.getLogger("aca_sessions")


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment at which no cell of a session runs, so that it can be saved.

    Attributes:
        sandbox: The sandbox of the session.
        position: The position in the session's ledger up to which the save has it.
        since: The position after which nothing may be lost until the state is written: `position`, or that of the entry of its end.
        on_forked: Called when cells may run again, although the state is still being written. If None, none runs until the end.
        checkpoint: The checkpoint that the save is, which must not be deleted with the session's older saves, or None.
    """

    sandbox: Sandbox
    position: int
    since: int
    on_forked: Callable[[], None] | None = None
    checkpoint: Checkpoint | None = None


class SavedSessions:
    """The saved sessions in a store, and this server's leases of those that it runs."""

    def __init__(
        self,
        saves: Saves,
        *,
        server: str,
        tenant: str = "",
        when: Literal["never", "idle", "cell"] = "idle",
        close_seconds: float = 60.0,
    ) -> None:
        """Use a store.

        Args:
            saves: The saves in the store.
            server: The name of this server, which no other has.
            tenant: Sessions of other tenants are not found.
            when: Whether sessions are saved when they end by themselves (`idle`), also after each cell (`cell`), or only on request
                (`never`).
            close_seconds: How long the server may take, when it stops, to save its sessions.
        """
        self.close_seconds = close_seconds
        self.saves_idle, self.saves_cells = when != "never", when == "cell"
        self.slots = asyncio.Semaphore(_SAVED_AT_ONCE)  # so that a drain or a common expiry does not start all saves at once
        self._saves = saves
        self._server = server
        self._tenant = tenant
        self._leases: dict[str, Lease] = {}
        self._fenced: set[str] = set()  # sessions here that another server has taken
        self._tasks = Tasks()
        self._renewing: asyncio.Task[None] | None = None

    def start(self, sandboxes: Sandboxes) -> None:
        """Renew the leases until `close`. A rollback to a save restores it in one of `sandboxes`."""
        self.sandboxes = sandboxes
        self._renewing = self._tasks.start(self._renew_leases())

    async def close(self) -> None:
        """Release all leases."""
        if self._renewing is not None:
            self._renewing.cancel()
        await asyncio.gather(*(self.release(identifier) for identifier in [*self._leases]))
        await self._tasks.finish()

    async def take(self, identifier: str) -> None:
        """Take the lease of a session. Raise ProblemError (503) if another server has it."""
        with _unavailable_as_503():
            lease = await self._saves.take(self._owner(identifier), self._server, _LEASE_SECONDS)
        if lease is None:
            if self._leases.pop(identifier, None) is not None:  # taken while it was free, because its saves were deleted
                self._fenced.add(identifier)
            raise ProblemError(503, ELSEWHERE, SAID_ELSEWHERE)
        self._leases[identifier] = lease
        self._fenced.discard(identifier)

    async def take_for(self, session: "HostedSession") -> bool:
        """Take the lease of a session before a sandbox is opened for it. Raise ProblemError (503) if another server has it.

        If what the store has is damaged, record that the session begins without its state, and return False.
        """
        try:
            await self.take(session.identifier)
        except ProblemError:
            raise
        except ACASessionsError as error:
            log_failure("a saved session was not restored", error)
            self.record_failed_restore(session)
            return False
        return True

    async def claim(self, identifier: str) -> None:
        """Take the lease of a new session. Raise ProblemError: 409 if a session of this name was saved, 503 if another server has one."""
        await self.take(identifier)
        with _unavailable_as_503():
            has_save = await self._saves.newest(self._owner(identifier)) is not None
        if has_save:  # the saves of the new session would replace it
            raise ProblemError(409, "SessionExists", "a session with one of the identifiers was saved: delete its saves, or choose another")

    async def release(self, identifier: str) -> None:
        """Give up the lease of a session that has ended here."""
        self._fenced.discard(identifier)
        lease = self._leases.pop(identifier, None)
        if lease is not None:
            try:
                await self._saves.release(lease)
            except ACASessionsError as error:  # it expires by itself
                log_failure("the lease of a saved session was not released", error)

    async def restore(self, session: "HostedSession", sandbox: Sandbox) -> None:
        """Restore the newest save of a session in a sandbox that has run no cell. Do nothing if there is none. The caller has the lease.

        The session's ledger (the list of what happened to it) continues the saved one. Raise ACASessionsError if the restore fails: the
        sandbox may have a part of the state then, and must be closed.
        """
        identifier, ledger = session.identifier, session.ledger
        first = self._leases[identifier].fence >> _FENCE_BITS
        with _unavailable_as_503():
            save = await self._saves.newest(self._owner(identifier))
            if save is None:
                _repeat_end(ledger, first)
                return
            manifest = _read_manifest(save)
        missing = await self.restore_in(sandbox, save)
        record = extensions.decode_record(manifest["ledger"])
        adopts = not ledger.continues(record)
        cause = (manifest["cause"] if adopts else ledger.latest_cause("ended")) or "restart"
        if adopts:
            ledger.adopt(record, fetched=int(manifest["fetched"]))
        ledger.cells = record.cells
        ledger.skip_to(first)
        ledger.append(
            "restored",
            cause=cause,
            variables="restored",
            files="restored",
            processes="ended",
            to=record.end,
            missing=missing,
            saved=save.created,
            cells=record.cells,
        )
        session.has_state = True
        if adopts:
            session.executions.follow_adopted_ledger()

    async def restore_in(self, sandbox: Sandbox, save: Save) -> tuple[str, ...]:
        """Restore a save in a sandbox that has run no cell. Return the names of what is missing. Raise errors as `restore` does."""
        manifest = _read_manifest(save)
        gone: list[str] = []
        if packages := manifest["packages"]:  # before the variables, which may need them
            installed = await sandbox.packages.install(packages, timeout=_RESTORE_SECONDS)
            gone = [] if installed.success else [f"package {name}" for name in packages]
        with _unavailable_as_503():
            missing = await sandbox.restore(self._saves.read_all(save), timeout=_RESTORE_SECONDS)
        names = [*gone, *(shown_name(name) for name in (*manifest["lost"], *missing))]
        return tuple(names[:_MOST_LISTED])

    async def checkpoints(self, identifier: str) -> list[tuple[Checkpoint, Save]]:
        """Return the durable checkpoints of a session that has a sandbox here, the oldest first, and the save of each."""
        lease = self._leases.get(identifier)
        if lease is None or not lease.has_pinned:
            return []
        with _unavailable_as_503():
            saves = await self._saves.pinned(lease.owner)
        return [(extensions.decode_checkpoint(_read_manifest(save)["checkpoint"]), save) for save in saves]

    async def drop_checkpoint(self, identifier: str, id: str) -> bool:
        """Delete a durable checkpoint. Return whether there was one. No save of the session may be written at the same time."""
        for checkpoint, save in await self.checkpoints(identifier):
            if checkpoint.id == id:
                if (lease := self._leases.get(identifier)) is None:
                    raise FencedError("another server has taken this session: connect again")
                await self._saves.unpin(lease.owner, lease.fence, save.id)
                return True
        return False

    def record_failed_restore(self, session: "HostedSession") -> None:
        """Record in the ledger of a session that it begins without its saved state, and keep its saves until it is saved on request."""
        if (lease := self._leases.get(session.identifier)) is not None:
            session.ledger.skip_to(lease.fence >> _FENCE_BITS)
        session.ledger.append("ended", cause="restore failed", variables="lost", files="lost", processes="ended")
        session.saves.keep_failed()

    @asynccontextmanager
    async def take_slot(self) -> AsyncIterator[None]:
        """Wait for one of `slots`, and hold it during the `with` block."""
        await self.slots.acquire()
        with self.hold_slot():
            yield

    @contextlib.contextmanager
    def hold_slot(self) -> Iterator[None]:
        """Give back one of `slots`, which the caller has acquired, at the end of the `with` block, but within 5 s."""
        with contextlib.ExitStack() as slot:
            slot.callback(self.slots.release)
            timer = asyncio.get_running_loop().call_later(_SLOT_SECONDS, slot.close)
            try:
                yield
            finally:
                timer.cancel()

    async def save(self, session: "HostedSession", wait: AbstractAsyncContextManager[Moment], *, cause: str | None = None) -> SavedSession:
        """Save a session, and return what was saved. Raise ACASessionsError if that fails. The previous save is kept then.

        Args:
            session: The session.
            wait: Waits for the moment at which it can be saved. It is left when all is written.
            cause: Why the session ends, for the state after the restore.
        """
        began = time.perf_counter()
        save = await self._write_save(session, wait, cause)
        return _describe(save, seconds=time.perf_counter() - began)

    async def save_checkpoint(self, session: "HostedSession", wait: AbstractAsyncContextManager[Moment]) -> Checkpoint:
        """Save a session, and return the checkpoint that the save is: that of the moment. Raise ACASessionsError if that fails."""
        return extensions.decode_checkpoint((await self._write_save(session, wait, None)).manifest["checkpoint"])

    async def _write_save(self, session: "HostedSession", wait: AbstractAsyncContextManager[Moment], cause: str | None) -> Save:
        identifier, ledger = session.identifier, session.ledger
        if identifier in self._fenced:
            raise FencedError("another server has taken this session: connect again")
        if identifier not in self._leases:  # a branch
            await self.take(identifier)
        lease = self._leases[identifier]
        async with wait as moment, contextlib.AsyncExitStack() as ending:
            manifest: dict[str, Any] = {"format": _FORMAT, "identifier": identifier, "cause": cause}

            async def receive(reader: StateReader) -> tuple[Writer, SavedVariables]:
                # The fork that writes the state was made just now. A loss before that would not be in the saved ledger.
                if ledger.between(moment.since, ledger.position).kind != "kept":
                    raise SnapshotError("the session lost its variables or files before it could be saved: save it again")
                manifest.update(
                    packages=[f"{package.name}=={package.version}" for package in moment.sandbox.packages.installed],
                    ledger=extensions.encode_record(ledger.record(0, moment.position, moment.position)),
                    fetched=ledger.fetched,
                    cells=ledger.cells,
                )
                writer = await ending.enter_async_context(await self._saves.begin(lease.owner, lease.fence))  # while the fork writes
                await writer.add_all(reader.parts())
                return writer, reader.variables

            writer, variables = await moment.sandbox.save(receive, timeout=_SAVE_SECONDS, on_forked=moment.on_forked)
            lost = dict([*variables.lost.items()][:_MOST_LISTED])
            manifest.update(python=variables.python, variables=variables.saved, lost=lost)
            if moment.checkpoint is not None:
                left_behind = (*moment.checkpoint.left_behind, *map(shown_name, lost))
                manifest["checkpoint"] = extensions.encode_checkpoint(replace(moment.checkpoint, durable=True, left_behind=left_behind))
                if (now := self._leases.get(identifier)) is not None:
                    self._leases[identifier] = replace(now, has_pinned=True)
            pinned = self.sandboxes.policy.limits.checkpoints if moment.checkpoint is not None else 0
            return await writer.commit(manifest, most_pinned=pinned)

    async def list(self) -> list[SavedSession]:
        """Return the saved sessions of this tenant, the newest save of each."""
        found = []
        for save in await self._saves.list():
            with contextlib.suppress(StorageError):
                manifest = _read_manifest(save)
                if save.owner == self._owner(manifest["identifier"]):
                    found.append(_describe(save))
        return sorted(found, key=lambda one: one.created)

    async def forget(self, identifier: str) -> bool:
        """Delete the saves of a session. Return whether there were any. Raise ProblemError (503) if another server has the session."""
        owner, is_here = self._owner(identifier), identifier in self._leases
        had_save = True
        try:
            if not is_here:
                await self.take(identifier)  # or the session of another server could not be saved any more
            had_save = await self._saves.newest(owner) is not None
        except (SaveCorruptedError, SaveKeyError):
            pass
        try:
            if had_save:
                await self._saves.forget(owner)  # and the lease
        finally:
            if not is_here:
                await self.release(identifier)
        return had_save

    def is_fenced(self, identifier: str) -> bool:
        """Return whether another server has taken a session that this server still has."""
        return identifier in self._fenced

    def _owner(self, identifier: str) -> str:
        return hashlib.sha256(json.dumps([self._tenant, identifier]).encode()).hexdigest()

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            at_once = asyncio.Semaphore(_RENEWED_AT_ONCE)  # one after the other, those of many sessions would expire if the store is slow
            await asyncio.gather(*(self._renew(identifier, lease, at_once) for identifier, lease in self._leases.items()))

    async def _renew(self, identifier: str, lease: Lease, at_once: asyncio.Semaphore) -> None:
        try:
            async with at_once:
                renewed = await self._saves.renew(lease, _LEASE_SECONDS)
        except FencedError:
            if self._leases.get(identifier) is lease:  # it may have ended during the await, or have another one
                _logger.warning("another server has taken a session of this one, which cannot be saved here any more")
                del self._leases[identifier]
                self._fenced.add(identifier)
        except ACASessionsError as error:
            log_failure("the lease of a saved session was not renewed", error)
        else:
            if self._leases.get(identifier) is lease:
                self._leases[identifier] = renewed


@contextlib.contextmanager
def _unavailable_as_503() -> Iterator[None]:
    """Raise ProblemError (503) if the store does not work: a session that began without its save would be a second one of its name."""
    try:
        yield
    except (SaveCorruptedError, SaveKeyError, RecordNotFoundError):
        raise
    except StorageError as error:
        log_failure("the store of saved sessions failed", error)
        raise ProblemError(503, NO_STORE, _UNAVAILABLE) from error


def _repeat_end(ledger: Ledger, position: int) -> None:
    """Report the end of an earlier session of this name again, above a position, if there was one.

    Another server may have gone on with that session until its save was deleted. Then clients know later positions than that of its end.
    """
    if (cause := ledger.latest_cause("ended")) is not None:
        is_known = ledger.fetched >= ledger.position
        ledger.skip_to(position)
        ledger.append("ended", cause=cause, variables="lost", files="lost", processes="ended")
        if is_known:
            ledger.fetched = ledger.position


def _read_manifest(save: Save) -> dict[str, Any]:
    manifest = save.manifest
    if manifest.get("format") != _FORMAT:
        raise SaveCorruptedError(
            f"a saved session has format {manifest.get('format')!r:.20}, which this version cannot read: update aca-sessions"
        )
    return manifest


def _describe(save: Save, *, seconds: float = 0.0) -> SavedSession:
    manifest = save.manifest
    return SavedSession(
        session_id=manifest["identifier"],
        created=save.created,
        variables=manifest["variables"],
        lost={shown_name(name): shown_caption(why) for name, why in manifest["lost"].items()},
        size=save.size,
        python=shown_name(manifest["python"]),
        cells=manifest["cells"],
        seconds=round(seconds, 3),
    )
