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
_MOST_KNOWN = 5000  # deleted ones included, which have to be deleted elsewhere too
_DEEPEST = 8
_PLACEHOLDER = f"{FOLDER}/.folder"

Marks = dict[str, tuple[int, datetime]]


@dataclass(frozen=True, slots=True)
class _Handed:
    """A file as its latest writer left it; no data where that one deleted it."""

    version: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the files that a cell left below outputs/."""

    shared: tuple[str, ...] = ()
    left: tuple[str, ...] = ()  # too large, or with names that no API takes


@dataclass(slots=True)
class _Place:
    """One session's outputs/: which version of each file was brought there or came from there, and what was last seen there."""

    versions: dict[str, int] = field(default_factory=dict)
    seen: Marks = field(default_factory=dict)
    unseen: bool = False  # something was written, and nobody looked


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

    def take_part(self, named: NamedSession) -> bool:
        """Whether a session hands on and is brought anything."""
        return self._limit > 0 and not named.shared

    def forget(self, named: NamedSession) -> None:
        """A session is gone, or other than it was; what it handed on stays, and is brought to it again if it goes on."""
        self._places.pop(named.id, None)

    async def bring(self, session: Session, named: NamedSession) -> None:
        """Before a cell: what other sessions handed on since this one's last cell is written into it."""
        if not named.begun:
            self.forget(named)
            await session.upload_file(_PLACEHOLDER, b"")  # code that writes into the folder does not make it
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

    def look_later(self, named: NamedSession) -> None:
        """Something may have been written by a cell that nobody waited for: the next one's end is the time to look."""
        self._places.setdefault(named.id, _Place()).unseen = True

    async def take(self, session: Session, named: NamedSession, result: CodeExecutionResult | None = None) -> Taken:
        """After a cell, or whatever else may have written: what is new below outputs/ is kept for the other sessions."""
        if not self.take_part(named):
            return Taken()
        async with self._turn:
            place = self._places.setdefault(named.id, _Place())
            try:
                if result is None or place.unseen or await _may_have_changed(session, result):
                    return await self._keep_news(session, place)
            except ACASessionsError:
                place.unseen = True  # the cell's result is told in any case
            return Taken()

    async def _keep_news(self, session: Session, place: _Place) -> Taken:
        now, complete = await _look(session)
        changed = [path for path, marks in now.items() if place.seen.get(path) != marks]
        gone = [path for path in place.seen if path not in now] if complete else []
        left = [path for path in changed if not await self._keep(session, place, path, now[path][0])]
        for path in gone:
            self._hand_on(place, path, None)
        place.seen, place.unseen = now, False
        return Taken(tuple(path for path in [*changed, *gone] if path not in left), tuple(left))

    async def _keep(self, session: Session, place: _Place, path: str, size: int) -> bool:
        if not self._has_room(path, size):
            return False
        try:
            data = await session.download_file(path)
        except ACASessionsError:
            return False
        if not self._has_room(path, len(data)):
            return False  # a process that goes on may have written more meanwhile
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
    """Files and folders below a folder, each folder before what is in it. One that goes meanwhile is passed over, but for the first."""
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
    """Relative to /mnt/data."""
    return file.full_path.removeprefix("/mnt/data/")


async def _look(session: Session) -> tuple[Marks, bool]:
    """What is below outputs/, and whether that is all."""
    try:
        found = [file async for file in walk(session, FOLDER, most=_MOST_FILES + 1)]
    except NotFoundError:
        return {}, True
    files = [file for file in found[:_MOST_FILES] if not file.is_directory]
    return {path_of(file): (file.size, file.modified) for file in files}, len(found) <= _MOST_FILES


async def _may_have_changed(session: Session, result: CodeExecutionResult) -> bool:
    """Where an endpoint tells of files, it has told; elsewhere somebody has to look."""
    return not await session.supports("rich") or any(file.path.startswith(f"{FOLDER}/") for file in result.files)


async def _write(session: Session, path: str, data: bytes | None) -> None:
    """A session without room for it, or with a folder in its place, goes without it."""
    try:
        await (session.delete_file(path) if data is None else session.upload_file(path, data))
    except ACASessionsError:
        return
