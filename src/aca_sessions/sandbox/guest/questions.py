"""Questions of a cell to the host while it runs: the caller of the cell answers `input()` and `getpass()`, or they raise EOFError."""

from __future__ import annotations

import builtins
import getpass
from collections.abc import Callable
from typing import TextIO

from ..wire import Run
from . import calls, streams
from .link import AnswerError

Ask = Callable[[str, str, str], str]


def nobody(execution: str, about: str, text: str) -> str:
    """Raise AnswerError: no input handler was given."""
    raise AnswerError("nobody answers input() here: put the values into the code, or run the cell with on_input")


class _Now:
    """The running cell and its way to ask the host."""

    execution = ""
    answered: tuple[str, ...] = ()
    ask: Ask = staticmethod(nobody)


def begin(cell: Run, ask: Ask) -> None:
    """Ask in the name of this cell from now on."""
    _Now.execution, _Now.answered, _Now.ask = cell.execution, tuple(cell.answered), staticmethod(ask)


def call(text: str) -> str:
    """Send a host call as JSON text and return the reply as JSON text. Raise ToolError if the host takes no calls from this cell."""
    if "call" not in _Now.answered:
        return calls.nobody(text)
    try:
        return _Now.ask(_Now.execution, "call", text)
    except AnswerError as refused:
        raise calls.ToolError(str(refused)) from None


def take_over() -> None:
    """Replace `input` and `getpass`, which would read a terminal."""
    builtins.input = read_line
    getpass.getpass = read_secret


def read_line(prompt: object = "", /) -> str:
    """Ask for a line of text, as Python's own `input` does."""
    text = str(prompt)
    print(text, end="")
    streams.flush()
    return _asked(text)


def read_secret(prompt: str = "Password: ", stream: TextIO | None = None) -> str:
    """Ask for a line of text that is not displayed, as `getpass` does."""
    return _asked(prompt)


def _asked(prompt: str) -> str:
    ask = _Now.ask if "input" in _Now.answered else nobody
    try:
        return ask(_Now.execution, "input", prompt)
    except AnswerError as refused:
        raise EOFError(str(refused)) from None
