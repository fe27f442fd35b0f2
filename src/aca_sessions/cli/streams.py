"""Standard streams of a command. They are usable even if they are closed or full, or nobody reads them."""

import contextlib
import io
import os
import sys
from typing import Any, BinaryIO, TextIO, cast

from ..errors import InvalidArgumentError

_closed: set[str] = set()


class _Output(io.FileIO):
    """Standard output that keeps the error of a failed write, so that `output_problem` can tell it later."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            _Output.problem = error
            raise


def prepare() -> None:
    """Let streams escape text that they cannot encode, and replace closed streams by /dev/null.

    Without /dev/null, the kernel would give the number of a closed stream to the next file or socket, which would then get the stream's
    text. Raise InvalidArgumentError if standard output is closed, because without output nobody can tell what the command did.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _closed.add(name)
            setattr(sys, name, _nothing(number))
        if name != "stdin":
            cast(io.TextIOWrapper, getattr(sys, name)).reconfigure(errors="backslashreplace")
    if "stdout" in _closed:
        raise InvalidArgumentError("standard output is closed: redirect it to a file, or to /dev/null (>/dev/null) to drop it")
    output, is_own = sys.stdout, sys.stdout is sys.__stdout__
    if is_own:  # a program that calls `main` may have another
        output.flush()
        raw = io.BufferedWriter(_Output(output.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, output.encoding, "backslashreplace", line_buffering=output.isatty())


def _nothing(number: int) -> TextIO:
    """Return a text stream on /dev/null. Its descriptor is `number`, unless another file has that by now."""
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
        raise InvalidArgumentError("standard input is closed: redirect it from a file or a pipe")
    return sys.stdin.buffer


def code_from_input() -> str:
    """Return the source text on standard input. Raise InvalidArgumentError if it is not UTF-8, which is required whatever the locale."""
    try:
        text = standard_input().read().decode()
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise InvalidArgumentError(
            f"standard input must be UTF-8 text, got byte 0x{wrong:02x} at position {error.start}: encode it as UTF-8"
        ) from None  # the cause holds the code
    return text.replace("\r\n", "\n").replace("\r", "\n")


def code_from_argument(text: str) -> str:
    """Return the source text of an argument of the command line. Raise InvalidArgumentError if it is not UTF-8.

    In the C locale Python decodes bytes outside of ASCII as lone surrogates, so such text is encoded again and decoded as UTF-8.
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


def write_error(text: str, end: str = "\n") -> None:
    """Print on standard error. Ignore a failure, because the exit code is enough."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def flush() -> None:
    """Flush standard output. Do nothing if it is closed, as `mcp` leaves it when its client has gone."""
    if not sys.stdout.closed:
        sys.stdout.flush()


def output_problem() -> OSError | None:
    """Return why standard output could not be written, or None."""
    return _Output.problem


def silence() -> None:
    """Flush the output streams. If one cannot be written, redirect it to /dev/null, because Python would fail on it at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
