"""The standard streams of a command. They stay usable if they are closed or full, or if the process that reads them has ended."""

import contextlib
import io
import os
import shutil
import sys
import time
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any, BinaryIO, TextIO, cast

from ..errors import InvalidArgumentError
from ..guest_text import printable

_closed: set[str] = set()
_SECONDS_BEFORE, _SECONDS_BETWEEN = 0.5, 1.0


class _Output(io.FileIO):
    """Standard output that remembers the error of a failed write, so that `output_problem` can return it."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            _Output.problem = error
            raise


def prepare() -> None:
    """Prepare the standard streams: escape characters that they cannot encode, and replace closed streams by /dev/null.

    Without /dev/null, the next file or socket would get the descriptor of a closed stream, and then receive the stream's text. Raise
    InvalidArgumentError if standard output is closed, because then the output of the command would be lost.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _closed.add(name)
            setattr(sys, name, _open_null_device(number))
        if name != "stdin":
            cast(io.TextIOWrapper, getattr(sys, name)).reconfigure(errors="backslashreplace")
    if "stdout" in _closed:
        raise InvalidArgumentError("standard output is closed: redirect it to a file, or to /dev/null (>/dev/null) to drop it")
    output, is_own = sys.stdout, sys.stdout is sys.__stdout__
    if is_own:  # a program that calls `main` may have another
        output.flush()
        raw = io.BufferedWriter(_Output(output.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, output.encoding, "backslashreplace", line_buffering=output.isatty())


def _open_null_device(number: int) -> TextIO:
    """Open /dev/null as the standard stream with the file descriptor `number`. Use another descriptor if `number` is in use by now."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    if descriptor != number:
        try:
            os.fstat(number)
        except OSError:
            os.dup2(descriptor, number)
            os.close(descriptor)
            descriptor = number
    return cast(TextIO, io.TextIOWrapper(io.FileIO(descriptor, "r+"), write_through=True))


def is_closed(name: str) -> bool:
    """Return whether a standard stream was closed when the command began."""
    return name in _closed


def standard_input() -> BinaryIO:
    """Return the bytes stream of standard input. Raise InvalidArgumentError if it is closed."""
    if "stdin" in _closed:
        raise InvalidArgumentError("standard input is closed: redirect it from a file or a pipe")
    return sys.stdin.buffer


def code_from_input() -> str:
    """Read source text from standard input. Raise InvalidArgumentError if it is not UTF-8, which is required in every locale."""
    try:
        text = standard_input().read().decode()
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise InvalidArgumentError(
            f"standard input must be UTF-8 text, got byte 0x{wrong:02x} at position {error.start}: encode it as UTF-8"
        ) from None  # the cause holds the code
    return text.replace("\r\n", "\n").replace("\r", "\n")


def code_from_argument(text: str) -> str:
    """Return the source text in a command-line argument. Raise InvalidArgumentError if it is not UTF-8.

    In the C locale, Python decodes bytes outside of ASCII as lone surrogates. Convert these back to bytes, and decode them as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode()
        except UnicodeDecodeError:
            raise InvalidArgumentError(
                "the code must be UTF-8 text: encode it as UTF-8, or send it from a file to standard input"
            ) from None  # the cause holds the code
    return text


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show a line on standard error while the `with` block runs: `text`, and the seconds since the block began.

    Show it only if standard error is a terminal, and only after the first half second.
    """
    if not sys.stderr.isatty():
        yield
        return
    ended = Event()
    showing = Thread(target=_show_progress, args=(printable(text, colours=False), ended), daemon=True)
    showing.start()
    try:
        yield
    finally:
        ended.set()
        showing.join()


def _show_progress(text: str, ended: Event) -> None:
    begun, width = time.monotonic(), shutil.get_terminal_size().columns
    line = ""
    while not ended.wait(_SECONDS_BETWEEN if line else _SECONDS_BEFORE):
        # A line that wraps could not be erased by returning to its beginning.
        line = f"{text[: max(10, width - 20)]} ... {time.monotonic() - begun:.0f} s"
        write_error(f"\r{line}", end="")
    if line:
        write_error(f"\r{' ' * len(line)}\r", end="")


def write_error(text: str, end: str = "\n") -> None:
    """Print a text on standard error. Ignore a failed write, because the exit code reports the error anyway."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def flush() -> None:
    """Flush standard output, unless it is closed. `mcp` leaves it closed when its client has disconnected."""
    if not sys.stdout.closed:
        sys.stdout.flush()


def output_problem() -> OSError | None:
    """Return the error of the last failed write to standard output, or None if none failed."""
    return _Output.problem


def silence() -> None:
    """Flush standard output and error.

    If this fails for one of them, redirect it to /dev/null. Otherwise Python would try again at exit, and print an error.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
