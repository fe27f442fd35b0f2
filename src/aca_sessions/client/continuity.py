"""The ledgers of sessions at endpoints that keep none, such as Azure. A marker variable in the session carries the ledger's position.

After its cool-down, Azure ends a session, starts an empty one under the same identifier and does not report that. So the client runs a cell
of its own before the first cell. That cell sets the marker, makes /mnt/data the working directory and adds it to the import path, as our
own server does. The client looks for the marker again after a pause, and after a result that leaves the state in doubt. Only an answer
without the marker counts as a loss.

Answers may name the instance of the session that they come from (its guid). If the guid differs from the one before, the client looks for
the marker too.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from ..ledger import Delivered, Ledger, format_position
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
# None would not count as an answer (see `_is_answer`), so a missing marker is the word 'none'.
_READ_MARK = f"__import__('builtins').__dict__.get('{_NAME}') or 'none'"

Run = Callable[[str, str], Awaitable[CodeExecutionResult]]


@dataclass(slots=True)
class _Known:
    """What this client knows of one session. `mark` is the marker that the client saw last, or None."""

    mark: str | None = None
    guid: str | None = None
    replaced: bool = False  # an answer named another guid than before, and the marker was not looked for since
    last_verified: float = float("-inf")
    ledger: Ledger = field(default_factory=Ledger)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Continuity:
    """The ledgers of an endpoint's latest 10,000 sessions, kept by a marker variable in each session."""

    def __init__(self, run: Run, *, verify_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create the ledgers of one endpoint. `run` runs a cell of the client in a session.

        After `verify_after` seconds without use, the marker is looked for before the next cell. `clock` returns monotonic seconds.
        """
        self._run = run
        self._verify_after = verify_after
        self._clock = clock
        self._sessions: OrderedDict[str, _Known] = OrderedDict()

    async def execute(self, session_id: str, run: Callable[[], Awaitable[CodeExecutionResult]], caller: Delivered) -> CodeExecutionResult:
        """Run a user's cell by calling `run`, and return its result with the ledger's record.

        Look for the marker first if the session may have been replaced, and afterwards if the answer came from another instance.
        """
        await self._look_if_in_doubt(session_id)
        known = self._known(session_id)
        start = known.ledger.position
        result = await run()
        self._learn(known, result)
        # The answer named another instance of the session: the cell may have run in a new, empty one.
        if known.replaced:
            await self._look_if_in_doubt(session_id)
        return self._recorded(result, known, start, caller)

    def conclude(self, session_id: str, result: CodeExecutionResult, start: int, caller: Delivered) -> CodeExecutionResult:
        """Add the ledger's record to the result of a cell that snippets ran. First record a loss that is not in the ledger yet.

        `start` is the ledger's position when the cell began, and `caller` has the caller's position.
        """
        known = self._known(session_id)
        if result.state.kind != "kept":
            known.last_verified = float("-inf")
        if result.state.kind == "lost" and known.ledger.between(start, known.ledger.position).variables != "lost":
            self.note_lost(session_id, result.state.reason, with_files=False)
        return self._recorded(result, known, start, caller)

    def _recorded(self, result: CodeExecutionResult, known: _Known, start: int, caller: Delivered) -> CodeExecutionResult:
        """Add the ledger's record to a result, unless the result's state is `unknown`: then the next result reports everything."""
        if result.state.kind == "unknown":
            return result
        since = caller.position if caller.ledger == known.ledger.id else known.ledger.fetched
        return replace(result, record=known.ledger.record(since, start, known.ledger.position))

    def note_lost(self, session_id: str, cause: str | None, *, with_files: bool) -> None:
        """Record that the session lost its variables, and with `with_files` also its files.

        Do nothing if no marker is known: then the client has run no cell in the session, or has recorded the loss.
        """
        known = self._known(session_id)
        if known.mark is not None:
            files = "lost" if with_files else "kept"
            known.ledger.append("ended" if with_files else "died", cause=cause, variables="lost", files=files, processes="ended")
            known.mark = None

    async def reset(self, session_id: str, clear: Callable[[str], str]) -> tuple[str, int]:
        """Clear the variables by running the cell `clear(mark)`, which also sets the new marker `mark`.

        Return the ledger's id and the position of the new entry.
        """
        await self._look_if_in_doubt(session_id)
        known = self._known(session_id)
        mark = f"{(known.mark or self._new_mark(known)).partition(':')[0]}:{known.ledger.position + 1}"
        (await self._run(session_id, clear(mark))).raise_for_error()
        known.mark = mark
        return known.ledger.id, known.ledger.append("reset", cause="reset", variables="lost").position

    def position(self, session_id: str) -> int:
        """Return the position of the latest entry in a session's ledger."""
        return self._known(session_id).ledger.position

    def seen(self, session_id: str, guid: str) -> None:
        """Note the guid of the instance that answered for a session. If the guid changed, the next cell looks for the marker first."""
        known = self._known(session_id)
        known.replaced = known.replaced or known.guid not in (None, guid)
        known.guid = guid

    def forget(self, session_id: str) -> None:
        """Record that a caller ended a session on purpose. Callers that had no result of that session yet are not told of a loss."""
        known = self._sessions.get(session_id)
        if known is not None:
            self.note_lost(session_id, "terminated", with_files=True)
            known.ledger.fetched = known.ledger.position

    async def _look_if_in_doubt(self, session_id: str) -> None:
        """Look for the marker if the session was never or not recently used here, or if it may have been replaced."""
        known = self._known(session_id)
        # One at a time: two cells that start together would both record the same loss.
        async with known.turn:
            if known.mark is not None and not known.replaced and self._clock() - known.last_verified < self._verify_after:
                return
            found = await self._look(session_id, known)
            if found is not None:
                known.mark, known.replaced = found, False

    async def _look(self, session_id: str, known: _Known) -> str | None:
        """Return the marker that is in the session. Set one if there is none. Return None if the session gave no answer."""
        if known.mark is not None:
            result = await self._run(session_id, _READ_MARK)
            if not _is_answer(result):
                return None
            found = str(result.value)
            if found == known.mark:
                return found
            self._note_other(known, found)
            if found != "none":
                return found
            known.mark = None
        result = await self._run(session_id, _PRELUDE.format(mark=self._new_mark(known)))
        return str(result.value) if _is_answer(result) else None

    def _note_other(self, known: _Known, found: str) -> None:
        """Record why the marker changed: another client reset the session (same ledger id, other position), or the session is a new one."""
        if known.mark is not None and found.partition(":")[0] == known.mark.partition(":")[0]:
            known.ledger.append("reset", cause="reset", variables="lost")
        else:
            known.ledger.append("ended", cause="expired", variables="lost", files="lost", processes="ended")

    def _new_mark(self, known: _Known) -> str:
        return format_position(uuid.uuid4().hex, known.ledger.position)

    def _learn(self, known: _Known, result: CodeExecutionResult) -> None:
        """Record a loss that a result reports. Unless the result's state is `kept`, let the next cell look for the marker first."""
        known.last_verified = self._clock() if result.state.kind == "kept" else float("-inf")
        if result.state.kind == "lost":
            known.ledger.append("died", cause=result.state.reason, variables="lost", processes="ended")
            known.mark = None

    def _known(self, session_id: str) -> _Known:
        known = self._sessions.get(session_id)
        if known is None:
            known = self._sessions[session_id] = _Known()
            if len(self._sessions) > _REMEMBERED:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(session_id)
        return known


def _is_answer(result: CodeExecutionResult) -> bool:
    """Return whether a cell of the client has a text as its value. Otherwise, as after a time-out, nothing is known of the marker."""
    return result.success and isinstance(result.value, str) and result.value != ""
