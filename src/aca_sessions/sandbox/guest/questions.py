"""What a cell asks of the world outside while it runs: `input()` and `getpass()` are answered by whoever runs the cell, or refused."""

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
    """Answers nothing."""
    raise AnswerError("nobody answers input() here: put the values into the code, or run the cell with on_input")


class _Now:
    """The cell that runs, and how it asks."""

    execution = ""
    answered: tuple[str, ...] = ()
    ask: Ask = staticmethod(nobody)


def begin(cell: Run, ask: Ask) -> None:
    """From here on it is this cell that asks."""
    _Now.execution, _Now.answered, _Now.ask = cell.execution, tuple(cell.answered), staticmethod(ask)


def call(text: str) -> str:
    """What a call outside answers, in JSON as it was made; ToolError where nobody takes calls."""
    if "call" not in _Now.answered:
        return calls.nobody(text)
    try:
        return _Now.ask(_Now.execution, "call", text)
    except AnswerError as refused:
        raise calls.ToolError(str(refused)) from None


def take_over() -> None:
    """Puts these in the place of what would read a terminal."""
    builtins.input = read_line
    getpass.getpass = read_secret


def read_line(prompt: object = "", /) -> str:
    """Asks for a line of text, as Python's own `input` does."""
    text = str(prompt)
    print(text, end="")
    streams.flush()
    return _asked(text)


def read_secret(prompt: str = "Password: ", stream: TextIO | None = None) -> str:
    """Asks for a line of text that is shown nowhere."""
    return _asked(prompt)


def _asked(prompt: str) -> str:
    ask = _Now.ask if "input" in _Now.answered else nobody
    try:
        return ask(_Now.execution, "input", prompt)
    except AnswerError as refused:
        raise EOFError(str(refused)) from None
