"""The few Linux system calls that Python lacks, through ctypes. Host and guest both use them. Most failures raise OSError."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from enum import IntFlag

MACHINE = os.uname().machine

# System calls that glibc wraps late or never, for x86_64 and aarch64. From 424 on the numbers are the same everywhere.
_NUMBERS = {
    "pivot_root": (155, 41),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
ARCHITECTURES = ("x86_64", "aarch64")


class Namespace(IntFlag):
    """The flags CLONE_NEW* of unshare(2) and setns(2)."""

    MOUNT = 0x0002_0000
    CGROUP = 0x0200_0000
    UTS = 0x0400_0000
    IPC = 0x0800_0000
    USER = 0x1000_0000
    PID = 0x2000_0000
    NETWORK = 0x4000_0000


class Mount(IntFlag):
    """The flags MS_* of mount(2)."""

    READ_ONLY = 1
    NO_SUID = 2
    NO_DEVICES = 4
    NO_EXEC = 8
    REMOUNT = 32
    BIND = 4096
    RECURSIVE = 16384
    PRIVATE = 1 << 18


class Resolve(IntFlag):
    """The rules RESOLVE_* of openat2(2)."""

    NO_OTHER_MOUNT = 1
    NO_MAGIC_LINKS = 2
    NO_LINKS = 4
    BENEATH = 8


_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 24, 36, 38, 47
_DETACH = 2
_OPEN_TREE_CLONE, _MOVE_MOUNT_FROM_DESCRIPTOR = 1, 4
_AT_RECURSIVE, _AT_EMPTY_PATH = 0x8000, 0x1000
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL, _RETURN_ERRNO = 1, 2, 0x0005_0000
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_LAST_DESCRIPTOR = (1 << 32) - 1  # close_range(2)

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(namespaces: Namespace) -> None:
    """Create new namespaces of the given kinds for this process, as unshare(2) does."""
    _checked(_libc.unshare(ctypes.c_int(namespaces)), f"unshare {namespaces!r}")


def setns(descriptor: int, namespace: Namespace) -> None:
    """Move this thread into a namespace. `descriptor` is an open file of the namespace, or a pidfd of a process in it."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(namespace)), f"setns {namespace!r}")


def mount(source: str | None, target: str, kind: str | None, flags: Mount, data: str | None = None) -> None:
    """Mount `source` at `target`, as mount(2) does. `kind` is the type of the file system, and `data` are its options."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    status = _libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3])
    _checked(status, f"mount {kind or flags!r} on {target}")


def harden_mount(target: str, *, read_only: bool) -> None:
    """Make the kernel ignore set-user-id bits and devices in a mount and all mounts below it. Forbid writing too if `read_only` is set."""
    flags = Mount.NO_SUID | Mount.NO_DEVICES | (Mount.READ_ONLY if read_only else 0)
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    _call("mount_setattr", -100, os.fsencode(target), _AT_RECURSIVE, attributes, len(attributes))


def unmount(target: str) -> None:
    """Detach a mount and all mounts below it at once. Processes that have files open there can still use them."""
    _checked(_libc.umount2(os.fsencode(target), _DETACH), f"umount {target}")


def open_tree(path: str) -> int:
    """Copy the mount at a path, and return a descriptor of the copy. It is not visible at any path until `move_mount`."""
    return _call("open_tree", -100, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)


def move_mount(mount: int, target: str) -> None:
    """Make a mount from `open_tree`, given its descriptor, visible at a path."""
    _call("move_mount", mount, b"", -100, os.fsencode(target), _MOVE_MOUNT_FROM_DESCRIPTOR)


def pivot_root_here() -> None:
    """Make the working directory the root, and detach the old root."""
    _call("pivot_root", b".", b".")
    unmount(".")
    os.chdir("/")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Make the kernel send signal `number` to this process when the parent thread that forked it ends. A change of uid cancels this."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Make this process the new parent of each descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(wanted: bool) -> None:
    """Set whether processes of the same user may trace this one. If they may not, root owns its entries in /proc.

    A change of uid resets this to False.
    """
    _prctl(_PR_SET_DUMPABLE, int(wanted))


def no_new_privileges() -> None:
    """Make execve(2) ignore set-user-id and file capabilities in this thread and all that it starts. This cannot be undone."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Drop all capabilities permanently. The bounding set is emptied only if this process has CAP_SETPCAP."""
    drop_bounding_set()
    _prctl(_PR_CAP_AMBIENT, 4)
    _call("capset", struct.pack("=II", _CAPABILITY_VERSION_3, 0), bytes(24))


def drop_bounding_set() -> None:
    """Empty the bounding set, so that programs get no file capabilities (capabilities(7)). Do nothing without CAP_SETPCAP."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # past the last capability of this kernel, or not permitted


def install_filter(program: bytes) -> None:
    """Install a seccomp filter (classic BPF) for this thread and all that it starts."""
    buffer = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, description)


def check_filters() -> None:
    """Raise OSError if this kernel has no seccomp filters."""
    _call("seccomp", _SECCOMP_GET_ACTION_AVAIL, 0, struct.pack("=I", _RETURN_ERRNO))


def landlock_version() -> int:
    """Return the Landlock ABI version of this kernel, or 0 if it has no Landlock."""
    return max(0, int(_libc.syscall(_number("landlock_create_ruleset"), None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def landlock_ruleset(attributes: bytes) -> int:
    """Create a Landlock rule set from a packed `struct landlock_ruleset_attr`, and return its descriptor."""
    return _call("landlock_create_ruleset", attributes, len(attributes), 0)


def landlock_allow(ruleset: int, path: str, access: int) -> None:
    """Allow some kinds of access to everything below a path, by a new rule in a rule set. `access` holds LANDLOCK_ACCESS_FS_* flags."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call("landlock_add_rule", ruleset, 1, struct.pack("=QI", access, descriptor), 0)
    finally:
        os.close(descriptor)


def landlock_enforce(ruleset: int) -> None:
    """Restrict this thread and all that it starts to a rule set. This cannot be undone."""
    _call("landlock_restrict_self", ruleset, 0)


def openat2(directory: int, path: str, flags: int, mode: int, resolve: Resolve) -> int:
    """Open a path below a directory, and return its descriptor.

    The kernel itself enforces `resolve`, so that no change of the path can race with a check.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode if flags & os.O_CREAT else 0, resolve)
    return _call("openat2", directory, os.fsencode(path), how, len(how))


def close_range(first: int, last: int | None = None) -> None:
    """Close the open descriptors from `first` to `last`. If `last` is None, close all from `first` on."""
    _call("close_range", first, _LAST_DESCRIPTOR if last is None else last, 0)


def reserve(descriptor: int, start: int, length: int) -> None:
    """Allocate memory for a part of a file, so that writing there cannot fail for lack of space.

    The file's size and content do not change.
    """
    _fallocate(descriptor, _KEEP_SIZE, start, length)


def punch_hole(descriptor: int, start: int, length: int) -> None:
    """Turn a part of a file into zeros that take no space."""
    _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, length)


def set_filesystem_ids(uid: int, gid: int) -> None:
    """Make this thread access files with the rights of another user. Other threads of the process are not changed.

    The kernel does not report failures.
    """
    # The gid first: without the uid it could not be changed. Neither call reports an error: setfsuid(2).
    _libc.syscall(_number("setfsgid"), ctypes.c_uint(gid))
    _libc.syscall(_number("setfsuid"), ctypes.c_uint(uid))


def set_line_buffered() -> None:
    """Make C's stdout line-buffered, so that output of C, Python and child processes keeps the order in which it was written."""
    _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, "stdout"), None, 1, ctypes.c_size_t(0))


def flush_c_streams() -> None:
    """Flush the output that C code has buffered."""
    _libc.fflush(None)


def set_host_name(name: bytes) -> None:
    """Set the host name of this UTS namespace."""
    _checked(_libc.sethostname(name, ctypes.c_size_t(len(name))), "sethostname")


def _fallocate(descriptor: int, mode: int, start: int, length: int) -> None:
    while True:
        try:
            status = _libc.fallocate(ctypes.c_int(descriptor), ctypes.c_int(mode), ctypes.c_int64(start), ctypes.c_int64(length))
            _checked(status, "fallocate")
            return
        except InterruptedError:  # tmpfs gives up at any signal: repeat it
            continue


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _number(name: str) -> int:
    if MACHINE not in ARCHITECTURES:
        raise OSError(38, f"cannot call {name}: the processor must be one of {', '.join(ARCHITECTURES)}, got {MACHINE}")
    return _NUMBERS[name][ARCHITECTURES.index(MACHINE)]


def _call(name: str, *arguments: int | bytes) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(_libc.syscall(ctypes.c_long(_number(name)), *converted), name)


def _checked(status: int, what: str) -> int:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return status
