"""The host's half of the bridge: a call that code in a session made, checked, carried out and answered.

Whatever a call says was written by code that nobody reviewed. It can name what is in the table and nothing else.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..client.session import Session
from ..errors import ACASessionsError
from . import values
from .tools.tool import ToolFailedError, message_of

_MOST_ATTACHED_FILES = 100
_logger = logging.getLogger("aca_sessions")
Answer = Callable[..., Awaitable[object]]


class Outside:
    """Answers the calls of a session from a table of names."""

    def __init__(self, table: Mapping[str, Answer]) -> None:
        """Takes the names that may be called, each with a coroutine function of keyword arguments."""
        self._table = dict(table)

    async def answer(self, session: Session, text: str) -> str:
        """The answer to a call, as JSON: a value, or the name and message of what failed. Never raises for what the call is about."""
        try:
            name, arguments = _read(text)
            decoded = await _fetched(session, arguments)
            value = await _called(self._table[name], decoded) if name in self._table else _unknown(name)
            return '{"value": ' + await _sent(session, value) + "}"
        except ACASessionsError as error:
            return _failed(error)
        except Exception as error:
            _logger.info("a call from a session failed: %s", type(error).__name__)
            return _failed(error)


def _read(text: str) -> tuple[str, dict[str, Any]]:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        raise ToolFailedError("a call is JSON with a name and arguments") from None
    match call:
        case {"name": str(name), "arguments": dict(arguments)} if len(call) == 2:
            return name, arguments
    raise ToolFailedError("a call is JSON with a name and arguments")


async def _called(answer: Answer, arguments: dict[str, Any]) -> object:
    return await answer(**arguments)


def _unknown(name: str) -> object:
    raise ToolFailedError(f"there is no call named {name[:100]}")


async def _fetched(session: Session, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with the content of the files that they name."""
    names = values.files_named(arguments)
    if not names:
        return dict(values.decode(arguments, {}))
    if len(names) > _MOST_ATTACHED_FILES:
        raise ToolFailedError(f"a call takes at most {_MOST_ATTACHED_FILES} long texts, bytes and tables")
    sizes = {file.name: file.size for file in await session.list_files()}
    if sum(sizes.get(name, 0) for name in names) > values.MOST_ATTACHED:
        raise ToolFailedError(f"a call takes at most {values.MOST_ATTACHED >> 20} MB")
    contents = {}
    for name in dict.fromkeys(names):
        contents[name] = await session.download_file(name)
        await session.delete_file(name)
    return dict(values.decode(arguments, contents))


async def _sent(session: Session, value: object) -> str:
    text, files = values.encode(value)
    for name, data in files.items():
        await session.upload_file(name, data)
    return text


def _failed(error: Exception) -> str:
    name = "ToolError" if isinstance(error, ToolFailedError) else type(error).__name__
    return json.dumps({"error": {"name": name, "message": message_of(error)[:10_000]}})
