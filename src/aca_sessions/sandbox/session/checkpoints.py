"""The checkpoints of a session. A checkpoint has a copy of the files, and a forked interpreter that keeps the variables and runs no cells.

Checkpoints are taken, and restored by a rollback, only between two cells.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from anyio import to_thread

from ...errors import ACASessionsError, GuestDiedError, SnapshotError
from ...lifetime import Tasks
from ...models import Checkpoint
from ..forkserver import ForkServer, limiter
from ..policy import Limits
from . import copies
from .descriptors import Workspace
from .files import Files
from .interpreter import Interpreter, fork

_MOST_NAMED = 10  # checkpoints in a message


@dataclass(slots=True)
class SessionCheckpoint:
    """A checkpoint: a forked interpreter that keeps the variables and runs no cells, and a copy of the files.

    Attributes:
        workspace: The workspace with the copy of the files. `files` reads and writes that copy.
        size: The bytes of the copied files.
        left_behind: Lines that name what could not be saved, such as child processes.
        hidden: Whether it was taken only to undo a transactional cell if that fails. Users do not see such a checkpoint.
        position: The position in the session's ledger (the list of what happened to the session) when the checkpoint was taken.
    """

    id: str
    name: str | None
    created: datetime
    interpreter: Interpreter
    workspace: Workspace
    files: Files
    size: int
    left_behind: tuple[str, ...]
    hidden: bool = False
    position: int = 0

    def describe(self) -> Checkpoint:
        """Return the description of this checkpoint that users get."""
        return Checkpoint(id=self.id, name=self.name, created=self.created, size=self.size, left_behind=self.left_behind)


AnyCheckpoint = TypeVar("AnyCheckpoint", SessionCheckpoint, Checkpoint)


def find_checkpoint(latest_first: Sequence[AnyCheckpoint], id: str | None, name: str | None) -> AnyCheckpoint:
    """Return a checkpoint by name or id, or the latest one if both are None. Raise SnapshotError if there is none.

    If both are given, a checkpoint with the name is preferred. If several checkpoints have the name, return the latest of them.
    """
    found = [checkpoint for checkpoint in latest_first if name is not None and checkpoint.name == name]
    found += [checkpoint for checkpoint in latest_first if id is not None and checkpoint.id == id]
    if found:
        return found[0]
    if id is None and name is None and latest_first:
        return latest_first[0]
    asked = name if name is not None else id
    if asked is None:
        raise SnapshotError("the session does not have a checkpoint to return to: take one first")
    if not latest_first:
        raise SnapshotError(f"the checkpoint {asked!r:.80} does not exist, and the session has no other: take one first")
    others = ", ".join(f"{checkpoint.name or checkpoint.id!r:.80}" for checkpoint in latest_first[:_MOST_NAMED])
    raise SnapshotError(f"the checkpoint {asked!r:.80} does not exist. The session has {others}; it may have removed others to free memory")


class Checkpoints:
    """The checkpoints of one session, which count towards the session's memory. Taking too many removes the oldest ones."""

    def __init__(self, fork_server: ForkServer, workspace: Workspace, files: Files, limits: Limits) -> None:
        self._fork_server = fork_server
        self._workspace = workspace
        self._files = files
        self._limits = limits
        self._taken: list[SessionCheckpoint] = []
        self._tasks = Tasks()

    @property
    def usable(self) -> list[SessionCheckpoint]:
        """Return the checkpoints that users can roll back to, the oldest first.

        A checkpoint is usable if its interpreter is alive, and if it was not taken for a transactional cell (`hidden`).
        """
        return [checkpoint for checkpoint in self._taken if checkpoint.interpreter.alive and not checkpoint.hidden]

    async def take(self, live: Interpreter, name: str | None, ids: Iterator[int | str], *, hidden: bool = False) -> SessionCheckpoint:
        """Take a checkpoint: fork the interpreter `live`, and copy the files.

        If there are then too many checkpoints, or their files are too large, remove the oldest. The checkpoint's id is the next number of
        `ids`. `hidden` tells whether it is taken for a transactional cell.
        """
        workspace = await to_thread.run_sync(
            lambda: self._fork_server.make_workspace(self._limits, user=self._workspace.user), limiter=limiter()
        )
        files = Files(workspace, self._files.room)
        most, allocate = self._limits.checkpoint_files, live.runtime.allocate
        copying = self._tasks.start_awaited(to_thread.run_sync(lambda: copies.copy(self._files, files, most=most, allocate=allocate)))
        try:  # forked while the files are copied
            interpreter, left = await fork(live, self._workspace, self._limits)
        except BaseException:
            await asyncio.gather(copying, return_exceptions=True)
            await self._drop_workspace(workspace, files)
            raise
        try:
            copied = await copying
        except BaseException:
            await interpreter.close()
            await self._drop_workspace(workspace, files)
            raise
        if copied.left_out:
            left.append(f"{copied.left_out} pipes, sockets or devices among the files")
        checkpoint = SessionCheckpoint(
            str(next(ids)), name, datetime.now(UTC), interpreter, workspace, files, copied.size, tuple(left), hidden
        )
        self._taken.append(checkpoint)
        await self._drop_oldest()
        return checkpoint

    async def prepare_interpreter(self, checkpoint: SessionCheckpoint) -> Interpreter:
        """Return an interpreter with the variables of a checkpoint, ready for cells.

        It is a new fork of the checkpoint's interpreter, so the checkpoint can be used again. A hidden checkpoint is used only once, so its
        own interpreter is returned. Raise SnapshotError if the checkpoint was removed, or if its interpreter does not respond.
        """
        if checkpoint not in self._taken:
            raise SnapshotError(
                f"the checkpoint {checkpoint.id!r} was removed, because the session was reset or ended meanwhile: take a new one"
            )
        try:
            if checkpoint.hidden:
                await checkpoint.interpreter.ping()
                return checkpoint.interpreter
            interpreter, _ = await fork(checkpoint.interpreter, self._workspace, self._limits)
            try:
                await interpreter.ping()
            except BaseException:
                await interpreter.close()
                raise
            return interpreter
        except ACASessionsError as error:
            raise SnapshotError(f"cannot return to the checkpoint {checkpoint.id!r}, so roll back to another one: {error}") from error

    async def drop(self, checkpoint: SessionCheckpoint) -> None:
        """Remove a checkpoint and end its interpreter. Do nothing if the checkpoint was removed already."""
        if checkpoint in self._taken:
            self._taken.remove(checkpoint)
            await self._tasks.run_shielded(self._end(checkpoint))

    def remove_hidden(self, checkpoint: SessionCheckpoint, *, is_in_use: bool = False) -> None:
        """Remove a hidden checkpoint, which was taken for a transactional cell, in the background. Do nothing if it was removed already.

        If `is_in_use` is true, keep the checkpoint's interpreter alive, because the session was rolled back to it and now uses it.
        """
        if checkpoint in self._taken:
            self._taken.remove(checkpoint)
            self._tasks.start(self._drop_workspace(checkpoint.workspace, checkpoint.files) if is_in_use else self._end(checkpoint))

    async def clear(self, *, include_hidden: bool = True) -> None:
        """Remove all checkpoints, and wait until their interpreters have ended and their files are deleted.

        If `include_hidden` is False, keep those that were taken for transactional cells.
        """
        for checkpoint in [*self._taken]:
            if include_hidden or not checkpoint.hidden:
                await self.drop(checkpoint)
        await self._tasks.finish()

    def abandon(self) -> None:
        """Remove all checkpoints without waiting for tasks. Call this only when the session's event loop is closed."""
        for checkpoint in self._taken:
            checkpoint.interpreter.abandon()
            checkpoint.files.close()
            self._fork_server.drop_workspace(checkpoint.workspace)
        self._taken.clear()

    async def _drop_oldest(self) -> None:
        """Remove the oldest checkpoints until their number and the bytes of their files are within the limits.

        Never remove the latest checkpoint. Neither remove nor count hidden ones, which were taken for transactional cells.
        """
        while len(own := [checkpoint for checkpoint in self._taken if not checkpoint.hidden]) > 1 and (
            len(own) > self._limits.checkpoints or sum(checkpoint.size for checkpoint in own) > self._limits.disk
        ):
            await self.drop(own[0])

    async def _end(self, checkpoint: SessionCheckpoint) -> None:
        await checkpoint.interpreter.close()
        await self._drop_workspace(checkpoint.workspace, checkpoint.files)

    async def _drop_workspace(self, workspace: Workspace, files: Files) -> None:
        await to_thread.run_sync(files.close)
        with suppress(GuestDiedError):  # its memory ended with the fork server
            await to_thread.run_sync(self._fork_server.drop_workspace, workspace, limiter=limiter())
