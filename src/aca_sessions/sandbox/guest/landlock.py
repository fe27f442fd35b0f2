"""Landlock: a second wall around files and signals, which holds even where a mount or a namespace would not."""

import os
import struct
from collections.abc import Iterable

from .. import syscalls

_EXECUTE, _READ_FILE, _READ_DIRECTORY = 1, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIRECTORY
_FIRST_RIGHTS = (1 << 13) - 1
_RIGHT_ADDED_BY_VERSION = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # refer, truncate, device ioctl
_SCOPES = 3  # no abstract sockets and no signals to processes outside: from version 6 on

_ON_FILES = _EXECUTE | 2 | _READ_FILE | 1 << 14 | 1 << 15  # what a rule on a file may name
_TCP = 3  # bind and connect: from version 4 on

# /mnt, not /mnt/data: rules bind to inodes, and what is mounted at /mnt/data may be swapped for another tree.
WRITABLE = ("/tmp", "/dev", "/mnt")


def restrict(readable: Iterable[str] = ("/",), writable: Iterable[str] = WRITABLE, *, tcp: bool = True) -> int:
    """Leaves this process read access and write access to what is named; answers the version in force."""
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


def _attributes(version: int, tcp: bool) -> bytes:
    attributes = struct.pack("=QQQ", _rights(version), 0 if tcp else _TCP, _SCOPES)
    return attributes if version >= 6 else attributes[: 16 if version >= 4 else 8]


def _rights(version: int) -> int:
    return _FIRST_RIGHTS | sum(right for since, right in _RIGHT_ADDED_BY_VERSION.items() if version >= since)
