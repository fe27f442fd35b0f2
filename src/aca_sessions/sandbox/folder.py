"""The folder on disk for sessions without namespaces, which have no root of their own. It is removed however this process ends."""

import fcntl
import os
import tempfile

from .janitor import Janitor

# Waits until this process has ended, and removes the folder. Sessions may still be ending and writing, so it tries for 2.5 s.
_JANITOR = 'read _; n=0; while [ $n -lt 25 ] && [ -e "$1" ]; do chmod -R u+rwX -- "$1"; rm -rf -- "$1"; n=$((n+1)); sleep 0.1; done'


class Folder:
    """A temporary folder that other users cannot list: they reach only what they know the name of and have rights to."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="aca-sessions-")
        os.chmod(self.path, 0o711)  # noqa: S103 (others may pass through it, not list it)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # systemd-tmpfiles(8) deletes old files, except below a locked folder
        self._janitor = Janitor(_JANITOR, self.path)

    def remove(self) -> None:
        """Remove the folder, once the sessions have ended."""
        os.close(self._lock)
        self._janitor.finish()
