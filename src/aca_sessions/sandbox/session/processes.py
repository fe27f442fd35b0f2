"""Stop, continue and kill the processes of a session and its branches, if control groups cannot freeze them.

Each process belongs to one workspace, which is identified by a number. One workspace at a time is active: it is mounted at /mnt/data, and
only its processes run. All processes share one pid namespace and one mount namespace, and guests have no capability, so a process cannot be
given a /mnt/data of its own. Instead, the host stops all processes of a workspace before it mounts another one, and continues them when
their own is mounted again. A stopped process cannot fork. So every process that the host has not stopped, except the session's first one,
belongs to the active workspace. All calls block: use a worker thread.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import NamedTuple

from ...models import RunningProcess
from ..limits.capacity import explained_shortage, is_shortage

_INIT = 1
_STATE, _PARENT, _THREADS, _START = 0, 1, 17, 19  # fields in /proc/PID/stat, counted from behind the name: proc(5)
_STOPPED, _DEAD, _BLOCKED = frozenset("Tt"), frozenset("ZX"), frozenset("D")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DESCRIPTORS = 5  # open during one look at a process, and one to spare
_QUIET = 2  # looks in a row that find nothing new
_CALM_LOOKS, _QUICK_LOOKS, _MOST_LOOKS = 3, 60, 400  # until new processes are signalled unseen, until pauses get longer, in all
_SHORT_PAUSE, _PAUSE = 0.00005, 0.002  # what was signalled needs a processor: without a pause this took five times as long


class ProcessIdentity(NamedTuple):
    """The identity of a process: its pid in the session, and the clock tick at which it started, because a pid alone may be reused."""

    session_pid: int
    start: int


class _ProcessState(NamedTuple):
    identity: ProcessIdentity
    parent: int
    name: str
    threads: int
    states: Set[str]  # those of its threads that live; none for the dead
    signalled: bool = False

    @property
    def is_stopped(self) -> bool:
        return self.states <= _STOPPED

    @property
    def described(self) -> RunningProcess:
        return RunningProcess(self.identity.session_pid, self.name)


class KillResult(NamedTuple):
    """The result of killing processes: those that ended, and those that are still alive although they were killed."""

    ended: tuple[RunningProcess, ...] = ()
    survivors: tuple[RunningProcess, ...] = ()


class Processes:
    """The processes of one pid namespace, to stop, continue and kill.

    Calls of `switch_workspace`, `stop_all`, `kill_workspace` and `close` must not overlap.
    """

    def __init__(self, proc: int, workspace: int) -> None:
        """Take over `proc`, a descriptor of the session's own /proc.

        `workspace` is the number of the workspace that is mounted at /mnt/data now: the files of the session or of one of its branches.
        """
        self.active_workspace: int | None = workspace
        self._mounted_workspace: int | None = workspace
        self._latest_workspace = workspace
        self._proc = proc  # it lists every process; lists of children, read one by one, miss one that changes its parent meanwhile
        self._interpreters: dict[int, ProcessIdentity] = {}
        self._frozen: dict[int, dict[ProcessIdentity, bool]] = {}  # by workspace that is not active: whether to continue each process

    def register(self, session_pid: int, workspace: int, pidfd: int) -> None:
        """Register an interpreter, so that it is not mistaken for a process that a cell started. Do nothing if it has ended already.

        If its workspace is not at /mnt/data now, stop it until `switch_workspace` mounts that workspace.
        """
        with contextlib.suppress(OSError), self._opened(session_pid) as folder:
            seen = _read_process(folder, session_pid)
            self._interpreters[session_pid] = seen.identity
            if workspace != self.active_workspace:
                self._frozen[workspace] = {**self._frozen.get(workspace, {}), seen.identity: not seen.is_stopped}
                _signal(pidfd, signal.SIGSTOP)

    def unregister(self, session_pid: int) -> None:
        """Remove an interpreter that has ended from the registered ones."""
        self._interpreters.pop(session_pid, None)

    def forget_workspace(self, workspace: int) -> None:
        """Drop the list of stopped processes of a workspace that has ended."""
        self._frozen.pop(workspace, None)

    def foreign_pids(self, workspace: int) -> set[int]:
        """Return the pids, as numbered inside the session, of all processes that cannot have been started by a cell of `workspace`.

        These are the interpreters of all workspaces, and all processes of the other workspaces.
        """
        return {*self._interpreters} | {one.session_pid for one in self._foreign_processes(workspace)}

    def switch_workspace(self, workspace: int, mount: Callable[[], None]) -> tuple[RunningProcess, ...]:
        """Stop all processes, call `mount` unless `workspace` is at /mnt/data already, and continue the processes of `workspace`.

        Return the processes that were killed because they did not stop. Raise TimeoutError if a process still runs after that: it must
        not see the other workspace, so nothing is mounted. If `mount` fails, all processes stay stopped until the next switch.
        """
        ended = self.stop_all()
        if self._mounted_workspace != workspace:
            self._mounted_workspace = None
            mount()
            self._mounted_workspace = workspace
        self.active_workspace = self._latest_workspace = workspace
        self._continue(self._frozen.pop(workspace, {}))
        return ended

    def stop_all(self) -> tuple[RunningProcess, ...]:
        """Stop all processes, except the session's first one, until the next `switch_workspace`.

        Return the processes that were killed because they did not stop. Raise TimeoutError if a process still runs after that.
        """
        stopped, calm = self._stop()
        ended: tuple[RunningProcess, ...] = ()
        if not calm:
            ended = self._kill_active().ended
            again, calm = self._stop()
            stopped = {one: stopped.get(one, True) for one in again}
        self._frozen[self._latest_workspace] = {**self._frozen.get(self._latest_workspace, {}), **stopped}
        if not calm:
            raise TimeoutError("processes of the session did not stop: end them, or reset the session")
        self.active_workspace = None
        return ended

    def kill_workspace(self, workspace: int) -> KillResult:
        """Kill the processes of a workspace, except its interpreters. They are stopped meanwhile, so that none can start another one."""
        if workspace != self.active_workspace:
            doomed = self._frozen.get(workspace, {}).keys() - {*self._interpreters.values()}
            return self._kill(doomed.__contains__)
        stopped, _ = self._stop()
        try:
            return self._kill_active()
        finally:
            self._continue(stopped)

    def has_work(self) -> bool:
        """Return whether the workspace at /mnt/data has a process besides its interpreters, or an interpreter with several threads."""
        others, members = self._foreign_processes(self.active_workspace), {*self._interpreters.values()}
        mine = [one for one in self._read_all()[0] if one.states and one.identity not in others]
        return any(one.threads > 1 or one.identity not in members for one in mine)

    def close(self) -> None:
        """Close the descriptor of /proc."""
        os.close(self._proc)

    def _stop(self) -> tuple[dict[ProcessIdentity, bool], bool]:
        """Pause all processes by SIGSTOP. Return those of the workspace at /mnt/data, and whether all processes are stopped now.

        The dictionary maps a process to True if this call stopped it, and to False if it was stopped before. A process that still runs may
        start others or continue stopped ones, so /proc is read until two readings in a row show nothing new. Processes of other workspaces
        are stopped too, because code in the session may have continued one.
        """
        _check_descriptors()
        found: dict[ProcessIdentity, bool] = {}
        try:
            return self._stop_all(found)
        except BaseException:
            self._continue(found)
            raise

    def _stop_all(self, found: dict[ProcessIdentity, bool]) -> tuple[dict[ProcessIdentity, bool], bool]:
        others = self._foreign_processes(self.active_workspace)
        earlier: set[ProcessIdentity] = set()
        quiet = 0
        for look in range(_MOST_LOOKS):
            known = None if look < _CALM_LOOKS else {one.session_pid for one in (*found, *others)}
            seen, gone = self._read_all(signal.SIGSTOP, lambda one: not one.is_stopped, known)
            alive = [one for one in seen if one.states]
            mine = {one.identity: one.signalled or found.get(one.identity, False) for one in alive if one.identity not in others}
            found.clear()
            found.update(mine)
            dead = {one.identity for one in seen if not one.states}
            quiet = 0 if gone or dead - earlier or not _are_all_stopped(alive) else quiet + 1
            earlier = dead
            if quiet == _QUIET:
                return found, True
            if not quiet:
                time.sleep(_SHORT_PAUSE if look < _QUICK_LOOKS else _PAUSE)
        return found, False

    def _kill_active(self) -> KillResult:
        spared = {*self._foreign_processes(self.active_workspace), *self._interpreters.values()}
        return self._kill(lambda one: one not in spared, {one.session_pid for one in spared})

    def _kill(self, doomed: Callable[[ProcessIdentity], bool], known: Set[int] | None = None) -> KillResult:
        """Kill the processes that `doomed` selects. Repeat it until two readings of /proc in a row show none alive, at most 400 times.

        If `known` is given, first kill every process whose pid is not in this set, whatever `doomed` returns for it: see `_read_all`.
        """
        ended: dict[ProcessIdentity, RunningProcess] = {}
        alive: list[_ProcessState] = []
        quiet = 0
        for look in range(_MOST_LOOKS):
            seen, _ = self._read_all(signal.SIGKILL, lambda one: bool(one.states) and doomed(one.identity), known)
            alive = [one for one in seen if one.states and doomed(one.identity)]
            ended |= {one.identity: one.described for one in alive}
            quiet = 0 if alive else quiet + 1
            if quiet == _QUIET:
                break
            if not quiet:
                time.sleep(_SHORT_PAUSE if look < _QUICK_LOOKS else _PAUSE)
        left = {one.identity: one.described for one in alive}
        return KillResult(tuple(process for one, process in ended.items() if one not in left), tuple(left.values()))

    def _continue(self, stopped: dict[ProcessIdentity, bool]) -> None:
        """Continue the processes that `_stop` stopped (those that map to True), the highest pids first.

        A child usually has a higher pid than its parent, and must continue first: a shell that finds its child still stopped would treat
        the child as a stopped job.
        """
        for one in sorted(stopped, reverse=True):
            if stopped[one]:
                with contextlib.suppress(OSError), self._opened(one.session_pid) as process:
                    if _read_process(process, one.session_pid).identity == one:
                        _signal(process, signal.SIGCONT)

    def _foreign_processes(self, workspace: int | None) -> set[ProcessIdentity]:
        return {one for other, frozen in [*self._frozen.items()] if other != workspace for one in frozen}

    def _read_all(
        self, number: signal.Signals | None = None, wanted: Callable[[_ProcessState], bool] = lambda _: False, known: Set[int] | None = None
    ) -> tuple[list[_ProcessState], bool]:
        """Read the state of every process but the first, and send the signal `number` to some of them.

        Return the states, and whether any process had ended before its state could be read.

        Args:
            number: The signal, or None to send none.
            wanted: Called with the state of a process. It returns whether to send the signal to it.
            known: A set of pids. All processes that are not in it get the signal before their state is read. Otherwise a chain of
                processes, each of which starts the next one and ends, would always escape. None sends no signal before reading.
        """
        seen: list[_ProcessState] = []
        gone = False
        for pid in self._numbers():
            try:
                with self._opened(pid) as process:
                    at_once = known is not None and pid not in known
                    if at_once and number is not None:
                        _signal(process, number)
                    one = _read_process(process, pid)
                    if number is not None and not at_once and wanted(one):
                        _signal(process, number)
                        at_once = True
                    seen.append(one._replace(signalled=at_once))
            except OSError as error:
                if is_shortage(error):
                    raise  # a process that cannot be looked at may run
                gone = True
        return seen, gone

    def _numbers(self) -> list[int]:
        try:
            with self._opened(".") as folder:  # a new descriptor: threads would share the offset of the one that is kept
                return [int(name) for name in os.listdir(folder) if name.isdecimal() and int(name) != _INIT]
        except OSError as error:
            if is_shortage(error):
                raise
            return []  # the first process has ended, and all others with it

    @contextmanager
    def _opened(self, name: int | str) -> Iterator[int]:
        """Open a folder of the session's /proc for the `with` block. `name` is a pid, or "." for the top folder.

        A signal sent through the descriptor of a pid's folder cannot reach a later process that gets the same pid.
        """
        folder = os.open(str(name), _FOLDER, dir_fd=self._proc)
        try:
            yield folder
        finally:
            os.close(folder)


def _check_descriptors() -> None:
    """Raise GuestDiedError if this process has too few free descriptors to read /proc. Call this before anything is stopped."""
    with explained_shortage("stopping the session's processes"), contextlib.ExitStack() as opened:
        for _ in range(_DESCRIPTORS):
            opened.callback(os.close, os.open("/", _FOLDER))


def _are_all_stopped(alive: list[_ProcessState]) -> bool:
    """Return whether no process can run: each is stopped, or waits in the kernel for a child that is stopped."""
    # A process that waits for its vfork child to start a program (state D) stops only after that. It counts as stopped if its child does.
    standing = {one.parent for one in alive if one.states <= _STOPPED | _BLOCKED}
    return all(one.is_stopped or (one.states <= _STOPPED | _BLOCKED and one.identity.session_pid in standing) for one in alive)


def _read_process(process: int, number: int) -> _ProcessState:
    """Read a process's start time, parent, name, number of threads and states of its threads from its folder in /proc.

    `process` is a descriptor of that folder, and `number` is the pid. States of threads that have ended are left out.
    """
    name, fields = _stat("stat", process)
    threads = int(fields[_THREADS])
    # The process itself has only the state of its first thread, which may have ended before the others.
    states = {fields[_STATE]} if threads == 1 else _states(process)
    return _ProcessState(ProcessIdentity(number, int(fields[_START])), int(fields[_PARENT]), name, threads, frozenset(states - _DEAD))


def _states(process: int) -> set[str]:
    folder = os.open("task", _FOLDER, dir_fd=process)
    states = set()
    try:
        for thread in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                states.add(_stat(f"{thread}/stat", folder)[1][_STATE])
    finally:
        os.close(folder)
    return states


def _stat(path: str, process: int) -> tuple[str, list[str]]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        text = os.read(descriptor, 1 << 12).decode(errors="backslashreplace")
    finally:
        os.close(descriptor)
    # The name is in brackets, and may hold brackets and blanks itself.
    return text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 1 :].split()


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)
