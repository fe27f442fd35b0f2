"""The audit log: a file of JSON lines that is only appended to. A full disk is logged as an error, and fails no request."""

import errno
import json
import logging
import os
import stat
from datetime import UTC, datetime

from .. import telemetry
from ..errors import ConfigurationError

_logger = logging.getLogger("aca_sessions")
_OTHERS = 0o077


class AuditLog:
    """One file that only its owner can read. If it is moved away to rotate it, the next event is written to a new file."""

    def __init__(self, path: str) -> None:
        """Open the file. Raise ConfigurationError if it cannot be written, or if others may read or write it."""
        self._path = path
        self._torn = False
        self._lost = 0
        try:
            self._file = self._opened()
        except OSError as error:
            raise ConfigurationError(f"ACASessions:Audit:File: {path} cannot be written ({error.strerror}): name another file") from None
        found = os.fstat(self._file)
        if stat.S_ISREG(found.st_mode) and found.st_mode & _OTHERS:
            os.close(self._file)
            raise ConfigurationError(f"ACASessions:Audit:File: others may read or write {path}: run chmod 600 on it")

    def write(self, event: str, **fields: object) -> None:
        """Append an event. An event that cannot be written is counted; the first one is logged as an error.

        The next event that is written has the number of lost ones in `lost_before`.
        """
        if self._lost:
            fields["lost_before"] = self._lost
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        line = json.dumps(told, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            self._lose(error)
        else:
            self._lost = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        """Append a line in one write(2), so that lines of several processes do not mix.

        If a full disk cut off the line before, that line is ended first.
        """
        self._reopen_if_moved()
        whole = b"\n" + line if self._torn else line
        written = os.write(self._file, whole)
        self._torn = written < len(whole) and (written > 0 or self._torn)
        if written < len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _lose(self, error: OSError) -> None:
        self._lost += 1
        telemetry.audit_lost()
        if self._lost == 1:
            _logger.error("the audit log cannot be written (%s): events are lost until it can", error.strerror)

    def _reopen_if_moved(self) -> None:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._file)):
            moved, self._file = self._file, self._opened()
            self._torn = False
            os.close(moved)

    def _opened(self) -> int:
        # O_NONBLOCK: if the path is a FIFO, neither a missing nor a slow reader can block the server (fifo(7)).
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
