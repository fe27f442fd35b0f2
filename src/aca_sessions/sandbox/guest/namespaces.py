"""Full isolation: each session in namespaces of its own, forked by a zygote that lives in a root which it has built."""

import contextlib
import os

from .. import syscalls
from ..syscalls import Mount, Namespace
from ..wire import MakeTree, Spawn
from . import confine, root
from .place import DATA


class Namespaced:
    """What the zygote does for its sessions where this host gives namespaces."""

    def __init__(self, pid_namespace: int) -> None:
        """Keeps a descriptor of the zygote's own pid namespace."""
        self._pid_namespace = pid_namespace

    def own_network(self, spawn: Spawn) -> bool:
        """Return whether a session has a network namespace of its own."""
        return spawn.network != "host"

    def settle(self) -> None:
        """Everything is loaded: the zygote needs no folder of its own any more."""
        syscalls.unmount("/tmp")

    def remember(self, tree: int, init: int) -> None:
        """The kernel does."""

    def make_tree(self, request: MakeTree) -> int:
        """A descriptor of a new, empty, size-limited folder."""
        folder, owner = _folder(request.tree), _owner(request.owner)
        options = f"size={request.size},nr_inodes={request.inodes},mode=700,uid={owner},gid={owner}"
        with contextlib.ExitStack() as on_failure:
            os.mkdir(folder)
            on_failure.callback(os.rmdir, folder)
            syscalls.mount("tmpfs", folder, "tmpfs", Mount.NO_SUID | Mount.NO_DEVICES, options)
            on_failure.callback(syscalls.unmount, folder)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            on_failure.pop_all()
        return descriptor

    def drop_tree(self, tree: int) -> None:
        """Lets go of a folder; its memory is free when its last user is gone."""
        syscalls.unmount(_folder(tree))
        os.rmdir(_folder(tree))

    def show_tree(self, tree: int, init: int) -> None:
        """A folder takes the place of /mnt/data in the session of an init. Its mount namespace is ours to change, and nobody's in it."""
        with contextlib.ExitStack() as afterwards:
            own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            afterwards.callback(os.close, own)
            copy = syscalls.open_tree(_folder(tree))
            afterwards.callback(os.close, copy)
            syscalls.setns(init, Namespace.MOUNT)
            try:
                syscalls.unmount(DATA)
                syscalls.move_mount(copy, DATA)
            finally:
                _return_to(own, Namespace.MOUNT)

    def fork(self, tree: int) -> int:
        """Forks into a new pid namespace. Going back to one's own is what lets the next unshare succeed."""
        del tree
        syscalls.unshare(Namespace.PID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                _return_to(self._pid_namespace, Namespace.PID)
        return pid

    def enter(self, spawn: Spawn) -> None:
        """Makes the first process of a session what all of it is."""
        confine.enter_namespaces(spawn, _owner(spawn.owner))

    def lock_down(self, spawn: Spawn) -> int:
        """Binds the interpreter; answers the Landlock version in force."""
        return confine.lock_down(spawn)

    def processes(self) -> list[int]:
        """Open the session's own /proc for the host, who sees all processes of the session there and no others."""
        return [os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]

    def begin_to_reap(self) -> None:
        """Signals from inside cannot touch a first process without handlers, and its end is everybody's."""
        syscalls.set_dumpable(False)
        confine.give_up_power()

    def end(self) -> None:
        """The kernel ends a pid namespace with its first process, which is the zygote."""


def _return_to(own: int, kind: Namespace) -> None:
    try:
        syscalls.setns(own, kind)
    except OSError:
        os._exit(70)  # it could serve no further session: the host starts another zygote


def _folder(tree: int) -> str:
    return f"{root.SESSIONS}/{tree}"


def _owner(tree: int) -> int:
    return tree if _distinct_uids() else 0


def _distinct_uids() -> bool:
    with open("/proc/self/uid_map") as lines:
        return any(int(line.split()[2]) > 1 for line in lines)
