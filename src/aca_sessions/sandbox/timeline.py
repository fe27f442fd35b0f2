"""The checkpoints of a session: its variables as a fork that waits, its files as a copy.

They are taken and returned to between two cells.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from anyio import to_thread

from ..errors import ACASessionsError, GuestDiedError, SnapshotError
from ..models import Checkpoint
from ..tasks import Tasks
from . import copies
from .ends import Tree
from .files import Files
from .forkserver import ForkServer, limiter
from .interpreter import Interpreter
from .policy import Limits
from .starting import fork


@dataclass(slots=True)
class Moment:
    """A checkpoint: the interpreter that waits since then, and a workspace with a copy of the files. `position` is that of the ledger.

    A hidden one belongs to a transactional cell.
    """

    id: str
    name: str | None
    created: datetime
    interpreter: Interpreter
    tree: Tree
    files: Files
    size: int
    left_behind: tuple[str, ...]
    hidden: bool = False
    position: int = 0

    def told(self) -> Checkpoint:
        """Return the checkpoint as its user sees it."""
        return Checkpoint(id=self.id, name=self.name, created=self.created, size=self.size, left_behind=self.left_behind)


class Timeline:
    """The checkpoints of one session. They count towards its memory. The oldest are removed first."""

    def __init__(self, fork_server: ForkServer, tree: Tree, files: Files, limits: Limits) -> None:
        self._fork_server = fork_server
        self._tree = tree
        self._files = files
        self._limits = limits
        self._moments: list[Moment] = []
        self._tasks = Tasks()

    @property
    def moments(self) -> list[Moment]:
        """Return the checkpoints that can be returned to, the oldest first.

        Hidden ones, and ones that were ended for their memory, are left out.
        """
        return [moment for moment in self._moments if moment.interpreter.alive and not moment.hidden]

    def find(self, id: str | None, name: str | None = None) -> Moment:
        """Return a checkpoint by name or by id, or the latest. Raise SnapshotError if it does not exist.

        The name is looked for first. If several have it, the latest is returned.
        """
        latest_first = self.moments[::-1]
        found = [moment for moment in latest_first if name is not None and moment.name == name]
        found += [moment for moment in latest_first if id is not None and moment.id == id]
        if found:
            return found[0]
        if id is None and name is None and latest_first:
            return latest_first[0]
        asked = id is not None or name is not None
        gone = "there is no such checkpoint: it was removed, or ended for its memory; `checkpoints()` lists those that are left"
        raise SnapshotError(gone if asked else "there is no checkpoint to return to: take one first")

    async def take(self, live: Interpreter, name: str | None, numbers: Iterator[int], *, hidden: bool = False) -> Moment:
        """Make a checkpoint of the session as it is now, and return it. Remove the oldest ones if there are too many.

        Args:
            live: the interpreter to fork.
            name: a name for the checkpoint, or None.
            numbers: the source of its id.
            hidden: whether it belongs to a transactional cell.
        """
        tree = await to_thread.run_sync(lambda: self._fork_server.make_tree(self._limits, user=self._tree.user), limiter=limiter())
        files = Files(tree, self._files.room)
        most, allocate = self._limits.checkpoint_files, live.home.allocate
        copying = self._tasks.own(to_thread.run_sync(lambda: copies.copy(self._files, files, most=most, allocate=allocate)))
        try:  # forked while the files are copied
            interpreter, left = await fork(live, self._tree, self._limits)
        except BaseException:
            await asyncio.gather(copying, return_exceptions=True)
            await self._drop_tree(tree, files)
            raise
        try:
            copied = await copying
        except BaseException:
            await interpreter.close()
            await self._drop_tree(tree, files)
            raise
        if copied.left_out:
            left.append(f"{copied.left_out} pipes, sockets or devices among the files")
        moment = Moment(str(next(numbers)), name, datetime.now(UTC), interpreter, tree, files, copied.size, tuple(left), hidden)
        self._moments.append(moment)
        await self._drop_oldest()
        return moment

    async def prepare(self, moment: Moment) -> Interpreter:
        """Return an interpreter with the variables of a checkpoint, after it has answered. The checkpoint stays as it is.

        A hidden one is for a single return, so its own interpreter is returned. Raise SnapshotError if the checkpoint was removed or fails.
        """
        if moment not in self._moments:
            raise SnapshotError("this checkpoint was removed: the session was reset or ended meanwhile")
        try:
            if moment.hidden:
                await moment.interpreter.ping()
                return moment.interpreter
            interpreter, _ = await fork(moment.interpreter, self._tree, self._limits)
            try:
                await interpreter.ping()
            except BaseException:
                await interpreter.close()
                raise
            return interpreter
        except ACASessionsError as error:
            raise SnapshotError(f"the checkpoint cannot be returned to: {error}") from None

    async def drop(self, moment: Moment) -> None:
        """Remove a checkpoint."""
        if moment in self._moments:
            self._moments.remove(moment)
            await self._tasks.to_its_end(self._end(moment))

    def use_up(self, moment: Moment, *, returned_to: bool = False) -> None:
        """Remove a hidden checkpoint in the background.

        If the session returned to it, its interpreter is the session's now and lives on.
        """
        if moment in self._moments:
            self._moments.remove(moment)
            self._tasks.start(self._drop_tree(moment.tree, moment.files) if returned_to else self._end(moment))

    async def clear(self, *, hidden: bool = True) -> None:
        """Remove all checkpoints, or only those that are not hidden."""
        for moment in [*self._moments]:
            if hidden or not moment.hidden:
                await self.drop(moment)
        await self._tasks.finish()

    def abandon(self) -> None:
        """Drop all checkpoints at once, for use when the event loop that they belong to is closed."""
        for moment in self._moments:
            moment.interpreter.abandon()
            moment.files.close()
            self._fork_server.drop_tree(moment.tree)
        self._moments.clear()

    async def _drop_oldest(self) -> None:
        """Remove the oldest checkpoints until their number, and the bytes of their files, are within the limits. The latest always stays.

        Hidden ones do not count.
        """
        while len(own := [moment for moment in self._moments if not moment.hidden]) > 1 and (
            len(own) > self._limits.checkpoints or sum(moment.size for moment in own) > self._limits.disk
        ):
            await self.drop(own[0])

    async def _end(self, moment: Moment) -> None:
        await moment.interpreter.close()
        await self._drop_tree(moment.tree, moment.files)

    async def _drop_tree(self, tree: Tree, files: Files) -> None:
        await to_thread.run_sync(files.close)
        with suppress(GuestDiedError):  # its memory ended with the fork server
            await to_thread.run_sync(self._fork_server.drop_tree, tree, limiter=limiter())
