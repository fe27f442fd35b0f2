"""The host's half of the bridge: it checks, carries out and answers host calls.

Everything in a call was written by untrusted code. A call can name what is in the table and nothing else.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ..client.session import Session
from ..errors import ACASessionsError, NotFoundError
from . import values
from .room import Room
from .tools.tool import ToolFailedError, message_of

_MOST_ATTACHED_FILES = 100
_MOST_TEXT = 2 << 20  # characters of all calls at the same time; as objects they can take forty times as much memory
_MOST_IN_FILES = 2 * values.MOST_ATTACHED  # bytes of all calls at the same time
_LONG = 64 << 10  # a call with more characters is parsed in a thread: a million characters take a second
_ALONE = "artifacts.load"  # runs one at a time: its answer can be as large as what a session saved
_logger = logging.getLogger("aca_sessions")
Answer = Callable[..., Awaitable[object]]


class Outside:
    """The answers to the host calls of a session, from a table of names.

    Calls wait for each other if their arguments take too much memory together.
    """

    def __init__(self, table: Mapping[str, Answer]) -> None:
        """Take the names that can be called, each with a coroutine function that takes keyword arguments."""
        self._table = dict(table)
        self._texts, self._files = Room(_MOST_TEXT), Room(_MOST_IN_FILES)
        self._reading, self._alone = asyncio.Lock(), asyncio.Lock()

    async def answer(self, session: Session, text: str) -> str:
        """Answer a call with JSON: a value, or the name and message of what failed. No failure of the call itself is raised."""
        try:
            async with self._texts.of(len(text)):
                return await self._answered(session, text)
        except ACASessionsError as error:
            return _failed(error)
        except Exception as error:
            _logger.info("a call from a session failed: %s", type(error).__name__)
            return _failed(error)

    async def _answered(self, session: Session, text: str) -> str:
        reading = asyncio.to_thread if len(text) > _LONG else _at_once
        name, arguments, files = await reading(_read, text)
        async with self._alone if name == _ALONE else contextlib.nullcontext(), self._fetched(session, files) as contents:
            decoded = await reading(values.decode, arguments, contents)
            value = await _called(self._table[name], dict(decoded)) if name in self._table else _unknown(name)
            return '{"value": ' + await _sent(session, value) + "}"

    @asynccontextmanager
    async def _fetched(self, session: Session, names: Sequence[str]) -> AsyncIterator[dict[str, bytes]]:
        """Download the files that a call names for the block, and yield their contents.

        Raise ToolFailedError if they are too many or too large.
        """
        if not names:
            yield {}
            return
        if len(names) > _MOST_ATTACHED_FILES:
            raise ToolFailedError(f"a call takes at most {_MOST_ATTACHED_FILES} long texts, bytes and tables")
        sizes = {file.name: file.size for file in await session.list_files()}
        size = sum(sizes.get(name, 0) for name in names)
        if size > values.MOST_ATTACHED:
            raise ToolFailedError(f"a call takes at most {values.MOST_ATTACHED >> 20} MB")
        most = size if sizes.keys() >= {*names} else values.MOST_ATTACHED  # an endpoint may list fewer files than exist
        async with self._files.of(most):
            yield await self._taken(session, names, most)

    async def _taken(self, session: Session, names: Sequence[str], most: int) -> dict[str, bytes]:
        """Download and delete files. Only one call does so at a time, because a session can make a file grow after it was listed."""
        contents: dict[str, bytes] = {}
        async with self._reading:
            for name in dict.fromkeys(names):
                try:
                    contents[name] = await session.download_file(name)
                except NotFoundError:
                    told = "it is read by one call, once, and deleted then"
                    raise ToolFailedError(f"the file {name} of this call is not there: {told}") from None
                await session.delete_file(name)
                if sum(len(contents.get(one, b"")) for one in names) > most:
                    raise ToolFailedError(f"the file {name} of this call grew while it was read: write it before the call")
        return contents


async def _at_once(work: Callable[..., Any], *arguments: object) -> Any:
    return work(*arguments)


def _read(text: str) -> tuple[str, dict[str, Any], list[str]]:
    """Parse a call. Return its name, its arguments, and the files that these name."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        raise ToolFailedError("a call is JSON with a name and arguments") from None
    match call:
        case {"name": str(name), "arguments": dict(arguments)} if len(call) == 2:
            return name, arguments, values.files_named(arguments)
    raise ToolFailedError("a call is JSON with a name and arguments")


async def _called(answer: Answer, arguments: dict[str, Any]) -> object:
    return await answer(**arguments)


def _unknown(name: str) -> object:
    raise ToolFailedError(f"there is no call named {name[:100]}")


async def _sent(session: Session, value: object) -> str:
    text, files = values.encode(value)
    for name, data in files.items():
        await session.upload_file(name, data)
    return text


def _failed(error: Exception) -> str:
    name = "ToolError" if isinstance(error, ToolFailedError) else type(error).__name__
    return json.dumps({"error": {"name": name, "message": message_of(error)[:10_000]}})
