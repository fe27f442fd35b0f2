"""Export a session into a file, and import it at this or another endpoint. Nothing of a session is unpickled here.

Endpoints with extensions write and read the content of such a file. At others, such as Azure, the client sends the modules that write and
read states into the session, as the text of a cell, and transfers the state by files in /mnt/data.
"""

import base64
import contextlib
import io
import json
import os
import stat
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..contract import extensions
from ..contract.records import ExecutionRequest
from ..durable.chunks import closing, split
from ..durable.records import MOST_NAMED, ExportReader, Manifest, describe_lost, encode_notebook
from ..durable.sealed_stream import seal
from ..errors import ACASessionsError, ExecutionError, InvalidArgumentError, NotFoundError, ServiceError, SnapshotError
from ..guest_text import shown_caption, shown_name
from ..ledger import CallerPosition
from ..lifetime import run_in_thread
from ..models import CodeExecutionResult, SavedSession
from .arguments import checked_session_id
from .executions import extension_headers
from .files import replace_file
from .http import decode_response
from .snippet_results import decode_names, parse_printed_json
from .snippets import CELL

if TYPE_CHECKING:
    from .interpreter import CodeInterpreter

_SECONDS = 330.0  # a little more than the server allows
_PIECE = 1 << 20
_FILE_BYTES = 8 << 20  # of one file in /mnt/data. Azure accepts 128 MB, but each is a few times in memory while it is sent
_CELL_SECONDS = 210.0  # Azure allows 220
_UNLIMITED = 1 << 62
_GUEST = "sandbox/guest/plain_saves.py"
_MODULES = {"wire": "sandbox/wire.py"} | {f"guest.{name}": f"sandbox/guest/{name}.py" for name in ("folders", "pickling", "saves")}
_EXISTS = "a session of this name exists: choose another name, or end that session first"


class Exports:
    """Exports and imports the sessions of one endpoint."""

    def __init__(self, interpreter: "CodeInterpreter") -> None:
        self._interpreter = interpreter
        self._http = interpreter._http
        self._importing: set[str] = set()

    async def export(
        self,
        session_id: str,
        path: Path,
        caller: CallerPosition,
        *,
        notebook: Mapping[str, Any] | None = None,
        packages: Sequence[str] = (),
    ) -> SavedSession:
        """Write a session into a file, and return what it has.

        Args:
            session_id: The session.
            path: The file, which is replaced whole or not at all.
            caller: The caller's position in the session's ledger.
            notebook: The cells of the session.
            packages: The requirements of its packages, for an endpoint that does not know them.
        """
        began = time.perf_counter()
        checked_session_id(session_id)
        if await self._http.offers("export"):
            headers = extension_headers(caller)
            request = self._http.stream(
                "POST", extensions.EXPORT_PATH, identifier=session_id, json=notebook, headers=headers, timeout=_SECONDS
            )
            async with request as chunks:
                return await _write(path, session_id, chunks, began)
        name = _new_name()
        try:
            manifest, count = await self._write_in_session(session_id, name, caller, packages)
            encoded = json.dumps(notebook).encode() if notebook is not None else b""
            content = self._read_from_session(session_id, manifest.encode() + encode_notebook(encoded), name, count)
            return await _write(path, session_id, seal(content), began)
        finally:
            await self._interpreter._tasks.run_shielded(self._remove(session_id, name))

    async def import_(self, session_id: str, path: Path) -> tuple[SavedSession, dict[str, Any] | None]:
        """Begin a session from a file that `export` wrote. Return what was restored, and the notebook in the file.

        Raise SaveCorruptedError if the file was changed or cut off. Nothing of it was used then.
        """
        checked_session_id(session_id)
        with _open(path) as file:
            async with ExportReader(_read(file), max_bytes=_UNLIMITED) as reader:
                manifest, notebook = await reader.read_manifest()
                async for _ in reader.parts():
                    pass
            if session_id in self._importing:
                raise ServiceError(409, "SessionExists", _EXISTS)
            self._importing.add(session_id)
            try:
                await self._check_is_free(session_id)
                if await self._http.offers("export"):
                    saved = await self._send(session_id, file, reader.size)
                else:
                    saved = await self._read_in_session(session_id, file, manifest)
            finally:
                self._importing.discard(session_id)
        return saved, _decode_notebook(notebook)

    async def _send(self, session_id: str, file: BinaryIO, size: int) -> SavedSession:
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        path, content = extensions.IMPORT_PATH, _Content(file)
        response = await self._http.request("POST", path, identifier=session_id, content=content, headers=headers, timeout=_SECONDS)
        return decode_response(response, extensions.decode_saved)

    async def _check_is_free(self, session_id: str) -> None:
        """Raise ServiceError (409) if the endpoint has a session of this name. A server with extensions checks it again."""
        try:
            await self._interpreter.get_session(session_id)
        except NotFoundError:
            return
        raise ServiceError(409, "SessionExists", _EXISTS)

    # --- endpoints without extensions ---

    async def _write_in_session(self, session_id: str, name: str, caller: CallerPosition, packages: Sequence[str]) -> tuple[Manifest, int]:
        """Let a session write its state into files. Return the manifest of the state and the number of the files."""
        position = replace(caller)
        result = await self._run(session_id, position, "write", name, _FILE_BYTES)
        count = _printed(result, "exported")
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= 1 << 20:
            raise SnapshotError("the session cannot be exported: its code has interfered. Reset the session, and export it again")
        state = position.state_after(result.record) if result.record is not None else result.state
        gone = [part for part in ("variables", "files") if getattr(state, part) in ("lost", "unknown")]
        return Manifest(created=datetime.now(UTC), packages=packages, gone=gone, missing=state.missing[:MOST_NAMED]), count

    async def _read_from_session(self, session_id: str, start: bytes, name: str, count: int) -> AsyncIterator[bytes]:
        yield start
        for number in range(count):
            async with closing(self._interpreter._files.stream(session_id, f"{name}{number}")) as chunks:
                async for chunk in chunks:
                    yield chunk
            await self._interpreter.delete_file(session_id, f"{name}{number}")

    async def _read_in_session(self, session_id: str, file: BinaryIO, manifest: Manifest) -> SavedSession:
        """Restore a file in a new session, which is ended if that fails."""
        began = time.perf_counter()
        caller, name, count = CallerPosition(), _new_name(), 0
        try:
            packages = await self._install(session_id, manifest.packages)
            async with ExportReader(_read(file), max_bytes=_UNLIMITED) as reader:
                await reader.read_manifest()
                async with closing(split(reader.parts(), _FILE_BYTES)) as pieces:
                    async for piece in pieces:
                        with io.BytesIO(piece) as content:  # closed, so that a request that is garbage does not keep it
                            await self._interpreter._files.send(session_id, "", f"{name}{count}", content)
                        count += 1
            match _printed(await self._run(session_id, caller, "read", name, count), "imported"):
                case {"missing": {**missing}, "more": int(more)}:
                    pass
                case _:
                    raise SnapshotError("the session cannot be imported: its code has interfered with its restore")
        except BaseException:
            await self._interpreter._tasks.run_shielded(self._end(session_id))
            raise
        lost = reader.variables.lost | {str(name): str(why) for name, why in missing.items()}
        lost |= {f"{more} more": "the list of what is missing is cut off"} if more else {}
        shown = describe_lost(manifest, lost, packages)
        self._interpreter._ledgers.record_import(session_id, manifest.created, missing=tuple(shown), gone=manifest.gone)
        return replace(_describe(session_id, reader, manifest, began), lost=shown)

    async def _install(self, session_id: str, packages: Sequence[str]) -> dict[str, str]:
        """Install the packages that a session lacks. Return those that cannot be installed, with the reason."""
        if not packages:
            return {}
        lacks = decode_names(parse_printed_json(await self._interpreter._execute_snippet(session_id, "print_missing", *packages)))
        if not lacks:
            return {}
        result = await self._interpreter._execute_snippet(session_id, "install", *lacks, timeout=_CELL_SECONDS)
        return dict.fromkeys(lacks, result.error.message) if result.error is not None else {}

    async def _run(self, session_id: str, caller: CallerPosition, name: str, *arguments: str | int) -> CodeExecutionResult:
        source = files("aca_sessions").joinpath(_GUEST).read_text()
        code = CELL.format(source=source, name=name, arguments=(_packed(), *arguments))
        call = ExecutionRequest(code=code, timeout=_CELL_SECONDS)
        return await self._interpreter._execute(session_id, call, caller)

    async def _remove(self, session_id: str, name: str) -> None:
        """Delete the files of a state that are left after an error. They are deleted with the session if this fails."""
        with contextlib.suppress(ACASessionsError):
            for one in await self._interpreter.list_files(session_id):
                if one.name.startswith(name):
                    await self._interpreter.delete_file(session_id, one.name)

    async def _end(self, session_id: str) -> None:
        with contextlib.suppress(ACASessionsError):
            await self._interpreter.delete_session(session_id)


def _printed(result: CodeExecutionResult, done: str) -> object:
    if result.error is not None:
        raise SnapshotError(f"the session cannot be {done}: {shown_caption(f'{result.error.name}: {result.error.message}')}")
    try:
        return parse_printed_json(result)
    except (ExecutionError, ServiceError) as error:
        raise SnapshotError(f"the session cannot be {done}: {shown_caption(str(error))}") from error


async def _write(path: Path, session_id: str, sealed: AsyncIterator[bytes], began: float) -> SavedSession:
    """Write a sealed stream into a file that replaces `path` if the stream is whole. Return what it has."""
    with replace_file(path, mode=0o600) as file:  # it has what the session has

        async def copy() -> AsyncIterator[bytes]:
            async with closing(sealed):
                async for chunk in sealed:
                    await run_in_thread(file.write, chunk)
                    yield chunk

        async with ExportReader(copy(), max_bytes=_UNLIMITED) as reader:
            manifest, _ = await reader.read_manifest()
            async for _ in reader.parts():
                pass
        file.flush()
        if file.seekable():
            await run_in_thread(os.fsync, file.fileno())
    return _describe(session_id, reader, manifest, began)


def _describe(session_id: str, reader: ExportReader, manifest: Manifest, began: float) -> SavedSession:
    return SavedSession(
        session_id=session_id,
        created=manifest.created,
        variables=reader.variables.saved,
        lost=describe_lost(manifest, reader.variables.lost, {}),
        size=reader.size,
        python=shown_name(reader.variables.python),
        cells=manifest.cells,
        seconds=round(time.perf_counter() - began, 3),
    )


def _open(path: Path) -> BinaryIO:
    """Open a file to import. Raise InvalidArgumentError if it is not a file."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}: name a file that `export` wrote") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InvalidArgumentError(f"{path} is not a file: name one that `export` wrote")
    return file


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    file.seek(0)
    while chunk := await run_in_thread(file.read, _PIECE):
        yield chunk


class _Content:
    """The content of a file, from its beginning for each attempt to send it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _read(self._file)


def _decode_notebook(notebook: bytes) -> dict[str, Any] | None:
    try:
        decoded = json.loads(notebook)
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def _new_name() -> str:
    return f".session-{uuid.uuid4().hex}-"


@cache
def _packed() -> str:
    """Return the sources of the modules that write and read states, cloudpickle first, as JSON, compressed and in base64."""
    package = files("aca_sessions")
    sources = [("cloudpickle", files("cloudpickle").joinpath("cloudpickle.py").read_text())]
    sources += [(name, package.joinpath(path).read_text()) for name, path in _MODULES.items()]
    return base64.b64encode(zlib.compress(json.dumps(sources).encode(), 9)).decode()
