"""Standard streams of a command, which work even if they are closed, full or without a reader."""

import contextlib
import io
import os
import sys
from typing import Any, BinaryIO, TextIO, cast

from ..errors import InvalidArgumentError

_closed: set[str] = set()


class _Output(io.FileIO):
    """Standard output that remembers why it could not be written. The stream above it forgets the error, and any code may have printed."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, and keep the error if that fails."""
        try:
            return super().write(data) or 0
        except OSError as error:
            _Output.problem = error
            raise


def prepare() -> None:
    """Let text through that a stream cannot encode, and open /dev/null in the place of closed streams.

    Otherwise a file or a socket would get the number of a closed stream, and with it the text for the stream. Raise InvalidArgumentError if
    standard output is closed: a command whose output is missing may have failed or succeeded.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _closed.add(name)
            setattr(sys, name, _nothing(number))
        if name != "stdin":
            cast(io.TextIOWrapper, getattr(sys, name)).reconfigure(errors="backslashreplace")
    if "stdout" in _closed:
        raise InvalidArgumentError("standard output is closed: send it to /dev/null (>/dev/null) if it is not read")
    output, is_own = sys.stdout, sys.stdout is sys.__stdout__
    if is_own:  # a program that calls `main` may have another
        output.flush()
        raw = io.BufferedWriter(_Output(output.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, output.encoding, "backslashreplace", line_buffering=output.isatty())


def _nothing(number: int) -> TextIO:
    """Return a stream on /dev/null. It gets the number of the closed stream, unless something has that number already."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    if descriptor != number:
        try:
            os.fstat(number)
        except OSError:
            os.dup2(descriptor, number)
            os.close(descriptor)
            descriptor = number
    return cast(TextIO, io.TextIOWrapper(io.FileIO(descriptor, "r+"), write_through=True))


def standard_input() -> BinaryIO:
    """Return standard input. Raise InvalidArgumentError if it is closed."""
    if "stdin" in _closed:
        raise InvalidArgumentError("standard input is closed: send it a file or a pipe")
    return sys.stdin.buffer


def code_from_input() -> str:
    """Read source text from standard input. It is UTF-8 whatever the locale."""
    try:
        text = standard_input().read().decode()
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise InvalidArgumentError(f"standard input is not UTF-8 text: byte 0x{wrong:02x} at position {error.start}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def code_from_argument(text: str) -> str:
    """Return source text from the command line. In the C locale Python keeps the bytes of other letters as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode()
        except UnicodeDecodeError:
            raise InvalidArgumentError("the code is not UTF-8 text: write it as UTF-8, or send it by a file to standard input") from None
    return text


def tell(text: str, end: str = "\n") -> None:
    """Print on standard error. If that cannot be written, print nothing: the exit code is enough."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def flush() -> None:
    """Write what is left of the output. Serving MCP closes the stream at its end."""
    if not sys.stdout.closed:
        sys.stdout.flush()


def output_problem() -> OSError | None:
    """Return why standard output could not be written, or None."""
    return _Output.problem


def silence() -> None:
    """Drop what the streams cannot write. Otherwise the interpreter would fail on it at its own end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
