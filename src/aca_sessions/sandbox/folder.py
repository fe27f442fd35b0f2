"""The folder of sessions that have no namespaces, and so no root of their own; it is removed whatever ends this process."""

import fcntl
import os
import tempfile

from .janitor import Janitor

# Waits for the host's end, then for that of the sessions, who may still write. A shell is small and starts at once.
_JANITOR = 'read _; n=0; while [ $n -lt 25 ] && [ -e "$1" ]; do chmod -R u+rwX -- "$1"; rm -rf -- "$1"; n=$((n+1)); sleep 0.1; done'


class Folder:
    """A folder in which others find only what they know the name of and may see."""

    def __init__(self) -> None:
        """Makes it."""
        self.path = tempfile.mkdtemp(prefix="aca-sessions-")
        os.chmod(self.path, 0o711)  # noqa: S103 (to be gone through, not listed)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # who clears old files away passes by what is locked (systemd-tmpfiles(8))
        self._janitor = Janitor(_JANITOR, self.path)

    def remove(self) -> None:
        """The sessions have ended."""
        os.close(self._lock)
        self._janitor.finish()
