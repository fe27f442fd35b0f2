"""Fork the interpreter for checkpoints and branches. Each fork has its own connection to the host and waits for cells.

A fork is refused while threads run that cannot be started again (see `threads`). The result of a fork lists what else it loses, such as
child processes, and what it shares with its parent, such as open sockets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import socket
import stat
import sys
import tempfile
from typing import TYPE_CHECKING

from ..wire import Finished, Fork
from . import saves, threads
from .folders import session_folders
from .link import Link

if TYPE_CHECKING:
    from .notebook.shell import Shell

_DESCRIPTORS_RECEIVED = 4  # the host sends the socket, the frames' pipe, stdout and stderr
_children: set[int] = set()
_folder: str | None = None
_own_sockets = 0


def fork(request: Fork, link: Link, shell: Shell) -> Finished | None:
    """Fork the interpreter for a checkpoint or branch. Return the result in the parent, and None in the fork.

    The result holds the fork's pid, and lists what the fork lost (such as "2 unfinished asyncio tasks") or shares with its parent. If no
    fork was made, it holds a `SnapshotError`.
    """
    threads.pause(shell)
    finished = _fork(request, link, shell)
    if finished is not None:  # a fork goes on with its first cell: until then, what a thread of it prints would belong to no cell
        threads.go_on()
    return finished


def _fork(request: Fork, link: Link, shell: Shell) -> Finished | None:
    _reap_children()
    ends = link.take_descriptors()
    try:
        is_complete = len(ends) == _DESCRIPTORS_RECEIVED
        refused = _find_obstacle(shell) if is_complete else "the session has no descriptor left for a fork: close some files"
        if refused:
            return _make_result(request, error=refused)
        positions = _read_offsets()  # before the fork, because the parent may move them afterwards
        left = _describe_losses(shell, received=1, reopened=len(positions))
        drawn = random.getstate()
        pid = os.fork()
        if pid == 0:
            _become_independent(ends, link, shell)
            _reopen(positions)
            reseed() if request.reseed else random.setstate(drawn)  # Python reseeds `random` in every fork
            return None
    except OSError as error:
        too_many = "it has as many processes as it may have: end some, or reset it"
        return _make_result(request, error=f"the session cannot be forked: {too_many if error.errno == errno.EAGAIN else error.strerror}")
    finally:
        for end in ends:
            os.close(end)
    _children.add(pid)
    return _make_result(request, pid, "\n".join(left))


def reseed() -> None:
    """Give this process new random seeds and temporary file names. Otherwise all forks of a process would draw the same ones."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    tempfile._name_sequence = None  # type: ignore[attr-defined]


def count_own_sockets() -> None:
    """Count the sockets that are open now as the interpreter's own, so that results of `fork` do not report them as the user's."""
    global _own_sockets
    with contextlib.suppress(OSError):  # without namespaces /proc cannot be read, and the session is not forked either
        _own_sockets = _count_open()[0]


def leave_deleted_folder() -> None:
    """If the current folder was deleted, change to the folder that now has its path, or else to /mnt/data."""
    # A rollback may have removed the folder, or a branch may have another one at that path: it is looked up by its name again.
    try:
        os.getcwd()
    except OSError:
        with contextlib.suppress(OSError):
            os.chdir(session_folders.data)
        with contextlib.suppress(OSError):
            os.chdir(_folder or session_folders.data)


def remember_folder() -> None:
    """Store the path of the current folder at the end of a cell, for `leave_deleted_folder`."""
    global _folder
    with contextlib.suppress(OSError):
        _folder = os.getcwd()


def _become_independent(ends: list[int], link: Link, shell: Shell) -> None:
    """Turn this process, a new fork, into an interpreter with its own connection to the host, its own streams and its own event loop.

    `ends` are descriptors that the host sent: a socket for cells, and pipes for frames, stdout and stderr.
    """
    connection, frame_pipe, stdout, stderr = ends
    os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    link.reconnect(socket.socket(fileno=os.dup(connection)), os.dup(frame_pipe))
    _children.clear()
    shell.loop_runner.abandon()
    threads.renew_locks()


def _find_obstacle(shell: Shell) -> str | None:
    """Return the reason why the interpreter cannot be forked now, such as running threads. Return None if it can be forked."""
    # Only the calling thread exists in a fork (fork(2)): locks that other threads held would stay locked.
    if running := threads.lasting(shell.loop_runner) or threads.others():  # the second did not end in time
        names = ", ".join(thread.name for thread in running)
        return (
            f"threads are running, which a checkpoint cannot keep: {names[:200]}. End them first: let their functions return, and join them"
        )
    # pyarrow starts its thread pools again in a fork.
    if "pyarrow" not in sys.modules and (others := threads.count_in_kernel()):
        names = ", ".join(dict.fromkeys(name.rstrip("0123456789-_ ") for name in threads.names_in_kernel()))
        return f"{others} threads of a library run ({names[:100]}), which a checkpoint cannot keep: reset the session, or do not import it"
    return None


def _describe_losses(shell: Shell, *, received: int, reopened: int) -> list[str]:
    """Return what a fork made now would lose or share with its parent, in lines such as "2 unfinished asyncio tasks".

    These are unfinished tasks, child processes, open sockets and open files.

    Args:
        shell: The shell of this interpreter.
        received: How many of the open sockets the host sent with its request for the fork. They are not listed.
        reopened: How many of the open files the fork opens again for itself. They are not listed.
    """
    sockets, files = _count_open()
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        started = [pid for pid in map(int, children.read().split()) if pid not in _children | saves.writing]
    told = {
        "unfinished asyncio tasks": shell.loop_runner.unfinished(),
        "processes that were started": len(started),
        "open sockets, which are shared": sockets - received - shell.loop_runner.sockets,
        "open files, whose position is shared": files - reopened,
    }
    return [f"{count} {what}" for what, count in told.items() if count]


def _read_offsets() -> dict[int, int]:
    """Return the read/write offsets of the open files in /mnt/data that a fork can reopen. The keys are the descriptors of the files."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = f"/proc/self/fd/{name}"
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) or not status.st_nlink or not os.readlink(path).startswith(f"{session_folders.data}/"):
                continue
            with open(f"/proc/self/fdinfo/{name}") as told:
                if "lock:" not in told.read():  # a lock belongs to the open file description, which another open does not share (flock(2))
                    found[int(name)] = os.lseek(int(name), 0, os.SEEK_CUR)
    return found


def _reopen(positions: dict[int, int]) -> None:
    # A fork shares each open file's position with its parent: it would write behind what the parent has written since.
    for descriptor, position in positions.items():
        with contextlib.suppress(OSError):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_NOFOLLOW
            own = os.open(f"/proc/self/fd/{descriptor}", flags)
            os.lseek(own, position, os.SEEK_SET)
            os.dup2(own, descriptor, inheritable=os.get_inheritable(descriptor))
            os.close(own)


def _count_open() -> tuple[int, int]:
    """Return how many sockets and how many files the user's code has open in this process."""
    sockets = files = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            sockets += target.startswith("socket:")
            files += target.startswith((session_folders.data, "/tmp/"))
    return sockets - _own_sockets, files


def _reap_children() -> None:
    for child in [*_children]:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0]:
                _children.discard(child)


def _make_result(request: Fork, number: int | None = None, left: str = "", error: str | None = None) -> Finished:
    name = "SnapshotError" if error else None
    return Finished(request.execution, number, left, name, error or "", "", [], [])
