"""Landlock rules: a second barrier around files and signals. It holds even if a mount or a namespace does not."""

import os
import struct
from collections.abc import Iterable

from .. import syscalls

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


def restrict(readable: Iterable[str] = ("/",), writable: Iterable[str] = WRITABLE, *, tcp: bool = True) -> int:
    """Restrict this process, and all that it starts, to the named paths. Return the Landlock version in force.

    Args:
        readable: Files and folders that may be read and executed.
        writable: Files and folders that may also be changed.
        tcp: Whether TCP sockets may bind and connect. Landlock before version 4 cannot forbid it.

    Raises:
        OSError: This kernel has no Landlock (ENOSYS), or a path does not exist.
    """
    version = syscalls.landlock_version()
    if version == 0:
        raise OSError(38, "this kernel has no Landlock")
    ruleset = syscalls.landlock_ruleset(_attributes(version, tcp))
    for paths, rights in ((readable, _READ), (writable, _rights(version))):
        for path in paths:
            syscalls.landlock_allow(ruleset, path, rights if os.path.isdir(path) else rights & _ON_FILES)
    syscalls.landlock_enforce(ruleset)
    os.close(ruleset)
    return version


def keep_signals_inside() -> None:
    """Forbid this process, and all that it starts, to signal any process outside. Needs Landlock version 6."""
    ruleset = syscalls.landlock_ruleset(struct.pack("=QQQ", 0, 0, _SIGNALS))
    syscalls.landlock_enforce(ruleset)
    os.close(ruleset)


def _attributes(version: int, tcp: bool) -> bytes:
    attributes = struct.pack("=QQQ", _rights(version), 0 if tcp else _TCP, _SCOPES)
    return attributes if version >= 6 else attributes[: 16 if version >= 4 else 8]


def _rights(version: int) -> int:
    return _FIRST_RIGHTS | sum(right for since, right in _RIGHT_ADDED_BY_VERSION.items() if version >= since)
