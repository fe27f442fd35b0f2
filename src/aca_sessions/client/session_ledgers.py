"""Keep the ledgers of sessions for endpoints that keep none, such as Azure. A ledger records what happened to a session, in order.

After a cool-down without use, Azure ends a session, starts an empty one under the same identifier and does not report that. So the client
runs a cell of its own before the user's first cell. That cell sets a marker variable, which holds the ledger's id and position, makes
/mnt/data the working directory and adds it to the import path, as our own server does. The client checks the marker again after a pause,
and after a result whose state is not `kept`. It records that variables were lost only if the session responds and the marker is missing or
has changed.

Responses may name the instance of the session that they come from (its guid). If the guid changes, the client checks the marker too.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import datetime

from ..ledger import CallerPosition, Ledger, format_position
from ..models import CodeExecutionResult

_REMEMBERED = 10_000
_NAME = "_aca_sessions_mark"
# The marker comes last, so that a prelude that failed half-way is repeated. A marker that exists already is another client's and stays.
# It is in `builtins` and not among the user's variables, where a cell that lists or clears variables would find it.
_PRELUDE = f"""if {_NAME!r} not in __import__('builtins').__dict__:
    __import__('os').chdir('/mnt/data')
    '/mnt/data' in __import__('sys').path or __import__('sys').path.insert(0, '/mnt/data')
    __import__('builtins').__dict__[{_NAME!r}] = {{mark!r}}
__import__('builtins').__dict__[{_NAME!r}]"""
# None would not count as an answer (see `_is_marker`), so a missing marker is the word 'none'.
_READ_MARK = f"__import__('builtins').__dict__.get('{_NAME}') or 'none'"

Run = Callable[[str, str], Awaitable[CodeExecutionResult]]


@dataclass(slots=True)
class _KnownSession:
    """What this client knows about one session.

    `mark` is the value that the session's marker variable had when the client last read it, or None.
    """

    mark: str | None = None
    guid: str | None = None
    replaced: bool = False  # an answer named another guid than before, and the marker was not looked for since
    last_verified: float = float("-inf")
    ledger: Ledger = field(default_factory=Ledger)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class SessionLedgers:
    """The ledgers of an endpoint's sessions, for the 10,000 that were used last. A ledger is the list of what happened to a session.

    This client sets a marker variable in each session. If the variable is gone, the service has replaced the session by a new one.
    """

    def __init__(self, run: Run, *, verify_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create the ledgers of one endpoint.

        Args:
            run: Called with a session's identifier and the source text of a cell that the client wrote itself. It runs the cell.
            verify_after: Seconds without use after which a session's marker is checked before the next cell.
            clock: Returns monotonic seconds.
        """
        self._run = run
        self._verify_after = verify_after
        self._clock = clock
        self._sessions: OrderedDict[str, _KnownSession] = OrderedDict()

    async def run_cell(
        self, session_id: str, run: Callable[[], Awaitable[CodeExecutionResult]], caller: CallerPosition
    ) -> CodeExecutionResult:
        """Run a user's cell by calling `run`, and return its result with the ledger entries that are new to `caller`.

        First check whether the service has replaced the session by an empty one, unless that was checked recently. Check this again if the
        response names another instance of the session than before.
        """
        await self._check_marker_if_needed(session_id)
        known = self._session(session_id)
        start = known.ledger.position
        result = await run()
        self._record_reported_loss(known, result)
        # The answer named another instance of the session: the cell may have run in a new, empty one.
        if known.replaced:
            await self._check_marker_if_needed(session_id)
        return self._add_record(result, known, start, caller)

    def complete_result(self, session_id: str, result: CodeExecutionResult, start: int, caller: CallerPosition) -> CodeExecutionResult:
        """Return the result of a user's cell, which was sent in several snippets, with the ledger entries that are new to `caller`.

        If the result reports lost variables and the ledger has no entry about them, add the entry first. `start` is the number of the
        ledger's latest entry when the cell began.
        """
        known = self._session(session_id)
        if result.state.kind != "kept":
            known.last_verified = float("-inf")
        if result.state.kind == "lost" and known.ledger.between(start, known.ledger.position).variables != "lost":
            self.record_loss(session_id, result.state.reason, with_files=False)
        return self._add_record(result, known, start, caller)

    def _add_record(self, result: CodeExecutionResult, known: _KnownSession, start: int, caller: CallerPosition) -> CodeExecutionResult:
        """Return a copy of a result, with a record of the ledger entries that are new to `caller`.

        If the state of the result is `unknown`, return the result unchanged, so that the next result reports these entries.
        """
        if result.state.kind == "unknown":
            return result
        since = caller.position if caller.ledger == known.ledger.id else known.ledger.fetched
        return replace(result, record=known.ledger.record(since, start, known.ledger.position))

    def record_loss(self, session_id: str, cause: str | None, *, with_files: bool) -> None:
        """Record in a session's ledger that its variables were lost, and its files too if `with_files` is true. `cause` is the reason.

        Do nothing if this client has run no cell in the session, or has recorded the loss already.
        """
        known = self._session(session_id)
        if known.mark is not None:
            files = "lost" if with_files else "kept"
            known.ledger.append("ended" if with_files else "died", cause=cause, variables="lost", files=files, processes="ended")
            known.mark = None

    def record_import(self, session_id: str, saved: datetime, *, missing: tuple[str, ...], gone: Collection[str]) -> None:
        """Record in a session's ledger that it began from an exported one. The arguments are those of `Ledger.record_import`."""
        self._session(session_id).ledger.record_import(saved, missing=missing, gone=gone)

    async def reset(self, session_id: str, clear: Callable[[str], str]) -> tuple[str, int]:
        """Clear a session's variables by running a cell, and record the reset in the session's ledger.

        `clear` gets a new value for the session's marker variable, and returns the source of a cell that clears the variables and sets the
        marker. Return the id of the ledger, and the number of the new entry.
        """
        await self._check_marker_if_needed(session_id)
        known = self._session(session_id)
        mark = f"{(known.mark or self._new_mark(known)).partition(':')[0]}:{known.ledger.position + 1}"
        (await self._run(session_id, clear(mark))).raise_for_error()
        known.mark = mark
        return known.ledger.id, known.ledger.append("reset", cause="reset", variables="lost").position

    def position_of(self, session_id: str) -> int:
        """Return the number of the latest entry in a session's ledger."""
        return self._session(session_id).ledger.position

    def record_instance(self, session_id: str, guid: str) -> None:
        """Remember the guid in a response, which names the instance of the session that responded.

        If the guid has changed, the session's marker variable will be checked before its next cell.
        """
        known = self._session(session_id)
        known.replaced = known.replaced or known.guid not in (None, guid)
        known.guid = guid

    def record_end(self, session_id: str) -> None:
        """Record that a caller ended a session, so that callers of the session know why its variables and files are lost.

        A caller that uses this identifier for the first time afterwards has lost nothing, so its results do not report the end.
        """
        known = self._sessions.get(session_id)
        if known is not None:
            self.record_loss(session_id, "terminated", with_files=True)
            known.ledger.fetched = known.ledger.position

    async def _check_marker_if_needed(self, session_id: str) -> None:
        """Check a session's marker variable, unless it was checked recently and no response named another instance since then."""
        known = self._session(session_id)
        # One at a time: two cells that start together would both record the same loss.
        async with known.turn:
            if known.mark is not None and not known.replaced and self._clock() - known.last_verified < self._verify_after:
                return
            found = await self._read_marker(session_id, known)
            if found is not None:
                known.mark, known.replaced = found, False

    async def _read_marker(self, session_id: str, known: _KnownSession) -> str | None:
        """Return the value of a session's marker variable, or None if the session does not respond. Set the variable if there is none.

        If the value differs from the one that this client read last, record the reason in the ledger.
        """
        if known.mark is not None:
            result = await self._run(session_id, _READ_MARK)
            if not _is_marker(result):
                return None
            found = str(result.value)
            if found == known.mark:
                return found
            self._record_marker_change(known, found)
            if found != "none":
                return found
            known.mark = None
        result = await self._run(session_id, _PRELUDE.format(mark=self._new_mark(known)))
        return str(result.value) if _is_marker(result) else None

    def _record_marker_change(self, known: _KnownSession, found: str) -> None:
        """Record in the ledger why a session's marker changed.

        If the ledger's id in the marker is the same, another client reset the session. If not, the session expired and this is a new one.
        """
        if known.mark is not None and found.partition(":")[0] == known.mark.partition(":")[0]:
            known.ledger.append("reset", cause="reset", variables="lost")
        else:
            known.ledger.append("ended", cause="expired", variables="lost", files="lost", processes="ended")

    def _new_mark(self, known: _KnownSession) -> str:
        return format_position(uuid.uuid4().hex, known.ledger.position)

    def _record_reported_loss(self, known: _KnownSession, result: CodeExecutionResult) -> None:
        """Record in the ledger that variables were lost, if a result reports it.

        If the state of the result is not `kept`, the marker will be checked before the next cell.
        """
        known.last_verified = self._clock() if result.state.kind == "kept" else float("-inf")
        if result.state.kind == "lost":
            known.ledger.append("died", cause=result.state.reason, variables="lost", processes="ended")
            known.mark = None

    def _session(self, session_id: str) -> _KnownSession:
        known = self._sessions.get(session_id)
        if known is None:
            known = self._sessions[session_id] = _KnownSession()
            if len(self._sessions) > _REMEMBERED:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(session_id)
        return known


def _is_marker(result: CodeExecutionResult) -> bool:
    """Return whether a cell that reads the marker variable returned a value. After a timeout, for example, it returned none."""
    return result.success and isinstance(result.value, str) and result.value != ""
