"""What one cell has shown so far, within a budget and as text: what a host may be sent."""

import base64
import json
from collections.abc import Callable
from typing import Any

from ..wire import Finished, Message, Scalar, Shown
from . import processes

_MAX_TEXT = 1 << 20
_MAX_DISPLAYED = 24 << 20  # in one cell; the wire's own limit lies above
_MAX_TYPES = 50  # of one display
_MAX_INTEGER_BITS = 4096


class Collected:
    """What one cell has shown so far."""

    def __init__(self, execution: str, send: Callable[[Message], None]) -> None:
        self.execution = execution
        self.value: Scalar = None
        self.text: str | None = None
        self.error: tuple[str, str, str] | None = None
        self._send = send
        self._room = _MAX_DISPLAYED

    def take_value(self, result: Any, formats: dict[str, Any]) -> None:
        self.text = clip(str(formats.get("text/plain", "")))
        value = _scalar(getattr(result, "result", None))
        self.value = self.text if value is None else value
        if formats.keys() - {"text/plain"}:
            self.take_display(formats)

    def take_display(self, data: dict[str, Any]) -> None:
        sendable = {str(mime): _sendable(content) for mime, content in data.items()}
        size = sum(map(len, sendable.values()))
        if size > self._room or len(sendable) > _MAX_TYPES:
            sendable = {"text/plain": f"[a display of {size} characters was dropped: a cell may show {_MAX_DISPLAYED} in all]"}
        else:
            self._room -= size
        self._send(Shown(self.execution, sendable))

    def take_error(self, error: BaseException, traceback: str) -> None:
        try:
            message = str(error)
        except Exception as broken:
            message = f"<{type(broken).__name__} while reading the message>"
        self.error = (type(error).__name__, clip(message), clip(traceback))

    def finished(self, files: list[str]) -> Finished:
        name, message, traceback = self.error or (None, "", "")
        return Finished(self.execution, self.value, self.text, name, message, traceback, files, processes.others())


def clip(text: str, limit: int = _MAX_TEXT) -> str:
    """The text, without its middle where it is too long."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters cut …]\n{text[-half:]}"


def _scalar(value: Any) -> Scalar:
    """A plain value as itself; None for everything that only a text can stand for."""
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", (1,)):
        value = value.item()
    match value:
        case bool() | float() if type(value) in (bool, float):
            return value
        case int() if type(value) is int and value.bit_length() <= _MAX_INTEGER_BITS:
            return value
        case str() if type(value) is str:
            return clip(value)
    return None


def _sendable(content: Any) -> str:
    """As text: bytes in base64, what is not text as JSON where it can be."""
    match content:
        case str():
            return content
        case bytes():
            return base64.b64encode(content).decode()
    try:
        return json.dumps(content)
    except (TypeError, ValueError, RecursionError):
        return clip(str(content))
