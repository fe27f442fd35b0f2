"""The audit log: a file of JSON lines that is appended to and never read. A disk that is full is told, and stops nobody."""

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
    """One file, of its owner alone. Whoever moves it away to rotate it finds the next event in a new one."""

    def __init__(self, path: str) -> None:
        """Opens it; ConfigurationError where it cannot be written, or where others may read it."""
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
        """Appends an event. One that cannot be written is counted, and told once until writing succeeds again."""
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
        """Nothing more is written."""
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        """In one call, so that lines of several processes do not mix; what a full disk cut off gets an end of its own."""
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
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
