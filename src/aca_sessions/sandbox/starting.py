"""How an interpreter begins: a new session's, which says that it is confined before any code of its user runs, or a fork of another."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from ..errors import GuestDiedError, SnapshotError
from ..tasks import made_in_thread
from . import wire
from .channel import Channel
from .ends import ForkEnds, Spawned, Tree, host_pid, number_of, open_member, readable
from .forkserver import refusal
from .home import Home
from .interpreter import Interpreter
from .memory import Memory
from .policy import Limits
from .proxy import Proxy

_MET_DESCRIPTORS = 4
_START_SECONDS = 30.0


async def start(
    spawned: Spawned, limits: Limits, *, tree: int, memory: Memory, proxy: Proxy | None, show: Callable[[int, int], None]
) -> Interpreter:
    """The interpreter, confined and waiting for cells; its memory is counted, and what leaves it does so by the proxy, if any."""
    home = Home(spawned, tree, memory, show)
    try:
        async with asyncio.timeout(_START_SECONDS):
            return await _meet(spawned.link, home, limits, tree, proxy)
    except BaseException as error:
        spawned.link.close()
        await home.leave(0)
        if isinstance(error, TimeoutError):
            raise GuestDiedError("a session did not start within 30 s; the machine may be overloaded: try again") from None
        raise


async def fork(interpreter: Interpreter, tree: Tree, limits: Limits, *, reseed: bool = False) -> tuple[Interpreter, list[str]]:
    """Another interpreter with the same variables, on a tree of the same owner; and what could not be taken along."""
    home = interpreter.home
    if not home.has_namespaces:
        raise SnapshotError("that needs full isolation, and this session has no namespaces of its own")
    ends = await made_in_thread(lambda: ForkEnds(tree.owner), ForkEnds.close)
    try:
        number, left = await interpreter.fork(ends.theirs, reseed=reseed)
        pidfd = open_member(home.init, number)
    except BaseException:
        ends.close()
        raise
    finally:
        ends.close_theirs()
    channel = Channel(ends.link, ends.said, ends.streams, limit=limits.output)
    has_run_cells = interpreter.has_run_cells
    return Interpreter(home, channel, pidfd, tree=tree.number, forked=True, has_run_cells=has_run_cells), left


async def _meet(link: socket.socket, home: Home, limits: Limits, tree: int, proxy: Proxy | None) -> Interpreter:
    """Waits for the confined interpreter's first frame, the last one that comes from code of ours alone."""
    link.setblocking(False)
    await readable(link.fileno())
    data, descriptors, _, _ = socket.recv_fds(link, 1 << 16, 8)
    with contextlib.ExitStack() as on_failure:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            on_failure.callback(os.close, descriptor)
        complete = len(descriptors) == _MET_DESCRIPTORS + home.has_namespaces + (proxy is not None)
        _check_met([*wire.Frames(wire.MAX_FROM_GUEST).feed(data)], complete)
        process, said, stdout, stderr, *further = descriptors
        link.shutdown(socket.SHUT_RD)
        await home.count_memory(host_pid(process))
        number_of(process)
        on_failure.pop_all()
    if home.has_namespaces:
        home.see_processes(further.pop(0))
    if proxy is not None:
        home.serving = await proxy.serve(socket.socket(fileno=further.pop(0)))
    return Interpreter(home, Channel(link, said, (stdout, stderr), limit=limits.output), process, tree=tree)


def _check_met(payloads: list[bytes], complete: bool) -> None:
    if not payloads:
        raise GuestDiedError("a session ended before it was ready; see the process's standard error for the cause")
    match wire.decode(payloads[0], wire.Ready, wire.Refused):
        case wire.Refused() as refused:
            raise refusal(refused)
    if not complete:
        raise GuestDiedError("this process has no descriptor left for another session: end some and try again")
