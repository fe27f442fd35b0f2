"""The first process of a session: it starts the interpreter, reaps dead processes, and exits when no process is left."""

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from ... import syscalls
from ...wire import ALLOCATION, BROKEN_EXIT, MOST_PARTS, REPORT, Ready, Refused, Spawn, frame
from ..folders import session_folders
from . import confine, network
from .root import RefusalError, isolation_step

if TYPE_CHECKING:
    from ..notebook.shell import Shell
    from .namespaces import NamespaceIsolation
    from .no_namespaces import NoNamespaceIsolation

    Isolation = NoNamespaceIsolation | NamespaceIsolation


_AWAITED = (signal.SIGCHLD, signal.SIGUSR1)  # a process died; the host has a request


def main(spawn: Spawn, isolation: "Isolation", connection: int, report: int, shell: "Shell") -> NoReturn:
    """Turn this process, a new fork of the zygote, into the first process of a session.

    Wait until the host has moved this process to the session's control group and sends a byte. Then isolate this process, start the
    interpreter as its child, and reap dead processes. If a step of the isolation fails, send `Refused` and exit. If the host closes
    `connection` without sending the byte, exit without a message.

    Args:
        spawn: The host's request for this session.
        isolation: Isolates this process, with or without namespaces.
        connection: A descriptor of the socket on which the host sends cells to the interpreter.
        report: A descriptor of the socket on which this process reports dead processes and receives requests to allocate memory.
        shell: The shell that the zygote has built.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    link = socket.socket(fileno=connection)
    try:
        # The host sends a byte once this process is in the session's control group. The move must come first: that group becomes the
        # root of the cgroup namespace.
        if not link.recv(1):
            os._exit(0)
        network_descriptors = isolation.enter(spawn)
        if isolation.has_own_network(spawn) and not spawn.memory_is_counted:
            network_descriptors += network.open_sock_diag()
        interpreter = os.fork()
        if interpreter == 0:
            os.close(report)
            _run_interpreter(spawn, isolation, link, network_descriptors, shell)
    except RefusalError as refusal:
        link.sendall(frame(refusal.report))
        os._exit(1)
    link.close()
    _reap(isolation, report)


def _reap(isolation: "Isolation", report: int) -> NoReturn:
    """Reap dead processes and report each to the host. Allocate memory when the host asks for it. Exit when no other process is left."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    confine.close_other_descriptors(report)
    host = socket.socket(fileno=report)
    host.setblocking(False)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    isolation.prepare_to_reap()
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


def _run_interpreter(
    spawn: Spawn, isolation: "Isolation", link: socket.socket, network_descriptors: "list[int]", shell: "Shell"
) -> NoReturn:
    try:
        from .. import cells
        from ..link import Link, replace_streams
        from ..notebook.modules import set_import_path

        os.setsid()
        os.chdir(session_folders.data)
        set_import_path()
        shell.set_history_size(spawn.history)
        outputs = replace_streams()
        own = os.pidfd_open(os.getpid())
        frame_reader, frame_pipe = os.pipe()
        version = isolation.lock_down(spawn)
        descriptors = [own, frame_reader, *outputs, *isolation.open_proc(), *network_descriptors]
        with isolation_step("session"):  # fails if other sessions of this user have too many descriptors in flight
            socket.send_fds(link, [frame(Ready(version))], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        cells.serve(
            Link(link, frame_pipe),
            shell,
            proxy=(*network.PROXY, spawn.no_proxy) if spawn.network == "allow" else None,
            has_authority=bool(spawn.authority),
        )
    except RefusalError as refusal:
        link.sendall(frame(refusal.report))
    except Exception as error:  # not a traceback on stderr: that is the pipe for cells' output by now, and would not be read
        link.sendall(frame(Refused("session", getattr(error, "errno", None) or 0, f"{type(error).__name__}: {error}"[:1000])))
    finally:
        os._exit(BROKEN_EXIT)
