"""What the sessions of one client hand on to each other: the files below outputs/, copied from session to session between cells.

No mount, so that it works at every endpoint; a session sees what others wrote as it was at the end of their latest cells.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from ...client.session import Session
from ...errors import ACASessionsError, NotFoundError
from ...models import CodeExecutionResult, RemoteFile
from .named_session import NamedSession

FOLDER = "outputs"
_MOST_FILES = 1000
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class _Handed:
    """A file as its latest writer left it; no data where that one deleted it."""

    version: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the files that a cell left below outputs/."""

    shared: tuple[str, ...] = ()
    too_large: tuple[str, ...] = ()


@dataclass(slots=True)
class _Place:
    """What one session has below its outputs/, as far as it was brought there or seen there."""

    version: int = 0
    seen: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    unseen: bool = False  # a cell was cancelled, and nobody looked at what it left


class Outputs:
    """One client's files to hand on, kept in this process up to a size."""

    def __init__(self, limit: int) -> None:
        """Keeps at most `limit` bytes; with 0 nothing is handed on."""
        self._limit = limit
        self._files: dict[str, _Handed] = {}
        self._version = 0
        self._places: dict[str, _Place] = {}
        self._turn = asyncio.Lock()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(len(handed.data) for handed in self._files.values() if handed.data is not None)

    @property
    def enabled(self) -> bool:
        """Whether anything is handed on."""
        return self._limit > 0

    def forget(self, named: NamedSession) -> None:
        """A session is gone; what it handed on stays."""
        self._places.pop(named.id, None)

    async def bring(self, session: Session, named: NamedSession) -> None:
        """Before a cell: what other sessions handed on since this one's last cell is written into it."""
        if not named.begun:
            self._places.pop(named.id, None)
            await session.upload_file(f"{FOLDER}/.folder", b"")  # code that writes into the folder does not make it
            await session.delete_file(f"{FOLDER}/.folder")
            named.begun = True
        if named.shared or not self.enabled:
            return
        async with self._turn:
            place = self._places.setdefault(named.id, _Place())
            news = {path: handed for path, handed in self._files.items() if handed.version > place.version}
            for path, handed in news.items():
                await _write(session, path, handed.data)
            if news:
                now = await _marks(session)
                place.seen = {path: marks for path, marks in place.seen.items() if path not in news}
                place.seen |= {path: marks for path, marks in now.items() if path in news}
            place.version = self._version

    async def take(self, session: Session, named: NamedSession, result: CodeExecutionResult | None) -> Taken:
        """After a cell: what it wrote below outputs/ is kept for the others. Without a result nobody looks until the next one."""
        if named.shared or not self.enabled:
            return Taken()
        async with self._turn:
            place = self._places.setdefault(named.id, _Place())
            if result is None:
                place.unseen = True
            if result is None or not (place.unseen or await _may_have_changed(session, result)):
                return Taken()
            return await self._look(session, place)

    async def _look(self, session: Session, place: _Place) -> Taken:
        now = await _marks(session)
        changed = [path for path, marks in now.items() if place.seen.get(path) != marks]
        gone = [path for path in place.seen if path not in now]
        too_large = [path for path in changed if not await self._keep(session, path, now[path][0])]
        for path in gone:
            self._hand_on(path, None)
        place.seen, place.unseen, place.version = now, False, self._version
        return Taken(tuple(path for path in [*changed, *gone] if path not in too_large), tuple(too_large))

    async def _keep(self, session: Session, path: str, size: int) -> bool:
        before = self._files.get(path)
        replaced = len(before.data) if before is not None and before.data is not None else 0
        if self.size - replaced + size > self._limit:
            return False
        data = await session.download_file(path)
        if self.size - replaced + len(data) > self._limit:
            return False  # a process that goes on may have written more meanwhile
        self._hand_on(path, data)
        return True

    def _hand_on(self, path: str, data: bytes | None) -> None:
        self._version += 1
        self._files[path] = _Handed(self._version, data)


async def walk(session: Session, folder: str = "", *, depth: int = _DEEPEST, most: int = _MOST_FILES) -> AsyncIterator[RemoteFile]:
    """Files and folders below a folder, each folder before what is in it."""
    folders = [(folder, depth)]
    while folders:
        here, below = folders.pop(0)
        for file in await session.list_files(here):
            if most <= 0:
                return
            most -= 1
            yield file
            if file.is_directory and below > 1:
                folders.append((path_of(file), below - 1))


def path_of(file: RemoteFile) -> str:
    """Relative to /mnt/data."""
    return file.full_path.removeprefix("/mnt/data/")


async def _marks(session: Session) -> dict[str, tuple[int, datetime]]:
    try:
        return {path_of(file): (file.size, file.modified) async for file in walk(session, FOLDER) if not file.is_directory}
    except NotFoundError:
        return {}


async def _may_have_changed(session: Session, result: CodeExecutionResult) -> bool:
    """Where an endpoint tells of files, it has told; elsewhere somebody has to look."""
    return not await session.supports("rich") or any(file.path.startswith(f"{FOLDER}/") for file in result.files)


async def _write(session: Session, path: str, data: bytes | None) -> None:
    """A session without room for it, or with a folder in its place, goes without it."""
    try:
        await (session.delete_file(path) if data is None else session.upload_file(path, data))
    except ACASessionsError:
        return
