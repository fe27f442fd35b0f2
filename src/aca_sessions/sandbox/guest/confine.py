"""The point of no return: a forked child of the zygote becomes a session that nothing leaves.

The order is Linux's. Mounts need capabilities, so they come before the last user namespace; that namespace takes the capabilities away from
everything mounted so far; limits, Landlock and seccomp come last, since they refuse what the steps above need.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import struct

from .. import syscalls
from ..syscalls import Mount, Namespace
from ..wire import Spawn
from . import landlock, root, seccomp
from .place import DATA
from .refusal import part

GUEST_ID = 1000
FIRST_POSSIBLE_UID = 20_000

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
# Of what the kernel counts for each user: the sessions of an ordinary user are all that user. Ten sessions, as many as are leased by
# default, can have all of theirs at once and leave half to the host.
_INOTIFY = {"max_inotify_instances": 6, "max_inotify_watches": 4096}
_PENDING_SIGNALS = 256  # POSIX timers count as well
# What of /proc is seen besides processes: programs ask it how large the machine is, and how busy. No namespace limits all else to the
# session: it tells what else runs on the host, which devices that has, or how it was started.
_SHOWN = {
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "mounts",
    "net",
    "self",
    "stat",
    "sys",
    "thread-self",
    "uptime",
    "version",
    "vmstat",
}
_HIDDEN_SETTINGS = ("fs/dentry-state", "fs/file-nr", "fs/inode-nr", "fs/inode-state", "kernel/random/boot_id")
_EMPTY = "/sys"
_TMPFS = Mount.NO_SUID | Mount.NO_DEVICES


def enter_namespaces(spawn: Spawn, uid: int) -> None:
    """A root, a network, a host name, queues and a cgroup view of its own; then another user, without power over any of them."""
    own_network = spawn.network != "host"
    with part("mount, network, ipc, uts and cgroup namespaces"):
        syscalls.unshare(
            Namespace.MOUNT | Namespace.UTS | Namespace.IPC | Namespace.CGROUP | (Namespace.NETWORK if own_network else Namespace(0))
        )
    if own_network:
        with part("loopback"):
            _raise_loopback()
    with part("session mounts"):
        _mount_session(spawn)
    with part("session user namespace"):
        _become_guest(uid)


def limit(spawn: Spawn, *, processes: int | None = None) -> None:
    """Limits per process; the address space counts from what the fork came with, processes perhaps with others of the same user."""
    memory = _address_space() + spawn.address_space
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_NPROC: processes or spawn.processes,
        resource.RLIMIT_NOFILE: spawn.open_files,
        resource.RLIMIT_FSIZE: spawn.file_size,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_SIGPENDING: _PENDING_SIGNALS,
    }
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (bound, bound))


def give_up_power(*, memory_is_counted: bool = False, walls: seccomp.Walls = seccomp.NAMESPACES) -> None:
    """No capability, no new privilege, and only the system calls of the allow list: for good."""
    syscalls.no_new_privileges()
    syscalls.drop_capabilities()
    syscalls.install_filter(seccomp.program(memory_is_counted=memory_is_counted, walls=walls))


def lock_down(spawn: Spawn) -> int:
    """All that binds the interpreter; answers the Landlock version in force."""
    with part("limits"):
        limit(spawn)
    with part("no_new_privs"):
        syscalls.no_new_privileges()
    with part("Landlock"):
        version = landlock.restrict()
    with part("capabilities and seccomp"):
        give_up_power(memory_is_counted=spawn.memory_is_counted)
    return version


def close_all_but(*kept: int) -> None:
    """Closes every descriptor above 2 that is not named."""
    start = 3
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def map_ids(inside: int, outside_uid: int, outside_gid: int) -> None:
    """Maps one id of the new user namespace. Without setgroups nobody can drop a group that denies."""
    write_file("/proc/self/setgroups", "deny")
    write_file("/proc/self/uid_map", f"{inside} {outside_uid} 1")
    write_file("/proc/self/gid_map", f"{inside} {outside_gid} 1")


def _mount_session(spawn: Spawn) -> None:
    root.mount_tmp(spawn.temporary)
    syscalls.mount("tmpfs", "/dev/shm", "tmpfs", _TMPFS, f"size={spawn.temporary},nr_inodes=16k,mode=1777")
    syscalls.mount("devpts", "/dev/pts", "devpts", Mount.NO_SUID | Mount.NO_EXEC, "newinstance,max=64,ptmxmode=0666,mode=620")
    syscalls.mount("proc", "/proc", "proc", _TMPFS | Mount.NO_EXEC)
    if spawn.network != "host":
        for name in ("tcp_rmem", "tcp_wmem"):  # what sockets hold counts to no limit of a session's
            write_file(f"/proc/sys/net/ipv4/{name}", "4096 65536 262144")
    for name in os.listdir("/proc"):
        if not name.isdecimal() and name not in _SHOWN:
            _hide(f"/proc/{name}")
    for name in _HIDDEN_SETTINGS:
        _hide(f"/proc/sys/{name}")
    syscalls.mount(f"{root.SESSIONS}/{spawn.tree}", DATA, None, Mount.BIND)
    syscalls.unmount(root.SESSIONS)


def _hide(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # not every kernel has it
        syscalls.mount(_EMPTY if os.path.isdir(path) else "/dev/null", path, None, Mount.BIND)


def _become_guest(uid: int) -> None:
    """One id, mapped to one that is not root on the host. A uid of 0 here is the zygote's own: an ordinary user has no other."""
    if uid:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    syscalls.set_dumpable(True)  # the zygote is not; a session's own entries in /proc are its own
    syscalls.unshare(Namespace.USER)
    map_ids(GUEST_ID, uid, uid)
    for name, most in _INOTIFY.items():
        write_file(f"/proc/sys/user/{name}", str(most))


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", _IFF_UP, b""))


def _address_space() -> int:
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[0]) * resource.getpagesize()


def write_file(path: str, text: str) -> None:
    """Writes in one call, as /proc wants it."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
