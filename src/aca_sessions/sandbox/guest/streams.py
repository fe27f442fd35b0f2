"""stdout and stderr as pipes to the host: Python, C and child processes write to the same ones, in true order."""

import contextlib
import fcntl
import os
import sys
from typing import TextIO

from .. import syscalls

_PIPE_SIZE = 1 << 20
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ
_taken_over: dict[str, TextIO] = {}


def take_over() -> tuple[int, int]:
    """Puts new pipes under descriptors 1 and 2, nothing under 0, and answers the read ends.

    Made here, after the change of user: a pipe made by another one could not be opened again through /dev/stdout.
    """
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    read_ends = (_pipe_at(1), _pipe_at(2))
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    put_back()
    syscalls.set_line_buffered()
    return read_ends


def flush() -> None:
    """Sends on what is still held back by Python or C. A cell may have closed or replaced either stream."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    syscalls.flush_c_streams()


def put_back() -> None:
    """Whatever a cell put in the place of stdout and stderr, the next one has its own again.

    Not while what they write is diverted: then a cell that goes on in a thread has put it there.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if name in _taken_over and "write" in vars(_taken_over[name]):
            continue
        if name not in _taken_over or _taken_over[name].closed:
            _taken_over[name] = open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, _taken_over[name])
        setattr(sys, f"__{name}__", _taken_over[name])


def _pipe_at(descriptor: int) -> int:
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):  # what one user may hold in pipes is counted
        fcntl.fcntl(write_end, _SET_PIPE_SIZE, _PIPE_SIZE)
    os.dup2(write_end, descriptor)
    os.close(write_end)
    return read_end
