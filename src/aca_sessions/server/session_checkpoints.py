"""The checkpoints of a session: those of its sandbox, and the durable ones in the store of saved sessions."""

from functools import partial
from typing import TYPE_CHECKING

from ..contract import extensions
from ..contract.records import ProblemError
from ..durable.saves import Save
from ..errors import ACASessionsError, SnapshotError
from ..ledger import state_between
from ..models import Checkpoint, State
from ..sandbox.sandbox import Sandbox
from ..sandbox.session.checkpoints import find_checkpoint
from .saved_sessions import SavedSessions

if TYPE_CHECKING:
    from .sessions import HostedSession


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
        if record.ledger != ledger.id:  # the session could not be restored, and began again. What it had lost before is still so
            before, to = state_between(record.entries, fetched, record.end), -1
        try:
            new = await self._saved.sandboxes.open()
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
