"""Shows a file or folder at another place."""

import errno
import os
from pathlib import Path

from .. import syscalls
from ..syscalls import Mount


def bind(source: str, target: str, *, writable: bool = False) -> None:
    """Shows a source at a target, which is made if need be: without devices and set-user-id programs, read-only unless asked otherwise."""
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
        # Something is mounted below it that may not be shown without (mount_namespaces(7), "Restrictions").
        syscalls.mount(source, target, None, Mount.BIND | Mount.RECURSIVE)
    syscalls.harden_mount(target, read_only=not writable)
