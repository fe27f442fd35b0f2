"""Freeze, thaw and kill the processes of a session and its branches, if control groups can freeze them.

Each workspace has one control group. One workspace at a time is active: it is mounted at /mnt/data, and the groups of the others are
frozen. A frozen process runs no instruction, and a new process is in the group of the one that started it. So, unlike `processes.py`, this
module need not search /proc for new processes again and again. All calls block: use a worker thread.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import GuestDiedError
from ...models import RunningProcess
from ..limits.capacity import with_reserve
from .descriptors import host_pid
from .processes import KillResult

_FREEZE_SECONDS = 10.0  # each process needs a processor for a moment, and others may have it
_END_SECONDS = 10.0
_LOOK_SECONDS = 0.0005


class WorkspaceGroups:
    """The control groups of one session, to freeze, thaw and kill the processes of each workspace.

    With only one workspace, all processes stay in one group. Once there is a second workspace, each workspace gets a group of its own below
    that group.
    """

    def __init__(self, group: Path, init: int, workspace: int) -> None:
        """Take over `group`, the control group with the session's first process (the pidfd `init`) and all its descendants.

        `workspace` is the number of the workspace that is mounted at /mnt/data now: the files of the session or of one of its branches.
        """
        self.active_workspace: int | None = workspace
        self._mounted_workspace: int | None = workspace
        self._first_workspace = self._latest_workspace = workspace
        self._group = group
        self._init = init
        self._registered: dict[int, tuple[int, int]] = {}  # by an interpreter's number in the session: its workspace and its pidfd
        self._stopped: dict[int, tuple[int, int]] = {}  # those that wait to be put into the group of their workspace
        self._groups: dict[int, Path] = {}
        self._divided = False  # whether each workspace has a group of its own

    def register(self, session_pid: int, workspace: int, pidfd: int) -> None:
        """Register an interpreter. If its workspace is not at /mnt/data now, stop the interpreter by SIGSTOP.

        The next `switch_workspace` moves a stopped interpreter into the control group of its workspace.
        """
        self._registered[session_pid] = (workspace, pidfd)
        if workspace != self.active_workspace:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
                self._stopped[session_pid] = (workspace, pidfd)

    def unregister(self, session_pid: int) -> None:
        """Remove an interpreter that has ended from the registered ones."""
        self._registered.pop(session_pid, None)
        self._stopped.pop(session_pid, None)

    def forget_workspace(self, workspace: int) -> None:
        """Remove the control group of a workspace that has ended."""
        group = self._groups.pop(workspace, None)
        if group is not None:
            with contextlib.suppress(OSError):
                group.rmdir()

    def foreign_pids(self, workspace: int) -> set[int]:
        """Return the pids, in the session, of all processes that cannot have been started by a cell of `workspace`.

        These are the interpreters of all workspaces, and all processes of the other workspaces.
        """
        others = [group for other, group in [*self._groups.items()] if other != workspace]
        return {*self._registered} | {process.pid for group in others for _, process in _processes_in(group)}

    def switch_workspace(self, workspace: int, mount: Callable[[], None]) -> tuple[RunningProcess, ...]:
        """Freeze all processes, call `mount` unless `workspace` is at /mnt/data already, and thaw the processes of `workspace`.

        Return the processes that were killed because they did not freeze. Raise TimeoutError if a process still runs after that: it must
        not see the other workspace, so nothing is mounted. If `mount` fails, all processes stay frozen until the next switch.
        """
        ended = self.stop_all()
        self._move_stopped()
        if self._mounted_workspace != workspace:
            self._mounted_workspace = None
            mount()
            self._mounted_workspace = workspace
        self.active_workspace = self._latest_workspace = workspace
        if (group := self._group_of_workspace(workspace)) is not None:
            _write(group / "cgroup.freeze", "0")
        return ended

    def stop_all(self) -> tuple[RunningProcess, ...]:
        """Freeze all processes, except the session's first one, until the next `switch_workspace`.

        Return the processes that were killed because they did not freeze. Raise TimeoutError if a process still runs after that.
        """
        group = self._group_of_workspace(self.active_workspace) if self.active_workspace is not None else None
        if group == self._group:  # the first process must run on: it allocates memory for files that are put back meanwhile
            _put(self._group.parent, self._init_pid())
        ended: tuple[RunningProcess, ...] = ()
        if group is not None and not _freeze(group):
            ended = self._kill(group).ended
            if not _freeze(group):
                raise TimeoutError("processes of the session did not stop: end them, or reset the session")
        self.active_workspace = None
        return ended

    def kill_workspace(self, workspace: int) -> KillResult:
        """Kill the processes of a workspace, except its interpreters. They are frozen meanwhile, so that none can start another one."""
        group = self._group_of_workspace(workspace)
        if group is None:
            return KillResult()
        if workspace != self.active_workspace:
            return self._kill(group)
        try:
            _freeze(group)
            return self._kill(group)
        finally:
            _write(group / "cgroup.freeze", "0")

    def has_work(self) -> bool:
        """Return whether the workspace at /mnt/data has a process besides its interpreters, or an interpreter with several threads."""
        group = self._group_of_workspace(self.active_workspace) if self.active_workspace is not None else None
        interpreters, init = self._interpreters(), self._init_pid()
        return group is not None and any(pid not in interpreters or _threads(pid) > 1 for pid in _pids(group) if pid != init)

    def close(self) -> None:
        """Remove the control groups of the session, except those that still have processes."""
        # A group with processes cannot be removed. They are about to end, and the group is removed with the session's memory.
        for workspace in [*self._groups]:
            self.forget_workspace(workspace)
        with contextlib.suppress(OSError):
            self._group.rmdir()

    def _group_of_workspace(self, workspace: int) -> Path | None:
        """Return the group of a workspace's processes, or None if this workspace has no group yet."""
        return self._groups.get(workspace) if self._divided else self._group

    def _move_stopped(self) -> None:
        """Move the interpreters that `register` has stopped, each into the group of its workspace, and continue them there.

        Call this only while all processes are frozen or stopped.
        """
        if self._stopped and not self._divided:
            self._make_group(self._first_workspace)
            foreign_pids = {self._init_pid(), *(pid for _, process in self._stopped.values() for pid in _pid_of(process))}
            for pid in set(_pids(self._group)) - foreign_pids:
                _put(self._groups[self._first_workspace], pid)
            _write(self._group / "cgroup.freeze", "0")
            self._divided = True
        for session_pid, (workspace, process) in [*self._stopped.items()]:
            if workspace not in self._groups:
                self._make_group(workspace)
            for pid in _pid_of(process):
                _put(self._groups[workspace], pid)
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(process, signal.SIGCONT)
            self._stopped.pop(session_pid, None)

    def _make_group(self, workspace: int) -> None:
        group = self._group / str(workspace)
        group.mkdir(exist_ok=True)
        self._groups[workspace] = group
        _write(group / "cgroup.freeze", "1")

    def _kill(self, group: Path) -> KillResult:
        """Kill the processes of a group, except interpreters and the first process, and wait at most 10 s until they have ended."""
        spared = self._interpreters() | {self._init_pid()}
        doomed = [(pid, process) for pid, process in _processes_in(group) if pid not in spared]
        for pid, _ in doomed:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)  # frozen, or was a moment ago: no other process has its number
        left = {pid for pid, _ in doomed}
        until = time.monotonic() + _END_SECONDS
        while left and time.monotonic() < until:
            left &= set(_pids(group))
            if left:
                time.sleep(0.001)
        return KillResult(
            tuple(process for pid, process in doomed if pid not in left), tuple(process for pid, process in doomed if pid in left)
        )

    def _interpreters(self) -> set[int]:
        """Return the pids on this host of the live interpreters. While they live, no other process gets these pids."""
        return {pid for _, process in [*self._registered.values()] for pid in _pid_of(process)}

    def _init_pid(self) -> int:
        return next(_pid_of(self._init), 0)


def _pid_of(process: int) -> Iterator[int]:
    with contextlib.suppress(GuestDiedError, OSError):
        yield host_pid(process)


def _pids(group: Path) -> list[int]:
    try:
        return [int(line) for line in with_reserve((group / "cgroup.procs").read_text).split()]
    except OSError:
        return []  # the group is gone, and all that was in it


def _processes_in(group: Path) -> Iterator[tuple[int, RunningProcess]]:
    """Yield each process of a control group: its pid on this host, and a `RunningProcess` with its pid in the session."""
    for pid in _pids(group):
        with contextlib.suppress(OSError, KeyError):
            status = _status(pid)
            yield pid, RunningProcess(int(status["NSpid"].split()[-1]), status["Name"].strip())


def _threads(pid: int) -> int:
    try:
        return int(_status(pid)["Threads"])
    except (OSError, KeyError):
        return 0


def _status(pid: int) -> dict[str, str]:
    text = with_reserve(lambda: Path(f"/proc/{pid}/status").read_text(errors="backslashreplace"))
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _put(group: Path, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        _write(group / "cgroup.procs", str(pid))


def _freeze(group: Path) -> bool:
    """Freeze a group. Return False if not all of it is frozen within 10 s. If its state cannot be read, thaw it and raise OSError."""
    try:
        _write(group / "cgroup.freeze", "1")
        until = time.monotonic() + _FREEZE_SECONDS
        while "frozen 1" not in with_reserve((group / "cgroup.events").read_text):
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_SECONDS)
        return True
    except OSError:
        _write(group / "cgroup.freeze", "0")
        raise


def _write(path: Path, text: str) -> None:
    with_reserve(lambda: path.write_text(text))
