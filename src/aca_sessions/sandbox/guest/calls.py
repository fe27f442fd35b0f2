"""Host calls: a cell's call to a tool of the host. A call is JSON.

Bytes, long texts and tables go into files in the session's folder, which the receiver deletes.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import json
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable
from typing import Any

from .place import place

_LONG = 64 << 10  # characters; a longer text goes into a file
_MOST_SENT = 1 << 20  # characters of a call's JSON
_AT_A_TIME = 32  # calls; further ones wait
_FILE = re.compile(r"\.call-[0-9a-f]{32}")
_slots = threading.BoundedSemaphore(_AT_A_TIME)
Send = Callable[[str], str]


class Table(bytes):
    """A DataFrame as parquet."""


class ToolError(RuntimeError):
    """A host call failed. The message is that of what was called; `name` is the name of its exception."""

    name = ""


def nobody(text: str) -> str:
    """Raise ToolError: the host takes no calls from this cell."""
    raise ToolError("nobody takes calls here: run the cell in an AgentSession")


class _Way:
    """How calls leave the session."""

    send: Send = staticmethod(nobody)


def leave_by(send: Send) -> None:
    """Set the function that sends calls to the host.

    It takes and returns JSON, may be called from any thread, and raises ToolError if the host takes no calls.
    """
    _Way.send = staticmethod(send)


def call(name: str, /, **arguments: object) -> Any:
    """Call something of the host by its name and return its value. Blocks; may be called from any thread.

    Raises:
        ToolError: The call was refused or failed, or its arguments are too large.
        TypeError: An argument cannot be sent.
    """
    text = json.dumps({"name": name, "arguments": {key: _packed(value) for key, value in arguments.items()}})
    if len(text) > _MOST_SENT:
        told = f"the arguments have {len(text)} characters, and a call takes {_MOST_SENT}"
        raise ToolError(f"{told}: send large things as one text or as bytes")
    with _slots:
        answer = json.loads(_Way.send(text))
    if "error" in answer:
        failed = ToolError(answer["error"]["message"])
        failed.name = answer["error"]["name"]
        raise failed
    return unpacked(answer["value"])


async def in_thread(work: Callable[[], Any]) -> Any:
    """Run a function in a new thread and return its result, while other tasks of the loop continue."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    # Not a pool: a thread that stayed would keep the session from being forked for a checkpoint.
    threading.Thread(target=_settle, args=(work, loop, done), daemon=True).start()
    value, error = await done
    if error is not None:
        raise error
    return value


def _settle(work: Callable[[], Any], loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any]) -> None:
    outcome: tuple[Any, BaseException | None]
    try:
        outcome = work(), None
    except BaseException as error:
        outcome = None, error
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(outcome))


def _packed(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONG:
        return {"$": "text", "file": written(value.encode("utf-8", "backslashreplace"))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Table):
        return {"$": "table", "file": written(bytes(value))}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$": "bytes", "file": written(bytes(value))}
    if isinstance(value, (list, tuple)):
        return [_packed(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        packed = {key: _packed(item) for key, item in value.items()}
        return {"$": "dict", "content": packed} if "$" in value else packed
    return _packed_of_a_library(value)


def _packed_of_a_library(value: Any) -> Any:
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and isinstance(value, numpy.generic):
        return _packed(value.item())
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _packed(value.tolist())
    if pandas is not None and isinstance(value, pandas.DataFrame):
        if not all(isinstance(name, str) for name in value.columns):
            raise TypeError("a DataFrame goes with columns that are named by text: frame.columns = frame.columns.map(str)")
        return {"$": "table", "file": written(value.to_json(orient="table", double_precision=15).encode())}
    raise TypeError(f"a {type(value).__name__} cannot be sent: numbers, texts, bytes, lists, dicts by text, and DataFrames can")


def unpacked(value: Any) -> Any:
    """Return a value that the host sent. Values in files are read and their files deleted."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content, name = value.get("$"), value.get("content"), value.get("file")
    if kind == "dict" and isinstance(content, dict):
        return {key: unpacked(item) for key, item in content.items()}
    if kind in ("bytes", "text", "table") and isinstance(name, str) and _FILE.fullmatch(name):
        return _read(kind, name)
    return {key: unpacked(item) for key, item in value.items()}


def written(data: bytes) -> str:
    """Write data to a new file in the session's folder and return its name. The host reads and deletes the file."""
    name = f".call-{uuid.uuid4().hex}"
    with open(os.path.join(place.data, name), "xb") as file:
        file.write(data)
    return name


def _read(kind: str, name: str) -> Any:
    path = os.path.join(place.data, name)
    with open(path, "rb") as file:
        data = file.read()
    os.unlink(path)
    if kind == "table":
        return _table(data)
    return data if kind == "bytes" else data.decode()


def _table(data: bytes) -> Any:
    pandas = importlib.import_module("pandas")
    if data.startswith(b"PAR1"):
        return pandas.read_parquet(io.BytesIO(data))
    return pandas.read_json(io.BytesIO(data), orient="table")
