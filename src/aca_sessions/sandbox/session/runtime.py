"""What the interpreters of a session and of its branches share: the first process, the memory limit, and the mount at /mnt/data.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyio import to_thread

from ...errors import ACASessionsError, GuestDiedError, IsolationError
from ...lifetime import OwnerProcess, Tasks
from ...models import RunningProcess
from ...network.denials import Decision, Denial
from ..forkserver import limiter
from ..hosts import remedy_for
from ..limits.capacity import is_shortage
from ..limits.memory import MemoryLimit, Part
from ..proxy.proxy import ProxyConnections
from ..wire import ALLOCATION, MOST_PARTS, REPORT
from .descriptors import SpawnedSession, descendants, host_pid, kill, open_process_of_session
from .processes import KillResult, Processes
from .workspace_groups import WorkspaceGroups

_REPORTS_AT_ONCE = 512
_ALLOCATION_SECONDS = 10.0
_END_SECONDS = 5.0
_REST_SECONDS = 0.05  # so that cells of branches in close succession do not wait for the original session's processes


@dataclass(frozen=True, slots=True)
class RegisteredInterpreter:
    """An interpreter that is registered at a `SharedRuntime`.

    When it has died, `on_death` is called with its wait status, or with None if that is unknown.
    """

    pidfd: int
    workspace: int
    on_death: Callable[[int | None], None]


class SharedRuntime:
    """The processes, the memory limit and the mount at /mnt/data of a session and its branches.

    When the last interpreter has ended, the host kills all other processes. The argument `session_pid` of methods is an interpreter's pid
    in the session's pid namespace.
    """

    def __init__(self, spawned: SpawnedSession, workspace: int, memory: MemoryLimit, mount: Callable[[int, int], None]) -> None:
        """Take over a session that was just started, with its descriptors. Only `spawned.link` still belongs to the caller.

        `workspace` is the number of the workspace that is at /mnt/data now. `mount` mounts another one there: it is called with the pidfd
        of the first process and the number of the workspace.
        """
        self._owner = OwnerProcess()
        self.init = spawned.init
        self.has_namespaces = spawned.namespaces
        self.memory = memory
        self.killed_for: str | None = None
        self.proxy_connections: ProxyConnections | None = None
        self.trusts_authority = False  # the one of the proxy
        self.decide_in_cell: Callable[[Denial], Awaitable[Decision]] | None = None  # while a cell runs
        self._report = spawned.report
        self._ending_signal = spawned.ending_signal
        self._mount = mount
        self._first_workspace = workspace
        self._group: Path | None = None
        self._processes: Processes | WorkspaceGroups | None = None
        self._cell_lock = asyncio.Lock()
        self._processes_lock = asyncio.Lock()  # held while processes are stopped, ended or continued; a turn lasts as long as its cell
        self._idle_timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()
        # By workspace: the processes that were ended because they did not stop for another workspace's cell, until a result names them.
        self.ended: dict[int, tuple[RunningProcess, ...]] = {}
        self._workspaces: dict[int, None] = {}  # workspaces that have an interpreter, the oldest first
        self._interpreters: dict[int, RegisteredInterpreter] = {}  # by their pids in the session
        self._saving_forks: dict[int, tuple[int, int]] = {}  # that write a state, by their pids in the session: their pidfds and workspaces
        self._counted_init: int | None = None
        self._all_ended: asyncio.Future[None] | None = None
        self._watches_reports = False
        self._closed = False
        self._allocating = threading.Lock()  # while a thread holds it, the ends stay open

    async def count_first_process(self) -> int:
        """Count the first process's memory before it forks, so that its descendants are counted too. Return its pid on this host."""
        # It waits for the host before it forks, so all other processes are counted with it.
        self._counted_init = init = host_pid(self.init)
        with _explained_control_group():
            self._group = await self.memory.add_first_process(init)
        return init

    async def count_memory(self, init: int, sockets: int | None) -> None:
        """Start to enforce the memory limit: if it is exceeded, kill all processes of the session and its branches.

        `init` is the first process's pid on this host. `sockets` is a netlink socket that lists the session's sockets, or None. This call
        takes it over.
        """
        with _explained_control_group():
            await self.memory.start(init, lambda: self.kill("memory"), sockets)

    def use_proc(self, proc: int) -> None:
        """Take over `proc`, a descriptor of the session's own /proc, to find and stop processes.

        Call this only if the session has namespaces.
        """
        if self._group is None:
            self._processes = Processes(proc, self._first_workspace)
        else:
            self._processes = WorkspaceGroups(self._group, self.init, self._first_workspace)
            os.close(proc)

    def allocate(self, parts: Sequence[Part]) -> None:
        """Allocate memory for parts of files that the host will write, so that the kernel charges the session's control group for it.

        This blocks. Do nothing if the first process has ended, if the session has no control group, or if its files are on a disk. Raise
        OSError if the memory cannot be allocated, and TimeoutError if the first process does not answer within 10 s.
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

    def register(self, session_pid: int, interpreter: RegisteredInterpreter) -> None:
        """Add an interpreter. It is stopped while a workspace other than its own is mounted at /mnt/data."""
        self._interpreters[session_pid] = interpreter
        self._workspaces.setdefault(interpreter.workspace)
        if self._processes is not None:
            self._processes.register(session_pid, interpreter.workspace, interpreter.pidfd)
        if not self._watches_reports and not self._closed:
            asyncio.get_running_loop().add_reader(self._report, self._on_report)
            self._watches_reports = True

    def foreign_pids(self, workspace: int) -> set[int]:
        """Return the pids, in the session, of all processes that cannot have been started by a cell of `workspace`.

        These are the interpreters of all workspaces, their forks that write a state, and all processes of the other workspaces.
        """
        others = self._processes.foreign_pids(workspace) if self._processes is not None else set()
        return {*self._interpreters, *self._saving_forks} | others

    def add_saving_fork(self, session_pid: int, workspace: int) -> None:
        """Add a fork that writes a state, until it ends. So it is not mistaken for a process that a cell started."""
        if session_pid not in self._saving_forks and not self._closed:
            with contextlib.suppress(GuestDiedError, OSError):  # it has ended already, or the guest lied
                process = open_process_of_session(self.init, session_pid)
                self._saving_forks[session_pid] = process, workspace
                asyncio.get_running_loop().add_reader(process, self._forget_saving_fork, session_pid)

    def kill_saving_fork(self, session_pid: int) -> None:
        """Kill a fork that writes a state. Do nothing if it has ended."""
        if (fork := self._saving_forks.get(session_pid)) is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fork[0], signal.SIGKILL)

    def _forget_saving_fork(self, session_pid: int) -> None:
        process, _ = self._saving_forks.pop(session_pid)
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            asyncio.get_running_loop().remove_reader(process)
        os.close(process)
        self._start_idle_timer()  # the next fork may be stopped, because it is of another workspace

    def _start_idle_timer(self) -> None:
        if len(self._workspaces) > 1 and not self._closed:
            self._cancel_idle_timer()
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(_REST_SECONDS, lambda: self._tasks.start(self._mount_oldest_when_idle()))

    def is_last_interpreter(self, session_pid: int) -> bool:
        """Return whether the session and its branches have no interpreter other than this one."""
        return not self._interpreters.keys() - {session_pid}

    @asynccontextmanager
    async def cell_turn(self, workspace: int) -> AsyncIterator[None]:
        """Wait until no other cell runs. During the `with` block, `workspace` is at /mnt/data, and only its processes run."""
        async with self._cell_lock:
            if self._idle_timer is not None:
                self._cancel_idle_timer()
            if self._processes_lock.locked() or (self._processes is not None and self._processes.active_workspace != workspace):
                await self._tasks.run_shielded(self._mount_workspace(workspace))
            try:
                yield
            finally:  # without an await, so that a fork made in this turn is added before another turn begins
                self._start_idle_timer()

    async def decide(self, denial: Denial) -> Decision:
        """Let the caller of the running cell decide about a request that the rules of the network refuse."""
        return await self.decide_in_cell(denial) if self.decide_in_cell is not None else "refuse"

    @asynccontextmanager
    async def all_stopped(self, workspace: int) -> AsyncIterator[None]:
        """Wait until no cell runs. During the `with` block, no process of the session and its branches runs.

        After the block, mount `workspace` at /mnt/data and continue its processes.
        """
        async with self._cell_lock:
            self._cancel_idle_timer()
            await self._tasks.run_shielded(self._stop_all())
            try:
                yield
            finally:
                self._tasks.start(self._resume_workspace(workspace))

    def kill(self, reason: str) -> None:
        """Kill all processes of the session and its branches. Record the reason, unless an earlier one is recorded."""
        if not self._owner.is_current:  # in a forked process, a garbage collector may call this
            return
        self.killed_for = self.killed_for or reason
        if not self._closed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.init, self._ending_signal)

    def kill_with_children(self, session_pid: int, pidfd: int) -> None:
        """Kill an interpreter and its descendants, except other interpreters and their descendants.

        Processes whose parent has ended are no longer its descendants, so they live on, even if it started them. They are killed with the
        last interpreter of their workspace, or by `end_processes`.
        """
        if not self._owner.is_current:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)  # so that it starts no other meanwhile
        with contextlib.suppress(GuestDiedError):
            others = self._other_interpreters(session_pid)
            for started in descendants(host_pid(pidfd)):
                if started not in others:
                    kill(started)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        interpreter = self._interpreters.get(session_pid)
        if interpreter is not None and self._is_last_of_workspace(session_pid, interpreter.workspace):
            self._tasks.start(self._end_workspace(interpreter.workspace))

    async def end_processes(self, workspace: int) -> KillResult:
        """Kill the processes that the cells of a workspace (a session, or one of its branches) started, but not its interpreters.

        This works even while a cell runs. Return which processes ended, and which are still alive. Without
        namespaces, do nothing and return an empty result.
        """
        return await self._tasks.run_shielded(self._end_processes(workspace))

    async def unregister(self, session_pid: int) -> None:
        """Remove a dead interpreter.

        If it was the last one of its workspace (the session, or one of its branches), kill that workspace's other processes. If it was the
        last one of the session and all its branches, kill everything that still runs, stop counting memory and close the descriptors.
        """
        interpreter = self._interpreters.pop(session_pid, None)
        if self._closed:
            return
        if self._interpreters:
            if interpreter is not None:
                await self._tasks.run_shielded(self._remove_interpreter(session_pid, interpreter.workspace))
            return
        self.kill("killed")
        try:
            await self._wait_until_all_ended()
            await self._tasks.finish()
            if self._counted_init is not None:
                await self.memory.stop(self._counted_init)
            if self.proxy_connections is not None:
                await self.proxy_connections.close()
        finally:
            self._close()

    async def _mount_workspace(self, workspace: int) -> None:
        async with self._processes_lock:
            await self._switch_workspace(workspace)

    async def _switch_workspace(self, workspace: int) -> None:
        # Checked here, with `_processes_lock` held: another task may have shown it since the caller decided.
        if self._processes is not None and self._processes.active_workspace != workspace:
            await self._run_stop(partial(self._processes.switch_workspace, workspace, lambda: self._mount(self.init, workspace)))

    async def _stop_all(self) -> None:
        async with self._processes_lock:
            if self._processes is not None:
                await self._run_stop(self._processes.stop_all)

    async def _resume_workspace(self, workspace: int) -> None:
        async with self._processes_lock:
            if self._processes is not None and self._processes.active_workspace is None and workspace in self._workspaces:
                with contextlib.suppress(ACASessionsError):  # the next turn tries again, and raises
                    await self._switch_workspace(workspace)

    async def _run_stop(self, stop: Callable[[], tuple[RunningProcess, ...]]) -> None:
        """Call `stop` (`switch_workspace` or `stop_all` of `_processes`) in a thread, and record the processes that it had to kill.

        The result of the workspace's next cell names the processes that were killed. If `stop` raises TimeoutError because a process still
        runs, kill all processes of the session and its branches, and raise GuestDiedError.
        """
        if self._closed or self._processes is None:
            return
        left = self._processes.active_workspace
        try:
            ended = await to_thread.run_sync(stop, limiter=limiter())
        except TimeoutError as error:
            self.kill("killed")
            raise GuestDiedError(
                "cannot stop the session's processes for a branch's cell, so all processes of both were ended: run the cell again"
            ) from error
        if ended and left is not None:
            self.ended[left] = (*self.ended.get(left, ()), *ended)

    async def _end_processes(self, workspace: int) -> KillResult:
        async with self._processes_lock:
            if self._processes is None or self._closed:
                return KillResult()
            forks = {*self._saving_forks}
            ended, survivors = await to_thread.run_sync(self._processes.kill_workspace, workspace)
            return KillResult(tuple(process for process in ended if process.pid not in forks), survivors)

    async def _end_workspace(self, workspace: int) -> None:
        """Kill the processes of a workspace, except its interpreters. If the workspace has no interpreter either, stop tracking it.

        If that workspace was at /mnt/data, mount the oldest of the others there and continue the processes of that one.
        """
        await self._end_processes(workspace)
        async with self._processes_lock:
            if self._processes is not None and self._workspaces and workspace not in self._workspaces:
                self._processes.forget_workspace(workspace)
                if self._processes.active_workspace == workspace:
                    await self._try_to_mount(next(iter(self._workspaces), None))

    async def _remove_interpreter(self, session_pid: int, workspace: int) -> None:
        if self._is_last_of_workspace(session_pid, workspace):
            self._workspaces.pop(workspace, None)
            await self._end_workspace(workspace)
        if self._processes is not None:
            self._processes.unregister(session_pid)

    def _is_last_of_workspace(self, session_pid: int, workspace: int) -> bool:
        return all(other == session_pid or interpreter.workspace != workspace for other, interpreter in self._interpreters.items())

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    async def _mount_oldest_when_idle(self) -> None:
        """Mount the oldest workspace at /mnt/data between cells, so that its background processes continue.

        If a fork writes the state of another workspace, mount that one instead. Do nothing while a cell runs, or while the mounted
        workspace itself has background processes or threads (`has_work`).
        """
        async with self._processes_lock:
            processes = self._processes
            if processes is None or self._cell_lock.locked() or self._closed or processes.active_workspace == self._next_when_idle():
                return
            if await to_thread.run_sync(processes.has_work) or self._cell_lock.locked() or not self._workspaces:
                return
            await self._try_to_mount(self._next_when_idle())

    def _next_when_idle(self) -> int | None:
        saving = [workspace for _, workspace in self._saving_forks.values() if workspace in self._workspaces]
        return next(iter(saving), next(iter(self._workspaces), None))

    async def _try_to_mount(self, workspace: int | None) -> None:
        with contextlib.suppress(ACASessionsError):  # the next turn tries again, and raises
            if workspace is not None:
                await self._switch_workspace(workspace)

    def _on_report(self) -> None:
        reports = b""
        with contextlib.suppress(ConnectionResetError):  # the first process died before it had read a request
            reports = self._report.recv(REPORT.size * _REPORTS_AT_ONCE)
        for session_pid, status in REPORT.iter_unpack(reports[: len(reports) - len(reports) % REPORT.size]):
            if (interpreter := self._interpreters.get(session_pid)) is not None:
                interpreter.on_death(status)
        if not reports:
            self._stop_watching_reports()
            for interpreter in [*self._interpreters.values()]:
                interpreter.on_death(None)

    def _other_interpreters(self, session_pid: int) -> set[int]:
        """Return the pids on this host of all interpreters but the given one, and of the descendants of these interpreters."""
        found: set[int] = set()
        for other in self._interpreters.keys() - {session_pid}:
            with contextlib.suppress(GuestDiedError):
                process = host_pid(self._interpreters[other].pidfd)
                found |= {process, *descendants(process)}
        return found

    async def _wait_until_all_ended(self) -> None:
        """Wait until all processes of the session and its branches have ended, but at most 5 s."""
        # The first process of a pid namespace outlives all others (pid_namespaces(7)): when its pidfd is readable, none is left. All
        # callers share one reader: a second would replace it, and would later remove the reader of whatever has the descriptor's number.
        if self._all_ended is None:
            self._all_ended = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(self.init, self._stop_waiting)
        await asyncio.wait([self._all_ended], timeout=_END_SECONDS)

    def _stop_waiting(self) -> None:
        if self._all_ended is not None and not self._all_ended.done():
            asyncio.get_running_loop().remove_reader(self.init)
            self._all_ended.set_result(None)

    def _stop_watching_reports(self) -> None:
        if self._watches_reports:
            asyncio.get_running_loop().remove_reader(self._report)
            self._watches_reports = False

    def abandon(self, session_pid: int) -> None:
        """Remove an interpreter, as `unregister` does, but do not wait until its processes have ended.

        Use this also to complete a call of `unregister` that was cancelled. Do nothing if `unregister` has completed.
        """
        interpreter = self._interpreters.pop(session_pid, None)
        if not self._interpreters:
            self.kill("killed")
            self._close()
        elif interpreter is not None and not self._closed:
            self._tasks.start(self._remove_interpreter(session_pid, interpreter.workspace))

    def unregister_without_loop(self, session_pid: int) -> None:
        """Remove an interpreter whose event loop is closed.

        If it is the last interpreter, kill all processes, and wait at most 5 s until they have ended.
        """
        self._interpreters.pop(session_pid, None)
        if not self._interpreters and not self._closed:
            self.kill("killed")
            # Wait for their end, at most 5 s: a control group can be removed only without processes.
            ended = select.poll()
            ended.register(self.init, select.POLLIN)
            ended.poll(_END_SECONDS * 1000)
            self._all_ended = None  # no task waits in a loop that is closed
            self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._stop_watching_reports()
            self._stop_waiting()
            for session_pid in [*self._saving_forks]:
                self._forget_saving_fork(session_pid)
            if self._counted_init is not None:
                self.memory.stop_without_waiting(self._counted_init)
            self._cancel_idle_timer()
            if self._processes_lock.locked():  # a thread uses the ends: their numbers must not name something else meanwhile
                self._tasks.start(self._close_descriptors_later())
            else:
                self._close_descriptors()

    async def _close_descriptors_later(self) -> None:
        async with self._processes_lock:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        if self._processes is not None:
            self._processes.close()
        with self._allocating:  # the first process has been killed, so a thread that waits for its answer returns at once
            self._report.close()
            os.close(self.init)


@contextlib.contextmanager
def _explained_control_group() -> Iterator[None]:
    """If the `with` block raises OSError, raise an error with the message that the session's memory cannot be counted.

    The error is GuestDiedError if the session's first process has ended, else IsolationError. Raise the OSError itself if it
    means that no file descriptor is left.
    """
    try:
        yield
    except OSError as error:
        if is_shortage(error):
            raise
        if isinstance(error, ProcessLookupError):
            raise GuestDiedError(
                "a session ended while it started, before its memory could be counted: try again. Standard error of the program that runs "
                "the sessions has the cause"
            ) from error
        raise IsolationError("control group", str(error.strerror), remedy_for("control group", error.errno or 0)) from error
