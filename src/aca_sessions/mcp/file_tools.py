"""Tools for a session's files. Their docstrings, and those of their answers, are sent to models."""

import base64
import binascii
import codecs
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ..client.session import Session
from ..errors import InvalidArgumentError, NotFoundError
from ..guest_text import for_model, shown_name
from .outputs import FOLDER, SCRIPTS, path_of, walk
from .resources import ROOT, checked, checked_folder, picture, picture_kind
from .tool import Call, SessionName, tool

_MOST_FILES = 500

Path = Annotated[str, Field(description="Relative to /mnt/data.", max_length=4096)]
Folder = Annotated[str, Field(description="Relative to /mnt/data; empty for all of it.", max_length=4096)]
Depth = Annotated[int, Field(description="How many folders deep a recursive list goes.", ge=1, le=20)]
MostBytes = Annotated[int, Field(description="How many bytes to read, except of a picture.", ge=1, le=1 << 20)]
Start = Annotated[int, Field(description="The first byte to read.", ge=0)]
Content = Annotated[str, Field(description="Text, or base64 if binary_base64 is true.", max_length=14 << 20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAnswer:
    """A file or folder."""

    path: str
    size: int
    modified: datetime
    is_directory: bool
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesAnswer:
    """The files and folders in a folder."""

    session_id: str
    path: str
    files: list[FileAnswer]
    total: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAnswer:
    """A part of a file, which is the content of the result. `truncated` is whether the file has more after it."""

    session_id: str
    path: str
    size: int
    kind: Literal["text", "base64", "image"]
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenAnswer:
    """A file that was written or deleted."""

    session_id: str
    path: str
    status: Literal["written", "deleted"]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceAnswer:
    """The answer of `get_workspace_info`: where a session has its files, how many files and bytes it has in all, and what it shares.

    `shared` lists the folders that the session shares with the client's other sessions. `shared_bytes` is the size of the client's shared
    outputs, even if this session shares none. `mounts` are folders of the host, which only code reaches.
    """

    session_id: str
    workspace: str
    scripts_dir: str
    outputs_dir: str
    shared: list[str]
    shared_bytes: int
    files: int
    bytes: int
    mounts: list[str]


async def list_files(
    call: Call, path: Folder = "", recursive: bool = False, max_depth: Depth = 3, session_id: SessionName = None
) -> FilesAnswer:
    """List the files of a session, those of one folder or recursively."""
    named = call.client.find_unexpired(session_id)
    folder = checked_folder(path, call.mounts)
    if not named.is_started and not folder:
        return FilesAnswer(session_id=named.name, path="", files=[], total=0, truncated=False)
    named = call.client.find_started(session_id)
    async with call.client.lease(named) as session:
        found = [file async for file in walk(session, folder, depth=max_depth if recursive else 1, most=_MOST_FILES + 1)]
    listed = [
        FileAnswer(
            path=path_of(file), size=file.size, modified=file.modified, is_directory=file.is_directory, content_type=file.content_type
        )
        for file in found[:_MOST_FILES]
    ]
    return FilesAnswer(session_id=named.name, path=folder, files=listed, total=len(listed), truncated=len(found) > _MOST_FILES)


async def read_file(call: Call, path: Path, max_bytes: MostBytes = 10_000, offset: Start = 0, session_id: SessionName = None) -> ReadAnswer:
    """Read a file of a session, or a part of it: text if it is UTF-8, otherwise base64. You see a picture (PNG, JPEG, GIF or WebP) as an
    image.
    """
    inside = checked(path, call.mounts)
    named = call.client.find_started(session_id)
    async with call.client.lease(named) as session:
        try:
            data = await session.download_file(inside)
        except NotFoundError as error:
            if await _is_folder(session, inside):
                raise InvalidArgumentError(f"{shown_name(inside)} is a folder: list its files with list_files") from error
            raise
    kind = None if offset else picture_kind(data)
    if kind is not None:
        call.show(*picture(inside, data, kind))
        return ReadAnswer(session_id=named.name, path=inside, size=len(data), kind="image")
    part = data[offset : offset + max_bytes]
    text = _text(part)
    shown = base64.b64encode(part).decode() if text is None else for_model(text)
    end = offset + len(part if text is None else text.encode())
    notes = [] if text is not None else ["the text before this is base64, because the file is not UTF-8"]
    if end - offset < len(data):
        notes.append(f"bytes {offset} to {end} of {len(data)}" + (f", read on with offset={end}" if end < len(data) else ""))
    call.show_text(shown)
    if notes:  # in a block of its own, which no file can imitate
        call.show_text(f"[file] {'; '.join(notes)}")
    return ReadAnswer(
        session_id=named.name, path=inside, size=len(data), kind="base64" if text is None else "text", truncated=end < len(data)
    )


async def write_file(
    call: Call, path: Path, content: Content, binary_base64: bool = False, session_id: SessionName = None
) -> WrittenAnswer:
    """Write a file in a session, and replace it if it exists. Missing folders are created."""
    named = call.client.find(session_id)
    inside = checked(path, call.mounts)
    async with call.client.lease(named) as session:
        await call.client.copy_in(session, named)
        file = await session.upload_file(inside, _decoded(content) if binary_base64 else content)
        await call.client.collect(session, named, [inside])
    await call.resources_changed([named.file_uri(inside)])
    return WrittenAnswer(session_id=named.name, path=inside, status="written", size=file.size)


async def delete_file(call: Call, path: Path, session_id: SessionName = None) -> WrittenAnswer:
    """Delete a file of a session."""
    inside = checked(path, call.mounts)
    named = call.client.find_started(session_id)
    async with call.client.lease(named) as session:
        await session.delete_file(inside)
        await call.client.collect(session, named, [inside])
    await call.resources_changed([named.file_uri(inside)])
    return WrittenAnswer(session_id=named.name, path=inside, status="deleted", size=0)


async def get_workspace_info(call: Call, session_id: SessionName = None) -> WorkspaceAnswer:
    """Return where a session has its files, how many there are, and what is shared with your other sessions."""
    named = call.client.find_unexpired(session_id)
    outputs = call.client.outputs
    sizes: list[int] = []
    if named.is_started:
        async with call.client.lease(named) as session:
            sizes += [file.size async for file in walk(session) if not file.is_directory]
    return WorkspaceAnswer(
        session_id=named.name,
        workspace=ROOT,
        scripts_dir=SCRIPTS,
        outputs_dir=FOLDER,
        shared=[*outputs.folders] if outputs.includes(named) else [],
        shared_bytes=outputs.size,
        files=len(sizes),
        bytes=sum(sizes),
        mounts=[f"{path} ({shared})" for path, shared in call.mounts],
    )


async def _is_folder(session: Session, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    try:
        return any(file.is_directory and file.name == name for file in await session.list_files(folder))
    except NotFoundError:
        return False


def _text(part: bytes) -> str | None:
    """Decode a part of a file as UTF-8. Drop a character that is cut off at the end. Return None if the part is not UTF-8."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(part)
    except UnicodeDecodeError:
        return None
    return text if text or not part else None  # the part is shorter than one character


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise InvalidArgumentError(
            "content must be base64 because binary_base64 is true: encode it, or send text without binary_base64"
        ) from error


TOOLS = (
    tool(list_files, "List files", "reads"),
    tool(read_file, "Read a file", "reads", shows=True),
    tool(write_file, "Write a file", "destroys", repeatable=True),
    tool(delete_file, "Delete a file", "destroys"),
    tool(get_workspace_info, "Where files are", "reads"),
)
