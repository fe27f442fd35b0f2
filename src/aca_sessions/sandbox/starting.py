"""The start of an interpreter: that of a new session, which reports that it is confined before any user code runs, or a fork of another."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator

from ..errors import GuestDiedError, SnapshotError
from ..tasks import made_in_thread
from . import wire
from .channel import Channel
from .ends import ForkEnds, Spawned, Tree, open_member
from .forkserver import refusal
from .home import Home
from .interpreter import Interpreter
from .memory import Memory
from .policy import Limits
from .proxy import Proxy, Serving
from .shortage import no_descriptor, told_of

_START_SECONDS = 30.0


async def start(
    spawned: Spawned, limits: Limits, *, tree: int, memory: Memory, proxy: Proxy | None, show: Callable[[int, int], None]
) -> Interpreter:
    """Return the interpreter of a new session, once it is confined and waits for cells.

    Raise GuestDiedError if it ends, or is not ready within 30 s. Raise IsolationError, or ConfigurationError for an image, if a part of the
    isolation was refused.

    Args:
        spawned: the session's descriptors. They are closed on failure.
        limits: what the session may use.
        tree: the number of its workspace.
        memory: what counts its memory.
        proxy: the only way out of the session, if it has one.
        show: puts a workspace into /mnt/data.
    """
    home = Home(spawned, tree, memory, show)
    try:
        with told_of("another session"):
            async with asyncio.timeout(_START_SECONDS):
                return await _meet(spawned.link, home, limits, tree, proxy)
    except BaseException as error:
        spawned.link.close()
        await home.leave(0)
        if isinstance(error, ConnectionError):  # the session's end is noticed here first
            raise GuestDiedError("a session ended before it was ready; see the process's standard error for the cause") from error
        if isinstance(error, TimeoutError):
            raise GuestDiedError("a session did not start within 30 s; the machine may be overloaded: try again") from None
        raise


async def fork(interpreter: Interpreter, tree: Tree, limits: Limits, *, reseed: bool = False) -> tuple[Interpreter, list[str]]:
    """Fork an interpreter. Return the fork, which has the same variables, and a line for each thing that could not be taken along.

    Raise SnapshotError if that is impossible, as in a session without namespaces.

    Args:
        interpreter: the one to fork, between two cells.
        tree: the workspace of the fork, which must have the same owner.
        limits: what the session may use.
        reseed: whether to seed the random numbers of the fork anew.
    """
    home = interpreter.home
    if not home.has_namespaces:
        raise SnapshotError(
            "checkpoints and branches need full isolation, and this session has no namespaces: use `Sandbox:Isolation` full"
        )
    with told_of("a checkpoint or branch", SnapshotError), contextlib.ExitStack() as on_failure:
        ends = await made_in_thread(lambda: ForkEnds(tree.owner), ForkEnds.close)
        on_failure.callback(ends.close)  # a fork whose link is closed ends
        number, left = await interpreter.fork(ends.theirs, reseed=reseed)
        ends.close_theirs()
        pidfd = open_member(home.init, number)
        on_failure.callback(os.close, pidfd)
        channel = Channel(ends.link, ends.said, ends.streams, limit=limits.output)
        with _unheard_on_failure(channel):
            forked = Interpreter(home, channel, pidfd, tree=tree.number, forked=True, has_run_cells=interpreter.has_run_cells)
        on_failure.pop_all()
    return forked, left


@contextlib.contextmanager
def _unheard_on_failure(channel: Channel) -> Iterator[None]:
    """Stop listening to a channel if the block fails, since its ends are closed then."""
    try:
        yield
    except BaseException:
        channel.stop()
        raise


async def _meet(link: socket.socket, home: Home, limits: Limits, tree: int, proxy: Proxy | None) -> Interpreter:
    """Wait for the confined interpreter's first frame, and take over the descriptors that it brings.

    It is the last frame that comes from trusted code alone.
    """
    link.setblocking(False)
    init = await home.take_in_memory()
    # The session's first process has waited for this byte: it is in its control group now. If it has died, what it sent before shows why.
    with contextlib.suppress(OSError):
        link.send(b"\0")
    await _readable(link.fileno())
    data, descriptors, flags, _ = socket.recv_fds(link, 1 << 16, 8)
    taken: set[int] = set()  # these have an owner by now, which closes them
    with contextlib.ExitStack() as at_the_end:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            at_the_end.callback(_close_unless, taken, descriptor)
        _check_met([*wire.Frames(wire.MAX_FROM_GUEST).feed(data)], not flags & socket.MSG_CTRUNC)
        process, said, stdout, stderr, *further = descriptors
        # Frames come by a pipe from now on. Into a socket a guest could put open files, and closing these can block (SO_LINGER).
        link.shutdown(socket.SHUT_RD)
        if home.has_namespaces:
            taken.add(further[0])
            home.see_processes(further.pop(0))
        if proxy is not None:
            taken.add(further[0])
            home.serving = await _serve(proxy, further.pop(0))
        sockets = further.pop() if home.memory.lists_sockets and further else None  # not all kernels list sockets
        taken |= {sockets} if sockets is not None else set()
        await home.count_memory(init, sockets)
        channel = Channel(link, said, (stdout, stderr), limit=limits.output)
        with _unheard_on_failure(channel):
            interpreter = Interpreter(home, channel, process, tree=tree)
        taken |= {process, said, stdout, stderr}
        return interpreter


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _close_unless(taken: set[int], descriptor: int) -> None:
    if descriptor not in taken:
        os.close(descriptor)


async def _serve(proxy: Proxy, descriptor: int) -> Serving:
    listener = socket.socket(fileno=descriptor)
    try:
        return await proxy.serve(listener)
    except BaseException:
        listener.close()
        raise


def _check_met(payloads: list[bytes], complete: bool) -> None:
    """Raise the error of a session that ended, that was refused, or that lost descriptors because this process has none left."""
    if not payloads:
        raise GuestDiedError("a session ended before it was ready; see the process's standard error for the cause")
    match wire.decode(payloads[0], wire.Ready, wire.Refused):
        case wire.Refused() as refused:
            raise refusal(refused)
    if not complete:
        raise no_descriptor("another session")
