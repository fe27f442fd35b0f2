"""Share the files below outputs/, and saved scripts, among the sessions of one MCP client. Copy them from session to session between cells.

Files are copied and not mounted, so that this works at every endpoint. A session gets the files of the other sessions as they were at the
end of their latest cells.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from ..client.session import Session
from ..errors import ACASessionsError, NotFoundError
from ..models import RemoteFile
from .named_session import NamedSession

FOLDER = "outputs"
SCRIPTS = "scripts"
FOLDERS = (f"{FOLDER}/", f"{SCRIPTS}/")
_MOST_FILES = 1000
_MOST_KNOWN = 5000  # including deleted files, which have to be deleted in the other sessions too
_DEEPEST = 8
_PLACEHOLDER = f"{FOLDER}/.folder"

Marks = dict[str, tuple[int, datetime]]


@dataclass(frozen=True, slots=True)
class _SharedFile:
    """The latest content of a shared file, with a number that grows with each change. `data` is None if a session deleted the file."""

    version: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class CollectedFiles:
    """The paths below outputs/ that a cell changed: `shared` are copied to the client's other sessions, `left` cannot be copied."""

    shared: tuple[str, ...] = ()
    left: tuple[str, ...] = ()  # too large, or with names that no API takes


@dataclass(slots=True)
class _SessionFiles:
    """What is known about the files below outputs/ of one session.

    `versions` has the version of each shared file that the session has. `seen` is the last list of its files: size and time of change by
    path.
    """

    versions: dict[str, int] = field(default_factory=dict)
    seen: Marks = field(default_factory=dict)


class Outputs:
    """Copies of the files that one client's sessions share. They are kept in this process's memory, up to a size limit.

    `folders` are shared: outputs/, and scripts/ from the time when the client has saved a script. Until then each cell saves a request.
    """

    def __init__(self, limit: int) -> None:
        """Allow at most `limit` bytes for all files together. If it is 0, no files are shared."""
        self.folders = [FOLDER]
        self._limit = limit
        self._files: dict[str, _SharedFile] = {}
        self._version = 0
        self._sessions: dict[str, _SessionFiles] = {}
        self._lock = asyncio.Lock()

    @property
    def size(self) -> int:
        """Return the size in bytes of all shared files together."""
        return sum(len(file.data) for file in self._files.values() if file.data is not None)

    def includes(self, named: NamedSession) -> bool:
        """Return whether a session shares its files below outputs/ with the client's other sessions.

        The answer is False for a session that several clients can use, and for every session if the size limit is 0.
        """
        return self._limit > 0 and not named.shared

    def share_scripts(self) -> None:
        """Share the files in scripts/ too from now on, without its subfolders, such as the one of compiled modules."""
        if SCRIPTS not in self.folders:
            self.folders.append(SCRIPTS)

    def forget(self, named: NamedSession) -> None:
        """Forget which files a session has, because it ended or was rolled back.

        Before its next cell, `copy_in` then copies all shared files into it.
        """
        self._sessions.pop(named.id, None)

    async def copy_in(self, session: Session, named: NamedSession) -> None:
        """Copy into a session those shared files that other sessions changed since its previous cell. Call this before its next cell.

        If the session is not started, create the folder outputs/ in it first.
        """
        if not named.is_started:
            self.forget(named)
            await session.upload_file(_PLACEHOLDER, b"")  # creates the folder: code that writes into it would fail otherwise
            with contextlib.suppress(NotFoundError):  # another first call of the session has deleted it meanwhile
                await session.delete_file(_PLACEHOLDER)
            named.is_started, named.is_expired, named.has_scripts, named.finds_scripts = True, False, False, False
        if not self.includes(named):
            return
        async with self._lock:
            known = self._sessions.setdefault(named.id, _SessionFiles())
            news = {path: file for path, file in self._files.items() if known.versions.get(path) != file.version}
            for path, file in news.items():
                await _write(session, path, file.data)
                known.versions[path] = file.version
                named.has_scripts |= path.startswith(f"{SCRIPTS}/")
            if news:
                now, _ = await _list_shared(session, self.folders)
                known.seen = {path: marks for path, marks in known.seen.items() if path not in news}
                known.seen |= {path: marks for path, marks in now.items() if path in news}

    async def collect(self, session: Session, named: NamedSession) -> CollectedFiles:
        """Download the shared files that a session changed, to share them with the client's other sessions. Return their paths.

        Call this after anything that may have written files. It lists the folders and does not use the list of files in a cell's result:
        that list lacks files that background processes wrote, and is empty if there are too many files.
        """
        if not named.is_started:
            self.forget(named)  # files that were lost with the session stay in the others
        if not self.includes(named):
            return CollectedFiles()
        async with self._lock:
            known = self._sessions.setdefault(named.id, _SessionFiles())
            try:
                return await self._collect_changes(session, known)
            except ACASessionsError:
                return CollectedFiles()  # the cell's result is returned in any case, and the next call finds what is new

    async def _collect_changes(self, session: Session, known: _SessionFiles) -> CollectedFiles:
        now, complete = await _list_shared(session, self.folders)
        changed = [path for path, marks in now.items() if known.seen.get(path) != marks]
        gone = [path for path in known.seen if path not in now] if complete else []
        left = [path for path in changed if not await self._keep(session, known, path, now[path][0])]
        for path in gone:
            self._publish(known, path, None)
        known.seen = now
        return CollectedFiles(tuple(path for path in [*changed, *gone] if path not in left), tuple(left))

    async def _keep(self, session: Session, known: _SessionFiles, path: str, size: int) -> bool:
        if not self._has_room(path, size):
            return False
        try:
            data = await session.download_file(path)
        except ACASessionsError:
            return False
        if not self._has_room(path, len(data)):
            return False  # a process of the session may have written more meanwhile
        self._publish(known, path, data)
        return True

    def _has_room(self, path: str, size: int) -> bool:
        others = [file.data for known, file in self._files.items() if known != path and file.data is not None]
        return len(others) < _MOST_FILES and sum(map(len, others)) + size <= self._limit

    def _publish(self, known: _SessionFiles, path: str, data: bytes | None) -> None:
        self._version += 1
        self._files.pop(path, None)
        self._files[path] = _SharedFile(self._version, data)
        known.versions[path] = self._version
        if len(self._files) > _MOST_KNOWN:
            del self._files[next(path for path, file in self._files.items() if file.data is None)]


async def walk(session: Session, folder: str = "", *, depth: int = _DEEPEST, most: int = _MOST_FILES) -> AsyncIterator[RemoteFile]:
    """List a folder of a session recursively: yield its files and subfolders, each subfolder before its content.

    Skip a subfolder that is deleted meanwhile. Raise NotFoundError if `folder` does not exist.

    Args:
        session: The session.
        folder: The folder, relative to /mnt/data, which is the default.
        depth: How many levels of folders to list; 1 lists only `folder` itself.
        most: The most files and folders to yield.
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
    """Return a file's path relative to /mnt/data."""
    return file.full_path.removeprefix("/mnt/data/")


async def _list_shared(session: Session, folders: list[str]) -> tuple[Marks, bool]:
    """Return the size and time of each file in the shared folders, keyed by path, and whether the list is complete.

    If there are more than 1000 files and folders, the list is not complete.
    """
    found: list[RemoteFile] = []
    for folder in folders:
        with contextlib.suppress(NotFoundError):
            depth = 1 if folder == SCRIPTS else _DEEPEST
            found += [file async for file in walk(session, folder, depth=depth, most=_MOST_FILES + 1 - len(found))]
    files = [file for file in found[:_MOST_FILES] if not file.is_directory]
    return {path_of(file): (file.size, file.modified) for file in files}, len(found) <= _MOST_FILES


async def _write(session: Session, path: str, data: bytes | None) -> None:
    """Write a file into a session, or delete it if `data` is None. Ignore failures, for example if the session's disk is full."""
    try:
        await (session.delete_file(path) if data is None else session.upload_file(path, data))
    except ACASessionsError:
        return
