"""The saves of a session (on request, as a checkpoint, in the background after its cells, at its end) and its checkpoints."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..contract import extensions
from ..contract.records import ProblemError
from ..durable.saves import Save
from ..errors import ACASessionsError, FencedError, SaveTooLargeError, SnapshotError
from ..ledger import state_between
from ..lifetime import Tasks, log_failure
from ..models import Checkpoint, SavedSession, State
from ..sandbox.sandbox import Sandbox
from ..sandbox.session.checkpoints import find_checkpoint
from .saved_sessions import Moment, SavedSessions

if TYPE_CHECKING:
    from .hosted_session import HostedSession

# A failed save in the background is tried again after the next cell, but not before a pause, which gets longer with each failure, and is
# long after a save that took long. So failing saves take a tenth of the time at most.
_FIRST_PAUSE, _LONGEST_PAUSE, _PAUSE_FACTOR = 0.5, 300.0, 10.0


class SessionSaves:
    """The saves of one session, one at a time. Without a store, nothing is saved."""

    def __init__(self, session: "HostedSession", saved: SavedSessions | None) -> None:
        self._session = session
        self._saved = saved
        self._one_at_a_time = asyncio.Lock()
        self._tasks = Tasks()
        # How often the session was changed, how many of these changes are saved, and how many are in the save that is being written.
        self._changes = self._saved_changes = self._covered = 0
        self._latest: tuple[SavedSession, int] | None = None  # the latest save on request, with the processor time of the session after it
        self._background: asyncio.Task[None] | None = None
        self._last: asyncio.Task[None] | None = None
        self._has_ended = False
        self._keeps_failed = False

    def keep_failed(self) -> None:
        """Save nothing by itself, because the session began without its save, which could not be restored. Its next start tries it again.

        `save` and `save_checkpoint` end that, because they are asked for, and so does `paused`, because the saves are deleted then.
        """
        self._keeps_failed = True

    def note_change(self) -> None:
        """Note that something has changed the session. Save it in the background if the setting `Durable:Save` is `cell`.

        If a save runs in the background already, another one follows it. A cell never waits for it to be written.
        """
        self._changes += 1
        if self._saved is None or not self._saved.saves_cells or self._has_ended or self._keeps_failed:
            return
        if self._background is None or self._background.done():
            self._background = self._tasks.start(self._save_changes(self._saved))

    async def save(self) -> SavedSession:
        """Save the session between two cells, and return what was saved. Raise ACASessionsError if that fails."""
        assert self._saved is not None  # noqa: S101 - else the route does not exist
        return await self._tasks.run_shielded(self._save_on_request(self._saved))

    async def save_checkpoint(self, name: str | None) -> Checkpoint:
        """Take a checkpoint between two cells, save it, and return it. Raise ACASessionsError if that fails."""
        assert self._saved is not None  # noqa: S101 - else the request is refused
        return await self._tasks.run_shielded(self._save_checkpoint(self._saved, name))

    async def drop_checkpoint(self, id: str) -> bool:
        """Delete the durable checkpoint with this id. Return whether there was one."""
        if self._saved is None:
            return False
        await self._session.sandbox()  # which takes the lease of the session
        return await self._tasks.run_shielded(self._drop_checkpoint(self._saved, id))

    async def save_at_end(self, position: int, end: int, cause: str) -> None:
        """Save the session as it was when its ledger was at `position`, unless a cell runs. Call `end` first.

        Args:
            position: The position in the session's ledger up to which the save has it.
            end: The position of the entry about the session's end.
            cause: Why it ended.
        """
        self._last = self._tasks.start_awaited(self._save_last(position, end, cause))
        await asyncio.wait({self._last})  # if `stop` cancels it, the caller must still close the session
        if not self._last.cancelled():
            self._last.result()

    async def _save_last(self, position: int, end: int, cause: str) -> None:
        saved, session = self._saved, self._session
        async with self._one_at_a_time:
            if saved is None or not saved.saves_idle or self._keeps_failed or session.executions.unfinished_count:
                return
            sandbox = await session.sandbox()
            if sandbox.usable:
                moment = Moment(sandbox, position, since=end)
                async with saved.take_slot():
                    await saved.save(session, nullcontext(moment), cause=cause if cause == "expired" else None)

    def end(self) -> None:
        """Begin no save but the last one from now on, because the session has ended. A save that is being written goes on."""
        self._has_ended = True

    def stop(self) -> None:
        """Stop the saves that run in the background or at the end of the session. The latest whole one stays."""
        self.end()
        for task in (self._background, self._last):
            if task is not None:
                task.cancel()

    async def finish(self) -> None:
        """Wait until no save runs."""
        await self._tasks.finish()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Stop the save in the background, and begin no other one within the `with` block. Its caller deletes the saves."""
        if self._background is not None:
            self._background.cancel()
            self._background = None  # the next change starts another one, which waits
        async with self._one_at_a_time:
            self._latest = None
            yield
            self._keeps_failed = False

    async def _save_changes(self, saved: SavedSessions) -> None:
        failures = 0
        while self._saved_changes < self._changes and self._may_save(saved):
            tried, began = self._changes, time.monotonic()
            try:
                await self._save(saved, releases=True)
                failures = 0
            except Exception as error:
                if not self._may_save(saved):
                    return
                log_failure("a session was not saved after a cell, and will be tried again", error)
                if isinstance(error, FencedError):
                    return  # the server notices it, too, when it renews its lease
                pause = max(_FIRST_PAUSE * 2**failures, _PAUSE_FACTOR * (time.monotonic() - began))
                failures += 1
                await asyncio.sleep(min(pause, _LONGEST_PAUSE))
                if isinstance(error, SaveTooLargeError) and self._changes == tried:
                    return  # until the next change, the session is as large

    async def _save_on_request(self, saved: SavedSessions) -> SavedSession:
        done = await self._save(saved, releases=False)
        self._keeps_failed = False
        return done

    async def _save_checkpoint(self, saved: SavedSessions, name: str | None) -> Checkpoint:
        async with self._one_at_a_time:
            await self._session.sandbox()
            checkpoint = await saved.save_checkpoint(self._session, self._at_checkpoint(saved, name))
            self._saved_changes, self._keeps_failed, self._latest = self._covered, False, None
            return checkpoint

    async def _drop_checkpoint(self, saved: SavedSessions, id: str) -> bool:
        async with self._one_at_a_time:
            return await saved.drop_checkpoint(self._session.identifier, id)

    @asynccontextmanager
    async def _at_checkpoint(self, saved: SavedSessions, name: str | None) -> AsyncIterator[Moment]:
        """Wait until no cell runs, and take a checkpoint, which is removed again if the `with` block fails. No cell runs in the block."""
        async with self._between_cells(saved, releases=False) as moment:
            # Numbers begin again when the session starts again, and a durable checkpoint must not have the id of another one.
            taken = await moment.sandbox.checkpoint(name, id=f"saved-{secrets.token_hex(4)}")
            try:
                yield replace(moment, checkpoint=taken.describe())
            except BaseException:
                with suppress(ACASessionsError):  # its interpreter has ended meanwhile
                    await moment.sandbox.forget(taken.id)
                raise

    def _may_save(self, saved: SavedSessions) -> bool:
        return self._session.usable and not self._has_ended and not saved.is_fenced(self._session.identifier)

    async def _save(self, saved: SavedSessions, *, releases: bool) -> SavedSession:
        async with self._one_at_a_time:
            sandbox = await self._session.sandbox()  # which takes the lease of the session
            if self._latest is not None and self._is_unchanged(saved, sandbox, self._latest[1]):
                return self._latest[0]
            done = await saved.save(self._session, self._between_cells(saved, releases=releases))
            self._saved_changes = self._covered
            at_rest = None if releases else sandbox.time_at_rest()  # a cell may run already, if it was released
            self._latest = None if at_rest is None else (done, at_rest)
            return done

    def _is_unchanged(self, saved: SavedSessions, sandbox: Sandbox, at_rest: int) -> bool:
        """Return whether nothing has happened since the latest save: no change was noted, and no process of the session has run."""
        is_quiet = self._changes == self._saved_changes and not self._session.executions.unfinished_count
        return is_quiet and self._may_save(saved) and sandbox.time_at_rest() == at_rest

    @asynccontextmanager
    async def _between_cells(self, saved: SavedSessions, *, releases: bool) -> AsyncIterator[Moment]:
        """Wait until no cell runs and a slot is free. No cell runs in the `with` block, or, if `releases` is true, until the fork."""
        executions = self._session.executions
        await executions.take_turn(saved.slots)
        with ExitStack() as turn, saved.hold_slot():
            turn.callback(executions.release_turn)
            sandbox = await self._session.sandbox()
            await sandbox.interpreter()  # if it had died, the ledger says so now
            if self._has_ended:
                raise SnapshotError("the session ended before it could be saved")
            self._covered, position = self._changes, self._session.ledger.position
            yield Moment(sandbox, position, since=position, on_forked=turn.close if releases else None)


class SessionCheckpoints:
    """The checkpoints of one session.

    A durable checkpoint is in the sandbox and in the store. After a restart it is only in the store, and a rollback restores it.
    """

    def __init__(self, session: "HostedSession", saved: SavedSessions | None) -> None:
        self._session = session
        self._saved = saved

    async def take(self, name: str | None, *, durable: bool) -> Checkpoint:
        """Take a checkpoint between two cells and return it. If it is durable, also save it. Raise ACASessionsError if that fails."""
        if durable:
            return await self._session.saves.save_checkpoint(name)
        return (await self._session.executions.run_in_turn(lambda sandbox: sandbox.checkpoint(name))).describe()

    async def list(self) -> list[Checkpoint]:
        """Return the checkpoints that users can roll back to, the oldest first."""
        return [*await self._session.executions.run_in_turn(self._find_all)]

    async def drop(self, id: str) -> None:
        """Remove the checkpoint with this id, also from the store. Raise SnapshotError if there is none."""
        was_durable = await self._session.saves.drop_checkpoint(id)

        async def forget(sandbox: Sandbox) -> None:
            if not was_durable or any(checkpoint.id == id for checkpoint in await sandbox.checkpoints()):
                await sandbox.forget(id)

        await self._session.executions.run_in_turn(forget)

    async def roll_back(self, id: str | None, name: str | None) -> tuple[Checkpoint, int | None]:
        """Roll back to the checkpoint with this id or name, or to the latest one if both are None. Return the checkpoint.

        Also return the position of the rollback in the ledger, or None if the checkpoint was restored from the store: then the rollback
        must be reported even to the caller that asked for it, because something may be missing.
        """
        return await self._session.executions.run_in_turn(partial(self._roll_back, id, name))

    async def _find_all(self, sandbox: Sandbox) -> dict[Checkpoint, Save | None]:
        """Return the checkpoints, the oldest first, each with its save if the sandbox does not have it."""
        live = {checkpoint.id: checkpoint.describe() for checkpoint in await sandbox.checkpoints()}
        found: dict[Checkpoint, Save | None] = {}
        if self._saved is not None:
            for checkpoint, save in await self._saved.checkpoints(self._session.identifier):
                found[checkpoint] = save if live.pop(checkpoint.id, None) is None else None
        found.update(dict.fromkeys(live.values()))
        return dict(sorted(found.items(), key=lambda one: one[0].created))

    async def _roll_back(self, id: str | None, name: str | None, sandbox: Sandbox) -> tuple[Checkpoint, int | None]:
        is_live = name is None and any(checkpoint.id == id for checkpoint in await sandbox.checkpoints())
        found = {} if is_live else await self._find_all(sandbox)  # which needs the store
        if any(found.values()):
            checkpoint = find_checkpoint([*found][::-1], id, name)
            if (save := found[checkpoint]) is not None:
                await self._restore(checkpoint, save, sandbox)
                return checkpoint, None
            id, name = checkpoint.id, None
        reached, position = await sandbox.roll_back(id, name)
        return reached.describe(), position

    async def _restore(self, checkpoint: Checkpoint, save: Save, sandbox: Sandbox) -> None:
        """Restore a checkpoint in a new sandbox, which replaces that of the session. If this raises, the session is as it was."""
        assert self._saved is not None  # noqa: S101 - the save is from there
        session, ledger = self._session, self._session.ledger
        record, fetched = extensions.decode_record(save.manifest["ledger"]), int(save.manifest["fetched"])
        before, to = State(), record.end
        if record.ledger != ledger.id:  # the session could not be restored and began again: it still lacks what it had lost before
            before, to = state_between(record.entries, fetched, record.end), -1
        try:
            new = await session.network.open_sandbox(self._saved.sandboxes)
            try:
                missing = await self._saved.restore_in(new, save)
                if session.ended or not sandbox.usable:
                    raise SnapshotError("the session was ended meanwhile")
            except BaseException:
                await new.close()
                raise
        except ProblemError:
            raise
        except (ACASessionsError, OSError) as error:
            raise SnapshotError(f"cannot return to the checkpoint {checkpoint.id!r}, and nothing was changed: {error}") from error
        # No await from here until the entry is written: the old state ends and the new one begins at once.
        session.use_sandbox(new)
        ledger.append(
            "rolled_back",
            cause=before.reason or "rollback",
            variables=before.variables if before.variables in ("lost", "unknown") else "rolled_back",
            files=before.files if before.files in ("lost", "unknown") else "rolled_back",
            processes="ended",
            to=to,
            checkpoint=checkpoint.id,
            missing=missing,
            saved=save.created,
        )
        await sandbox.close()
