"""The folder of sessions that have no namespaces, and so no root of their own; it is removed whatever ends this process."""

import os
import subprocess
import tempfile

# Waits for the host's end, then for that of the sessions, who may still write. A shell is small and starts at once.
_JANITOR = 'read _; n=0; while [ $n -lt 25 ] && [ -e "$1" ]; do chmod -R u+rwX -- "$1"; rm -rf -- "$1"; n=$((n+1)); sleep 0.1; done'


class Folder:
    """A folder in which others find only what they know the name of and may see."""

    def __init__(self) -> None:
        """Makes it."""
        self.path = tempfile.mkdtemp(prefix="aca-sessions-")
        os.chmod(self.path, 0o711)  # noqa: S103 (to be gone through, not listed)
        arguments = ["/bin/sh", "-c", _JANITOR, "aca-sessions-janitor", self.path]
        self._janitor = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin"},
            cwd="/",
            start_new_session=True,
        )

    def remove(self) -> None:
        """The sessions have ended."""
        if self._janitor.stdin is not None:
            self._janitor.stdin.close()
        self._janitor.wait()
