"""Read and change files anywhere in a session, as its code could: by cells that the client sends for that."""

import asyncio
import base64
import binascii
import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError, PathError
from ..models import FileStatus, TextMatch
from .commands import delete_quietly, send_content
from .snippet_results import parse_printed_json, unreadable

if TYPE_CHECKING:
    from .session import Session

MOST_FOUND = 1000


class Filesystem:
    """The files of a session at any path that its code can use; relative paths are in /mnt/data.

    Its methods run as cells, so they wait for a cell that runs. They follow symbolic links, and obey permissions. If a path cannot be read
    or changed, they raise PathError, which is also the error of Python for that reason: FileNotFoundError, IsADirectoryError,
    NotADirectoryError, PermissionError, FileExistsError or another OSError.

    For large files in /mnt/data, and while a cell runs, use `Session.upload_file`, `download_file` and `list_files`.
    """

    def __init__(self, session: "Session") -> None:
        self._session = session

    async def read(self, path: str) -> bytes:
        """Return a file's content."""
        content = await self._call("read", path, "read_path")
        match content:
            case bytes():
                return content
            case {"data": str(data)}:
                return _decoded(data)
        raise unreadable()

    async def write(self, path: str, data: bytes | str, *, mode: int | None = None) -> FileStatus:
        """Write a file in place, or create it and its folders. Return its status.

        Args:
            path: The file.
            data: The content.
            mode: The permissions, such as 0o755. By default those of the earlier file stay, and a new file has 0o644.
        """
        content = data.encode() if isinstance(data, str) else bytes(data)
        sent = await send_content(self._session, content, "data")
        try:
            return _status(await self._call("write", path, "write_path", json.dumps({"mode": mode, **sent})))
        except asyncio.CancelledError:
            if "data_file" in sent:
                await self._session._interpreter._tasks.run_shielded(delete_quietly(self._session, sent["data_file"]))
            raise

    async def edit(self, path: str, old: str, new: str, *, replace_all: bool = False) -> int:
        """Replace a text in a file, and return how often it was found.

        Args:
            path: The file.
            old: The text to look for.
            new: The text in its place.
            replace_all: Replace each occurrence. Otherwise change nothing if the text is found more than once.
        """
        if not old:
            raise InvalidArgumentError("old must be a text to look for, got an empty one")
        count = await self._call("edit", path, "edit_path", json.dumps({"old": old, "new": new, "all": replace_all}))
        if not isinstance(count, int):
            raise unreadable()
        return count

    async def stat(self, path: str, *, follow_links: bool = True) -> FileStatus:
        """Return the status of a file or folder, or of a link itself if `follow_links` is false."""
        return _status(await self._call("look at", path, "stat_path", int(follow_links)))

    async def exists(self, path: str) -> bool:
        """Return whether a file or folder exists."""
        try:
            await self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def list_folder(self, path: str = "") -> list[FileStatus]:
        """Return the status of everything in a folder, sorted by name, also of links, pipes and hidden files."""
        return _statuses(await self._call("list", path, "list_folder"))

    async def resolve(self, path: str) -> str:
        """Return the absolute path of a file or folder, without symbolic links. It need not exist."""
        resolved = await self._call("resolve", path, "resolve_path")
        if not isinstance(resolved, str):
            raise unreadable()
        return resolved

    async def make_folder(self, path: str) -> None:
        """Create a folder and those above it. Do nothing if it exists."""
        await self._call("create", path, "make_folder")

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file, a link, or a folder, which must be empty unless `recursive` is true."""
        await self._call("delete", path, "remove_path", int(recursive))

    async def move(self, path: str, target: str) -> None:
        """Move a file or folder to the path `target`, whose folders are created. A file there is replaced."""
        await self._call("move", path, "move_path", _checked(target))

    async def glob(self, pattern: str, folder: str = "", *, most: int = MOST_FOUND) -> tuple[list[FileStatus], bool]:
        """Return what is in a folder and matches a pattern, such as `*.csv` or `**/*.py`, sorted by path; and whether there is more.

        Args:
            pattern: The pattern, relative to the folder, with `**` for any number of folders. Hidden files match, too.
            folder: The folder.
            most: How many matches are returned.
        """
        if not pattern or pattern.startswith("/"):
            raise InvalidArgumentError(f"pattern must be relative to the folder, such as '**/*.py', got {pattern!r:.80}")
        found = _statuses(await self._call("search", folder, "glob_paths", _checked(pattern), most))
        return found[:most], len(found) > most

    async def grep(
        self,
        pattern: str,
        folder: str = "",
        *,
        glob: str | None = None,
        regex: bool = False,
        ignore_case: bool = False,
        most: int = MOST_FOUND,
    ) -> tuple[list[TextMatch], bool]:
        """Return lines of text files that have a text, in the order of their paths; and whether there are more.

        Skip binary files, and files above 10 MB.

        Args:
            pattern: The text, or a regular expression.
            folder: The folder whose files are read, with those in its subfolders; or one file.
            glob: Read only files whose name, or path below the folder, matches this pattern, such as `*.py`.
            regex: Whether `pattern` is a regular expression.
            ignore_case: Find upper and lower case alike.
            most: How many lines are returned.
        """
        request = {"pattern": pattern, "glob": glob, "regex": regex, "ignore_case": ignore_case, "most": most}
        match await self._call("search", folder, "grep_paths", json.dumps(request)):
            case [*rows] if all(_is_match(row) for row in rows):
                return [TextMatch(*row) for row in rows[:most]], len(rows) > most
        raise unreadable()

    async def _call(self, verb: str, path: str, snippet: str, *arguments: str | int) -> Any:
        """Return the value that a snippet prints for a path, or the bytes of the file that it copies. Raise PathError if it fails."""
        interpreter, id = self._session._interpreter, self._session.session_id
        copy, is_copied = f".call-{uuid.uuid4().hex}", True
        try:
            reply = parse_printed_json(await self._session._run_snippet(snippet, copy, _checked(path), *arguments))
            is_copied = reply in ({"is_in": "copy"}, {"value": {"is_in": "copy"}})
            if reply == {"is_in": "copy"}:
                reply = _parsed(await interpreter.download_file(id, copy))
            match reply:
                case {"errno": int(number)}:
                    raise PathError.of(number, f"cannot {verb} {path!r:.200}", path)
                case {"value": {"is_in": "copy"}}:
                    return await interpreter.download_file(id, copy)
                case {"value": value}:
                    return value
            raise unreadable()
        finally:
            if is_copied:
                await interpreter._tasks.run_shielded(delete_quietly(self._session, copy))


def _checked(path: object) -> str:
    if not isinstance(path, str) or "\0" in path:
        raise InvalidArgumentError(f"a path must be text without NUL characters, got {path!r:.80}")
    return path


def _parsed(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise unreadable() from None


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise unreadable() from None


def _statuses(content: object) -> list[FileStatus]:
    if not isinstance(content, list):
        raise unreadable()
    return [_status(one) for one in content]


def _status(content: object) -> FileStatus:
    match content:
        case [str(path), "file" | "folder" | "link" | "other" as kind, int(size), int(mode), int() | float() as modified, str(target)]:
            try:
                return FileStatus(path, kind, size, mode, datetime.fromtimestamp(modified, UTC), target)
            except (OverflowError, ValueError, OSError):  # a year that Python does not know
                return FileStatus(path, kind, size, mode, datetime.fromtimestamp(0, UTC), target)
    raise unreadable()


def _is_match(row: object) -> bool:
    match row:
        case [str(), int(), str()]:
            return True
    return False
