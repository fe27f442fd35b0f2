"""Cells with calls answered where no event can leave a cell: it runs in a thread of the session, and executions of ours meet it there.

Each one brings answers and waits, for a while, for calls or for the end. What is asked again is told again; code that may have run is never
sent again, and no call is carried out twice.
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
_MARGIN = 10.0  # an execution of ours may last this much longer than it waits
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 5.0  # in the session, for calls or the end
_LEAST = 0.001  # seconds that a cell is taken to have used from an answer to its next call, whatever the session tells
_STILL_SECONDS = 3600.0  # that the clock of one cell stands still in all, as where events leave a cell
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0  # outside, while calls are answered
_INTERRUPTS, _INTERRUPT_WAIT = 3, 1.0
_TRIES, _TRY_AGAIN = 3, 0.5
_CANCEL_SECONDS = 10.0
_MOST_WRITTEN = 1 << 20
_MOST_DELIVERED = 8 << 20  # characters of answers at a time, or one answer
_MOST_OPEN = 64  # calls that are answered or whose answers were not brought yet; others are told again later
_RUNS_ON = State("unknown", "unknown", "unknown", "still running")
_LOST = State(variables="lost", processes="ended")  # expired, ended or killed: the session does not tell
_STILL_RUNS = "it did not end when it was interrupted, and still runs in a thread of the session"


class Exchange:
    """Runs the cells of one session, one at a time."""

    def __init__(self, session: Session) -> None:
        """Sends nothing yet."""
        self._session = session
        self._turn = asyncio.Lock()

    async def run(self, outside: Outside, code: str, timeout: float | None) -> CodeExecutionResult:
        """Run a cell and return its result. Cancelling the call interrupts it.

        While all that it waits for is outside, its clock stands still, but for what its process computes and for at most an hour in all.
        """
        seconds = checked_timeout(timeout) or _DEFAULT_SECONDS
        async with self._turn:
            return await self._session.run_by(lambda source: _Cell(self._session, outside, seconds).run(source), code)


class _EndedError(Exception):
    """The cell is over in a way that the session cannot tell."""

    def __init__(self, error: CodeError, state: State) -> None:
        """Takes what is known of it."""
        super().__init__(str(error))
        self.error = error
        self.state = state


class _SilentError(Exception):
    """An execution of ours that told nothing."""

    def __init__(self, state: State) -> None:
        """Takes what it says of the session."""
        super().__init__(str(state))
        self.state = state


class Clock:
    """The seconds that a cell has used, by what its session tells each time that it is met.

    What the process computes beside the cell's waiting counts as well, at most a second in a second. The session tells it, and code in it
    could tell less: so the time that is not counted is limited, an hour in all.
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
        """Count the time since the cell was met last.

        Args:
            ran: The seconds in which it did not wait for the host.
            computed: The processor time of its process since the cell began, None if the session did not tell.
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
        self._is_gone = False  # whether the interpreter that ran it is another by now
        self._clock = Clock()
        self._wait, self._pause = _FIRST_WAIT, _FIRST_PAUSE
        self._latest = 0  # the number of the latest call that was taken: none is taken twice
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
        """The session may be a new one, without our modules: what tells that has begun nothing."""
        now = await self._met(begin=code, wait=min(_FIRST_WAIT, self._timeout))
        if now.stage == "no module":
            lacking = await place(self._session)
            if lacking:
                raise _EndedError(CodeError("NotSupportedError", f"the cell was not run: {lacking}"), State())
            now = await self._met(begin=code, wait=min(_FIRST_WAIT, self._timeout))
        return self._going_on(now)

    def _take(self, now: Told) -> None:
        """Starts to answer what was not asked before."""
        for number, text in now.calls:
            if len(self._open) + len(self._answers) >= _MOST_OPEN:
                break
            if number > self._latest:
                self._latest = number
                self._open[number] = self._tasks.own(self._outside.answer(self._session, text))
                self._wait, self._pause = _FIRST_WAIT, _FIRST_PAUSE

    async def _until_answered(self) -> None:
        """Until one call is answered; the cell may ask more meanwhile, or end, so it is looked at now and then."""
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
        """What the session tells; asked again where it told nothing, and the cell is not sent again then."""
        state = NO_REPLY
        for pause in (0.0, *[_TRY_AGAIN] * (_TRIES - 1)):
            await asyncio.sleep(pause)
            try:
                now = await self._asked(begin if not pause else None, interrupt=interrupt, wait=wait)
                if begin is None or not pause or now.stage in ("runs", "over"):
                    return now
                state = _LOST if self._is_gone else state  # it may have run
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
        """Answers that go at a time; they are forgotten when the session has told that it was reached."""
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
        self._complained = (self._complained + result.stderr * result.success)[:_MOST_WRITTEN]
        try:
            now = await told.read(self._session, line) if line is not None else None
        except ACASessionsError:
            now = None
        ran = 0.0 if stood_still else elapsed if now is None or not now.calls else min(max(now.waited, _LEAST), elapsed)
        self._clock.count(ran, now.computed if now is not None else None)
        if now is None:
            raise _SilentError(NO_REPLY if result.state.kind == "kept" or line is not None else result.state)
        return now

    def _going_on(self, now: Told) -> Told:
        """A cell that the session does not know any more went with the interpreter that it ran in."""
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
        """On the way out of a cancelled call: its cell is to end as well, even if the caller is cancelled again meanwhile."""
        if self._is_sent:
            with contextlib.suppress(asyncio.CancelledError):
                await self._tasks.to_its_end(self._try_to_interrupt())

    async def _try_to_interrupt(self) -> None:
        with contextlib.suppress(ACASessionsError, TimeoutError, _EndedError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self._met(interrupt=True, wait=_INTERRUPT_WAIT)


def _answer_of(answering: "asyncio.Task[str]") -> str:
    """A tool may cancel itself: then nobody answered."""
    if answering.cancelled() or answering.exception() is not None:
        return json.dumps({"error": {"name": "ToolError", "message": "nobody answered"}})
    return answering.result()
