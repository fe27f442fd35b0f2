"""stdout and stderr as pipes to the host. Python, C and child processes write to the same pipes, so their order is kept."""

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
    """Replace descriptors 1 and 2 by new pipes and descriptor 0 by /dev/null. Return the read ends of the pipes."""
    # The pipes are made here, after the change of user: a pipe of another user could not be opened again through /dev/stdout.
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    read_ends = (_pipe_at(1), _pipe_at(2))
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    put_back()
    syscalls.set_line_buffered()
    return read_ends


def flush() -> None:
    """Write out what Python or C has buffered. A cell may have closed or replaced either stream."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    syscalls.flush_c_streams()


def put_back() -> None:
    """Restore sys.stdout and sys.stderr, in case a cell replaced them."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        # Their `write` is replaced while a cell runs on in a thread (agent/cells/diverted.py): leave that in place.
        if name in _taken_over and "write" in vars(_taken_over[name]):
            continue
        if name not in _taken_over or _taken_over[name].closed:
            _taken_over[name] = open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, _taken_over[name])
        setattr(sys, f"__{name}__", _taken_over[name])


def _pipe_at(descriptor: int) -> int:
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):  # the kernel limits the memory of a user's pipes (pipe(7), pipe-user-pages-soft)
        fcntl.fcntl(write_end, _SET_PIPE_SIZE, _PIPE_SIZE)
    os.dup2(write_end, descriptor)
    os.close(write_end)
    return read_end
