"""The ledgers of sessions at endpoints that keep none, such as Azure. A marker variable in the session carries the ledger's position.

Azure ends a session after its cool-down. It then starts an empty one under the same identifier and does not report that. So the client runs
a cell of its own before the first cell. That cell sets the marker, makes /mnt/data the working directory and adds it to the import path, as
our own server does. The client looks for the marker again after a pause, and after a result that leaves the state in doubt. Only an answer
without the marker counts as a loss.

Answers may name the instance of the session that they come from (its guid). If that differs from the one before, the client looks for the
marker too.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from ..ledger import Ledger, format_position
from ..models import CodeExecutionResult
from .delivered import Delivered

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
class _Life:
    """What this client knows of one session. `mark` is the marker that it saw last."""

    mark: str | None = None
    guid: str | None = None
    replaced: bool = False  # an answer named another guid than before, and the marker was not looked for since
    last_known: float = float("-inf")
    ledger: Ledger = field(default_factory=Ledger)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Continuity:
    """The ledgers of an endpoint's sessions, kept by markers. At most 10,000 sessions are remembered."""

    def __init__(self, run: Run, *, verify_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create the ledgers of one endpoint.

        Args:
            run: Runs a cell of the client in a session.
            verify_after: Seconds without use after which the marker is looked for before the next cell.
            clock: Returns monotonic seconds.
        """
        self._run = run
        self._verify_after = verify_after
        self._clock = clock
        self._lives: OrderedDict[str, _Life] = OrderedDict()

    async def execute(self, session_id: str, run: Callable[[], Awaitable[CodeExecutionResult]], caller: Delivered) -> CodeExecutionResult:
        """Run a user's cell by calling `run`, and return its result with the ledger's record."""
        await self._look_if_in_doubt(session_id)
        life = self._life(session_id)
        start = life.ledger.position
        result = await run()
        self._learn(life, result)
        # The answer named another instance of the session: the cell may have run in a new, empty one.
        if life.replaced:
            await self._look_if_in_doubt(session_id)
        return self._recorded(result, life, start, caller)

    def conclude(self, session_id: str, result: CodeExecutionResult, start: int, caller: Delivered) -> CodeExecutionResult:
        """Return the result of a user's cell that was run by cells of the client, with the ledger's record from position `start` on."""
        life = self._life(session_id)
        if result.state.kind != "kept":
            life.last_known = float("-inf")
        if result.state.kind == "lost" and life.ledger.between(start, life.ledger.position).variables != "lost":
            self.note_lost(session_id, result.state.reason, with_files=False)
        return self._recorded(result, life, start, caller)

    def _recorded(self, result: CodeExecutionResult, life: _Life, start: int, caller: Delivered) -> CodeExecutionResult:
        """Return the result with its record.

        An uncertain result has none: it delivers nothing, and the next result reports all that happened.
        """
        if result.state.kind == "unknown":
            return result
        since = caller.position if caller.ledger == life.ledger.id else life.ledger.fetched
        return replace(result, record=life.ledger.record(since, start, life.ledger.position))

    def note_lost(self, session_id: str, cause: str | None, *, with_files: bool) -> None:
        """Record that the session lost its variables, and with `with_files` its files. Do nothing if the client knows no marker in it."""
        life = self._life(session_id)
        if life.mark is not None:
            files = "lost" if with_files else "kept"
            life.ledger.append("ended" if with_files else "died", cause=cause, variables="lost", files=files, processes="ended")
            life.mark = None

    async def reset(self, session_id: str, clear: Callable[[str], str]) -> tuple[str, int]:
        """Clear the variables by a cell, which also sets the next marker. Return the ledger's id and the position of the new entry.

        Args:
            session_id: The session.
            clear: Returns the source of the clearing cell, given the marker that it sets.
        """
        await self._look_if_in_doubt(session_id)
        life = self._life(session_id)
        mark = f"{(life.mark or self._new_mark(life)).partition(':')[0]}:{life.ledger.position + 1}"
        (await self._run(session_id, clear(mark))).raise_for_error()
        life.mark = mark
        return life.ledger.id, life.ledger.append("reset", cause="reset", variables="lost").position

    def position(self, session_id: str) -> int:
        """Return the position of a session's ledger."""
        return self._life(session_id).ledger.position

    def seen(self, session_id: str, guid: str) -> None:
        """Note the instance of the session (its guid) that an answer named. If it changed, the next cell looks for the marker."""
        life = self._life(session_id)
        life.replaced = life.replaced or life.guid not in (None, guid)
        life.guid = guid

    def forget(self, session_id: str) -> None:
        """Record that a session was ended on purpose. Callers that come later do not get that as a loss."""
        life = self._lives.get(session_id)
        if life is not None:
            self.note_lost(session_id, "terminated", with_files=True)
            life.ledger.fetched = life.ledger.position

    async def _look_if_in_doubt(self, session_id: str) -> None:
        """Look for the marker if the session is new, was unused for too long, or may have been replaced."""
        life = self._life(session_id)
        # One at a time: two cells that start together would both record the same loss.
        async with life.turn:
            if life.mark is not None and not life.replaced and self._clock() - life.last_known < self._verify_after:
                return
            found = await self._look(session_id, life)
            if found is not None:
                life.mark, life.replaced = found, False

    async def _look(self, session_id: str, life: _Life) -> str | None:
        """Return the marker in the session, setting one if there is none. Return None if the session gave no answer."""
        if life.mark is not None:
            result = await self._run(session_id, _READ_MARK)
            if not _is_answer(result):
                return None
            found = str(result.value)
            if found == life.mark:
                return found
            self._note_other(life, found)
            if found != "none":
                return found
            life.mark = None
        result = await self._run(session_id, _PRELUDE.format(mark=self._new_mark(life)))
        return str(result.value) if _is_answer(result) else None

    def _note_other(self, life: _Life, found: str) -> None:
        """Record why the marker differs: another client reset the session (same id, other position), or the session is a new one."""
        if life.mark is not None and found.partition(":")[0] == life.mark.partition(":")[0]:
            life.ledger.append("reset", cause="reset", variables="lost")
        else:
            life.ledger.append("ended", cause="expired", variables="lost", files="lost", processes="ended")

    def _new_mark(self, life: _Life) -> str:
        return format_position(uuid.uuid4().hex, life.ledger.position)

    def _learn(self, life: _Life, result: CodeExecutionResult) -> None:
        """Note what a result shows of the session. Unless its state is `kept`, the marker is looked for before the next cell."""
        life.last_known = self._clock() if result.state.kind == "kept" else float("-inf")
        if result.state.kind == "lost":
            life.ledger.append("died", cause=result.state.reason, variables="lost", processes="ended")
            life.mark = None

    def _life(self, session_id: str) -> _Life:
        life = self._lives.setdefault(session_id, _Life())
        self._lives.move_to_end(session_id)
        while len(self._lives) > _REMEMBERED:
            self._lives.popitem(last=False)
        return life


def _is_answer(result: CodeExecutionResult) -> bool:
    """Return whether a cell of the client was answered. A gateway's time-out, for example, proves nothing about the marker."""
    return result.success and isinstance(result.value, str) and result.value != ""
