"""The few Linux calls that Python lacks, through ctypes; both sides of the wall use them."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from enum import IntFlag

MACHINE = os.uname().machine

# Calls that glibc wraps late or never: x86_64, aarch64. From 424 on the numbers are the same everywhere.
_NUMBERS = {
    "pivot_root": (155, 41),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
ARCHITECTURES = ("x86_64", "aarch64")


class Namespace(IntFlag):
    """CLONE_NEW* of unshare(2) and setns(2)."""

    MOUNT = 0x0002_0000
    CGROUP = 0x0200_0000
    UTS = 0x0400_0000
    IPC = 0x0800_0000
    USER = 0x1000_0000
    PID = 0x2000_0000
    NETWORK = 0x4000_0000


class Mount(IntFlag):
    """MS_* of mount(2)."""

    READ_ONLY = 1
    NO_SUID = 2
    NO_DEVICES = 4
    NO_EXEC = 8
    REMOUNT = 32
    BIND = 4096
    RECURSIVE = 16384
    PRIVATE = 1 << 18


class Resolve(IntFlag):
    """RESOLVE_* of openat2(2)."""

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

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(namespaces: Namespace) -> None:
    """Leaves the given namespaces for new ones."""
    _checked(_libc.unshare(ctypes.c_int(namespaces)), f"unshare {namespaces!r}")


def setns(descriptor: int, namespace: Namespace) -> None:
    """Enters the namespace that the descriptor names."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(namespace)), f"setns {namespace!r}")


def mount(source: str | None, target: str, kind: str | None, flags: Mount, data: str | None = None) -> None:
    """Mounts as mount(2) does."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    status = _libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3])
    _checked(status, f"mount {kind or flags!r} on {target}")


def harden_mount(target: str, *, read_only: bool) -> None:
    """Takes set-user-id programs and devices from a mount and all below it, and the right to write if need be."""
    flags = Mount.NO_SUID | Mount.NO_DEVICES | (Mount.READ_ONLY if read_only else 0)
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    _call("mount_setattr", -100, os.fsencode(target), _AT_RECURSIVE, attributes, len(attributes))


def unmount(target: str) -> None:
    """Takes a mount and all below it out of sight; it ends when its last user does."""
    _checked(_libc.umount2(os.fsencode(target), _DETACH), f"umount {target}")


def open_tree(path: str) -> int:
    """A descriptor of a copy of a mount, which is in no namespace yet."""
    return _call("open_tree", -100, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)


def move_mount(mount: int, target: str) -> None:
    """Mounts what a descriptor names."""
    _call("move_mount", mount, b"", -100, os.fsencode(target), _MOVE_MOUNT_FROM_DESCRIPTOR)


def pivot_root_here() -> None:
    """Makes the working directory the root and lets go of the old one."""
    _call("pivot_root", b".", b".")
    unmount(".")
    os.chdir("/")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """A signal for this process when the thread that forked it ends. A change of uid clears it: call again."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Makes this process the parent of whatever below it loses its own."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(wanted: bool) -> None:
    """Whether processes of the same user may trace this one; if not, its entries in /proc belong to root. A change of uid takes it away."""
    _prctl(_PR_SET_DUMPABLE, int(wanted))


def no_new_privileges() -> None:
    """From here on no execve gives anything that this process does not have."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Gives up every capability, in every set, for good; what bounds programs only while that may be done."""
    drop_bounding_set()
    _prctl(_PR_CAP_AMBIENT, 4)
    _call("capset", struct.pack("=II", _CAPABILITY_VERSION_3, 0), bytes(24))


def drop_bounding_set() -> None:
    """Lets no program that is run from here on have a capability from its file."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # past the last one that this kernel knows


def install_filter(program: bytes) -> None:
    """Installs a seccomp filter (classic BPF) for this process and all that come from it."""
    buffer = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, description)


def check_filters() -> None:
    """OSError where this kernel takes no seccomp filter."""
    _call("seccomp", _SECCOMP_GET_ACTION_AVAIL, 0, struct.pack("=I", _RETURN_ERRNO))


def landlock_version() -> int:
    """The Landlock version of this kernel; 0 where it has none."""
    return max(0, int(_libc.syscall(_number("landlock_create_ruleset"), None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def landlock_ruleset(attributes: bytes) -> int:
    """A descriptor of a new Landlock rule set."""
    return _call("landlock_create_ruleset", attributes, len(attributes), 0)


def landlock_allow(ruleset: int, path: str, access: int) -> None:
    """Adds what may be done beneath a path."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call("landlock_add_rule", ruleset, 1, struct.pack("=QI", access, descriptor), 0)
    finally:
        os.close(descriptor)


def landlock_enforce(ruleset: int) -> None:
    """Binds this process and all that come from it to the rule set."""
    _call("landlock_restrict_self", ruleset, 0)


def openat2(directory: int, path: str, flags: int, mode: int, resolve: Resolve) -> int:
    """Opens a path below a directory under rules that the kernel itself keeps: no look-up to be raced."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode if flags & os.O_CREAT else 0, resolve)
    return _call("openat2", directory, os.fsencode(path), how, len(how))


def reserve(descriptor: int, start: int, length: int) -> None:
    """Give a part of a file memory of its own, without a change to its size and content: to write there can no longer fail for space."""
    _fallocate(descriptor, _KEEP_SIZE, start, length)


def punch_hole(descriptor: int, start: int, length: int) -> None:
    """Make a part of a file zeros that take no space."""
    _fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, length)


def set_filesystem_ids(uid: int, gid: int) -> None:
    """Makes this thread alone act on files as another user (the gid first: without the uid it could not)."""
    _libc.syscall(_number("setfsgid"), ctypes.c_uint(gid))
    _libc.syscall(_number("setfsuid"), ctypes.c_uint(uid))


def set_line_buffered() -> None:
    """Makes C's stdout line-buffered, so that C, Python and child processes write in true order."""
    _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, "stdout"), None, 1, ctypes.c_size_t(0))


def flush_c_streams() -> None:
    """Writes out what C code has buffered."""
    _libc.fflush(None)


def set_host_name(name: bytes) -> None:
    """Names this UTS namespace."""
    _checked(_libc.sethostname(name, ctypes.c_size_t(len(name))), "sethostname")


def _fallocate(descriptor: int, mode: int, start: int, length: int) -> None:
    while True:
        try:
            status = _libc.fallocate(ctypes.c_int(descriptor), ctypes.c_int(mode), ctypes.c_int64(start), ctypes.c_int64(length))
            _checked(status, "fallocate")
            return
        except InterruptedError:  # tmpfs gives up at any signal
            continue


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _number(name: str) -> int:
    if MACHINE not in ARCHITECTURES:
        raise OSError(38, f"{name}: no system call table for {MACHINE}")
    return _NUMBERS[name][ARCHITECTURES.index(MACHINE)]


def _call(name: str, *arguments: int | bytes) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(_libc.syscall(ctypes.c_long(_number(name)), *converted), name)


def _checked(status: int, what: str) -> int:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return status
