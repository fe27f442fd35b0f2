"""A process that cleans up when this process ends, however it ends, or earlier on request."""

import contextlib
import socket
import subprocess

_SECONDS = 10.0


class Janitor:
    """A shell that waits for a line or the end of its input, and then cleans up. A shell is small and starts at once."""

    def __init__(self, script: str, *arguments: str) -> None:
        """Start the shell.

        Args:
            script: What the shell runs. It must begin with `read _`, which waits.
            arguments: The script's `$1` and so on.
        """
        # A socket and not a pipe: a process that was forked from this one has the end open as well, so the shell would not notice a close.
        # `finish` shuts the socket down, which no copy prevents.
        self._link, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", script, "aca-sessions-janitor", *arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            self._link.close()
            raise
        finally:
            theirs.close()

    def finish(self) -> None:
        """Make the shell clean up now, and wait until it has. Kill it if that takes longer than 10 s."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
