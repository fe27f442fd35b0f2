"""The interpreter as it is now, once more: a fork that waits for cells of its own. What it cannot take along is told, or refuses it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import socket
import stat
import sys
import threading
from typing import TYPE_CHECKING

from ..wire import Finished, Fork
from . import place, seeds
from .link import Link

if TYPE_CHECKING:
    from .shell import Shell

_ENDS = 4
_children: set[int] = set()
_folder: str | None = None
_own_sockets = 0


def fork(request: Fork, link: Link, shell: Shell) -> Finished | None:
    """What became of it, to be told by the parent; None in the fork itself."""
    _collect_dead()
    ends = link.take_brought()
    try:
        refused = _in_the_way() if len(ends) == _ENDS else "the session has no descriptor left for it: close some files"
        if refused:
            return _finished(request, error=refused)
        positions = _positions()  # before the fork: from then on the parent may move them
        left = _left_behind(shell, brought=1, reopened=len(positions))
        drawn = random.getstate()
        pid = os.fork()
        if pid == 0:
            _begin(ends, link, shell)
            _reopen(positions)
            seeds.differ() if request.reseed else random.setstate(drawn)  # Python itself has reseeded it in the fork
            return None
    except OSError as error:
        too_many = "it has as many processes as it may: end some, or reset it"
        return _finished(request, error=f"the session cannot be forked: {too_many if error.errno == errno.EAGAIN else error.strerror}")
    finally:
        for end in ends:
            os.close(end)
    _children.add(pid)
    return _finished(request, pid, "\n".join(left))


def begin() -> None:
    """What is open now is ours, and not the user's."""
    global _own_sockets
    with contextlib.suppress(OSError):  # a session without namespaces sees nothing of /proc, and is not forked either
        _own_sockets = _open_things()[0]


def stay_in_data() -> None:
    """The folder that a cell worked in may have been taken away, or be another's by now: the same place is looked up anew."""
    try:
        os.getcwd()
    except OSError:
        with contextlib.suppress(OSError):
            os.chdir(place.place.data)
        with contextlib.suppress(OSError):
            os.chdir(_folder or place.place.data)


def remember_folder() -> None:
    """Where the last cell worked."""
    global _folder
    with contextlib.suppress(OSError):
        _folder = os.getcwd()


def _begin(ends: list[int], link: Link, shell: Shell) -> None:
    """From here on this is an interpreter of its own."""
    connection, said, stdout, stderr = ends
    os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    link.take_over(socket.socket(fileno=os.dup(connection)), os.dup(said))
    _children.clear()
    shell.loop_runner.abandon()


def _in_the_way() -> str | None:
    """A fork has one thread: what the others held, nobody would let go of."""
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.current_thread())
        return f"threads run, which cannot be kept: {names[:200]}; end them first"
    others = len(os.listdir("/proc/self/task")) - 1
    if others and "pyarrow" not in sys.modules:  # its pools begin anew in a fork
        return f"{others} threads of a library run, which cannot be kept: reset the session, or leave that library out"
    return None


def _left_behind(shell: Shell, *, brought: int, reopened: int) -> list[str]:
    """What the parent goes on with alone, in words."""
    sockets, files = _open_things()
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        started = [pid for pid in map(int, children.read().split()) if pid not in _children]
    told = {
        "unfinished asyncio tasks": shell.loop_runner.unfinished(),
        "processes that were started": len(started),
        "open sockets, which are shared": sockets - brought - shell.loop_runner.sockets,
        "open files, whose position is shared": files - reopened,
    }
    return [f"{count} {what}" for what, count in told.items() if count]


def _positions() -> dict[int, int]:
    """Where the open files in /mnt/data are at, by their descriptors; those that a fork can open once more."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = f"/proc/self/fd/{name}"
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) or not status.st_nlink or not os.readlink(path).startswith(f"{place.place.data}/"):
                continue
            with open(f"/proc/self/fdinfo/{name}") as told:
                if "lock:" not in told.read():  # a lock belongs to what was opened first: flock(2)
                    found[int(name)] = os.lseek(int(name), 0, os.SEEK_CUR)
    return found


def _reopen(positions: dict[int, int]) -> None:
    """A fork shares the position in each open file with its parent, and would write behind what the parent has written since."""
    for descriptor, position in positions.items():
        with contextlib.suppress(OSError):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_NOFOLLOW
            own = os.open(f"/proc/self/fd/{descriptor}", flags)
            os.lseek(own, position, os.SEEK_SET)
            os.dup2(own, descriptor, inheritable=os.get_inheritable(descriptor))
            os.close(own)


def _open_things() -> tuple[int, int]:
    """How many sockets and files of the user's are open; ours are not counted."""
    sockets = files = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            sockets += target.startswith("socket:")
            files += target.startswith((place.place.data, "/tmp/"))
    return sockets - _own_sockets, files


def _collect_dead() -> None:
    for child in [*_children]:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0]:
                _children.discard(child)


def _finished(request: Fork, number: int | None = None, left: str = "", error: str | None = None) -> Finished:
    name = "SnapshotError" if error else None
    return Finished(request.execution, number, left, name, error or "", "", [], [])
