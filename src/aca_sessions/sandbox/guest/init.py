"""PID 1 of a session: reaps, outlives the interpreter, holds nothing."""

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from .. import syscalls
from ..wire import ALLOCATION, BROKEN_EXIT, MOST_PARTS, REPORT, Ready, Refused, Spawn, frame
from . import confine, streams
from .place import place
from .refusal import RefusalError, part

if TYPE_CHECKING:
    from .bare import Bare
    from .namespaces import Namespaced
    from .shell import Shell

    World = Bare | Namespaced

PROXY = ("127.0.0.1", 3128)
_NETLINK_SOCK_DIAG = 4
_AWAITED = (signal.SIGCHLD, signal.SIGUSR1)  # a death, and the host's request


def main(spawn: Spawn, world: "World", connection: int, report: int, shell: "Shell") -> NoReturn:
    """Confines a forked child of the zygote and starts the interpreter in it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    link = socket.socket(fileno=connection)
    try:
        if not link.recv(1):  # until the host has put this process into its control group, which the namespaces take for their root
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
    """Collect the dead and report how they died. Allocate memory for files that the host writes."""
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
        with contextlib.suppress(OSError):  # orphans that a session made to die in masses: nobody waits for news of those
            host.send(REPORT.pack(pid, status))


def _answer_requests(host: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            request, descriptors, _, _ = socket.recv_fds(host, ALLOCATION.size * MOST_PARTS, 1 + MOST_PARTS)
            if not request:
                return  # the host let go of this session, and is about to end it
            answer, *files = descriptors
            os.write(answer, (1 + _allocate(files, request)).to_bytes(8, sys.byteorder))
            for descriptor in descriptors:
                os.close(descriptor)


def _allocate(files: "list[int]", request: bytes) -> int:
    """Allocate the memory of parts of files, and return the number of the error, if any. This process's control group is charged."""
    try:
        for file, (start, length) in zip(files, ALLOCATION.iter_unpack(request)):
            syscalls.reserve(file, start, length)
    except OSError as error:
        return error.errno or 0
    return 0


def _listen_for_proxy() -> int:
    """A socket of this network namespace, whoever accepts on it: the host's proxy will."""
    listener = socket.create_server(PROXY)
    return listener.detach()


def _list_of_sockets() -> "list[int]":
    """Return what tells the host which memory the sockets of this network namespace have, if this kernel has it; else the host says so."""
    with contextlib.suppress(OSError):
        return [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG).detach()]
    return []


def _interpret(spawn: Spawn, world: "World", link: socket.socket, of_the_network: "list[int]", shell: "Shell") -> NoReturn:
    try:
        from . import cells
        from .link import Link
        from .modules import settle

        os.setsid()
        os.chdir(place.data)
        settle()
        shell.remember(spawn.history)
        outputs = streams.take_over()
        own = os.pidfd_open(os.getpid())
        frames, said = os.pipe()
        version = world.lock_down(spawn)
        brought = [own, frames, *outputs, *world.processes(), *of_the_network]
        with part("session"):  # other sessions of this user may have all its descriptors on their way
            socket.send_fds(link, [frame(Ready(version))], brought)
        for descriptor in brought:
            os.close(descriptor)
        cells.serve(Link(link, said), shell, proxy=PROXY if spawn.network == "allow" else None)
    except RefusalError as refusal:
        link.sendall(frame(refusal.told))
    except Exception as error:  # where it began, its standard error is a cell's already: nobody would read a traceback there
        link.sendall(frame(Refused("session", getattr(error, "errno", None) or 0, f"{type(error).__name__}: {error}"[:1000])))
    finally:
        os._exit(BROKEN_EXIT)
