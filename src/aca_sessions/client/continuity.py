"""The ledgers of sessions at endpoints that keep none, Azure's among them. A marker variable in the session carries the position.

Azure ends a session after its cool-down, and starts an empty one under the same identifier without saying so. So the client runs a cell of
its own before the first one. It sets the marker, and makes /mnt/data the working directory and an import path, as in our own server. After
a pause, or an end in doubt, the client looks for the marker. Only an answer without the marker is a loss.

Answers may name the life of the session that they come from. If it is another one than before, the client looks for the marker too.
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
# The marker comes last: a prelude that failed on the way is repeated. A marker that is there already is another client's, and stays.
_PRELUDE = f"""if {_NAME!r} not in __import__('builtins').__dict__:
    __import__('os').chdir('/mnt/data')
    '/mnt/data' in __import__('sys').path or __import__('sys').path.insert(0, '/mnt/data')
    __import__('builtins').__dict__[{_NAME!r}] = {{mark!r}}
__import__('builtins').__dict__[{_NAME!r}]"""
_READ_MARK = f"__import__('builtins').__dict__.get('{_NAME}') or 'none'"

Run = Callable[[str, str], Awaitable[CodeExecutionResult]]


@dataclass(slots=True)
class _Life:
    """Hold what this client knows of a session. `mark` is the marker that was seen in it last."""

    mark: str | None = None
    guid: str | None = None
    replaced: bool = False  # another guid than before came, and the marker was not looked for since
    last_known: float = float("-inf")
    ledger: Ledger = field(default_factory=Ledger)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Continuity:
    """Keep ledgers by markers."""

    def __init__(self, run: Run, *, verify_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Run the client's own cells by `run`. A session unused for `verify_after` seconds is looked at before it is used."""
        self._run = run
        self._verify_after = verify_after
        self._clock = clock
        self._lives: OrderedDict[str, _Life] = OrderedDict()

    async def execute(self, session_id: str, run: Callable[[], Awaitable[CodeExecutionResult]], caller: Delivered) -> CodeExecutionResult:
        """Run a cell by a function and return its result with the ledger's record."""
        await self._look_if_in_doubt(session_id)
        life = self._life(session_id)
        start = life.ledger.position
        result = await run()
        self._learn(life, result)
        if life.replaced:
            await self._look_if_in_doubt(session_id)
        return self._recorded(result, life, start, caller)

    def conclude(self, session_id: str, result: CodeExecutionResult, start: int, caller: Delivered) -> CodeExecutionResult:
        """Return the result of a user's cell that was run by cells of the client, with the record from its start on."""
        life = self._life(session_id)
        if result.state.kind != "kept":
            life.last_known = float("-inf")
        if result.state.kind == "lost" and life.ledger.between(start, life.ledger.position).variables != "lost":
            self.note_lost(session_id, result.state.reason, with_files=False)
        return self._recorded(result, life, start, caller)

    def _recorded(self, result: CodeExecutionResult, life: _Life, start: int, caller: Delivered) -> CodeExecutionResult:
        """Return the result with its record. One in doubt has none: nothing is delivered with it, and the next one reports all."""
        if result.state.kind == "unknown":
            return result
        since = caller.position if caller.ledger == life.ledger.id else life.ledger.fetched
        return replace(result, record=life.ledger.record(since, start, life.ledger.position))

    def note_lost(self, session_id: str, cause: str | None, *, with_files: bool) -> None:
        """Record that the session lost its variables, if it had any."""
        life = self._life(session_id)
        if life.mark is not None:
            files = "lost" if with_files else "kept"
            life.ledger.append("ended" if with_files else "died", cause=cause, variables="lost", files=files, processes="ended")
            life.mark = None

    async def reset(self, session_id: str, clear: Callable[[str], str]) -> tuple[str, int]:
        """Clear the variables by a cell, which also leaves the next marker. Return the position of the entry."""
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
        """Note which life of the session an answer named."""
        life = self._life(session_id)
        life.replaced = life.replaced or life.guid not in (None, guid)
        life.guid = guid

    def forget(self, session_id: str) -> None:
        """Forget a session that was ended on purpose. Later callers do not read that as a loss."""
        life = self._lives.get(session_id)
        if life is not None:
            self.note_lost(session_id, "terminated", with_files=True)
            life.ledger.fetched = life.ledger.position

    async def _look_if_in_doubt(self, session_id: str) -> None:
        life = self._life(session_id)
        async with life.turn:
            if life.mark is not None and not life.replaced and self._clock() - life.last_known < self._verify_after:
                return
            found = await self._look(session_id, life)
            if found is not None:
                life.mark, life.replaced = found, False

    async def _look(self, session_id: str, life: _Life) -> str | None:
        """Return the marker in the session, after it was set if there was none; None if the session did not say."""
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
        """Record why the marker is another one: the session is a new one, or another client has reset it."""
        if life.mark is not None and found.partition(":")[0] == life.mark.partition(":")[0]:
            life.ledger.append("reset", cause="reset", variables="lost")
        else:
            life.ledger.append("ended", cause="expired", variables="lost", files="lost", processes="ended")

    def _new_mark(self, life: _Life) -> str:
        return format_position(uuid.uuid4().hex, life.ledger.position)

    def _learn(self, life: _Life, result: CodeExecutionResult) -> None:
        """Note what a result says of the session. After any end but a good one, look for the marker before the next cell."""
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
    """Return whether a cell of the client was answered: a gateway's time-out says nothing about the marker."""
    return result.success and isinstance(result.value, str) and result.value != ""
