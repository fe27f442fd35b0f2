"""The host's half of host calls (calls from a cell to functions of the host).

It validates the calls, carries them out and returns the answers. Untrusted code writes everything in a call, so a call can only name a
function in the table of `HostCalls`.
"""

import asyncio
import contextlib
import importlib
import io
import json
import logging
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..errors import ACASessionsError, ConfigurationError, NotFoundError, StorageError
from . import codec

if TYPE_CHECKING:
    from ..client.session import Session


_MOST_ATTACHED_FILES = 100
_MOST_ATTACHED = 64 << 20
_MOST_CALLS_TEXT = 2 << 20  # characters of all calls at the same time; as objects they can take forty times as much memory
_MOST_IN_FILES = 2 * _MOST_ATTACHED  # bytes of all calls at the same time
_LONG = 64 << 10  # a call with more characters is parsed in a thread: a million characters take a second
_ALONE = "artifacts.load"  # runs one at a time: its answer can be as large as what a session saved
_MOST_TEXT = 8 << 20
_TOO_LARGE = (
    f"the value is larger than a call may answer: return at most {_MOST_TEXT >> 20} MB of JSON, "
    f"and {_MOST_ATTACHED >> 20} MB with its bytes, long texts and tables"
)
_FORM = 'a call must be JSON of the form {"name": "tools.list", "arguments": {}}'
_PARQUET = b"PAR1"
_SAFE_PYARROW = (14, 0, 1)
_filtering = threading.Lock()
_logger = logging.getLogger("aca_sessions")
CallHandler = Callable[..., Awaitable[object]]


class ToolFailedError(Exception):
    """A host call failed or was refused. Code in the session gets the message of this exception, but not its cause."""


class ByteLimit:
    """Limits how much memory host calls reserve at the same time. Calls that must wait get memory in the order in which they asked."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Reserve `size` bytes for the `with` block. Wait until that many are free.

        If `size` exceeds the limit, reserve as many bytes as the limit allows.
        """
        size = min(size, self._most)
        async with self._turn:
            while self._free < size:
                self._freed.clear()
                await self._freed.wait()
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._freed.set()


class HostCalls:
    """Answers host calls (calls from a cell to functions of the host) by calling functions from a table.

    A call waits while the arguments of other calls take too much memory.
    """

    def __init__(self, table: Mapping[str, CallHandler]) -> None:
        """Use `table`, which maps the name of each call, such as `tools.call`, to the coroutine function that answers it.

        The function gets the arguments of the call as keyword arguments, and returns the value.
        """
        self._table = dict(table)
        self._texts, self._files = ByteLimit(_MOST_CALLS_TEXT), ByteLimit(_MOST_IN_FILES)
        self._reading, self._alone = asyncio.Lock(), asyncio.Lock()

    async def answer(self, session: "Session", text: str) -> str:
        """Carry out a call, given as JSON. Return JSON with either `value`, or `error` with the name and the message of an exception.

        Raise nothing but CancelledError. `session` is the session that made the call. Files to which the arguments refer are downloaded
        from the session, and files to which the value refers are uploaded to the session.
        """
        try:
            async with self._texts.reserve(len(text)):
                return await self._carry_out(session, text)
        except ACASessionsError as error:
            return _encode_error(error)
        except Exception as error:
            _logger.info("a call from a session failed: %s", type(error).__name__)
            return _encode_error(error)

    async def _carry_out(self, session: "Session", text: str) -> str:
        reading = asyncio.to_thread if len(text) > _LONG else _run_here
        name, arguments, files = await reading(_parse_call, text)
        async with self._alone if name == _ALONE else contextlib.nullcontext(), self._fetch_files(session, files) as contents:
            decoded = await reading(decode, arguments, contents)
            if name not in self._table:
                raise ToolFailedError(f"there is no call named {name[:100]!r}: expected one of {', '.join(sorted(self._table))}")
            text, attached = encode(await self._table[name](**decoded))
            for file, data in attached.items():
                await session.upload_file(file, data)
            return '{"value": ' + text + "}"

    @asynccontextmanager
    async def _fetch_files(self, session: "Session", names: Sequence[str]) -> AsyncIterator[dict[str, bytes]]:
        """Download the files that a call names. Yield a dict from name to content. Memory for them is reserved during the `with` block."""
        if not names:
            yield {}
            return
        if len(names) > _MOST_ATTACHED_FILES:
            raise ToolFailedError(
                f"a call must have at most {_MOST_ATTACHED_FILES} long texts, bytes and tables, got {len(names)}: send fewer"
            )
        sizes = {file.name: file.size for file in await session.list_files()}
        size = sum(sizes.get(name, 0) for name in names)
        if size > _MOST_ATTACHED:
            reason = f"the long texts, bytes and tables of a call must have at most {_MOST_ATTACHED} bytes together"
            raise ToolFailedError(f"{reason}, got {size}: send less in one call")
        most = size if sizes.keys() >= {*names} else _MOST_ATTACHED  # an endpoint may list fewer files than exist
        async with self._files.reserve(most):
            yield await self._take_files(session, names, most)

    async def _take_files(self, session: "Session", names: Sequence[str], most: int) -> dict[str, bytes]:
        """Download the session's files `names` and delete them there. Return a dict from name to content.

        Raise ToolFailedError if a file does not exist, or if they have more than `most` bytes together.

        Only one call does this at a time, because a session can enlarge files after their sizes were read. Enlarged files of many calls at
        once would fill the memory.
        """
        contents: dict[str, bytes] = {}
        async with self._reading:
            for name in dict.fromkeys(names):
                try:
                    contents[name] = await session.download_file(name)
                except NotFoundError as error:
                    advice = "call the function again with the same arguments, and delete no such files"
                    raise ToolFailedError(
                        f"the file {name} in /mnt/data, which has an argument of this call, is missing: {advice}"
                    ) from error
                await session.delete_file(name)
                if sum(len(contents.get(one, b"")) for one in names) > most:
                    raise ToolFailedError(f"the file {name} of this call grew while it was read: write all of it before the call")
        return contents


async def _run_here(work: Callable[..., Any], *arguments: object) -> Any:
    return work(*arguments)


def _parse_call(text: str) -> tuple[str, dict[str, Any], list[str]]:
    """Parse the JSON of a host call. Return the call's name, its arguments, and the names of the files to which the arguments refer."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):  # not chained: the cause holds what the session sent
        raise ToolFailedError(f"{_FORM}, got invalid JSON") from None
    match call:
        case {"name": str(name), "arguments": dict(arguments)} if len(call) == 2:
            files: list[str] = []
            codec.unpack(arguments, lambda _, file: files.append(file))
            return name, arguments, files
    raise ToolFailedError(f"{_FORM}, got other JSON")


def _encode_error(error: Exception) -> str:
    name = "ToolError" if isinstance(error, ToolFailedError) else type(error).__name__
    return json.dumps({"error": {"name": name, "message": message_of(error)[:10_000]}})


def message_of(error: Exception) -> str:
    """Return the message of an exception, or the name of its type if the message is empty or `str()` of the exception fails."""
    name = type(error).__name__
    try:
        return str(error) or name
    except Exception:
        return name


def encode(value: object) -> tuple[str, dict[str, bytes]]:
    """Encode a value for a session: return JSON, and a dict from name to content of the files to which the JSON refers.

    Raise ToolFailedError if the value is too large or has a type that cannot be sent.
    """
    files: dict[str, bytes] = {}

    def attach(data: bytes) -> str:
        name = codec.new_file_name()
        files[name] = data
        return name

    try:
        text = json.dumps(codec.pack(value, attach))
    except RecursionError as error:
        raise ToolFailedError("the value must not be nested that deeply or contain itself: return a flatter one") from error
    except OverflowError as error:
        raise ToolFailedError(f"the value is larger than a call may answer: {error}") from error
    except TypeError as error:
        raise ToolFailedError(str(error)) from error
    if len(text) + sum(map(len, files.values())) > _MOST_ATTACHED or len(text) > _MOST_TEXT:
        raise ToolFailedError(_TOO_LARGE)
    return text, files


def decode(value: object, files: Mapping[str, bytes]) -> Any:
    """Decode a value that a session sent. `files` has the contents of the files to which the value refers, by name.

    A table in parquet is not parsed: it becomes a `codec.Table`.
    """

    def content(kind: str, name: str) -> Any:
        data = files[name]
        if kind == "table":
            return codec.Table(data) if data.startswith(_PARQUET) else read_table(data)
        return data if kind == "bytes" else data.decode("utf-8", "replace")

    return codec.unpack(value, content)


def read_table(data: bytes) -> Any:
    """Parse a stored DataFrame, which is parquet or JSON. Neither can hold code, so even a file that a session wrote is safe to parse.

    Raise ConfigurationError if no suitable library for parquet is installed, and StorageError if the data is not a valid table.
    """
    parquet = data.startswith(_PARQUET)
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ConfigurationError("reading a table needs pandas: pip install pandas, or load the table in a session") from error
    if parquet:
        _check_parquet_library()
    try:
        with _without_deprecations():
            return pandas.read_parquet(io.BytesIO(data)) if parquet else pandas.read_json(io.BytesIO(data), orient="table")
    except ImportError as error:
        raise ConfigurationError(
            "a table in parquet needs pyarrow or fastparquet: pip install one of them, or load the table in a session"
        ) from error
    except Exception as error:  # from any of the libraries: a session may have written anything, so the cause is not chained
        raise StorageError(
            f"this table cannot be read ({type(error).__name__}): expected a DataFrame as parquet or JSON, so save it again"
        ) from None


def encode_table(frame: Any) -> codec.Table:
    """Return a DataFrame as parquet if an installed library can write it, else as JSON, which keeps only 15 digits of a float."""
    try:
        with _without_deprecations():
            return codec.Table(frame.to_parquet())
    except (ImportError, ValueError, TypeError, NotImplementedError):
        return codec.Table(codec.table_as_json(frame))


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Ignore DeprecationWarning in a `with` block. Only one thread at a time can enter, because warning filters apply to the whole process.

    Without this, a program that turns warnings into errors could read no table, because fastparquet uses deprecated functions.
    """
    with _filtering, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _check_parquet_library() -> None:
    """Raise ConfigurationError if pyarrow is older than 14.0.1, which can run code from a parquet file (CVE-2023-47248)."""
    try:
        version = tuple(int(part) for part in metadata.version("pyarrow").split(".")[:3])
    except (metadata.PackageNotFoundError, ValueError):
        return
    if version < _SAFE_PYARROW:
        got = ".".join(map(str, version))
        reason = f"pyarrow must be at least 14.0.1, got {got}, which can run code from a parquet file (CVE-2023-47248)"
        raise ConfigurationError(f"{reason}: pip install 'pyarrow>=14.0.1'")
