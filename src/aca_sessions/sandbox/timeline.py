"""A session's checkpoints: its variables as a fork that waits, its files as a copy. Taken and gone back to between two cells."""

import asyncio
import itertools
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from anyio import to_thread

from ..errors import ACASessionsError, SnapshotError
from ..models import Checkpoint
from ..tasks import Tasks
from . import copies
from .ends import Tree
from .files import Files
from .forkserver import ForkServer
from .interpreter import Interpreter
from .policy import Limits
from .starting import fork


@dataclass(slots=True)
class Moment:
    """A session as it was: the interpreter that waits since then, and a tree with its files."""

    id: str
    name: str | None
    created: datetime
    interpreter: Interpreter
    tree: Tree
    files: Files
    size: int
    left_behind: tuple[str, ...]
    hidden: bool = False

    def told(self) -> Checkpoint:
        """What its user knows of it."""
        return Checkpoint(id=self.id, name=self.name, created=self.created, size=self.size, left_behind=self.left_behind)


class Timeline:
    """Those of one session. They count towards its memory; the oldest go first."""

    def __init__(self, fork_server: ForkServer, tree: Tree, files: Files, limits: Limits) -> None:
        """Starts with none."""
        self._fork_server = fork_server
        self._tree = tree
        self._files = files
        self._limits = limits
        self._moments: list[Moment] = []
        self._numbers = itertools.count(1)
        self._tasks = Tasks()
        self.problem: SnapshotError | None = None
        self._settling: asyncio.Task[None] | None = None

    @property
    def moments(self) -> list[Moment]:
        """Those that can be gone back to, the oldest first; one may have ended for its memory."""
        return [moment for moment in self._moments if moment.interpreter.alive and not moment.hidden]

    async def find(self, id: str | None) -> Moment:
        """One of them by its id or name, or the latest."""
        await self.settled()
        for moment in reversed(self.moments):
            if id is None or id in (moment.id, moment.name):
                return moment
        raise SnapshotError("there is no such checkpoint: it was dropped, or ended for its memory" if id else "there is no checkpoint")

    async def take(self, live: Interpreter, name: str | None = None, *, hidden: bool = False) -> Moment:
        """Keeps the session as it is now."""
        tree = await to_thread.run_sync(lambda: self._fork_server.make_tree(self._limits, user=self._tree.user))
        files = Files(tree)
        copying = self._tasks.own(to_thread.run_sync(lambda: copies.copy(self._files, files, most=self._limits.checkpoint_files)))
        try:
            interpreter, left = await fork(live, self._tree, self._limits)
        except BaseException:
            await asyncio.wait({copying})
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
        number = str(next(self._numbers))
        moment = Moment(number, name, datetime.now(UTC), interpreter, tree, files, copied.size, tuple(left), hidden)
        self._moments.append(moment)
        await self._drop_oldest()
        return moment

    async def go_back(self, moment: Moment, earlier: Interpreter | None, *, with_files: bool = True) -> Interpreter:
        """The interpreter of that moment, in the place of an earlier one, which ends. The moment stays; a hidden one is used up.

        `problem` says what kept the files from being as they were.
        """
        await self.settled()
        self.problem = None
        if earlier is not None:
            earlier.kill()
        if with_files:
            await to_thread.run_sync(lambda: self._put_back(moment))
        interpreter = moment.interpreter
        self._moments.remove(moment)
        self._settling = self._tasks.own(self._settle(moment, earlier))
        return interpreter

    @property
    def unsettled(self) -> bool:
        """Whether a moment that was gone back to is being kept once more."""
        return self._settling is not None

    async def settled(self) -> None:
        """The next cell waits until the moment that was gone back to is kept once more."""
        if self._settling is not None:
            settling, self._settling = self._settling, None
            await settling

    async def drop(self, moment: Moment) -> None:
        """Lets go of one."""
        if moment in self._moments:
            self._moments.remove(moment)
            await self._tasks.to_its_end(self._end(moment))

    def use_up(self, moment: Moment) -> None:
        """Lets go of one that nobody will ask for, while others go on."""
        self._moments.remove(moment)
        self._tasks.start(self._end(moment))

    async def clear(self) -> None:
        """Lets go of all."""
        with suppress(ACASessionsError):
            await self.settled()
        for moment in [*self._moments]:
            await self.drop(moment)
        await self._tasks.finish()

    async def _settle(self, moment: Moment, earlier: Interpreter | None) -> None:
        if earlier is not None:
            await earlier.close()
        try:
            if moment.hidden:
                raise SnapshotError("it was for one cell")
            moment.interpreter, _ = await fork(moment.interpreter, self._tree, self._limits)
            self._moments.append(moment)
            self._moments.sort(key=lambda one: one.created)
        except ACASessionsError:
            await self._drop_tree(moment.tree, moment.files)

    async def _drop_oldest(self) -> None:
        """No more than so many, and no more bytes of files than /mnt/data itself may have."""
        while len(self._moments) > 1 and (len(self._moments) > self._limits.checkpoints or self._size > self._limits.disk):
            await self.drop(self._moments[0])

    @property
    def _size(self) -> int:
        return sum(moment.size for moment in self._moments)

    def _put_back(self, moment: Moment) -> None:
        try:
            copies.clear(self._files)
            copies.copy(moment.files, self._files, most=self._limits.disk)
        except (OSError, SnapshotError) as error:
            self.problem = SnapshotError(f"the variables are as they were, the files are not: {error}")

    async def _end(self, moment: Moment) -> None:
        await moment.interpreter.close()
        await self._drop_tree(moment.tree, moment.files)

    async def _drop_tree(self, tree: Tree, files: Files) -> None:
        await to_thread.run_sync(files.close)
        await to_thread.run_sync(self._fork_server.drop_tree, tree)
