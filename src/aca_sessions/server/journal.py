"""What operators see of one server: metrics, and lines of the audit log if there is one. Names are hashed; contents are never written."""

import hashlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager

from .. import telemetry
from ..contract.records import ExecutionCall, ProblemError
from ..hosting import Hosting
from ..models import CodeExecutionResult
from .audit import AuditLog

_REFUSALS_A_SECOND = 20  # strangers must not be able to fill the disk


class Journal:
    """The one place that decides what is counted and logged of sessions, cells, files and requests."""

    def __init__(self, hosting: Hosting) -> None:
        self._audit = AuditLog(hosting.audit) if hosting.audit else None
        self._with_code = hosting.audit_code
        self._key = _fingerprint(hosting.api_key) if hosting.api_key and hosting.audit else None
        self._second = self._refusals = self._unsaid = 0

    def session_began(self, identifier: str) -> None:
        """Record the start of a session."""
        telemetry.session_began()
        self._write("session_begun", identifier, {})

    def session_ended(self, identifier: str, reason: str, seconds: float) -> None:
        """Record the end of a session, after `seconds`."""
        telemetry.session_ended(reason)
        self._write("session_ended", identifier, {"reason": reason, "seconds": round(seconds, 3)})

    def running(self) -> AbstractContextManager[None]:
        """Count a cell as running during the block."""
        return telemetry.cell_running()

    def cell_ended(self, identifier: str, call: ExecutionCall, result: CodeExecutionResult) -> None:
        """Record the result of an execution."""
        telemetry.cell_ended(result)
        if self._audit is None:
            return
        sizes = {"code_length": len(call.code), "stdout_length": len(result.stdout), "stderr_length": len(result.stderr)}
        verdict = {"outcome": telemetry.outcome(result), "state": result.state.kind, "reason": result.state.reason}
        code = {"code": call.code} if self._with_code else {}
        shown = {"displays": len(result.displays), "seconds": round(result.duration, 6)}
        self._write("cell", identifier, {**verdict, **sizes, **shown, **code})

    def noted(self, event: str, identifier: str, seconds: float, fields: Mapping[str, object]) -> None:
        """Record another successful request on a session, such as an upload."""
        self._write(event, identifier, {**fields, "seconds": round(seconds, 6)})

    def refused(self, problem: ProblemError, route: str, identifier: str | None = None, *, stranger: bool = False) -> None:
        """Record a request that was answered with a problem. Of more than 20 in one second only their number is logged.

        The request of a `stranger` was refused before its key was accepted.
        """
        if problem.code in telemetry.LIMITS:
            telemetry.refused(problem.code)
        if self._audit is None:
            return
        second = int(time.monotonic())
        self._refusals = self._refusals + 1 if second == self._second else 1
        self._second = second
        if self._refusals > _REFUSALS_A_SECOND:
            self._unsaid += 1
            return
        unsaid, self._unsaid = ({"unsaid_before": self._unsaid} if self._unsaid else {}), 0
        self._write("refusal", identifier, {"status": problem.status, "code": problem.code, "route": route, **unsaid}, stranger=stranger)

    def close(self) -> None:
        """Close the audit log."""
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    def _write(self, event: str, identifier: str | None, fields: Mapping[str, object], *, stranger: bool = False) -> None:
        if self._audit is not None:
            key = None if stranger else self._key
            session = telemetry.hashed(identifier) if identifier else None
            self._audit.write(event, key=key, session=session, **fields)


def _fingerprint(key: str) -> str:
    """Return a fingerprint of a key, to distinguish keys in the log.

    scrypt makes guessing the key from it slow: a human may have chosen the key.
    """
    return hashlib.scrypt(key.encode(), salt=b"aca-sessions audit", n=1 << 14, r=8, p=1, dklen=6).hex()
