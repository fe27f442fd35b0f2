"""Shared outputs: the files below outputs/ of one client's sessions, copied from session to session between cells.

Files are copied and not mounted, so that this works at every endpoint. A session sees what others wrote as it was at the end of their
latest cells.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from ...client.session import Session
from ...errors import ACASessionsError, NotFoundError
from ...models import RemoteFile
from .named_session import NamedSession

FOLDER = "outputs"
_MOST_FILES = 1000
_MOST_KNOWN = 5000  # including deleted files, which have to be deleted in the other sessions too
_DEEPEST = 8
_PLACEHOLDER = f"{FOLDER}/.folder"

Marks = dict[str, tuple[int, datetime]]


@dataclass(frozen=True, slots=True)
class _Handed:
    """A file as its latest writer left it. `data` is None if the writer deleted it."""

    version: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Taken:
    """The files that a cell left below outputs/: those that are shared now, and those that are not."""

    shared: tuple[str, ...] = ()
    left: tuple[str, ...] = ()  # too large, or with names that no API takes


@dataclass(slots=True)
class _Place:
    """The outputs/ of one session: which version of each file it has, and what was last seen there."""

    versions: dict[str, int] = field(default_factory=dict)
    seen: Marks = field(default_factory=dict)


class Outputs:
    """The files that one client's sessions share, kept in this process up to a size."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes. With 0 nothing is shared."""
        self._limit = limit
        self._files: dict[str, _Handed] = {}
        self._version = 0
        self._places: dict[str, _Place] = {}
        self._turn = asyncio.Lock()

    @property
    def size(self) -> int:
        """Return the bytes that are kept."""
        return sum(len(handed.data) for handed in self._files.values() if handed.data is not None)

    def take_part(self, named: NamedSession) -> bool:
        """Return whether a session shares its outputs/. Sessions that all clients reach do not."""
        return self._limit > 0 and not named.shared

    def forget(self, named: NamedSession) -> None:
        """Forget what a session has, because it ended or was rolled back.

        Files that it shared stay, and are copied into it again if it continues.
        """
        self._places.pop(named.id, None)

    async def bring(self, session: Session, named: NamedSession) -> None:
        """Write into a session what other sessions shared since its last cell. Call this before a cell."""
        if not named.begun:
            self.forget(named)
            await session.upload_file(_PLACEHOLDER, b"")  # creates the folder: code that writes into it would fail otherwise
            await session.delete_file(_PLACEHOLDER)
            named.begun = True
        if not self.take_part(named):
            return
        async with self._turn:
            place = self._places.setdefault(named.id, _Place())
            news = {path: handed for path, handed in self._files.items() if place.versions.get(path) != handed.version}
            for path, handed in news.items():
                await _write(session, path, handed.data)
                place.versions[path] = handed.version
            if news:
                now, _ = await _look(session)
                place.seen = {path: marks for path, marks in place.seen.items() if path not in news}
                place.seen |= {path: marks for path, marks in now.items() if path in news}

    async def take(self, session: Session, named: NamedSession) -> Taken:
        """Keep what is new below outputs/ for the other sessions. Call this after a cell, and after anything else that may have written.

        The folder is listed each time: the files of a cell's result are none if the workspace has too many, and never those that
        background processes write.
        """
        if not named.begun:
            self.forget(named)  # files that were lost with the session stay in the others
        if not self.take_part(named):
            return Taken()
        async with self._turn:
            place = self._places.setdefault(named.id, _Place())
            try:
                return await self._keep_news(session, place)
            except ACASessionsError:
                return Taken()  # the cell's result is returned in any case, and the next call finds what is new

    async def _keep_news(self, session: Session, place: _Place) -> Taken:
        now, complete = await _look(session)
        changed = [path for path, marks in now.items() if place.seen.get(path) != marks]
        gone = [path for path in place.seen if path not in now] if complete else []
        left = [path for path in changed if not await self._keep(session, place, path, now[path][0])]
        for path in gone:
            self._hand_on(place, path, None)
        place.seen = now
        return Taken(tuple(path for path in [*changed, *gone] if path not in left), tuple(left))

    async def _keep(self, session: Session, place: _Place, path: str, size: int) -> bool:
        if not self._has_room(path, size):
            return False
        try:
            data = await session.download_file(path)
        except ACASessionsError:
            return False
        if not self._has_room(path, len(data)):
            return False  # a process of the session may have written more meanwhile
        self._hand_on(place, path, data)
        return True

    def _has_room(self, path: str, size: int) -> bool:
        others = [handed.data for known, handed in self._files.items() if known != path and handed.data is not None]
        return len(others) < _MOST_FILES and sum(map(len, others)) + size <= self._limit

    def _hand_on(self, place: _Place, path: str, data: bytes | None) -> None:
        self._version += 1
        self._files.pop(path, None)
        self._files[path] = _Handed(self._version, data)
        place.versions[path] = self._version
        if len(self._files) > _MOST_KNOWN:
            del self._files[next(path for path, handed in self._files.items() if handed.data is None)]


async def walk(session: Session, folder: str = "", *, depth: int = _DEEPEST, most: int = _MOST_FILES) -> AsyncIterator[RemoteFile]:
    """Yield the files and folders below a folder, each folder before its content.

    A subfolder that disappears meanwhile is skipped. If `folder` itself does not exist, NotFoundError is raised.

    Args:
        session: The session.
        folder: The folder to start in, relative to /mnt/data.
        depth: How many folders deep to go.
        most: How many files and folders to yield at most.
    """
    found, folders = await session.list_files(folder), [(folder, depth)]
    while folders:
        _, below = folders.pop(0)
        for file in found:
            if most <= 0:
                return
            most -= 1
            yield file
            if file.is_directory and below > 1:
                folders.append((path_of(file), below - 1))
        found = await _inside(session, folders[0][0]) if folders else []


async def _inside(session: Session, folder: str) -> list[RemoteFile]:
    try:
        return await session.list_files(folder)
    except NotFoundError:
        return []


def path_of(file: RemoteFile) -> str:
    """Return the file's path relative to /mnt/data."""
    return file.full_path.removeprefix("/mnt/data/")


async def _look(session: Session) -> tuple[Marks, bool]:
    """Return what is below outputs/, and whether that is all of it."""
    try:
        found = [file async for file in walk(session, FOLDER, most=_MOST_FILES + 1)]
    except NotFoundError:
        return {}, True
    files = [file for file in found[:_MOST_FILES] if not file.is_directory]
    return {path_of(file): (file.size, file.modified) for file in files}, len(found) <= _MOST_FILES


async def _write(session: Session, path: str, data: bytes | None) -> None:
    """Write or delete one file. If the session has no room, or a folder of that name, it goes without the file."""
    try:
        await (session.delete_file(path) if data is None else session.upload_file(path, data))
    except ACASessionsError:
        return
