"""Run an attempt in a session and return its outcome in one word: the errno of the refusal, the name of the error, or what was read."""

import errno
import re
import textwrap

from aca_sessions import CodeExecutionResult, Session

_NUMBER = re.compile(r"\[Errno (\d+)\]")

# `checked(status)` and `call(number, …)`, a bare system call, raise OSError. `alone(f)` runs f in a child and returns its wait status.
PRELUDE = """
import ctypes, errno, os, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def checked(status):
    if status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return status
def call(number, *arguments):
    return checked(libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]))
def alone(f):
    child = os.fork()
    if child == 0:
        try:
            f()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]
"""


async def outcome(session: Session, attempt: str, *, prelude: str = "") -> str:
    """Run an attempt and return its outcome: `EACCES`, `MemoryError`, `got: …`."""
    return outcome_of(await session.run(f"{prelude}\n{textwrap.dedent(attempt)}"))


def outcome_of(result: CodeExecutionResult) -> str:
    """Return the outcome of a cell in one word."""
    if result.error is None:
        return f"got: {result.output}"
    number = _NUMBER.search(result.error.message)
    return errno.errorcode[int(number[1])] if number else result.error.name


async def is_well(session: Session) -> bool:
    """Check that a session runs cells."""
    return (await session.run("6 * 7")).value == 42
