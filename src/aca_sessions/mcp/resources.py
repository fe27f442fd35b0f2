"""The MCP resources: session://NAME/files/PATH is a file of a session, and session://NAME/displays/NUMBER what a cell displayed."""

import base64
import json
import mimetypes
from urllib.parse import unquote, urlsplit

from mcp import types
from pydantic import AnyUrl

from ..client.arguments import checked_path
from ..errors import ACASessionsError, InvalidArgumentError, ServiceError
from ..guest_text import shown_caption, shown_name
from ..models import Display
from .clients import Client
from .named_session import DISPLAYS_KEPT, NamedSession
from .outputs import path_of, walk
from .sdk import refusal, to_uri

ROOT = "/mnt/data"
MOST_IMAGE_CHARACTERS = 700_000  # of all images of a result in base64: Claude Desktop takes a result of at most 1,048,576 characters


Mounts = tuple[tuple[str, str], ...]


def checked(path: str, mounts: Mounts = ()) -> str:
    """Validate the path of a file and return it relative to /mnt/data. Both `/mnt/data/a.csv` and `a.csv` give `a.csv`.

    Raise InvalidArgumentError if the path is invalid or leads out of /mnt/data. For a path in one of `mounts`, folders of the host that
    only code reaches, the error says so.
    """
    for mount, _ in mounts:
        if f"{path}/".startswith(f"{mount}/"):
            raise InvalidArgumentError(f"{mount} is a folder of the host, outside of /mnt/data: use run_python_code to read {mount}")
    inside = path.removeprefix(f"{ROOT}/")
    if inside.startswith("/") or any(part in ("", ".", "..") for part in inside.split("/")):
        raise InvalidArgumentError(f"a path must be relative to /mnt/data and stay in it, such as 'folder/data.csv', got {path!r:.80}")
    checked_path(inside)
    return inside


def checked_folder(path: str, mounts: Mounts = ()) -> str:
    """Validate the path of a folder and return it relative to /mnt/data. Both `/mnt/data/a` and `a` give `a`; `/mnt/data` itself gives "".

    Raise InvalidArgumentError as `checked` does.
    """
    inside = path.strip().rstrip("/")
    return checked(inside, mounts) if inside not in ("", ".", ROOT) else ""


_MOST_LISTED = 500
_LARGEST = 16 << 20
_BYTES = "application/octet-stream"
_BINARY = ("image/", "audio/", "video/", "application/pdf")  # in base64, except SVG
_PREFERRED = ("text/html", "image/svg+xml", "text/markdown", "text/latex", "application/json")
TEMPLATES = [
    types.ResourceTemplate(uriTemplate="session://{session_id}/files/{+path}", name="A file of a session"),
    types.ResourceTemplate(uriTemplate="session://{session_id}/displays/{number}", name="Something that a cell displayed"),
]


async def listed(client: Client) -> list[types.Resource]:
    """List the files and displays of all sessions that a client can use, at most 500. Skip sessions that are not started."""
    found: list[types.Resource] = []
    for named in client.sessions().values():
        if named.is_started:
            found += await _files(client, named)
            found += [display_resource(named, number) for number in named.displays]
    return found[:_MOST_LISTED]


async def read(client: Client, uri: AnyUrl) -> types.ReadResourceResult:
    """Return the content of the file or display that a URI names. Raise the SDK's error if there is none."""
    try:
        kind, content = await _content(client, str(uri))
    except ACASessionsError as error:
        message = error.message if isinstance(error, ServiceError) else str(error)
        raise refusal(message, uri=str(uri)) from error
    if isinstance(content, str):
        return types.ReadResourceResult(contents=[types.TextResourceContents(uri=uri, text=content, mimeType=kind)])
    blob = base64.b64encode(content).decode()
    return types.ReadResourceResult(contents=[types.BlobResourceContents(uri=uri, blob=blob, mimeType=kind)])


def _one_line(path: str) -> str:
    """Return a path, quoted with `repr` if it has line breaks or other characters that cannot be printed."""
    return path if path.isprintable() else repr(path)


async def _files(client: Client, named: NamedSession) -> list[types.Resource]:
    async with client.lease(named) as session:
        files = [file async for file in walk(session, most=_MOST_LISTED) if not file.is_directory]
    return [file_resource(named, path_of(file), file.size) for file in files]


def file_resource(named: NamedSession, path: str, size: int) -> types.Resource:
    """Describe a file of a session as an MCP resource."""
    return types.Resource(
        uri=to_uri(named.file_uri(path)),
        name=_one_line(path),
        description=f"file in session {named.name}",
        mimeType=_kind(path.rpartition("/")[2]),
        size=size,
    )


def display_resource(named: NamedSession, number: int) -> types.Resource:
    """Describe a display that a session stores as an MCP resource."""
    display = named.displays[number]
    kind, content = _content_of(display)
    caption = shown_caption(str(display.data.get("text/plain", "")))
    return types.Resource(
        uri=to_uri(named.display_uri(number)),
        name=f"display {number}" + (f": {caption}" if caption and not caption.startswith("<") else ""),
        description=f"displayed in session {named.name}",
        mimeType=kind,
        size=len(content.encode("utf-8", "replace") if isinstance(content, str) else content),
    )


def link_to(resource: types.Resource) -> types.ResourceLink:
    """Return a link to a resource, for the content of a tool's result."""
    return types.ResourceLink(type="resource_link", **resource.model_dump(exclude_none=True))


def picture_kind(data: bytes) -> str | None:
    """Return the MIME type of a picture that models can see, or None for other content. A file's name may say anything."""
    kinds = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in kinds.items() if data.startswith(start)), None)


def picture(path: str, data: bytes, kind: str) -> tuple[types.TextContent, types.ImageContent]:
    """Return a picture as content of a result. Raise InvalidArgumentError if it is too large for that."""
    encoded = base64.b64encode(data).decode()
    if len(encoded) > MOST_IMAGE_CHARACTERS:
        raise InvalidArgumentError(
            f"{shown_name(path)} is a picture of {len(data) / 1e6:.1f} MB, and a result has room for "
            f"{MOST_IMAGE_CHARACTERS * 3 / 4e6:.1f} MB: save a smaller copy in the session and read that"
        )
    caption = types.TextContent(type="text", text=f"{shown_name(path)}: {kind}, {len(data)} bytes")
    return caption, types.ImageContent(type="image", data=encoded, mimeType=kind)


async def _content(client: Client, uri: str) -> tuple[str, str | bytes]:
    parts = urlsplit(uri)
    kind, _, rest = parts.path.removeprefix("/").partition("/")
    if parts.scheme == "session":
        named = client.find(unquote(parts.netloc))
        if kind == "files":
            return await _file(client, client.find_started(named.name), checked(unquote(rest)))
        if kind == "displays" and rest.isdecimal() and int(rest) in named.displays:
            return _content_of(named.displays[int(rest)])
        if kind == "displays" and rest.isdecimal() and 0 < int(rest) <= named.displayed:
            raise InvalidArgumentError(f"the display {int(rest)} is not kept any more: {DISPLAYS_KEPT}. Run its code again to see it")
    # Without the session's name, which other messages do not repeat either.
    raise InvalidArgumentError(
        f"{parts.path!r:.200} is not a resource of your sessions: expected session://NAME/files/PATH or session://NAME/displays/NUMBER, "
        "see the list of resources"
    )


async def _file(client: Client, named: NamedSession, path: str) -> tuple[str, str | bytes]:
    async with client.lease(named) as session:
        folder, _, name = path.rpartition("/")
        sizes = [file.size for file in await session.list_files(folder) if file.name == name and not file.is_directory]
        if not sizes or sizes[0] > _LARGEST:
            problem = f"is larger than {_LARGEST} bytes: read parts of it with read_file" if sizes else "does not exist: see list_files"
            raise InvalidArgumentError(f"the file {shown_name(path)} {problem}")
        data = await session.download_file(path)
    kind = _kind(name)
    try:
        return kind or "text/plain", data.decode()
    except UnicodeDecodeError:
        return kind or _BYTES, data


def _kind(name: str) -> str | None:
    """Return the MIME type of a file of this name, or None for a name without an ending, such as README: it depends on the content."""
    return mimetypes.guess_type(name)[0] or (_BYTES if "." in name else None)


def _best(display: Display) -> str:
    """Return the MIME type in which to send a display: the first of `_PREFERRED` that it has, such as HTML.

    If it has none of these, return any other type, and plain text only if there is no other.
    """
    known = [kind for kind in _PREFERRED if kind in display.data]
    return (known or sorted(set(display.data) - {"text/plain"}) or ["text/plain"])[0]


def _content_of(display: Display) -> tuple[str, str | bytes]:
    """Return the MIME type in which to send a display, and its content: bytes for an image, and otherwise text."""
    kind = _best(display)
    value = display.data[kind]
    if kind.startswith(_BINARY) and kind != "image/svg+xml" and isinstance(value, str):
        try:
            return kind, base64.b64decode(value)
        except ValueError:
            pass  # code in the session may display anything as an image
    return kind, value if isinstance(value, str) else json.dumps(value)
