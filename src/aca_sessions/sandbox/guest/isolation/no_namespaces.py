"""Sessions without namespaces, for hosts that refuse to create namespaces.

This module is used if `ACASessions:Sandbox:Isolation` is `no-namespaces`. Landlock and seccomp replace namespaces and mounts as far as they
can. SECURITY.md lists what they cannot enforce. A session's folders are folders of the host. To end a session, its first process kills the
others. If the host runs as root, each session has its own uid.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from ... import syscalls
from ...wire import MakeTree, Plan, Spawn
from ..folders import session_folders
from . import confine, root, seccomp
from .root import isolation_step

if TYPE_CHECKING:
    from typing import Self

_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_KILL_TRIES = 2000  # with a pause of 1 ms each: a killed process disappears a moment later
_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
# Landlock before version 3 does not forbid to truncate a file that may only be read.
_FIRST_WITH_TRUNCATE, _FIRST_WITH_SCOPES = 3, 6
_EMPTY_SCANS = 3  # consecutive scans that must find nothing
_AFTER_NAME = 2  # characters: the bracket that ends the name, and a blank (proc_pid_stat(5))


def kill_descendants(ancestor: int, spared: frozenset[int] = frozenset()) -> None:
    """Kill every descendant of the process `ancestor`, except its children in `spared` and their descendants."""
    # One scan may miss a process whose parent ends meanwhile. Several in a row do not.
    quiet = 0
    while quiet < _EMPTY_SCANS:
        quiet = 0 if _kill_listed_descendants(ancestor, spared) else quiet + 1


def _kill_listed_descendants(ancestor: int, spared: frozenset[int]) -> bool:
    """Stop (SIGSTOP), then kill all descendants of `ancestor` that are found now. Return whether there were any.

    Spare the children of `ancestor` in `spared`, and their descendants.
    """
    stopped: set[int] = set()  # a stopped process cannot fork, so the loop ends
    while new := _list_descendants(ancestor, spared) - stopped:
        _signal_all(new, signal.SIGSTOP)
        stopped |= new
    _signal_all(stopped, signal.SIGKILL)
    return bool(stopped)


def count_threads(uid: int) -> int:
    """Return how many threads the user `uid` has on this host. The kernel counts all of them against the user's RLIMIT_NPROC."""
    return sum(_count_process_threads(pid) for pid in _list_pids() if _find_owner(pid) == uid)


def has_other_processes(uid: int) -> bool:
    """Return whether the user `uid` has a living process other than the calling one."""
    return any(_is_alive(pid, uid) for pid in _list_pids() if pid != os.getpid())


def _is_alive(pid: int, uid: int) -> bool:
    # The owner of /proc/PID does not help here: the folder of a process that is not dumpable belongs to root.
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith(("State:", "Uid:")))
    except OSError:
        return False
    return "Uid" in lines and int(lines["Uid"].split()[0]) == uid and lines["State"].split()[0] not in "ZX"


def _list_descendants(ancestor: int, spared: frozenset[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid in _list_pids():
        parent = _find_parent(pid)
        if parent is not None:
            children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    pending = [pid for pid in children.get(ancestor, []) if pid not in spared]
    while pending:
        pid = pending.pop()
        found.add(pid)
        pending += children.get(pid, [])
    return found


def _find_parent(pid: int) -> int | None:
    """Return the pid of a process's parent, or None if the process has ended or is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    state, parent = text[text.rindex(")") + _AFTER_NAME :].split()[:2]
    return None if state in "ZX" else int(parent)


def _list_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _find_owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _count_process_threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def check_host(plan: Plan) -> None:
    """Check that this host can isolate sessions without namespaces, with the users and folders of `plan`. Raise RefusalError if not."""
    with isolation_step("uid"):
        if os.getuid() == 0 and not plan.uid_count:
            raise PermissionError(errno.EPERM, "this root user has no other uids for sessions, which would run as root")
    with isolation_step("capabilities"):
        if not _can_access(plan.first_uid, "/", os.F_OK):
            raise PermissionError(errno.EPERM, "this root may not become another user: CAP_SETUID and CAP_SETGID are missing")
    with isolation_step("Landlock"):
        if syscalls.landlock_version() < _FIRST_WITH_TRUNCATE and not plan.first_uid:
            raise OSError(
                errno.ENOSYS,
                f"version 3 (Linux 6.2) or newer is needed if sessions run as this user, got version {syscalls.landlock_version()}",
            )
    with isolation_step("Python environment"):
        for path in set(plan.roots.values()):
            if not _can_access(plan.first_uid, path, os.R_OK):
                raise PermissionError(errno.EACCES, f"the user that sessions run as must be able to read {path}, and cannot")


def encode_arguments(plan: Plan) -> str:
    """Return the arguments of `NoNamespaceIsolation` for a plan as JSON text. The zygote passes the text to the Python that it execs."""
    # Folders that the sessions' users may not enter are left out. `modules.use_packages` reports it when one is needed.
    packages = [path for path in plan.mounts.values() if _can_access(plan.first_uid, path, os.X_OK)]
    return json.dumps({"base": plan.base, "first_uid": plan.first_uid, "environment": sorted({*plan.roots.values(), *packages})})


def _list_readable_paths(environment: Iterable[str], code: str) -> tuple[str, ...]:
    """Return the existing paths that sessions may read besides their own folders, with symbolic links resolved.

    `environment` holds the paths of the Python environment and of mounted folders. `code` is the folder with the guest's code.
    """
    settings = [f"/etc/{name}" for name in root.SETTINGS]
    paths = {os.path.realpath(path) for path in (*_SYSTEM_FOLDERS, *settings, *environment, code)}
    return tuple(sorted(path for path in paths if os.path.exists(path)))


class NoNamespaceIsolation:
    """Starts, isolates and ends sessions on a host without namespaces. `NamespaceIsolation` has the same methods."""

    def __init__(self, base: str, first_uid: int, environment: Sequence[str]) -> None:
        """Make this process adopt the orphaned processes of sessions, so that it can find and kill them.

        Args:
            base: The folder that holds the sessions' folders.
            first_uid: The first uid that sessions use, or 0 if they run as the host's own user.
            environment: The paths of the sessions' Python environment and of mounted folders.
        """
        self._base = base
        self._first_uid = first_uid
        self._paths = _list_readable_paths(environment, f"{base}/code")
        self._inits: dict[int, int] = {}
        self._zygote = os.getpid()
        self._init = 0
        self._signals_only_session = bool(first_uid)
        syscalls.adopt_orphans()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Create a `NoNamespaceIsolation` from the text that `encode_arguments` returned."""
        return cls(**json.loads(text))

    def has_own_network(self, spawn: Spawn) -> bool:
        """Return False, because without namespaces no session has a network of its own."""
        return False

    def unmount_tmp(self) -> None:
        """Do nothing, because without namespaces the zygote has no /tmp of its own."""

    def make_workspace(self, request: MakeTree) -> int:
        """Create a workspace: a new folder on the host with empty folders `data` and `tmp`. Return a descriptor of `data`."""
        folder, uid = self._folder(request.tree), self._uid(request.owner)
        os.mkdir(folder, 0o711)
        for name in ("data", "tmp"):
            os.mkdir(f"{folder}/{name}", 0o700)
            if uid:
                os.chown(f"{folder}/{name}", uid, uid)
        return os.open(f"{folder}/data", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def mount_workspace(self, workspace: int, init: int) -> None:
        """Raise OSError (EOPNOTSUPP): without a mount namespace, another workspace cannot be mounted at the session's path."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def remove_workspace(self, workspace: int) -> None:
        """Remove `workspace`. Before that, kill the processes that its session left running."""
        self._kill_leftovers(workspace)
        _remove_folder(self._folder(workspace))

    def fork(self, workspace: int) -> int:
        """Fork the first process of a session in `workspace`. Return its pid, or 0 in the child.

        Before that, kill the processes that an earlier session in this workspace left running.
        """
        if workspace in self._inits.values():
            self._kill_leftovers(workspace)
        return os.fork()

    def enter(self, spawn: Spawn) -> list[int]:
        """Make this process a session's first process: change to the session's uid, if it has one, and adopt orphaned processes.

        Return an empty list, because a session without namespaces has no proxy.
        """
        uid = self._uid(spawn.owner)
        if uid:
            syscalls.drop_bounding_set()
            _change_user(uid)
        # After the change of user, which clears the parent-death signal (prctl(2)).
        _die_with_parent(self._zygote, signal.SIGTERM)
        self._init = os.getpid()
        if not uid:
            self._signals_only_session = _restrict_signals(self._zygote)
        syscalls.adopt_orphans()
        folder = self._folder(spawn.tree)
        session_folders.data, session_folders.temporary = f"{folder}/data", f"{folder}/tmp"
        return []

    def lock_down(self, spawn: Spawn) -> int:
        """Apply limits, Landlock and seccomp to this process, the session's interpreter. Return the Landlock version of the kernel."""
        _die_with_parent(self._init, signal.SIGKILL)
        own_user = bool(self._first_uid)
        with isolation_step("limits"):
            confine.set_limits(spawn, processes=spawn.processes + (0 if own_user else count_threads(os.getuid())))
        with isolation_step("no_new_privs"):
            syscalls.no_new_privileges()
        with isolation_step("Landlock"):
            version = confine.restrict_files(
                self._paths, (session_folders.data, session_folders.temporary, *_DEVICES), tcp=spawn.network == "host"
            )
        barriers = seccomp.Barriers(
            own_user=own_user, own_signals=own_user or version >= _FIRST_WITH_SCOPES, network=spawn.network == "host"
        )
        with isolation_step("capabilities and seccomp"):
            confine.drop_privileges(memory_is_counted=spawn.memory_is_counted, barriers=barriers)
        return version

    def open_proc(self) -> list[int]:
        """Return an empty list, because without a pid namespace a session has no /proc of its own that the host could read."""
        return []

    def prepare_to_reap(self) -> None:
        """Prepare this process, the session's first, to reap dead processes: make SIGTERM end the whole session, and drop privileges."""
        # The host sends SIGTERM to end the session. The kernel sends it if the zygote dies.
        signal.signal(signal.SIGTERM, lambda *_: self._end_session())
        confine.drop_privileges()

    def end_sessions(self) -> None:
        """Kill the processes of all sessions, then remove the folder that holds the files of all sessions."""
        for uid in {self._uid(workspace) for workspace in self._inits.values()} - {0}:
            _kill_user_processes(uid)
        kill_descendants(os.getpid())
        _remove_folder(self._base)

    def record_init(self, workspace: int, init: int) -> None:
        """Store the pid `init` of a session's first process.

        `_kill_leftovers` spares this process when it kills the orphans of another session.
        """
        self._inits[init] = workspace

    def _folder(self, workspace: int) -> str:
        return f"{self._base}/{workspace}"

    def _uid(self, workspace: int) -> int:
        return self._first_uid + workspace if self._first_uid else 0

    def _kill_leftovers(self, workspace: int) -> None:
        self._inits = {init: of for init, of in self._inits.items() if of != workspace}
        if self._first_uid:
            _kill_user_processes(self._uid(workspace))
            return
        kill_descendants(os.getpid(), frozenset(self._inits))

    def _end_session(self) -> NoReturn:
        """Kill every process of the session, wait until all have ended, then exit."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            if self._signals_only_session:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    # Every process that this one may signal, except itself: all of its session at once (kill(2)).
                    os.kill(-1, signal.SIGKILL)
            else:
                kill_descendants(os.getpid())
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                os._exit(0)


def _restrict_signals(other: int) -> bool:
    """Forbid this process, and all that it starts from now on, to signal other processes. Return whether this worked.

    It does not work if the kernel's Landlock is older than version 6. `other` is the pid of another process, which is used to test it.
    """
    if syscalls.landlock_version() < _FIRST_WITH_SCOPES:
        return False
    with isolation_step("Landlock"):
        syscalls.no_new_privileges()
        confine.restrict_signals()
    try:
        os.kill(other, 0)
    except PermissionError:
        return True
    return False


def _die_with_parent(parent: int, number: signal.Signals) -> None:
    """Ask the kernel to send the signal `number` to this process when its parent ends. Exit now if `parent` has ended already."""
    syscalls.die_with_parent(number)
    if os.getppid() != parent:
        os._exit(70)


def _change_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _can_access(uid: int, path: str, mode: int) -> bool:
    """Return whether the user `uid`, or the current user if it is 0, may access a path. `mode` is as for os.access."""
    child = os.fork()  # a child, because a change of user cannot be undone
    if child == 0:
        try:
            if uid:
                _change_user(uid)
            os._exit(0 if os.access(path, mode) else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _kill_user_processes(uid: int) -> None:
    if uid < confine.FIRST_POSSIBLE_UID:
        raise ValueError(f"the uid of a session must be at least {confine.FIRST_POSSIBLE_UID}, got {uid}")
    # As that user, who can signal no other user's processes: a mistake here harms no other process of the host.
    child = os.fork()
    if child == 0:
        try:
            _change_user(uid)
            for _ in range(_KILL_TRIES):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # all at once, except itself: a killed process cannot fork
                if not has_other_processes(uid):
                    break
                time.sleep(0.001)
        finally:
            os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _remove_folder(folder: str) -> None:
    # Programs and not shutil: nested folders may be deeper than Python's recursion goes, and neither program follows a link. A session may
    # have taken the rights from a folder; root needs none.
    if os.getuid():
        subprocess.run(["/bin/chmod", "-R", "u+rwX", "--", folder], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["/bin/rm", "-rf", "--one-file-system", "--", folder], stderr=subprocess.DEVNULL, check=False)
