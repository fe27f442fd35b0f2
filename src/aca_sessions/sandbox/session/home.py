"""The state that the interpreters of a session and of its branches share: the first process, the memory count, and the mount at /mnt/data.

The first process is the init of the session's pid namespace, and reports deaths to the host. One workspace at a time is mounted at
/mnt/data, and only the processes of that workspace run.
"""

import asyncio
import contextlib
import errno
import os
import select
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyio import to_thread

from ...errors import ACASessionsError, GuestDiedError, IsolationError
from ...lifetime import Owner, Tasks
from ...models import RunningProcess
from ..forkserver import limiter
from ..hosts import remedy_for
from ..limits.capacity import is_shortage
from ..limits.memory import Memory, Part
from ..proxy import Serving
from ..wire import ALLOCATION, MOST_PARTS, REPORT
from .descriptors import Spawned, descendants, host_pid, kill
from .processes import Ended, Processes
from .tree_groups import TreeGroups

_REPORTS_AT_ONCE = 512
_ALLOCATION_SECONDS = 10.0
_END_SECONDS = 1.0
_REST_SECONDS = 0.05  # so that cells of branches in close succession do not wait for the original session's processes


@dataclass(frozen=True, slots=True)
class Member:
    """An interpreter in a `Home`: its pidfd, its workspace, and `report`, called at its death with its wait status (None if unknown)."""

    process: int
    tree: int
    report: Callable[[int | None], None]


class Home:
    """The processes of a session and of its branches. When the last interpreter has ended, the host ends all other processes too."""

    def __init__(self, spawned: Spawned, tree: int, memory: Memory, show: Callable[[int, int], None]) -> None:
        """Take over a session that was just started, with its descriptors. Only `spawned.link` still belongs to the caller.

        `tree` is the workspace at /mnt/data at first. `show` mounts a workspace there, given the pidfd of the first process and the number
        of the workspace.
        """
        self._owner = Owner()
        self.init = spawned.init
        self.has_namespaces = spawned.namespaces
        self.memory = memory
        self.killed_for: str | None = None
        self.serving: Serving | None = None
        self._report = spawned.report
        self._ending = spawned.ending
        self._show = show
        self._first = tree
        self._group: Path | None = None
        self._processes: Processes | TreeGroups | None = None
        self._turn = asyncio.Lock()
        self._moving = asyncio.Lock()  # held while processes are stopped, ended or continued; a turn lasts as long as its cell
        self._resting: asyncio.TimerHandle | None = None
        self._tasks = Tasks()
        # By workspace: the processes that were ended because they did not stop for another workspace's cell, until a result names them.
        self.ended: dict[int, tuple[RunningProcess, ...]] = {}
        self._trees: dict[int, None] = {}  # workspaces that have an interpreter, the oldest first
        self._members: dict[int, Member] = {}  # by their pids in the session
        self._counted: int | None = None
        self._gone: asyncio.Future[None] | None = None
        self._watched = False
        self._closed = False
        self._allocating = threading.Lock()  # while a thread holds it, the ends stay open

    async def take_in_memory(self) -> int:
        """Add the first process to `memory` before it forks, so that all its descendants are counted. Return its pid on this host."""
        # It waits for the host before it forks, so all other processes are counted with it.
        self._counted = init = host_pid(self.init)
        with _explained_control_group():
            self._group = await self.memory.take_in(init)
        return init

    async def count_memory(self, init: int, sockets: int | None) -> None:
        """Start to enforce the memory limit: if the processes exceed it, all of them are killed.

        `init` is the first process's pid on this host. `sockets` is a descriptor that lists the session's sockets, or None. `self.memory`
        takes it over, and closes it.
        """
        with _explained_control_group():
            await self.memory.begin(init, lambda: self.kill("memory"), sockets)

    def see_processes(self, proc: int) -> None:
        """Take over `proc`, a descriptor of the session's own /proc, to find and stop processes.

        Call this only if the session has namespaces.
        """
        if self._group is None:
            self._processes = Processes(proc, self._first)
        else:
            self._processes = TreeGroups(self._group, self.init, self._first)
            os.close(proc)

    def allocate(self, parts: Sequence[Part]) -> None:
        """Charge the session's control group for parts of files that the host is about to write. This blocks.

        Do nothing if the first process has ended, if the session has no control group, or if its files are on a disk. Raise OSError if the
        memory cannot be allocated, and TimeoutError if the first process does not answer within 10 s.
        """
        # The kernel charges the group of the process that allocates a page, and the host is in no group of a session. So the session's
        # first process, which runs no code of the user's, is sent the descriptors and calls fallocate(2).
        if self.memory.is_charged and self.has_namespaces:
            for start in range(0, len(parts), MOST_PARTS):
                self._allocate(parts[start : start + MOST_PARTS])

    def _allocate(self, parts: Sequence[Part]) -> None:
        with self._allocating:
            if self._closed:
                return
            answer = os.eventfd(0, os.EFD_CLOEXEC)
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError, ProcessLookupError):
                    request = b"".join(ALLOCATION.pack(start, length) for _, start, length in parts)
                    socket.send_fds(self._report, [request], [answer, *(descriptor for descriptor, _, _ in parts)])
                    signal.pidfd_send_signal(self.init, signal.SIGUSR1)
                    self._await_allocation(answer)
            except OSError as error:
                # Guests with the uid of this process can have too many descriptors in flight (unix(7)). Then the write is not charged.
                if error.errno != errno.ETOOMANYREFS:
                    raise
            finally:
                os.close(answer)

    def _await_allocation(self, answer: int) -> None:
        poll = select.poll()
        poll.register(answer, select.POLLIN)
        poll.register(self.init, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(_ALLOCATION_SECONDS * 1000)]
        if not ready:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"the session's first process did not answer within {_ALLOCATION_SECONDS:g} s: try again, or reset the session",
            )
        # The answer is an errno plus one: an eventfd that holds 0 is not readable.
        if answer in ready and (number := os.eventfd_read(answer) - 1):
            raise OSError(number, os.strerror(number))

    def take_in(self, number: int, member: "Member") -> None:
        """Add an interpreter. It stays stopped while another workspace is mounted at /mnt/data. `number` is its pid in the session."""
        self._members[number] = member
        self._trees.setdefault(member.tree)
        if self._processes is not None:
            self._processes.take_in(number, member.tree, member.process)
        if not self._watched and not self._closed:
            asyncio.get_running_loop().add_reader(self._report, self._on_report)
            self._watched = True

    def elsewhere(self, tree: int) -> set[int]:
        """Return the pids, in the session, of processes that no cell of workspace `tree` has started.

        These are the interpreters of all workspaces, and all processes of the other workspaces.
        """
        return {*self._members} | (self._processes.elsewhere(tree) if self._processes is not None else set())

    def is_alone(self, number: int) -> bool:
        """Return whether no other interpreter is left besides the one whose pid in the session is `number`."""
        return not self._members.keys() - {number}

    @asynccontextmanager
    async def turn(self, tree: int) -> AsyncIterator[None]:
        """Wait until no other cell runs. In the block, workspace `tree` is at /mnt/data, and only its processes run."""
        async with self._turn:
            if self._resting is not None:
                self._stop_resting()
            if self._moving.locked() or (self._processes is not None and self._processes.shown != tree):
                await self._tasks.to_its_end(self._show_tree(tree))
            try:
                yield
            finally:  # without an await, so that a fork made in this turn is added before another turn begins
                if len(self._trees) > 1 and not self._closed:
                    loop = asyncio.get_running_loop()
                    self._resting = loop.call_later(_REST_SECONDS, lambda: self._tasks.start(self._rest()))

    @asynccontextmanager
    async def standstill(self, tree: int) -> AsyncIterator[None]:
        """Wait until no cell runs. In the block, no process of the session and its branches runs.

        After the block, mount workspace `tree` at /mnt/data and continue its processes.
        """
        async with self._turn:
            self._stop_resting()
            await self._tasks.to_its_end(self._halt())
            try:
                yield
            finally:
                self._tasks.start(self._resume(tree))

    def kill(self, reason: str) -> None:
        """Kill all processes of the session and its branches. Record the reason, unless an earlier one is recorded."""
        if not self._owner.is_here:  # in a forked process, a garbage collector may call this
            return
        self.killed_for = self.killed_for or reason
        if not self._closed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.init, self._ending)

    def kill_with_children(self, number: int, process: int) -> None:
        """Kill an interpreter and its descendants, except other interpreters and their descendants.

        `number` is its pid in the session, and `process` its pidfd. Orphans that it started are killed with the last interpreter of their
        workspace, or by `end_processes`.
        """
        if not self._owner.is_here:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGSTOP)  # so that it starts no other meanwhile
        with contextlib.suppress(GuestDiedError):
            others = self._others(number)
            for started in descendants(host_pid(process)):
                if started not in others:
                    kill(started)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        member = self._members.get(number)
        if member is not None and self._is_last(number, member.tree):
            self._tasks.start(self._end_tree(member.tree))

    async def end_processes(self, tree: int) -> Ended:
        """Kill the processes of a workspace except its interpreters, even while a cell runs. Return which ended, and which still live."""
        return await self._tasks.to_its_end(self._end(tree))

    async def leave(self, number: int) -> None:
        """Remove a dead interpreter. If it was the last one of its workspace, kill the other processes of that workspace.

        `number` is its pid in the session. If it was the last one of all, kill all processes, stop counting memory and close the
        descriptors.
        """
        member = self._members.pop(number, None)
        if self._closed:
            return
        if self._members:
            if member is not None:
                await self._tasks.to_its_end(self._let_go_of(number, member.tree))
            return
        self.kill("killed")
        try:
            await self._last_one_gone()
            await self._tasks.finish()
            if self._counted is not None:
                await self.memory.end(self._counted)
            if self.serving is not None:
                await self.serving.close()
        finally:
            self._let_go()

    async def _show_tree(self, tree: int) -> None:
        async with self._moving:
            await self._switch(tree)

    async def _switch(self, tree: int) -> None:
        # Checked here, with `_moving` held: another task may have shown it since the caller decided.
        if self._processes is not None and self._processes.shown != tree:
            await self._move(partial(self._processes.switch, tree, lambda: self._show(self.init, tree)))

    async def _halt(self) -> None:
        async with self._moving:
            if self._processes is not None:
                await self._move(self._processes.halt)

    async def _resume(self, tree: int) -> None:
        async with self._moving:
            if self._processes is not None and self._processes.shown is None and tree in self._trees:
                with contextlib.suppress(ACASessionsError):  # the next turn tries again, and raises
                    await self._switch(tree)

    async def _move(self, stop: Callable[[], tuple[RunningProcess, ...]]) -> None:
        """Call `stop` (`switch` or `halt` of `_processes`) in a thread. Record which processes it had to kill.

        The next result of a cell in their workspace names them. If some processes still run after that, kill the whole session and raise
        GuestDiedError.
        """
        if self._closed or self._processes is None:
            return
        left = self._processes.shown
        try:
            ended = await to_thread.run_sync(stop, limiter=limiter())
        except TimeoutError as error:
            self.kill("killed")
            raise GuestDiedError(
                "cannot stop the session's processes for a branch's cell, so all processes of both were ended: run the cell again"
            ) from error
        if ended and left is not None:
            self.ended[left] = (*self.ended.get(left, ()), *ended)

    async def _end(self, tree: int) -> Ended:
        async with self._moving:
            if self._processes is None or self._closed:
                return Ended()
            return await to_thread.run_sync(self._processes.end, tree)

    async def _end_tree(self, tree: int) -> None:
        """Kill the processes of a workspace, except its interpreters. If no interpreter is left in it, forget the workspace.

        If a forgotten workspace was at /mnt/data, mount the oldest other one there and continue its processes.
        """
        await self._end(tree)
        async with self._moving:
            if self._processes is not None and self._trees and tree not in self._trees:
                self._processes.drop(tree)
                if self._processes.shown == tree:
                    await self._try_to_show_oldest()

    async def _let_go_of(self, number: int, tree: int) -> None:
        if self._is_last(number, tree):
            self._trees.pop(tree, None)
            await self._end_tree(tree)
        if self._processes is not None:
            self._processes.leave(number)

    def _is_last(self, number: int, tree: int) -> bool:
        return all(other == number or member.tree != tree for other, member in self._members.items())

    def _stop_resting(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    async def _rest(self) -> None:
        """Mount the oldest workspace at /mnt/data between cells, so that its processes continue.

        Do nothing while a cell runs. Also do nothing while the mounted workspace has processes besides its interpreters, or threads
        (`has_work`).
        """
        async with self._moving:
            processes = self._processes
            if processes is None or self._turn.locked() or self._closed or processes.shown == next(iter(self._trees), None):
                return
            if await to_thread.run_sync(processes.has_work) or self._turn.locked() or not self._trees:
                return
            await self._try_to_show_oldest()

    async def _try_to_show_oldest(self) -> None:
        with contextlib.suppress(ACASessionsError):  # the next turn tries again, and raises
            await self._switch(next(iter(self._trees)))

    def _on_report(self) -> None:
        reports = b""
        with contextlib.suppress(ConnectionResetError):  # the first process died before it had read a request
            reports = self._report.recv(REPORT.size * _REPORTS_AT_ONCE)
        for number, status in REPORT.iter_unpack(reports[: len(reports) - len(reports) % REPORT.size]):
            if (member := self._members.get(number)) is not None:
                member.report(status)
        if not reports:
            self._unwatch()
            for member in [*self._members.values()]:
                member.report(None)

    def _others(self, number: int) -> set[int]:
        """Return the pids on this host of all interpreters but `number`, and of their descendants."""
        found: set[int] = set()
        for other in self._members.keys() - {number}:
            with contextlib.suppress(GuestDiedError):
                process = host_pid(self._members[other].process)
                found |= {process, *descendants(process)}
        return found

    async def _last_one_gone(self) -> None:
        """Wait until all processes have ended, but at most 1 s."""
        # The first process of a pid namespace outlives all others (pid_namespaces(7)): when its pidfd is readable, none is left. All
        # callers share one reader: a second would replace it, and would later remove the reader of whatever has the descriptor's number.
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(self.init, self._stop_waiting)
        await asyncio.wait([self._gone], timeout=_END_SECONDS)

    def _stop_waiting(self) -> None:
        if self._gone is not None and not self._gone.done():
            asyncio.get_running_loop().remove_reader(self.init)
            self._gone.set_result(None)

    def _unwatch(self) -> None:
        if self._watched:
            asyncio.get_running_loop().remove_reader(self._report)
            self._watched = False

    def abandon(self, number: int) -> None:
        """Remove an interpreter without waiting, or finish its removal if a call of `leave` was cancelled.

        Do nothing if `leave` has completed. `number` is the interpreter's pid in the session.
        """
        member = self._members.pop(number, None)
        if not self._members:
            self.kill("killed")
            self._let_go()
        elif member is not None and not self._closed:
            self._tasks.start(self._let_go_of(number, member.tree))

    def end_now(self, number: int) -> None:
        """Remove an interpreter whose event loop is closed. `number` is its pid in the session.

        If it is the last interpreter, kill all processes, and wait at most 1 s until they have ended.
        """
        self._members.pop(number, None)
        if not self._members and not self._closed:
            self.kill("killed")
            # Wait for their end, at most 1 s: a control group can be removed only without processes.
            ended = select.poll()
            ended.register(self.init, select.POLLIN)
            ended.poll(_END_SECONDS * 1000)
            self._gone = None  # no task waits in a loop that is closed
            self._let_go()

    def _let_go(self) -> None:
        if not self._closed:
            self._closed = True
            self._unwatch()
            self._stop_waiting()
            if self._counted is not None:
                self.memory.let_go(self._counted)
            self._stop_resting()
            if self._moving.locked():  # a thread uses the ends: their numbers must not name something else meanwhile
                self._tasks.start(self._close_ends_later())
            else:
                self._close_ends()

    async def _close_ends_later(self) -> None:
        async with self._moving:
            self._close_ends()

    def _close_ends(self) -> None:
        if self._processes is not None:
            self._processes.close()
        with self._allocating:  # the first process has been killed, so a thread that waits for its answer returns at once
            self._report.close()
            os.close(self.init)


@contextlib.contextmanager
def _explained_control_group() -> Iterator[None]:
    """Replace an OSError of the block by an error that explains it: the session's memory cannot be counted.

    That is GuestDiedError if the session's first process has ended, else IsolationError. If no file descriptor is left, the OSError is not
    replaced.
    """
    try:
        yield
    except OSError as error:
        if is_shortage(error):
            raise
        if isinstance(error, ProcessLookupError):
            raise GuestDiedError(
                "a session ended while it started, before its memory could be counted: see this program's standard error, and try again"
            ) from error
        raise IsolationError("control group", str(error.strerror), remedy_for("control group", error.errno or 0)) from error
