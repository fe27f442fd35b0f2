"""What operators see of one server: numbers, and lines of the audit log where one is kept. Names are hashed, contents never get here."""

import hashlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager

from .. import telemetry
from ..contract.records import ExecutionCall, ProblemError
from ..hosting import Hosting
from ..models import CodeExecutionResult
from .audit import AuditLog

_REFUSALS_A_SECOND = 20  # strangers are not to fill the disk


class Journal:
    """Takes note of what happens to sessions, cells, files and requests."""

    def __init__(self, hosting: Hosting) -> None:
        """Opens the audit log, if there is to be one."""
        self._audit = AuditLog(hosting.audit) if hosting.audit else None
        self._with_code = hosting.audit_code
        self._key = _fingerprint(hosting.api_key) if hosting.api_key and hosting.audit else None
        self._second = self._refusals = self._unsaid = 0

    def session_began(self, identifier: str) -> None:
        """An identifier has a session from now on."""
        telemetry.session_began()
        self._write("session_begun", identifier, {})

    def session_ended(self, identifier: str, reason: str, seconds: float) -> None:
        """A session is over, so long after it began."""
        telemetry.session_ended(reason)
        self._write("session_ended", identifier, {"reason": reason, "seconds": round(seconds, 3)})

    def running(self) -> AbstractContextManager[None]:
        """A cell has its turn for the block."""
        return telemetry.cell_running()

    def cell_ended(self, identifier: str, call: ExecutionCall, result: CodeExecutionResult) -> None:
        """What became of a cell."""
        telemetry.cell_ended(result)
        if self._audit is None:
            return
        sizes = {"code_length": len(call.code), "stdout_length": len(result.stdout), "stderr_length": len(result.stderr)}
        verdict = {"outcome": telemetry.outcome(result), "state": result.state.kind, "reason": result.state.reason}
        code = {"code": call.code} if self._with_code else {}
        shown = {"displays": len(result.displays), "seconds": round(result.duration, 6)}
        self._write("cell", identifier, {**verdict, **sizes, **shown, **code})

    def noted(self, event: str, identifier: str, seconds: float, fields: Mapping[str, object]) -> None:
        """A request did something else to a session."""
        self._write(event, identifier, {**fields, "seconds": round(seconds, 6)})

    def refused(self, problem: ProblemError, route: str, identifier: str | None = None) -> None:
        """A request was answered with a problem. Of many in one second only their number is written."""
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
        self._write("refusal", identifier, {"status": problem.status, "code": problem.code, "route": route, **unsaid})

    def close(self) -> None:
        """Nothing more is written."""
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    def _write(self, event: str, identifier: str | None, fields: Mapping[str, object]) -> None:
        if self._audit is not None:
            key = None if fields.get("status") in (401, 403) else self._key
            session = telemetry.hashed(identifier) if identifier else None
            self._audit.write(event, key=key, session=session, **fields)


def _fingerprint(key: str) -> str:
    """Tells keys apart, and is slow to guess from: a key may have been chosen by a human."""
    return hashlib.scrypt(key.encode(), salt=b"aca-sessions audit", n=1 << 14, r=8, p=1, dklen=6).hex()
