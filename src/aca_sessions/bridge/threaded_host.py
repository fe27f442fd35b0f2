"""Run cells with host calls (calls to functions of the host) at endpoints that report no events while a cell runs.

The cell runs in a thread of the session. While it runs, the host polls the session: each poll is a short execution. A poll delivers answers
to host calls, waits a short time for new calls or for the cell's end, and prints a line of JSON, the report. If the host does not receive
the report, it polls again, and the session repeats its report. A cell that may have started is never sent again, and no call is carried out
twice.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from ..client.arguments import checked_timeout
from ..client.session import Session
from ..client.snippet_results import parse_printed_json
from ..errors import ACASessionsError, ExecutionError, ServiceError, ServiceUnavailableError
from ..lifetime import Tasks
from ..models import NO_REPLY, CodeError, CodeExecutionResult, Display, Scalar, State
from . import codec, host

_GUEST = "bridge.threaded_guest"
# Ordered so that no module imports a later one.
_MODULES = (
    *("sandbox.wire", "sandbox.guest.folders", "sandbox.guest.notebook.cell_output", "sandbox.guest.notebook.loop"),
    *("sandbox.guest.notebook.tracebacks", "bridge.codec", "bridge.guest", _GUEST),
)
_MISSING = {
    "python": "its sessions have a Python older than 3.9",
    "ipython": "its sessions have no IPython",
    "threads": "its sessions cannot start threads",
}
_ELSEWHERE = "Use an endpoint with live executions, such as aca-sessions serve"
_SENDING_SECONDS = 60.0
_DEFAULT_SECONDS = 100.0
_MARGIN = 10.0  # seconds that a poll can last longer than it waits
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 5.0  # seconds in the session, for calls or the end
_LEAST = 0.001  # seconds that are counted at least from an answer to the next call, even if the session reports less
_STILL_SECONDS = 3600.0  # that the clock of one cell can stand still in total, the same as at endpoints with events
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0  # seconds on the host, while calls are answered
_INTERRUPTS, _INTERRUPT_WAIT = 3, 2.5  # seconds: on a busy machine, an interrupted cell needs some to end
_TRIES, _TRY_AGAIN = 3, 0.5
_CANCEL_SECONDS = 10.0
_MOST_WRITTEN = 1 << 20
_MOST_DELIVERED = 8 << 20  # characters of answers at a time, or one answer
_MOST_OPEN = 64  # calls that are being answered or whose answers were not brought yet; the session repeats others later
_MOST_REPORT = 64 << 20  # bytes of one report
_MOST_RESULT_TEXT = 2 << 20
_MOST_CALL = 1 << 20
_MOST_CALLS = 64  # that wait at a time
_MOST_DISPLAYS = 1000
_LARGEST_NUMBER = 10**12
_RUNS_ON = State("unknown", "unknown", "unknown", "still running")
_LOST = State(variables="lost", processes="ended")  # expired, ended or killed: the session does not report which
_STILL_RUNS = "it did not end when it was interrupted, and still runs in a thread of the session: use another session for further cells"


async def send_modules(session: Session) -> str:
    """Send a session the modules that its cells need for host calls. Return "" if it can import them, else the reason why not.

    Raise ServiceUnavailableError if the session did not reply, so that it is not known whether it has the modules.
    """
    try:
        result = await _send(session)
        if result.state.kind != "kept":  # sending twice has no further effect
            result = await _send(session)
        if result.state.kind == "unknown":
            raise ServiceUnavailableError("the session gave no answer while it was prepared for host calls: try again", sent=True)
        lack = parse_printed_json(result)
    except (ExecutionError, ServiceError):
        return "its sessions cannot load the modules that cells with host calls need"
    return "" if lack is None else _MISSING.get(str(lack), "its sessions lack something that cells with host calls need")


async def _send(session: Session) -> CodeExecutionResult:
    return await session._run_snippet("create_modules", _package(), _packed(), timeout=_SENDING_SECONDS)


@cache
def _package() -> str:
    """Return the name of the package that has the sent modules in the session. The name ends with a hash of their sources."""
    return f"_aca_sessions_{hashlib.sha256(_packed().encode()).hexdigest()[:12]}"


@cache
def _packed() -> str:
    sources = [(name, files("aca_sessions").joinpath(f"{name.replace('.', '/')}.py").read_text()) for name in _MODULES]
    return base64.b64encode(zlib.compress(json.dumps(sources).encode(), 9)).decode()


Stage = Literal["runs", "over", "unknown", "no module"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a cell as the session reported it. All types and lengths were checked."""

    stdout: str
    stderr: str
    value: Scalar
    text: str | None
    error: CodeError | None
    displays: tuple[Display, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The session's reply to one poll of the host: whether the cell still runs, and its unanswered host calls or its result.

    `stage` is `runs` while the cell runs, and `over` after it has ended. It is `unknown` if this interpreter never started the cell, and
    `no module` if the session lacks the modules that `send_modules` sends.
    """

    stage: Stage
    calls: tuple[tuple[int, str], ...] = ()
    waited: float = 0.0  # seconds in the session until the calls came
    computed: float | None = None  # processor seconds since the cell began, without those of the polls
    outcome: Outcome | None = None


class ThreadedRunner:
    """Runs cells in one session at an endpoint without events. The cells can make host calls (calls to functions of the host).

    One cell runs at a time.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turn = asyncio.Lock()

    async def run(self, calls: host.HostCalls, code: str, timeout: float | None) -> CodeExecutionResult:
        """Run a cell within `timeout` seconds, by default 100. Cancelling the call interrupts the cell.

        `calls` answers the cell's host calls. While the cell waits for an answer, only the session's processor time counts against
        `timeout`. At most an hour in total is not counted.
        """
        seconds = checked_timeout(timeout) or _DEFAULT_SECONDS
        async with self._turn:
            return await self._session._run_with(lambda source: _Cell(self._session, calls, seconds).run(source), code)


class _EndedError(Exception):
    """The session did not return a cell's result. The caller gets a result with `error`, and with the session's `state`."""

    def __init__(self, error: CodeError, state: State) -> None:
        super().__init__(str(error))
        self.error = error
        self.state = state


class _SilentError(Exception):
    """The session did not reply to a poll. `state` holds what is known of the session, for example that its variables are lost."""

    def __init__(self, state: State) -> None:
        super().__init__(str(state))
        self.state = state


class Clock:
    """Counts the seconds that a cell has used of its timeout, from the times that the session reports.

    While the cell waits for an answer to a host call, only the processor time of the session's interpreter counts, up to the time that
    passed. Code in the session could report too little, so at most an hour in total is not counted.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._began = self._counted_at = now()
        self._used = self._computed = 0.0

    @property
    def used(self) -> float:
        """Return the seconds that the cell has used of its timeout."""
        return max(self._used, self._now() - self._began - _STILL_SECONDS)

    def count(self, ran: float, computed: float | None) -> None:
        """Count the time since the last call of this method, or since the clock was created.

        Args:
            ran: For how many of these seconds the cell ran, which means that it did not wait for an answer of the host.
            computed: The processor seconds of the session's interpreter since the cell began. None if the session did not report them.
        """
        now = self._now()
        busy = computed - self._computed if computed is not None else 0.0
        self._used += max(ran, min(busy, now - self._counted_at))
        self._counted_at, self._computed = now, self._computed if computed is None else computed


class _Cell:
    """Runs one cell with host calls: sends it to the session once, polls the session until it has ended, and answers its calls."""

    def __init__(self, session: Session, calls: host.HostCalls, timeout: float) -> None:
        self._session = session
        self._calls = calls
        self._timeout = timeout
        self._caller = session._copy_position()
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
        report = await self._start_cell(code)
        while report.stage == "runs" and self._clock.used < self._timeout:
            self._answer_calls(report)
            await self._wait_for_answer()
            wait = 0.0 if self._open else min(self._wait, max(self._timeout - self._clock.used, 0.0))
            self._wait = min(self._wait * 2, _LONGEST_WAIT)
            report = self._require_known_cell(await self._poll(wait=wait))
        overran = report.stage == "runs"
        if overran:
            report = await self._interrupt()
        if report.outcome is None:
            raise _EndedError(CodeError("TimeoutError", f"{self._too_long}; {_STILL_RUNS}"), _RUNS_ON)
        return self._result(report.outcome, overran=overran)

    async def _start_cell(self, code: str) -> Report:
        """Start the cell and return the session's first report. If the session lacks the modules for host calls, send them and retry."""
        report = await self._poll(begin=code, wait=min(_FIRST_WAIT, self._timeout))
        if report.stage == "no module":
            lacking = await send_modules(self._session)
            if lacking:
                raise _EndedError(CodeError("NotSupportedError", f"the cell was not run: {lacking}. {_ELSEWHERE}"), State())
            report = await self._poll(begin=code, wait=min(_FIRST_WAIT, self._timeout))
        return self._require_known_cell(report)

    def _answer_calls(self, report: Report) -> None:
        """Start to answer the new host calls in a report. If over 64 calls would be open, skip the rest: the next report repeats them."""
        for number, text in report.calls:
            if len(self._open) + len(self._answers) >= _MOST_OPEN:
                break
            if number > self._latest:
                self._latest = number
                self._open[number] = self._tasks.start_awaited(self._calls.answer(self._session, text))
                self._wait, self._pause = _FIRST_WAIT, _FIRST_PAUSE

    async def _wait_for_answer(self) -> None:
        """Wait at most two seconds until a host call is answered. Store the answers, which the next poll delivers.

        Do nothing if no call waits for an answer. Two seconds are the limit because the cell may end or make more calls meanwhile.
        """
        if not self._open:
            return
        done, _ = await asyncio.wait(self._open.values(), timeout=self._pause, return_when=asyncio.FIRST_COMPLETED)
        self._pause = _FIRST_PAUSE if done else min(self._pause * 2, _LONGEST_PAUSE)
        for number, answering in [*self._open.items()]:
            if answering.done():
                self._answers[number] = _get_answer(answering)
                del self._open[number]

    async def _interrupt(self) -> Report:
        report = Report("runs")
        for _ in range(_INTERRUPTS):
            report = self._require_known_cell(await self._poll(interrupt=True, wait=_INTERRUPT_WAIT))
            if report.stage == "over":
                break
        return report

    async def _poll(self, *, begin: str | None = None, interrupt: bool = False, wait: float) -> Report:
        """Poll the session and return its report. If none comes, poll again, but do not send the cell's source again.

        Args:
            begin: The cell's source if this poll starts the cell, else None.
            interrupt: Whether to interrupt the cell.
            wait: How many seconds the session waits at most for new host calls or for the cell's end, before it reports.

        Raises:
            _EndedError: No poll returned a report, or the session was lost.
            ACASessionsError: The request with the cell's source failed.
        """
        state = NO_REPLY
        for pause in (0.0, *[_TRY_AGAIN] * (_TRIES - 1)):
            await asyncio.sleep(pause)
            try:
                # Only the first try, which has no pause before it, sends the cell.
                report = await self._send_poll(begin if not pause else None, interrupt=interrupt, wait=wait)
                if begin is None or not pause or report.stage in ("runs", "over"):
                    return report
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
        raise self._make_ended_error(state)

    async def _send_poll(self, begin: str | None, *, interrupt: bool, wait: float) -> Report:
        answers = self._select_answers()
        request: dict[str, object] = {"cell": self._id, "begin": begin, "interrupt": interrupt, "wait": wait}
        report = await self._exchange_report({**request, "answers": answers, "known": [*self._open, *self._answers]}, wait)
        for number in answers:
            self._answers.pop(number, None)
        return report

    def _select_answers(self) -> dict[int, str]:
        """Return the answers to deliver with the next poll: a dict from the number of a host call to its answer.

        They have at most 8 Mi characters together. A longer answer is delivered alone. They also stay in `_answers`, because the poll may
        fail.
        """
        answers, size = dict[int, str](), 0
        for number, text in self._answers.items():
            if not answers or size + len(text) <= _MOST_DELIVERED:
                answers[number] = text
                size += len(text)
        return answers

    async def _exchange_report(self, request: dict[str, object], wait: float) -> Report:
        text, files = host.encode(json.dumps(request))
        for name, data in files.items():
            await self._session.upload_file(name, data)
        self._is_sent = True
        marker, started, stood_still = secrets.token_hex(16), time.perf_counter(), bool(self._open)
        module, limit = f"{_package()}.{_GUEST}", wait + _MARGIN
        result = await self._session._run_snippet("pass_message", module, marker, text, timeout=limit, caller=self._caller)
        elapsed = time.perf_counter() - started
        self._is_gone = self._is_gone or result.state.kind == "lost"
        rest, line = _split_stdout(result.stdout, marker)
        self._written = (self._written + rest)[:_MOST_WRITTEN]
        # The stderr of a poll that failed is its own traceback, not the cell's output.
        self._complained = (self._complained + result.stderr * result.success)[:_MOST_WRITTEN]
        try:
            report = await _read_report(self._session, line) if line is not None else None
        except ACASessionsError:
            report = None
        # While calls were open at the start, the clock stood still. If new calls came, only the time until they came counts.
        ran = 0.0 if stood_still else elapsed if report is None or not report.calls else min(max(report.waited, _LEAST), elapsed)
        self._clock.count(ran, report.computed if report is not None else None)
        if report is None:
            raise _SilentError(NO_REPLY if result.state.kind == "kept" or line is not None else result.state)
        return report

    def _require_known_cell(self, report: Report) -> Report:
        """Return `report` unchanged. Raise _EndedError if the session does not have the cell, because its interpreter was lost."""
        if report.stage in ("unknown", "no module"):
            raise self._make_ended_error(_LOST)
        return report

    def _make_ended_error(self, state: State) -> _EndedError:
        if state.kind == "lost":
            return _EndedError(
                CodeError(
                    "InterpreterDied", "the session ended while the cell ran; its variables are lost: run the cells that define them again"
                ),
                state,
            )
        return _EndedError(
            CodeError("ConnectionError", "the session gave no answer: check whether the cell had an effect before you run it again"), state
        )

    @property
    def _too_long(self) -> str:
        return f"the cell ran longer than {self._timeout:g} s"

    def _result(self, outcome: Outcome, *, overran: bool) -> CodeExecutionResult:
        error, stderr = outcome.error, outcome.stderr + self._complained
        if overran:
            error = CodeError("TimeoutError", f"{self._too_long} and was interrupted; its variables are kept")
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
        """Interrupt the cell after `run` failed or was cancelled. Ignore errors. Another cancellation does not stop this."""
        if self._is_sent:
            with contextlib.suppress(asyncio.CancelledError):
                await self._tasks.run_shielded(self._try_to_interrupt())

    async def _try_to_interrupt(self) -> None:
        with contextlib.suppress(ACASessionsError, TimeoutError, _EndedError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self._poll(interrupt=True, wait=_INTERRUPT_WAIT)


def _get_answer(answering: "asyncio.Task[str]") -> str:
    """Return the result of a task that answered a host call. If the task failed or was cancelled, return a JSON answer with an error."""
    if answering.cancelled() or answering.exception() is not None:
        return json.dumps(
            {
                "error": {
                    "name": "ToolError",
                    "message": "the call was cancelled on the host before it had a result: try again, or correct the tool if it did that",
                }
            }
        )
    return answering.result()


# What follows validates what a session reports of its cell: guest code can forge any of it.


def _split_stdout(stdout: str, marker: str) -> tuple[str, str | None]:
    """Split what a poll printed into the cell's own output and the report, a line that begins with `marker`.

    Return the output without this line, and the line without the marker. The line is None if there is no marker.
    """
    before, found, rest = stdout.rpartition(f"\n{marker}")
    if not found:
        return stdout, None
    line, _, after = rest.partition("\n")
    return before + after, line


async def _read_report(session: Session, line: str) -> Report:
    """Parse the report in `line`, or in the session's file that `line` names. Raise ServiceError if the report is not valid."""
    try:
        data = json.loads(line)
        match data:
            case {"file": str(name)} if codec.FILE.fullmatch(name):
                data = json.loads(await _download_report(session, name))
    except (ValueError, RecursionError):
        raise _unreadable_error() from None  # the cause quotes what the session reported
    return _parse_report(data)


async def _download_report(session: Session, name: str) -> str:
    sizes = {file.name: file.size for file in await session.list_files()}
    if sizes.get(name, 0) > _MOST_REPORT:
        raise _unreadable_error()
    data = await session.download_file(name)
    await session.delete_file(name)
    return data.decode("utf-8", "replace")


def _parse_report(data: object) -> Report:
    match data:
        case {"cell": "runs", "calls": [*calls], "waited": float(waited), "computed": float(computed)}:
            return Report("runs", tuple(_parse_call(one) for one in calls[:_MOST_CALLS]), waited, computed)
        case {"cell": "over", "result": dict(result)}:
            return Report("over", outcome=_parse_outcome(result))
        case {"cell": "unknown" | "no module" as stage}:
            return Report(stage)
    raise _unreadable_error()


def _parse_call(one: object) -> tuple[int, str]:
    match one:
        case [int(number), str(text)] if type(number) is int and 0 < number < _LARGEST_NUMBER and len(text) <= _MOST_CALL:
            return number, text
    raise _unreadable_error()


def _parse_outcome(result: dict[str, Any]) -> Outcome:
    match result:
        case {"stdout": str(stdout), "stderr": str(stderr), "value": value, "text": text, "error": error, "displays": [*displays]}:
            return Outcome(
                stdout=_parse_text(stdout),
                stderr=_parse_text(stderr),
                value=_parse_value(value),
                text=None if text is None else _parse_text(text),
                error=None if error is None else _parse_error(error),
                displays=tuple(_parse_display(one) for one in displays[:_MOST_DISPLAYS]),
            )
    raise _unreadable_error()


def _parse_value(value: object) -> Scalar:
    match value:
        case None | bool() | int() | float():
            return value
    return _parse_text(value)


def _parse_error(error: object) -> CodeError:
    match error:
        case [name, message, traceback]:
            return CodeError(_parse_text(name), _parse_text(message), _parse_text(traceback))
    raise _unreadable_error()


def _parse_display(one: object) -> Display:
    match one:
        case [dict(data), None | str() as name] if all(isinstance(form, str) for form in data.values()):
            return Display({_escape_surrogates(mime): _escape_surrogates(form) for mime, form in data.items()}, name)
    raise _unreadable_error()


def _parse_text(text: object) -> str:
    if not isinstance(text, str) or len(text) > _MOST_RESULT_TEXT:
        raise _unreadable_error()
    return _escape_surrogates(text)


def _escape_surrogates(text: str) -> str:
    """Replace lone surrogates by escapes such as `\\ud800`, because UTF-8 cannot encode them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _unreadable_error() -> ServiceError:
    return ServiceError(200, "Unreadable", "the session returned an unreadable report: reset it, or use another session")
