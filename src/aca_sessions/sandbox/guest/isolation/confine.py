"""Confine a forked child of the zygote, so that it becomes a session: namespaces, resource limits, Landlock and seccomp.

No step can be undone, and the kernel dictates the order. Mounts come first, because they need capabilities that this process loses when it
enters the session's user namespace. Limits, Landlock and seccomp come last, because they forbid what the earlier steps do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import struct
from collections.abc import Iterable

from ... import syscalls
from ...syscalls import Mount, Namespace
from ...wire import Spawn
from ..folders import DATA
from . import certificates, network, root, seccomp
from .root import isolation_step

GUEST_ID = 1000
FIRST_POSSIBLE_UID = 20_000

# The kernel counts these for each user, and on an unprivileged host all sessions are the same user. Ten sessions (the default number of
# leases) can use all of theirs at once and leave half to the host.
_INOTIFY = {"max_inotify_instances": 6, "max_inotify_watches": 4096}
_PENDING_SIGNALS = 256  # POSIX timers count as well
# The entries of /proc that stay visible besides processes. Programs read them to learn how large and how busy the machine is. No namespace
# restricts the other entries to the session: they disclose what else runs on the host, which devices it has, or how it was booted.
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
_EMPTY = "/sys"  # an empty folder of the template root
_TMPFS = Mount.NO_SUID | Mount.NO_DEVICES
# Landlock: a second barrier around files and signals. It holds even if a mount or a namespace does not.
_EXECUTE, _READ_FILE, _READ_DIRECTORY = 1, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIRECTORY
_FIRST_RIGHTS = (1 << 13) - 1
_RIGHT_ADDED_BY_VERSION = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # refer, truncate, device ioctl
_SIGNALS = 2
_SCOPES = 3  # no abstract Unix sockets of, and no signals to, processes outside the domain; since version 6

_ON_FILES = _EXECUTE | 2 | _READ_FILE | 1 << 14 | 1 << 15  # the rights that a rule on a file, not a folder, may name
_TCP = 3  # bind and connect; since version 4

# /mnt and not /mnt/data: a rule belongs to an inode, and a branch mounts another tree at /mnt/data.
WRITABLE = ("/tmp", "/dev", "/mnt")


def enter_namespaces(spawn: Spawn, uid: int) -> list[int]:
    """Move this process into new mount, network, IPC, UTS and cgroup namespaces, then into a new user namespace.

    The user namespace comes last, so this process then has no capabilities over the others. If the session shares the host's network, no
    network namespace is created. If `uid` is 0, the process keeps the zygote's uid. Return the descriptors of the proxy's sockets, if the
    session has a proxy. Raise RefusalError, which names the step, if a step fails.
    """
    proxy_sockets: list[int] = []
    own_network = spawn.network != "host"
    with isolation_step("mount, network, ipc, uts and cgroup namespaces"):
        syscalls.unshare(
            Namespace.MOUNT | Namespace.UTS | Namespace.IPC | Namespace.CGROUP | (Namespace.NETWORK if own_network else Namespace(0))
        )
    if own_network:
        with isolation_step("loopback"):
            network.raise_loopback()
    with isolation_step("session mounts"):
        _mount_session(spawn)
    if spawn.network == "allow":
        # Here, because their buffers get the sizes that were just set, and their ports need privileges.
        with isolation_step("sockets of the proxy"):
            proxy_sockets = network.open_proxy_sockets()
    with isolation_step("session user namespace"):
        _become_guest(uid)
    return proxy_sockets


def set_limits(spawn: Spawn, *, processes: int | None = None) -> None:
    """Set the resource limits of this process and of all that it starts.

    If `processes` is given, it replaces the limit `spawn.processes`. The kernel counts all processes of a user, so the limit must be higher
    if other processes run as the session's user.
    """
    # Preloaded libraries alone map 1.4 GB, so `address_space` is added to what this process has mapped.
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


def drop_privileges(*, memory_is_counted: bool = False, barriers: seccomp.Barriers = seccomp.NAMESPACES) -> None:
    """Drop all capabilities, forbid new privileges and install the seccomp filter. None of it can be undone.

    Args:
        memory_is_counted: Whether a control group counts the session's memory. Only then does the filter allow memfd_create.
        barriers: What else isolates the session, such as namespaces. For each field that is false, the filter refuses more system calls.
    """
    syscalls.no_new_privileges()
    syscalls.drop_capabilities()
    syscalls.install_filter(seccomp.build_filter(memory_is_counted=memory_is_counted, barriers=barriers))


def lock_down(spawn: Spawn) -> int:
    """Apply limits, Landlock and seccomp to this process, the session's interpreter. Return the Landlock version of the kernel.

    Raise RefusalError, which names the step, if a step fails.
    """
    with isolation_step("limits"):
        set_limits(spawn)
    with isolation_step("no_new_privs"):
        syscalls.no_new_privileges()
    with isolation_step("Landlock"):
        version = restrict_files()
    with isolation_step("capabilities and seccomp"):
        drop_privileges(memory_is_counted=spawn.memory_is_counted)
    return version


def restrict_files(readable: Iterable[str] = ("/",), writable: Iterable[str] = WRITABLE, *, tcp: bool = True) -> int:
    """Restrict this process, and all that it starts, to the given paths by Landlock. Return the Landlock version of the kernel.

    `readable` paths may be read and executed, `writable` paths may also be changed. If `tcp` is false, TCP sockets cannot bind or connect
    (from Landlock version 4 on). Raise OSError if this kernel has no Landlock (ENOSYS), or if a path does not exist.
    """
    version = syscalls.landlock_version()
    if version == 0:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    ruleset = syscalls.landlock_ruleset(_attributes(version, tcp))
    for paths, rights in ((readable, _READ), (writable, _rights(version))):
        for path in paths:
            syscalls.landlock_allow(ruleset, path, rights if os.path.isdir(path) else rights & _ON_FILES)
    syscalls.landlock_enforce(ruleset)
    os.close(ruleset)
    return version


def restrict_signals() -> None:
    """Let this process, and all that it starts from now on, signal only each other. Needs Landlock version 6 or newer."""
    ruleset = syscalls.landlock_ruleset(struct.pack("=QQQ", 0, 0, _SIGNALS))
    syscalls.landlock_enforce(ruleset)
    os.close(ruleset)


def close_other_descriptors(*kept: int) -> None:
    """Close every descriptor above 2 except those in `kept`."""
    # os.closerange of Python 3.9, or of one that was built with an old C library, calls close() for each number up to the limit, which may
    # be a billion. It also leaves descriptors above a limit that was lowered.
    start = 3
    for descriptor in sorted(kept):
        if start < descriptor:
            syscalls.close_range(start, descriptor - 1)
        start = descriptor + 1
    syscalls.close_range(start)


def map_ids(inside: int, outside_uid: int, outside_gid: int) -> None:
    """Map the uid and gid `inside` in this process's new user namespace to `outside_uid` and `outside_gid` in the parent namespace."""
    # Without this an unprivileged process may not write gid_map (user_namespaces(7)). It keeps a process from dropping a group that a file
    # denies access to.
    write_file("/proc/self/setgroups", "deny")
    write_file("/proc/self/uid_map", f"{inside} {outside_uid} 1")
    write_file("/proc/self/gid_map", f"{inside} {outside_gid} 1")


def _mount_session(spawn: Spawn) -> None:
    root.mount_tmp(spawn.temporary)
    syscalls.mount("tmpfs", "/dev/shm", "tmpfs", _TMPFS, f"size={spawn.temporary},nr_inodes=16k,mode=1777")
    syscalls.mount("devpts", "/dev/pts", "devpts", Mount.NO_SUID | Mount.NO_EXEC, "newinstance,max=64,ptmxmode=0666,mode=620")
    syscalls.mount("proc", "/proc", "proc", _TMPFS | Mount.NO_EXEC)
    if spawn.network != "host":
        for name in ("tcp_rmem", "tcp_wmem"):  # no resource limit of a session counts the buffers of its sockets
            write_file(f"/proc/sys/net/ipv4/{name}", "4096 65536 262144")
    for name in os.listdir("/proc"):
        if not name.isdecimal() and name not in _SHOWN:
            _hide(f"/proc/{name}")
    for name in _HIDDEN_SETTINGS:
        _hide(f"/proc/sys/{name}")
    if spawn.authority:
        certificates.mount_bundle(spawn.authority)
    syscalls.mount(f"{root.SESSIONS}/{spawn.tree}", DATA, None, Mount.BIND)
    syscalls.unmount(root.SESSIONS)


def _hide(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # some kernels lack it
        syscalls.mount(_EMPTY if os.path.isdir(path) else "/dev/null", path, None, Mount.BIND)


def _become_guest(uid: int) -> None:
    """Change to the user `uid`, unless it is 0. Then enter a new user namespace, in which this process has the uid `GUEST_ID` (1000)."""
    if uid:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    # The zygote is not dumpable, and a change of uid clears the flag: /proc/self would belong to root and uid_map could not be written.
    syscalls.set_dumpable(True)
    syscalls.unshare(Namespace.USER)
    map_ids(GUEST_ID, uid, uid)
    for name, most in _INOTIFY.items():
        write_file(f"/proc/sys/user/{name}", str(most))


def _address_space() -> int:
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[0]) * resource.getpagesize()


def write_file(path: str, text: str) -> None:
    """Write `text` to a file with a single write(2), because some files of /proc accept no second write."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _attributes(version: int, tcp: bool) -> bytes:
    attributes = struct.pack("=QQQ", _rights(version), 0 if tcp else _TCP, _SCOPES)
    return attributes if version >= 6 else attributes[: 16 if version >= 4 else 8]


def _rights(version: int) -> int:
    return _FIRST_RIGHTS | sum(right for since, right in _RIGHT_ADDED_BY_VERSION.items() if version >= since)
