"""Clears something away when this process ends, whatever ends it, or earlier when asked."""

import contextlib
import socket
import subprocess

_SECONDS = 10.0


class Janitor:
    """A shell that waits for a line or the end of its input, and then clears away. It is small and starts at once."""

    def __init__(self, script: str, *arguments: str) -> None:
        """Start it; the script begins with `read _`."""
        # A socket and not a pipe: a process that was forked from this one has the end open as well, so closing it would not be seen.
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
        """Have it clear away now, and wait until it has."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
