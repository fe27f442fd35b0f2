"""The first process of a session: it starts the interpreter, reaps dead processes, and exits when no process is left."""

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from ... import syscalls
from ...wire import ALLOCATION, BROKEN_EXIT, MOST_PARTS, REPORT, Ready, Refused, Spawn, frame
from ..place import place
from . import confine
from .root import RefusalError, part

if TYPE_CHECKING:
    from ..notebook.shell import Shell
    from .bare import Bare
    from .namespaces import Namespaced

    World = Bare | Namespaced


PROXY = ("127.0.0.1", 3128)
_NETLINK_SOCK_DIAG = 4
_AWAITED = (signal.SIGCHLD, signal.SIGUSR1)  # a process died; the host has a request


def main(spawn: Spawn, world: "World", connection: int, report: int, shell: "Shell") -> NoReturn:
    """Turn this process, a new fork of the zygote, into the first process of a session.

    Confine it, start the interpreter as its child, then reap dead processes. The host sends cells on the socket `connection`. On the socket
    `report` the host sends requests to allocate memory, and this process reports the deaths of processes. If the host refuses a part of the
    isolation, send `Refused` and exit. If the host closes `connection` before it sends a byte, exit without a report.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    link = socket.socket(fileno=connection)
    try:
        # The host sends a byte once this process is in the session's control group. The move must come first: that group becomes the
        # root of the cgroup namespace.
        if not link.recv(1):
            os._exit(0)
        world.enter(spawn)
        of_the_network = [_listen_for_proxy()] if spawn.network == "allow" else []
        if world.own_network(spawn) and not spawn.memory_is_counted:
            of_the_network += _list_of_sockets()
        interpreter = os.fork()
        if interpreter == 0:
            os.close(report)
            _interpret(spawn, world, link, of_the_network, shell)
    except RefusalError as refusal:
        link.sendall(frame(refusal.told))
        os._exit(1)
    link.close()
    _reap(world, report)


def _reap(world: "World", report: int) -> NoReturn:
    """Report dead processes to the host and carry out its requests to allocate memory. Exit when the session has no other process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    confine.close_all_but(report)
    host = socket.socket(fileno=report)
    host.setblocking(False)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    world.begin_to_reap()
    while True:
        _report_deaths(host)
        _answer_requests(host)
        signal.sigwaitinfo(_AWAITED)


def _report_deaths(host: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            os._exit(0)
        if pid == 0:
            return
        with contextlib.suppress(OSError):  # the socket is full: a session let orphans die in masses, and no report of those is needed
            host.send(REPORT.pack(pid, status))


def _answer_requests(host: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            request, descriptors, _, _ = socket.recv_fds(host, ALLOCATION.size * MOST_PARTS, 1 + MOST_PARTS)
            if not request:
                return  # the host closed its end and is about to end this session
            answer, *files = descriptors
            os.write(answer, (1 + _allocate(files, request)).to_bytes(8, sys.byteorder))
            for descriptor in descriptors:
                os.close(descriptor)


def _allocate(files: "list[int]", request: bytes) -> int:
    """Allocate memory for one byte range of each file in `files`, given as descriptors. Return 0, or the errno of the first failure.

    `request` holds the start and length of each range, as the host sent them.
    """
    # The kernel charges the control group of the process that allocates a page. The host is in none of a session's groups, so this process
    # allocates for it.
    try:
        for file, (start, length) in zip(files, ALLOCATION.iter_unpack(request)):
            syscalls.reserve(file, start, length)
    except OSError as error:
        return error.errno or 0
    return 0


def _listen_for_proxy() -> int:
    """Listen at the address of the HTTP proxy in the session's network namespace. Return the socket's descriptor.

    The host's proxy accepts connections on it.
    """
    listener = socket.create_server(PROXY)
    return listener.detach()


def _list_of_sockets() -> "list[int]":
    """Open a sock_diag(7) socket, which tells the host how much memory the session's sockets use.

    Return [descriptor], or [] if the kernel lacks sock_diag.
    """
    # If the kernel lacks sock_diag, the list is empty and the host reports that this memory is not counted.
    with contextlib.suppress(OSError):
        return [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG).detach()]
    return []


def _interpret(spawn: Spawn, world: "World", link: socket.socket, of_the_network: "list[int]", shell: "Shell") -> NoReturn:
    try:
        from .. import cells
        from ..link import Link, take_over_streams
        from ..notebook.modules import settle

        os.setsid()
        os.chdir(place.data)
        settle()
        shell.remember(spawn.history)
        outputs = take_over_streams()
        own = os.pidfd_open(os.getpid())
        frames, said = os.pipe()
        version = world.lock_down(spawn)
        brought = [own, frames, *outputs, *world.processes(), *of_the_network]
        with part("session"):  # fails if other sessions of this user have too many descriptors in flight
            socket.send_fds(link, [frame(Ready(version))], brought)
        for descriptor in brought:
            os.close(descriptor)
        cells.serve(Link(link, said), shell, proxy=PROXY if spawn.network == "allow" else None)
    except RefusalError as refusal:
        link.sendall(frame(refusal.told))
    except Exception as error:  # not a traceback on stderr: that is the pipe for cells' output by now, and would not be read
        link.sendall(frame(Refused("session", getattr(error, "errno", None) or 0, f"{type(error).__name__}: {error}"[:1000])))
    finally:
        os._exit(BROKEN_EXIT)
