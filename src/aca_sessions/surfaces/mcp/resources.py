"""Resources of sessions: files (session://NAME/files/PATH) and displays (session://NAME/displays/NUMBER)."""

import base64
import json
import mimetypes
from urllib.parse import unquote, urlsplit

from mcp import types
from mcp.shared.exceptions import McpError
from pydantic import AnyUrl

from ...errors import ACASessionsError, InvalidArgumentError
from ...models import Display
from .cells import file_uri
from .clients import Client
from .named_session import NamedSession
from .outputs import path_of, walk
from .paths import checked

_MOST_LISTED = 500
_LARGEST = 16 << 20
_BYTES = "application/octet-stream"
_PREFERRED = ("text/html", "image/svg+xml", "text/markdown", "text/latex", "application/json")
TEMPLATES = [
    types.ResourceTemplate(uriTemplate="session://{session_id}/files/{+path}", name="A file of a session"),
    types.ResourceTemplate(uriTemplate="session://{session_id}/displays/{number}", name="Something that a cell displayed"),
]


async def listed(client: Client) -> list[types.Resource]:
    """Return the files and displays of all sessions that were used, at most 500."""
    found: list[types.Resource] = []
    for named in client.sessions().values():
        if named.begun:
            found += await _files(client, named)
            found += [_shown(named, number, display) for number, display in named.displays.items()]
    return found[:_MOST_LISTED]


async def read(client: Client, uri: AnyUrl) -> types.ReadResourceResult:
    """Return the content of a file or a display. Raise McpError if the URI names none."""
    try:
        kind, content = await _content(client, str(uri))
    except ACASessionsError as error:
        raise McpError(types.ErrorData(code=types.INVALID_PARAMS, message=str(error))) from None
    if isinstance(content, str):
        return types.ReadResourceResult(contents=[types.TextResourceContents(uri=uri, text=content, mimeType=kind)])
    blob = base64.b64encode(content).decode()
    return types.ReadResourceResult(contents=[types.BlobResourceContents(uri=uri, blob=blob, mimeType=kind)])


def _one_line(path: str) -> str:
    """Return a file's name as a client shows it: as it is, unless it has line ends or control characters."""
    return path if path.isprintable() else repr(path)


async def _files(client: Client, named: NamedSession) -> list[types.Resource]:
    async with client.lease(named) as session:
        files = [file async for file in walk(session, most=_MOST_LISTED) if not file.is_directory]
    return [
        types.Resource(
            uri=AnyUrl(file_uri(named, path_of(file))), name=_one_line(path_of(file)), description=f"of session {named.name}",
            mimeType=_kind(file.name), size=file.size,
        )
        for file in files
    ]  # fmt: skip


def _shown(named: NamedSession, number: int, display: Display) -> types.Resource:
    uri = AnyUrl(f"session://{named.name}/displays/{number}")
    return types.Resource(uri=uri, name=f"display {number}", description=f"of session {named.name}", mimeType=_best(display))


async def _content(client: Client, uri: str) -> tuple[str, str | bytes]:
    parts = urlsplit(uri)
    kind, _, rest = parts.path.removeprefix("/").partition("/")
    named = client.find(unquote(parts.netloc))
    if parts.scheme == "session" and kind == "files":
        return await _file(client, named, checked(unquote(rest)))
    if parts.scheme == "session" and kind == "displays" and rest.isdecimal() and int(rest) in named.displays:
        display = named.displays[int(rest)]
        best = _best(display)
        return best, _text_of(display.data[best])
    raise InvalidArgumentError("there is no such resource: it is session://NAME/files/PATH, or a display that is listed")


async def _file(client: Client, named: NamedSession, path: str) -> tuple[str, str | bytes]:
    async with client.lease(named) as session:
        folder, _, name = path.rpartition("/")
        sizes = [file.size for file in await session.list_files(folder) if file.name == name and not file.is_directory]
        if not sizes or sizes[0] > _LARGEST:
            raise InvalidArgumentError("there is no such file" if not sizes else "the file is too large for a resource: read parts of it")
        data = await session.download_file(path)
    kind = _kind(name)
    try:
        return kind, data.decode()
    except UnicodeDecodeError:
        return kind, data


def _kind(name: str) -> str:
    return mimetypes.guess_type(name)[0] or ("text/plain" if "." not in name else _BYTES)


def _best(display: Display) -> str:
    """Return the MIME type that shows most of a display. A cell may use types that clients do not know."""
    known = [kind for kind in _PREFERRED if kind in display.data]
    return (known or sorted(set(display.data) - {"text/plain"}) or ["text/plain"])[0]


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
