"""The metrics of one server about its sessions, its log of refused requests, and its audit log if there is one.

Names of sessions are hashed. Output and files are never written, and the code of cells only if `audit_code` is set.
"""

import errno
import json
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime

from starlette.types import Scope

from .. import telemetry
from ..contract.records import ExecutionRequest, ProblemError, RefusedRequests
from ..errors import ConfigurationError
from ..hosting import ACCEPTED_KEY, Hosting, key_digits
from ..models import CodeExecutionResult
from ..sandbox.proxy.session_network import NetworkRecord
from .guard import RefusalLog, Throttle, client_address, store_bounded

_logger = logging.getLogger("aca_sessions")
_OTHERS = 0o077


class AuditLog:
    """The audit log: a file with one JSON object on each line. Only the file's owner can read it.

    If the file is moved away (log rotation), the next line goes to a new file at the path.
    """

    def __init__(self, path: str) -> None:
        """Open the file, or create it. Raise ConfigurationError if it cannot be written, or if others may read or write it."""
        self._path = path
        self._has_partial_line = False
        self._lost_count = 0
        try:
            self._file = self._open()
        except OSError as error:
            raise ConfigurationError(f"ACASessions:Audit:File: {path} cannot be written ({error.strerror}): name another file") from error
        found = os.fstat(self._file)
        if stat.S_ISREG(found.st_mode) and found.st_mode & _OTHERS:
            os.close(self._file)
            mode = stat.S_IMODE(found.st_mode)
            raise ConfigurationError(f"ACASessions:Audit:File: {path} must be for this user alone, got mode {mode:o}: run chmod 600 on it")

    def write(self, event: str, **fields: object) -> None:
        """Append an event with the current time and the given fields.

        If the file cannot be written, raise nothing and count the event as lost. The next event that is written has the number of lost
        events in `lost_before`. Of several failures in a row, only the first is reported in the server's own log.
        """
        if self._lost_count:
            fields["lost_before"] = self._lost_count
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        line = json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            self._count_lost(error)
        else:
            self._lost_count = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        """Append a line in one write(2), so that lines of several processes do not mix. Raise OSError if it cannot be written completely.

        If the disk was full and the previous line was cut off, write a newline first.
        """
        self._reopen_if_moved()
        whole = b"\n" + line if self._has_partial_line else line
        written = os.write(self._file, whole)
        self._has_partial_line = written < len(whole) and (written > 0 or self._has_partial_line)
        if written < len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _count_lost(self, error: OSError) -> None:
        self._lost_count += 1
        telemetry.count_lost_audit_event()
        if self._lost_count == 1:
            _logger.error(
                "cannot write to the audit log %s (%s): events are lost until it can be written again", self._path, error.strerror
            )

    def _reopen_if_moved(self) -> None:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._file)):
            moved, self._file = self._file, self._open()
            self._has_partial_line = False
            os.close(moved)

    def _open(self) -> int:
        # O_NONBLOCK: if the path is a FIFO, neither a missing nor a slow reader can block the server (fifo(7)).
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


_AUDITED_REFUSALS = 20, 1.0  # refusals, and the seconds in which there may be so many
# The most lines in `_NETWORK_SECONDS` about refused (True) and other (False) requests: of one session, and of all sessions together.
# A session can make thousands of requests a second.
_NETWORK_LINES = {True: (60, 1200), False: (300, 6000)}
_NETWORK_SECONDS = 60.0
_MAX_HOST = 253  # characters; the session's code chose the host
_MAX_REFUSED = 50  # kinds of refused requests that are listed for a session


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request: the client's address if it has one, and the key that was accepted if one was needed."""

    address: str | None = None
    key: str | None = field(default=None, repr=False)


# The ASGI scope of the request that is handled, also in the tasks that it starts. It is read only when an event is written.
current_request: ContextVar[Scope | None] = ContextVar("current_request", default=None)


def current_caller() -> Caller:
    """Return the sender of the request that is being handled."""
    scope = current_request.get()
    return Caller(client_address(scope), scope.get("state", {}).get(ACCEPTED_KEY)) if scope else Caller()


class Journal:
    """The audit log of one server, and the metrics about its sessions and refused requests."""

    def __init__(self, hosting: Hosting) -> None:
        self._audit = AuditLog(hosting.audit) if hosting.audit else None
        self.has_audit_log = self._audit is not None
        self._with_code = hosting.audit_code
        self._refusal_throttle = Throttle(*_AUDITED_REFUSALS)
        self._refusal_log = RefusalLog()
        self._network_throttles = {refused: Throttle(most, _NETWORK_SECONDS) for refused, (_, most) in _NETWORK_LINES.items()}

    def record_session_start(self, identifier: str) -> None:
        """Record the start of a session."""
        telemetry.count_session_start()
        self._write("session_begun", identifier, {})

    def record_session_end(self, identifier: str, reason: str, seconds: float) -> None:
        """Record the end of a session: its reason, and how many seconds the session lasted."""
        telemetry.count_session_end(reason)
        # Unless the reason is "deleted", the request that is being handled belongs to another session, or there is none.
        caller = current_caller() if reason == "deleted" else Caller()
        self._write("session_ended", identifier, {"reason": reason, "seconds": round(seconds, 3)}, caller)

    def record_cell(self, identifier: str, call: ExecutionRequest, result: CodeExecutionResult) -> None:
        """Write to the audit log how a cell ended: outcome, state, sizes, duration; and its code if `audit_code` is set."""
        sizes = {"code_length": len(call.code), "stdout_length": len(result.stdout), "stderr_length": len(result.stderr)}
        verdict = {"outcome": telemetry.outcome_of(result), "state": result.state.kind, "reason": result.state.reason}
        code = {"code": call.code} if self._with_code else {}
        shown = {"displays": len(result.displays), "seconds": round(result.duration, 6)}
        self._write("cell", identifier, {**verdict, **sizes, **shown, **code})

    def record_request(self, event: str, identifier: str, seconds: float, fields: Mapping[str, object]) -> None:
        """Write an event about a successful request that ran no cell, such as an upload, to the audit log.

        `fields` are written with the event, and so is `seconds`, the duration of the request.
        """
        self._write(event, identifier, {**fields, "seconds": round(seconds, 6)})

    def record_refusal(self, problem: ProblemError, route: str, identifier: str | None = None) -> None:
        """Record a refused request: count it in the metrics, and write it to the log and to the audit log.

        At most 20 refusals a second are written to the audit log. The next one has the number of those that were left out.

        Args:
            problem: The error that was sent.
            route: The method and the pattern of the path.
            identifier: The session's identifier, which is written as a hash.
        """
        if problem.code in telemetry.REFUSALS:
            telemetry.count_refusal(problem.code)
        self._refusal_log.write(problem, route, current_caller().address)
        if self._audit is not None and (left_out := self._refusal_throttle.admit()) is not None:
            fields = {"status": problem.status, "code": problem.code, "route": route}
            self._write("refusal", identifier, fields | ({"unsaid_before": left_out} if left_out else {}))

    def network_recorder(self, identifier: str) -> "NetworkRecorder":
        """Return an object that records what a session does on the network."""
        return NetworkRecorder(self, identifier)

    def write_network(self, identifier: str, fields: Mapping[str, object], *, refused: bool | None = None) -> bool:
        """Write to the audit log a line about the network of a session, unless there were too many. Return whether it was written.

        `refused` selects the limit: that of lines about refused requests, or that of others. If it is None, write the line in any case.
        """
        if self._audit is None or (refused is not None and self._network_throttles[refused].admit() is None):
            return False
        # An empty caller: the tasks of the proxy belong to the request that started the session, not to that of the cell.
        self._write("network", identifier, fields, Caller())
        return True

    def close(self) -> None:
        """Write to the server's log how many refused requests it left out, and close the audit log."""
        self._refusal_log.close()
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    def _write(self, event: str, identifier: str | None, fields: Mapping[str, object], caller: Caller | None = None) -> None:
        if self._audit is not None:
            caller = caller or current_caller()
            key = key_digits(caller.key) if caller.key else None
            session = telemetry.hash_name(identifier) if identifier else None
            self._audit.write(event, key=key, client=caller.address, session=session, **fields)


class NetworkRecorder:
    """Records what one session and its branches do on the network, in the metrics and in the audit log, if it is on.

    At most 300 lines a minute are written to the audit log, and 60 about refusals. The next line has the number of omitted lines.
    """

    def __init__(self, journal: Journal, identifier: str) -> None:
        self._journal = journal
        self._identifier = identifier
        self._throttles = {refused: Throttle(most, _NETWORK_SECONDS) for refused, (most, _) in _NETWORK_LINES.items()}
        self._left_out = 0
        self._refused: OrderedDict[tuple[str, int, str | None, str], tuple[int, datetime]] = OrderedDict()

    def record(self, record: NetworkRecord) -> None:
        """Record a request or a connection that has ended or was refused."""
        telemetry.count_network_use(record.decision, record.sent, record.received)
        if record.decision == "refused":
            key = record.host[:_MAX_HOST], record.port, record.method, record.reason or ""
            count, _ = self._refused.pop(key, (0, None))
            store_bounded(self._refused, key, (count + 1, datetime.now(UTC)), most=_MAX_REFUSED)
        if not self._journal.has_audit_log:
            return
        refused = record.decision == "refused"
        fields: dict[str, object] = {"decision": record.decision, "host": record.host[:_MAX_HOST] or None, "port": record.port or None}
        fields |= {"method": record.method, "status": record.status, "reason": record.reason}
        if not refused:
            fields |= {"pattern": record.pattern, "sent": record.sent, "received": record.received, "seconds": round(record.seconds, 6)}
        fields |= {"unsaid_before": self._left_out} if self._left_out else {}
        is_written = self._throttles[refused].admit() is not None
        is_written = is_written and self._journal.write_network(self._identifier, fields, refused=refused)
        self._left_out = 0 if is_written else self._left_out + 1

    def refused(self) -> list[RefusedRequests]:
        """Return the refused requests, the latest first. Requests with the same method to the same host are counted together."""
        return [RefusedRequests(*key, *counted) for key, counted in reversed(self._refused.items())]

    def finish(self) -> None:
        """Write the number of lines that were omitted since the last one to the audit log. Call this when the session has ended."""
        if self._left_out:
            self._journal.write_network(self._identifier, {"unsaid_before": self._left_out})
            self._left_out = 0
