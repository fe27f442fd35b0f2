"""Bind mounts."""

import errno
import os
from pathlib import Path

from .. import syscalls
from ..syscalls import Mount


def bind(source: str, target: str, *, writable: bool = False) -> None:
    """Mount a file or folder at a target, without device nodes and set-user-id programs.

    Missing folders and the mount point are created. The mount is read-only unless `writable` is true.
    """
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    try:
        syscalls.mount(source, target, None, Mount.BIND)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A mount below the source is locked: the kernel refuses a bind that would uncover what it hides (mount_namespaces(7),
        # "Restrictions on mount namespaces"). A recursive bind takes the mount along.
        syscalls.mount(source, target, None, Mount.BIND | Mount.RECURSIVE)
    syscalls.harden_mount(target, read_only=not writable)
