"""Sessions without namespaces, for hosts that refuse them and whose owner accepted less by setting `no-namespaces`.

Landlock and seccomp enforce what they can of what namespaces and mounts enforce. SECURITY.md lists the rest. A session's folders are
folders of the host, its first process kills its processes, and it has a user of its own if the host is root.
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

from .. import syscalls
from ..wire import MakeTree, Plan, Spawn
from . import confine, landlock, root, seccomp
from .family import end_all_below, others_of, threads_of
from .place import place
from .refusal import part

if TYPE_CHECKING:
    from typing import Self

_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_TRIES = 2000  # with a pause of 1 ms each: a killed process disappears a moment later
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
# Landlock before version 3 does not forbid to truncate a file that may only be read.
_FIRST_WITH_TRUNCATE, _FIRST_WITH_SCOPES = 3, 6


def check(plan: Plan) -> None:
    """Raise RefusalError if something would keep every session from starting."""
    with part("uid"):
        if os.getuid() == 0 and not plan.uid_count:
            raise PermissionError(errno.EPERM, "this root has no other uids to give away, and guests would be root")
    with part("capabilities"):
        if not _may(plan.first_uid, "/", os.F_OK):
            raise PermissionError(errno.EPERM, "this root may not become another user: CAP_SETUID and CAP_SETGID are missing")
    with part("Landlock"):
        if syscalls.landlock_version() < _FIRST_WITH_TRUNCATE and not plan.first_uid:
            raise OSError(errno.ENOSYS, "its version 3 (Linux 6.2) is needed where sessions have no user of their own")
    with part("Python environment"):
        for path in set(plan.roots.values()):
            if not _may(plan.first_uid, path, os.R_OK):
                raise PermissionError(errno.EACCES, f"the users that sessions run as may not read {path}")


def told_by(plan: Plan) -> str:
    """Return what the zygote must know of a plan after it replaced its program, as text for one argument."""
    # Folders that the sessions' users may not enter are left out. `packages.extend` reports it when one is needed.
    packages = [path for path in plan.mounts.values() if _may(plan.first_uid, path, os.X_OK)]
    return json.dumps({"base": plan.base, "first_uid": plan.first_uid, "environment": sorted({*plan.roots.values(), *packages})})


def _readable(environment: Iterable[str], code: str) -> tuple[str, ...]:
    """Return the paths that sessions may read besides their own folders: the system, a few settings, the environment, the guest's code."""
    settings = [f"/etc/{name}" for name in root.SETTINGS]
    paths = {os.path.realpath(path) for path in (*_SYSTEM, *settings, *environment, code)}
    return tuple(sorted(path for path in paths if os.path.exists(path)))


class Bare:
    """The zygote's operations on sessions on a host without namespaces."""

    def __init__(self, base: str, first_uid: int, environment: Sequence[str]) -> None:
        """Keep how sessions are separated.

        Args:
            base: The folder of all sessions' folders.
            first_uid: The first uid of the sessions' range; 0 if sessions run as the host's own user.
            environment: The paths of the sessions' Python.
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
        """Return the object that `told_by` described."""
        return cls(**json.loads(text))

    def own_network(self, spawn: Spawn) -> bool:
        """Return False: a session has no network namespace of its own."""
        return False

    def settle(self) -> None:
        """Do nothing: without mounts nothing can be given back."""

    def make_tree(self, request: MakeTree) -> int:
        """Create a new, empty folder of the host for a session's files. Return a descriptor of it."""
        folder, uid = self._folder(request.tree), self._uid(request.owner)
        os.mkdir(folder, 0o711)
        for name in ("data", "tmp"):
            os.mkdir(f"{folder}/{name}", 0o700)
            if uid:
                os.chown(f"{folder}/{name}", uid, uid)
        return os.open(f"{folder}/data", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def show_tree(self, tree: int, init: int) -> None:
        """Raise OSError (EOPNOTSUPP): without a mount namespace no other folder can take the place of a session's files."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def drop_tree(self, tree: int) -> None:
        """Kill the processes that the session's first process may have left, then remove the folder."""
        self._sweep(tree)
        _remove(self._folder(tree))

    def fork(self, tree: int) -> int:
        """Fork a session's first process. Kill what is left of an earlier interpreter first, in case its first process was killed."""
        if tree in self._inits.values():
            self._sweep(tree)
        return os.fork()

    def enter(self, spawn: Spawn) -> None:
        """Become the session's user if the host is root, and adopt every process below that loses its parent."""
        uid = self._uid(spawn.owner)
        if uid:
            os.setgroups([])
            syscalls.drop_bounding_set()
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        # After the change of user, which clears the parent-death signal (prctl(2)).
        _end_with(self._zygote, signal.SIGTERM)
        self._init = os.getpid()
        if not uid:
            self._reaches_its_own_only = _reaches_nobody_else(self._zygote)
        syscalls.adopt_orphans()
        folder = self._folder(spawn.tree)
        place.data, place.temporary = f"{folder}/data", f"{folder}/tmp"

    def lock_down(self, spawn: Spawn) -> int:
        """Confine the interpreter. Return the Landlock version in force."""
        _end_with(self._init, signal.SIGKILL)
        own_user = bool(self._first_uid)
        with part("limits"):
            confine.limit(spawn, processes=spawn.processes + (0 if own_user else threads_of(os.getuid())))
        with part("no_new_privs"):
            syscalls.no_new_privileges()
        with part("Landlock"):
            version = landlock.restrict(self._paths, (place.data, place.temporary, *_DEVICES), tcp=spawn.network == "host")
        walls = seccomp.Walls(own_user=own_user, own_signals=own_user or version >= _FIRST_WITH_SCOPES, network=spawn.network == "host")
        with part("capabilities and seccomp"):
            confine.give_up_power(memory_is_counted=spawn.memory_is_counted, walls=walls)
        return version

    def processes(self) -> list[int]:
        """Return an empty list: without a pid namespace a session has no /proc of its own."""
        return []

    def begin_to_reap(self) -> None:
        """Kill every process of the session on SIGTERM, and drop privileges.

        SIGTERM comes from the host, or from the kernel when the zygote dies.
        """
        signal.signal(signal.SIGTERM, lambda *_: self._end_session())
        confine.give_up_power()

    def end(self) -> None:
        """Kill every session that is left and remove all folders."""
        for uid in {self._uid(tree) for tree in self._inits.values()} - {0}:
            _kill_all_of(uid)
        end_all_below(os.getpid())
        _remove(self._base)

    def remember(self, tree: int, init: int) -> None:
        """Note the first process of a session, which distinguishes it from an orphan."""
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
        """Kill every process of the session and collect it, then exit."""
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
    """Confine the signals of this process, and of all that it starts, to themselves if Landlock can. Return whether it worked.

    Args:
        other: A process outside, which is signalled to check the result.
    """
    if syscalls.landlock_version() < _FIRST_WITH_SCOPES:
        return False
    with part("Landlock"):
        syscalls.no_new_privileges()
        landlock.keep_signals_inside()
    try:
        os.kill(other, 0)
    except PermissionError:
        return True
    return False


def _end_with(parent: int, number: signal.Signals) -> None:
    """Request a signal for this process when its parent ends. Exit if the parent has already ended."""
    syscalls.die_with_parent(number)
    if os.getppid() != parent:
        os._exit(70)


def _may(uid: int, path: str, mode: int) -> bool:
    """Return whether a user may access a path."""
    child = os.fork()  # a child, because a change of user cannot be undone
    if child == 0:
        try:
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            os._exit(0 if os.access(path, mode) else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _kill_all_of(uid: int) -> None:
    """Kill every process of a session's uid. Raise ValueError for a uid below the range that sessions have."""
    if uid < confine.FIRST_POSSIBLE_UID:
        raise ValueError(f"no session has the uid {uid}")
    # As that user, who can signal no other user's processes: a mistake here harms no other process of the host.
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
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
    """Remove a folder and everything in it."""
    # Programs and not shutil: nested folders may be deeper than Python's recursion goes, and neither program follows a link. A session may
    # have taken the rights from a folder; root needs none.
    if os.getuid():
        subprocess.run(["/bin/chmod", "-R", "u+rwX", "--", folder], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["/bin/rm", "-rf", "--one-file-system", "--", folder], stderr=subprocess.DEVNULL, check=False)
