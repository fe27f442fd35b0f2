"""Cells whose calls are answered at endpoints without events.

The cell runs in a thread of the session. The host starts further executions there, which meet it: each brings answers, and waits for a
while for calls or for the end of the cell. The session repeats its answer if it is asked again. Code that may have run is never sent again,
and no call is carried out twice.
"""

import asyncio
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from ..client.arguments import checked_timeout
from ..client.session import Session
from ..errors import ACASessionsError
from ..models import NO_REPLY, CodeError, CodeExecutionResult, State
from ..tasks import Tasks
from . import told, values
from .outside import Outside
from .placed import MEETING, package, place
from .told import Outcome, Told

_DEFAULT_SECONDS = 100.0
_MARGIN = 10.0  # seconds that a meeting can last longer than it waits
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 5.0  # seconds in the session, for calls or the end
_LEAST = 0.001  # seconds that are counted at least from an answer to the next call, even if the session reports less
_STILL_SECONDS = 3600.0  # that the clock of one cell can stand still in total, the same as at endpoints with events
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0  # seconds on the host, while calls are answered
_INTERRUPTS, _INTERRUPT_WAIT = 3, 1.0
_TRIES, _TRY_AGAIN = 3, 0.5
_CANCEL_SECONDS = 10.0
_MOST_WRITTEN = 1 << 20
_MOST_DELIVERED = 8 << 20  # characters of answers at a time, or one answer
_MOST_OPEN = 64  # calls that are being answered or whose answers were not brought yet; the session repeats others later
_RUNS_ON = State("unknown", "unknown", "unknown", "still running")
_LOST = State(variables="lost", processes="ended")  # expired, ended or killed: the session does not report which
_STILL_RUNS = "it did not end when it was interrupted, and still runs in a thread of the session"


class Exchange:
    """A runner for endpoints without events. It runs the cells of one session one at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turn = asyncio.Lock()

    async def run(self, outside: Outside, code: str, timeout: float | None) -> CodeExecutionResult:
        """Run a cell and return its result. Cancelling the call interrupts the cell.

        The cell's clock stands still while it waits only for the host. The processor time of its process counts even then, and the clock
        stands still for at most an hour in total.
        """
        seconds = checked_timeout(timeout) or _DEFAULT_SECONDS
        async with self._turn:
            return await self._session.run_by(lambda source: _Cell(self._session, outside, seconds).run(source), code)


class _EndedError(Exception):
    """The cell is over, and the session cannot report how."""

    def __init__(self, error: CodeError, state: State) -> None:
        super().__init__(str(error))
        self.error = error
        self.state = state


class _SilentError(Exception):
    """A meeting returned no answer. `state` is what its result reports of the session."""

    def __init__(self, state: State) -> None:
        super().__init__(str(state))
        self.state = state


class Clock:
    """The seconds that a cell has used, computed from what its session reports at each meeting.

    Processor time of the process counts as well while the cell waits, at most one second per second. The session reports that time, and
    guest code could report less. So the time that is not counted is limited to an hour in total.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._began = self._met = now()
        self._used = self._computed = 0.0

    @property
    def used(self) -> float:
        """Return the seconds used until now."""
        return max(self._used, self._now() - self._began - _STILL_SECONDS)

    def count(self, ran: float, computed: float | None) -> None:
        """Count the time since the last meeting.

        Args:
            ran: The seconds in which the cell did not wait for the host.
            computed: The processor time of its process since the cell began. None if the session did not report it.
        """
        now = self._now()
        busy = computed - self._computed if computed is not None else 0.0
        self._used += max(ran, min(busy, now - self._met))
        self._met, self._computed = now, self._computed if computed is None else computed


class _Cell:
    """One cell, from the moment it is sent."""

    def __init__(self, session: Session, outside: Outside, timeout: float) -> None:
        self._session = session
        self._outside = outside
        self._timeout = timeout
        self._caller = session.new_caller()
        self._id = uuid.uuid4().hex
        self._is_sent = False
        self._is_gone = False  # whether the interpreter that ran the cell was lost
        self._clock = Clock()
        self._wait, self._pause = _FIRST_WAIT, _FIRST_PAUSE
        self._latest = 0  # the number of the latest call that was taken, so that none is taken twice
        self._open: dict[int, asyncio.Task[str]] = {}
        self._answers: dict[int, str] = {}
        self._written, self._complained = "", ""  # by programs of the cell, past Python's streams
        self._tasks = Tasks()

    async def run(self, code: str) -> CodeExecutionResult:
        started = time.perf_counter()
        try:
            result = await self._run(code)
        except _EndedError as ended:
            result = CodeExecutionResult(stdout=self._written, stderr=str(ended.error), error=ended.error, state=ended.state)
        except BaseException:
            await self._interrupt_quietly()
            raise
        finally:
            await self._tasks.cancel()
        return replace(result, duration=time.perf_counter() - started)

    async def _run(self, code: str) -> CodeExecutionResult:
        now = await self._begun(code)
        while now.stage == "runs" and self._clock.used < self._timeout:
            self._take(now)
            await self._until_answered()
            wait = 0.0 if self._open else min(self._wait, max(self._timeout - self._clock.used, 0.0))
            self._wait = min(self._wait * 2, _LONGEST_WAIT)
            now = self._going_on(await self._met(wait=wait))
        overran = now.stage == "runs"
        if overran:
            now = await self._interrupted()
        if now.outcome is None:
            raise _EndedError(CodeError("TimeoutError", f"{self._ran_longer}; {_STILL_RUNS}"), _RUNS_ON)
        return self._result(now.outcome, overran=overran)

    async def _begun(self, code: str) -> Told:
        """Start the cell. If the session answers that it lacks the modules for meetings, it started nothing: place them and try again."""
        now = await self._met(begin=code, wait=min(_FIRST_WAIT, self._timeout))
        if now.stage == "no module":
            lacking = await place(self._session)
            if lacking:
                raise _EndedError(CodeError("NotSupportedError", f"the cell was not run: {lacking}"), State())
            now = await self._met(begin=code, wait=min(_FIRST_WAIT, self._timeout))
        return self._going_on(now)

    def _take(self, now: Told) -> None:
        """Start to answer the calls that are new."""
        for number, text in now.calls:
            if len(self._open) + len(self._answers) >= _MOST_OPEN:
                break
            if number > self._latest:
                self._latest = number
                self._open[number] = self._tasks.own(self._outside.answer(self._session, text))
                self._wait, self._pause = _FIRST_WAIT, _FIRST_PAUSE

    async def _until_answered(self) -> None:
        """Wait until one call is answered, or for a short time: the cell may ask more meanwhile, or end."""
        if not self._open:
            return
        done, _ = await asyncio.wait(self._open.values(), timeout=self._pause, return_when=asyncio.FIRST_COMPLETED)
        self._pause = _FIRST_PAUSE if done else min(self._pause * 2, _LONGEST_PAUSE)
        for number, answering in [*self._open.items()]:
            if answering.done():
                self._answers[number] = _answer_of(answering)
                del self._open[number]

    async def _interrupted(self) -> Told:
        now = Told("runs")
        for _ in range(_INTERRUPTS):
            now = self._going_on(await self._met(interrupt=True, wait=_INTERRUPT_WAIT))
            if now.stage == "over":
                break
        return now

    async def _met(self, *, begin: str | None = None, interrupt: bool = False, wait: float) -> Told:
        """Meet the cell and return what the session reports. Try again if it reports nothing, but never send the cell again."""
        state = NO_REPLY
        for pause in (0.0, *[_TRY_AGAIN] * (_TRIES - 1)):
            await asyncio.sleep(pause)
            try:
                # Only the first try, which has no pause before it, sends the cell.
                now = await self._asked(begin if not pause else None, interrupt=interrupt, wait=wait)
                if begin is None or not pause or now.stage in ("runs", "over"):
                    return now
                state = _LOST if self._is_gone else state  # the cell may have run
                break
            except _SilentError as silent:
                state = silent.state
            except ACASessionsError:
                if begin is not None and not pause:
                    self._is_sent = False
                    raise
            if state.kind == "lost":
                break
        raise self._ended(state)

    async def _asked(self, begin: str | None, *, interrupt: bool, wait: float) -> Told:
        bringing = self._to_bring()
        said: dict[str, object] = {"cell": self._id, "begin": begin, "interrupt": interrupt, "wait": wait}
        now = await self._exchanged({**said, "answers": bringing, "known": [*self._open, *self._answers]}, wait)
        for number in bringing:
            self._answers.pop(number, None)
        return now

    def _to_bring(self) -> dict[int, str]:
        """Return the answers to bring to the next meeting: up to 8 million characters, or one answer.

        They are forgotten only when the session has confirmed the meeting.
        """
        bringing, size = dict[int, str](), 0
        for number, answer in self._answers.items():
            if not bringing or size + len(answer) <= _MOST_DELIVERED:
                bringing[number] = answer
                size += len(answer)
        return bringing

    async def _exchanged(self, said: dict[str, object], wait: float) -> Told:
        text, files = values.encode(json.dumps(said))
        for name, data in files.items():
            await self._session.upload_file(name, data)
        self._is_sent = True
        marker, started, stood_still = secrets.token_hex(16), time.perf_counter(), bool(self._open)
        result = await self._session.run_own("meet", f"{package()}.{MEETING}", marker, text, timeout=wait + _MARGIN, caller=self._caller)
        elapsed = time.perf_counter() - started
        self._is_gone = self._is_gone or result.state.kind == "lost"
        rest, line = told.split(result.stdout, marker)
        self._written = (self._written + rest)[:_MOST_WRITTEN]
        # The stderr of a meeting that failed is its own traceback, not the cell's output.
        self._complained = (self._complained + result.stderr * result.success)[:_MOST_WRITTEN]
        try:
            now = await told.read(self._session, line) if line is not None else None
        except ACASessionsError:
            now = None
        # While calls were open at the start, the clock stood still. If new calls came, only the time until they came counts.
        ran = 0.0 if stood_still else elapsed if now is None or not now.calls else min(max(now.waited, _LEAST), elapsed)
        self._clock.count(ran, now.computed if now is not None else None)
        if now is None:
            raise _SilentError(NO_REPLY if result.state.kind == "kept" or line is not None else result.state)
        return now

    def _going_on(self, now: Told) -> Told:
        """Return what the session reports. Raise if it does not know the cell: the cell was lost with its interpreter."""
        if now.stage in ("unknown", "no module"):
            raise self._ended(_LOST)
        return now

    def _ended(self, state: State) -> _EndedError:
        if state.kind == "lost":
            return _EndedError(CodeError("InterpreterDied", "the session ended while the cell ran; its variables are lost"), state)
        return _EndedError(CodeError("ConnectionError", "the session gave no answer: what became of the cell is not known"), state)

    @property
    def _ran_longer(self) -> str:
        return f"the cell ran longer than {self._timeout:g} s"

    def _result(self, outcome: Outcome, *, overran: bool) -> CodeExecutionResult:
        error, stderr = outcome.error, outcome.stderr + self._complained
        if overran:
            error = CodeError("TimeoutError", f"{self._ran_longer} and was interrupted; its variables are kept")
        if error is not None:
            stderr = "\n".join(part for part in (stderr.rstrip("\n"), error.traceback or str(error)) if part)
        return CodeExecutionResult(
            stdout=outcome.stdout + self._written,
            stderr=stderr,
            value=outcome.value,
            text=outcome.text,
            displays=outcome.displays,
            error=error,
        )

    async def _interrupt_quietly(self) -> None:
        """Interrupt the cell after its call was cancelled. The interrupt is sent even if the caller is cancelled again."""
        if self._is_sent:
            with contextlib.suppress(asyncio.CancelledError):
                await self._tasks.to_its_end(self._try_to_interrupt())

    async def _try_to_interrupt(self) -> None:
        with contextlib.suppress(ACASessionsError, TimeoutError, _EndedError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self._met(interrupt=True, wait=_INTERRUPT_WAIT)


def _answer_of(answering: "asyncio.Task[str]") -> str:
    """Return the answer of a call, or an error if a tool cancelled itself."""
    if answering.cancelled() or answering.exception() is not None:
        return json.dumps({"error": {"name": "ToolError", "message": "nobody answered"}})
    return answering.result()
