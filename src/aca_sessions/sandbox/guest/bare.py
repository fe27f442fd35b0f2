"""Sessions without namespaces, for hosts that refuse these and whose owner accepted less by name.

Landlock and seccomp hold what they can of what namespaces and mounts hold; SECURITY.md lists the rest. A session's folders are the host's
own, its processes are killed by its init, and where the host is root it has a user of its own.
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
_TRIES = 2000  # a process that was killed goes a moment later
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
# Before version 3 Landlock lets a file be cut off that may only be read.
_FIRST_WITH_TRUNCATE, _FIRST_WITH_SCOPES = 3, 6


def check(plan: Plan) -> None:
    """Says at once what would keep every session from starting."""
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
    """What the zygote has to know of a plan once it begins anew."""
    packages = [path for path in plan.mounts.values() if _may(plan.first_uid, path, os.X_OK)]
    return json.dumps({"base": plan.base, "first_uid": plan.first_uid, "environment": sorted({*plan.roots.values(), *packages})})


def _readable(environment: Iterable[str], code: str) -> tuple[str, ...]:
    """What sessions may read besides their own folders: the system, a few settings, the environment, their own code."""
    settings = [f"/etc/{name}" for name in root.SETTINGS]
    paths = {os.path.realpath(path) for path in (*_SYSTEM, *settings, *environment, code)}
    return tuple(sorted(path for path in paths if os.path.exists(path)))


class Bare:
    """What the zygote does for its sessions where there are no namespaces."""

    def __init__(self, base: str, first_uid: int, environment: Sequence[str]) -> None:
        """Keeps the folder of all sessions, their first uid (0: they are the host's own user), and their Python's paths."""
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
        """As `told_by` says."""
        return cls(**json.loads(text))

    def own_network(self, spawn: Spawn) -> bool:
        """Return False: a session has no namespace of its own."""
        return False

    def settle(self) -> None:
        """There is nothing to give back."""

    def make_tree(self, request: MakeTree) -> int:
        """A descriptor of a new, empty folder of the host's."""
        folder, uid = self._folder(request.tree), self._uid(request.owner)
        os.mkdir(folder, 0o711)
        for name in ("data", "tmp"):
            os.mkdir(f"{folder}/{name}", 0o700)
            if uid:
                os.chown(f"{folder}/{name}", uid, uid)
        return os.open(f"{folder}/data", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def show_tree(self, tree: int, init: int) -> None:
        """There is no mount here that could be another."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def drop_tree(self, tree: int) -> None:
        """Ends what its init may have left, and removes a folder."""
        self._sweep(tree)
        _remove(self._folder(tree))

    def fork(self, tree: int) -> int:
        """Forks, once nothing is left of an earlier interpreter whose init was killed."""
        if tree in self._inits.values():
            self._sweep(tree)
        return os.fork()

    def enter(self, spawn: Spawn) -> None:
        """Another user where the host is root; whatever loses its parent becomes a child of this process."""
        uid = self._uid(spawn.owner)
        if uid:
            os.setgroups([])
            syscalls.drop_bounding_set()
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        _end_with(self._zygote, signal.SIGTERM)
        self._init = os.getpid()
        if not uid:
            self._reaches_its_own_only = _reaches_nobody_else(self._zygote)
        syscalls.adopt_orphans()
        folder = self._folder(spawn.tree)
        place.data, place.temporary = f"{folder}/data", f"{folder}/tmp"

    def lock_down(self, spawn: Spawn) -> int:
        """Binds the interpreter; answers the Landlock version in force."""
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
        """Return nothing: without a pid namespace there is no /proc of a session's own."""
        return []

    def begin_to_reap(self) -> None:
        """From here on SIGTERM, the host's or that of the zygote's death, ends every process of the session."""
        signal.signal(signal.SIGTERM, lambda *_: self._end_session())
        confine.give_up_power()

    def end(self) -> None:
        """Ends every session that is left, and removes all folders."""
        for uid in {self._uid(tree) for tree in self._inits.values()} - {0}:
            _kill_all_of(uid)
        end_all_below(os.getpid())
        _remove(self._base)

    def remember(self, tree: int, init: int) -> None:
        """Knows a session's first process from an orphan."""
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
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            if self._reaches_its_own_only:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(-1, signal.SIGKILL)  # all that the kernel lets this process reach, at once: its session, but itself
            else:
                end_all_below(os.getpid())
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                os._exit(0)


def _reaches_nobody_else(other: int) -> bool:
    """Puts a session's first process into a domain whose signals stay in it, where Landlock can, and makes sure of it."""
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
    """A signal for this process when its parent ends, which it may have done already."""
    syscalls.die_with_parent(number)
    if os.getppid() != parent:
        os._exit(70)


def _may(uid: int, path: str, mode: int) -> bool:
    child = os.fork()
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
    """As that user itself, whose processes alone it can reach; uids below the range are never a session's."""
    if uid < confine.FIRST_POSSIBLE_UID:
        raise ValueError(f"no session has the uid {uid}")
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            for _ in range(_TRIES):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # everything that it can reach but itself, at once: what is killed forks no more
                if not others_of(uid):
                    break
                time.sleep(0.001)
        finally:
            os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _remove(folder: str) -> None:
    """Folders in folders may be deeper than Python goes; a folder may have lost its rights. Neither program follows a link."""
    if os.getuid():
        subprocess.run(["/bin/chmod", "-R", "u+rwX", "--", folder], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["/bin/rm", "-rf", "--one-file-system", "--", folder], stderr=subprocess.DEVNULL, check=False)
