"""Sessions without namespaces, for hosts that refuse to create namespaces.

Used if `ACASessions:Sandbox:Isolation` is `no-namespaces`. Landlock and seccomp replace namespaces and mounts as far as they can.
SECURITY.md lists what they cannot enforce. A session's folders are folders of the host. To end a session, its first process kills the
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
from ..place import place
from . import confine, root, seccomp
from .root import part

if TYPE_CHECKING:
    from typing import Self

_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_TRIES = 2000  # with a pause of 1 ms each: a killed process disappears a moment later
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
# Landlock before version 3 does not forbid to truncate a file that may only be read.
_FIRST_WITH_TRUNCATE, _FIRST_WITH_SCOPES = 3, 6
_LOOKS = 3  # consecutive scans that must find nothing
_AFTER_NAME = 2  # characters: the bracket that ends the name, and a blank (proc_pid_stat(5))


def end_all_below(ancestor: int, spared: frozenset[int] = frozenset()) -> None:
    """Kill every descendant of the process `ancestor`, except its children in `spared` and their descendants."""
    # One scan may miss a process whose parent ends meanwhile. Several in a row do not.
    quiet = 0
    while quiet < _LOOKS:
        quiet = 0 if _end_those_seen(ancestor, spared) else quiet + 1


def _end_those_seen(ancestor: int, spared: frozenset[int]) -> bool:
    """Stop (SIGSTOP) all descendants of `ancestor` except the `spared` ones, then kill them. Return whether any was found.

    `spared` are children of `ancestor`. Their descendants are spared too.
    """
    stopped: set[int] = set()  # a stopped process cannot fork, so the loop ends
    while new := _below(ancestor, spared) - stopped:
        _signal_all(new, signal.SIGSTOP)
        stopped |= new
    _signal_all(stopped, signal.SIGKILL)
    return bool(stopped)


def threads_of(uid: int) -> int:
    """Return how many threads the user `uid` has on this host. The kernel counts all of them against the user's RLIMIT_NPROC."""
    return sum(_threads(pid) for pid in _pids() if _owner(pid) == uid)


def others_of(uid: int) -> bool:
    """Return whether the user `uid` has a living process other than the calling one."""
    return any(_is_alive(pid, uid) for pid in _pids() if pid != os.getpid())


def _is_alive(pid: int, uid: int) -> bool:
    # The owner of /proc/PID does not help here: the folder of a process that is not dumpable belongs to root.
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith(("State:", "Uid:")))
    except OSError:
        return False
    return "Uid" in lines and int(lines["Uid"].split()[0]) == uid and lines["State"].split()[0] not in "ZX"


def _below(ancestor: int, spared: frozenset[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid in _pids():
        parent = _parent(pid)
        if parent is not None:
            children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    pending = [pid for pid in children.get(ancestor, []) if pid not in spared]
    while pending:
        pid = pending.pop()
        found.add(pid)
        pending += children.get(pid, [])
    return found


def _parent(pid: int) -> int | None:
    """Return the pid of a process's parent, or None if the process has ended or is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    state, parent = text[text.rindex(")") + _AFTER_NAME :].split()[:2]
    return None if state in "ZX" else int(parent)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def check(plan: Plan) -> None:
    """Check that this host can start and isolate sessions without namespaces under `plan`. Raise RefusalError if it cannot."""
    with part("uid"):
        if os.getuid() == 0 and not plan.uid_count:
            raise PermissionError(errno.EPERM, "this root user has no other uids for sessions, which would run as root")
    with part("capabilities"):
        if not _may(plan.first_uid, "/", os.F_OK):
            raise PermissionError(errno.EPERM, "this root may not become another user: CAP_SETUID and CAP_SETGID are missing")
    with part("Landlock"):
        if syscalls.landlock_version() < _FIRST_WITH_TRUNCATE and not plan.first_uid:
            raise OSError(
                errno.ENOSYS,
                f"version 3 (Linux 6.2) or newer is needed if sessions run as this user, got version {syscalls.landlock_version()}",
            )
    with part("Python environment"):
        for path in set(plan.roots.values()):
            if not _may(plan.first_uid, path, os.R_OK):
                raise PermissionError(errno.EACCES, f"the user that sessions run as must be able to read {path}, and cannot")


def told_by(plan: Plan) -> str:
    """Return the arguments of `Bare` for a plan as JSON text. The zygote passes the text to the Python that it execs."""
    # Folders that the sessions' users may not enter are left out. `modules.extend` reports it when one is needed.
    packages = [path for path in plan.mounts.values() if _may(plan.first_uid, path, os.X_OK)]
    return json.dumps({"base": plan.base, "first_uid": plan.first_uid, "environment": sorted({*plan.roots.values(), *packages})})


def _readable(environment: Iterable[str], code: str) -> tuple[str, ...]:
    """Return the existing paths that sessions may read besides their own folders, with symbolic links resolved.

    `environment` holds the paths of the Python environment and of mounted folders. `code` is the folder with the guest's code.
    """
    settings = [f"/etc/{name}" for name in root.SETTINGS]
    paths = {os.path.realpath(path) for path in (*_SYSTEM, *settings, *environment, code)}
    return tuple(sorted(path for path in paths if os.path.exists(path)))


class Bare:
    """The zygote's operations on sessions, for a host without namespaces. `Namespaced` has the same methods."""

    def __init__(self, base: str, first_uid: int, environment: Sequence[str]) -> None:
        """Make this process the parent of sessions' orphaned processes, so that it can find and kill them.

        Args:
            base: The folder that holds the sessions' folders.
            first_uid: The first uid that sessions use, or 0 if they run as the host's own user.
            environment: The paths of the sessions' Python environment and of mounted folders.
        """
        self._base = base
        self._first_uid = first_uid
        self._paths = _readable(environment, f"{base}/code")
        self._inits: dict[int, int] = {}
        self._zygote = os.getpid()
        self._init = 0
        self._reaches_its_own_only = bool(first_uid)
        syscalls.adopt_orphans()

    @classmethod
    def told(cls, text: str) -> Self:
        """Create a `Bare` from the text that `told_by` returned."""
        return cls(**json.loads(text))

    def own_network(self, spawn: Spawn) -> bool:
        """Return False, because without namespaces no session has a network of its own."""
        return False

    def settle(self) -> None:
        """Do nothing: without namespaces the zygote has no /tmp of its own to unmount."""

    def make_tree(self, request: MakeTree) -> int:
        """Create a workspace: a new folder on the host with empty folders `data` and `tmp`. Return a descriptor of `data`."""
        folder, uid = self._folder(request.tree), self._uid(request.owner)
        os.mkdir(folder, 0o711)
        for name in ("data", "tmp"):
            os.mkdir(f"{folder}/{name}", 0o700)
            if uid:
                os.chown(f"{folder}/{name}", uid, uid)
        return os.open(f"{folder}/data", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def show_tree(self, tree: int, init: int) -> None:
        """Raise OSError (EOPNOTSUPP): without a mount namespace, another workspace cannot be mounted at the session's path."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def drop_tree(self, tree: int) -> None:
        """Remove the workspace `tree`. Before that, kill the processes that its session left running."""
        self._sweep(tree)
        _remove(self._folder(tree))

    def fork(self, tree: int) -> int:
        """Fork the first process of a session in the workspace `tree`. Return its pid, or 0 in the child.

        Before that, kill the processes that an earlier session in this workspace left running.
        """
        if tree in self._inits.values():
            self._sweep(tree)
        return os.fork()

    def enter(self, spawn: Spawn) -> None:
        """Make this process a session's first process: change to the session's uid, if it has one, and adopt orphaned processes."""
        uid = self._uid(spawn.owner)
        if uid:
            syscalls.drop_bounding_set()
            _become(uid)
        # After the change of user, which clears the parent-death signal (prctl(2)).
        _end_with(self._zygote, signal.SIGTERM)
        self._init = os.getpid()
        if not uid:
            self._reaches_its_own_only = _reaches_nobody_else(self._zygote)
        syscalls.adopt_orphans()
        folder = self._folder(spawn.tree)
        place.data, place.temporary = f"{folder}/data", f"{folder}/tmp"

    def lock_down(self, spawn: Spawn) -> int:
        """Apply limits, Landlock and seccomp to this process, the session's interpreter. Return the Landlock version in force."""
        _end_with(self._init, signal.SIGKILL)
        own_user = bool(self._first_uid)
        with part("limits"):
            confine.limit(spawn, processes=spawn.processes + (0 if own_user else threads_of(os.getuid())))
        with part("no_new_privs"):
            syscalls.no_new_privileges()
        with part("Landlock"):
            version = confine.restrict_files(self._paths, (place.data, place.temporary, *_DEVICES), tcp=spawn.network == "host")
        walls = seccomp.Walls(own_user=own_user, own_signals=own_user or version >= _FIRST_WITH_SCOPES, network=spawn.network == "host")
        with part("capabilities and seccomp"):
            confine.give_up_power(memory_is_counted=spawn.memory_is_counted, walls=walls)
        return version

    def processes(self) -> list[int]:
        """Return an empty list, because without a pid namespace a session has no /proc of its own that the host could read."""
        return []

    def begin_to_reap(self) -> None:
        """Prepare this process, a session's first, to reap dead processes: let SIGTERM end the whole session, and drop privileges."""
        # The host sends SIGTERM to end the session. The kernel sends it if the zygote dies.
        signal.signal(signal.SIGTERM, lambda *_: self._end_session())
        confine.give_up_power()

    def end(self) -> None:
        """Kill all sessions' processes, then remove their folders."""
        for uid in {self._uid(tree) for tree in self._inits.values()} - {0}:
            _kill_all_of(uid)
        end_all_below(os.getpid())
        _remove(self._base)

    def remember(self, tree: int, init: int) -> None:
        """Store the pid `init` of a session's first process, so that `_sweep` does not kill it as an orphan of another session."""
        self._inits[init] = tree

    def _folder(self, tree: int) -> str:
        return f"{self._base}/{tree}"

    def _uid(self, tree: int) -> int:
        return self._first_uid + tree if self._first_uid else 0

    def _sweep(self, tree: int) -> None:
        self._inits = {init: of for init, of in self._inits.items() if of != tree}
        if self._first_uid:
            _kill_all_of(self._uid(tree))
            return
        end_all_below(os.getpid(), frozenset(self._inits))

    def _end_session(self) -> NoReturn:
        """Kill every process of the session, wait until all have ended, then exit."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            if self._reaches_its_own_only:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    # Every process that this one may signal, except itself: all of its session at once (kill(2)).
                    os.kill(-1, signal.SIGKILL)
            else:
                end_all_below(os.getpid())
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                os._exit(0)


def _reaches_nobody_else(other: int) -> bool:
    """Forbid this process, and all that it starts from now on, to signal other processes, if the kernel's Landlock can do that.

    Return whether this process is now unable to signal the process `other`.
    """
    if syscalls.landlock_version() < _FIRST_WITH_SCOPES:
        return False
    with part("Landlock"):
        syscalls.no_new_privileges()
        confine.keep_signals_inside()
    try:
        os.kill(other, 0)
    except PermissionError:
        return True
    return False


def _end_with(parent: int, number: signal.Signals) -> None:
    """Ask the kernel to send the signal `number` to this process when its parent ends. Exit now if `parent` has ended already."""
    syscalls.die_with_parent(number)
    if os.getppid() != parent:
        os._exit(70)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _may(uid: int, path: str, mode: int) -> bool:
    """Return whether the user `uid`, or the current user if it is 0, may access a path. `mode` is as for os.access."""
    child = os.fork()  # a child, because a change of user cannot be undone
    if child == 0:
        try:
            if uid:
                _become(uid)
            os._exit(0 if os.access(path, mode) else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _kill_all_of(uid: int) -> None:
    if uid < confine.FIRST_POSSIBLE_UID:
        raise ValueError(f"the uid of a session must be at least {confine.FIRST_POSSIBLE_UID}, got {uid}")
    # As that user, who can signal no other user's processes: a mistake here harms no other process of the host.
    child = os.fork()
    if child == 0:
        try:
            _become(uid)
            for _ in range(_TRIES):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # all at once, except itself: a killed process cannot fork
                if not others_of(uid):
                    break
                time.sleep(0.001)
        finally:
            os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _remove(folder: str) -> None:
    # Programs and not shutil: nested folders may be deeper than Python's recursion goes, and neither program follows a link. A session may
    # have taken the rights from a folder; root needs none.
    if os.getuid():
        subprocess.run(["/bin/chmod", "-R", "u+rwX", "--", folder], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["/bin/rm", "-rf", "--one-file-system", "--", folder], stderr=subprocess.DEVNULL, check=False)
