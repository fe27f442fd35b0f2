"""The host's view of an execution: its output, displays, questions, clock and result. What the guest reports is validated here."""

import asyncio
import codecs
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import GuestDiedError
from ...models import CodeError, CodeExecutionResult, Display, Event, FileChange, RunningProcess, State, VariableChange
from ...network.denials import Decision, Denial
from .. import wire
from ..policy import INTERRUPT_GRACE, QUEUED_SECONDS, STILL_SECONDS

_MOST_READS = 512  # a pipe in packet mode (O_DIRECT in pipe(2)) holds 256 writes, each of perhaps one byte


class Output:
    """A non-blocking reader of a guest's stdout or stderr. Of long output it keeps only the beginning and the end, to limit its memory."""

    def __init__(self, descriptor: int, limit: int) -> None:
        """Take over `descriptor`, the read end of a pipe. Between calls of `take_text`, keep only the first and last `limit // 2` bytes."""
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._readable = select.poll()
        self._readable.register(descriptor, select.POLLIN)
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._tell: Callable[[str], None] | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.flooded = False
        self.read = 0  # bytes in all, those that were cut included

    def forward(self, tell: Callable[[str], None] | None) -> None:
        """Call `tell` with the text that is kept now, and later with all new text. If `tell` is None, stop these calls."""
        self._tell = tell
        if tell is not None:
            self._decoder.reset()
            self._pass_on(bytes(self._head + self._tail))

    def drain(self, most: int = 1 << 22, *, read_frames: Callable[[], bool] = lambda: True) -> bool:
        """Read what is in the pipe now. Return False if no process has the pipe open for writing any more, else True.

        After `most` bytes or 512 reads, stop and set `flooded`: a guest that writes single bytes must not keep the host busy.
        `read_frames` passes on the guest's frames. If it returns False, stop and set `flooded` as well.
        """
        self.flooded, left = False, most
        for _ in range(_MOST_READS):
            # The guest sends a frame only while this pipe is empty. So text that is there before the frames are read comes after them, and
            # text that is not there yet must not be read before the next frames.
            if not self._readable.poll(0):
                return True
            if not read_frames():
                break
            try:
                data = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.read += len(data)
            self._keep(data)
            self._pass_on(data)
            left -= len(data)
            if left <= 0:
                break
        self.flooded = True
        return True

    def take_text(self) -> str:
        """Return the text since the last call. If its middle was dropped, a line in that place gives the number of missing bytes."""
        cut = f"\n[… {self._dropped} bytes cut …]\n".encode() if self._dropped else b""
        text = bytes(self._head + cut + self._tail).decode("utf-8", "replace")
        self._head, self._tail, self._dropped = bytearray(), bytearray(), 0
        return text

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.descriptor)

    def _pass_on(self, data: bytes) -> None:
        if self._tell is not None and (text := self._decoder.decode(data)):
            self._tell(text)

    def _keep(self, data: bytes) -> None:
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        excess = len(self._tail) - self._half
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess


_MAX_DISPLAYS = 1000
_MAX_FORMS = 50  # of one display; to read 40,000 tiny ones takes 25 ms of the event loop, and their size is charged as 0.3 ms
_MAX_DISPLAYED = 32 << 20  # characters in all displays of a cell
_MAX_TEXT = 2 << 20  # characters
_MAX_NAME = 200  # characters
_SIZES = range(1 << 63)  # what a size, a length or a pid can be
_MAX_SIDES = 64  # NumPy 2 allows so many dimensions
_MAX_OPEN = 64  # questions at a time
_MAX_REFUSED = 1000  # refused requests that are remembered
_MAX_QUESTION = 1 << 20  # characters; larger things go by files
_KINDS = {"input": "input", "password": "input", "call": "call"}  # what a question is about, and what the caller must answer for it


class CellNotStartedError(Exception):
    """Raised when the execution was cancelled before the cell was sent to the guest."""


class CellNotSentError(GuestDiedError):
    """Raised when the interpreter ended before the cell was sent. The caller can run the cell in another interpreter."""


class Clock:
    """A stopwatch for the seconds that a cell has used of its timeout.

    The host starts it when it sends the cell, and stops it while the cell waits for an answer to a question. While the clock is stopped,
    only the processor time of the cell's processes counts as used, for example that of a thread that goes on computing. It counts at most
    as much as the time that has passed. The rest of that time does not count until it has reached STILL_SECONDS in total, and counts from
    then on. Otherwise a cell that asks again and again would have no deadline.
    """

    def __init__(self, computed: Callable[[], float] = lambda: 0.0, now: Callable[[], float] = time.perf_counter) -> None:
        """Create a stopped clock. `computed` returns the processor seconds of the cell's processes, `now` the time in seconds."""
        self._computed = computed
        self._now = now
        self._used = 0.0
        self._since: float | None = None
        self._stopped: tuple[float, float] | None = None  # when it was stopped, and the processor time at that moment
        self._still = 0.0  # seconds without computing in earlier stops

    @property
    def used(self) -> float:
        """Return how many seconds of the timeout the cell has used until now."""
        if self._since is not None:
            return self._used + self._now() - self._since + max(0.0, self._still - STILL_SECONDS)
        busy, idle = self._while_stopped()
        return self._used + busy + max(0.0, self._still + idle - STILL_SECONDS)

    def stop(self) -> None:
        """Stop the clock: until the next `start`, only the processor time of the cell's processes counts (see `Clock`)."""
        if self._since is not None:
            self._used += self._now() - self._since
            self._since, self._stopped = None, (self._now(), self._computed())

    def start(self) -> None:
        """Start the clock, for the first time or after `stop`."""
        if self._stopped is not None:
            busy, idle = self._while_stopped()
            self._used, self._still, self._stopped = self._used + busy, self._still + idle, None
        self._since = self._now()

    def _while_stopped(self) -> tuple[float, float]:
        """Return two numbers of seconds since `stop`: the processor time that the cell's processes have used, and the remaining time.

        Return zeros if the clock was not stopped by `stop`.
        """
        if self._stopped is None:
            return 0.0, 0.0
        waited = self._now() - self._stopped[0]
        busy = min(max(self._computed() - self._stopped[1], 0.0), waited)
        return busy, waited - busy


class GracePeriod:
    """The time that an interpreter has to react to a signal: INTERRUPT_GRACE seconds, plus the time that it waits for a processor.

    Without this addition, an interpreter on a busy machine would be killed and lose its variables, although it reacts as soon as it can.
    At most QUEUED_SECONDS are added, because code of the session can slow down its own interpreter.
    """

    def __init__(self, queued: Callable[[], float], now: Callable[[], float] = time.perf_counter) -> None:
        """Start the grace period. `queued` returns how many seconds the interpreter has waited for a processor in its whole life."""
        self._queued = queued
        self._now = now
        self._before = queued()
        self._until = now() + INTERRUPT_GRACE

    @property
    def left(self) -> float:
        """Return how many seconds are left. The number is negative once the time is over."""
        return self._until + min(max(self._queued() - self._before, 0.0), QUEUED_SECONDS) - self._now()


@dataclass(frozen=True, slots=True)
class Question:
    """A question without an answer. `reply` is called with the answer or None, and with whether the caller's input has ended.

    `guest_number` is the number that the guest gave to it, or None if the host asks.
    """

    guest_number: int | None
    reply: Callable[[str | None, bool], None]


class Cell:
    """The state of an execution: whether it has started or finished, its displays (such as charts), and its unanswered questions.

    A question is a request of the cell to the caller: for a line of input (`input`), or to call a tool (`call`). The host also asks whether
    to allow a request that the rules of the session's network refuse (`network`). The host numbers all questions, so that a guest cannot
    choose the number of a question of the host.
    """

    def __init__(self, execution: str, tell: Callable[[Event], None] | None = None, *, question_kinds: Sequence[str] = ()) -> None:
        """Create the state of an execution that has not started. `tell` is called with each event of the execution.

        `question_kinds` lists the kinds of questions that the caller can answer: `input`, `call`, `network`. Without `tell`, all questions
        are refused.
        """
        loop = asyncio.get_running_loop()
        self.execution = execution
        self.started: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[wire.Finished] = loop.create_future()
        self.changed: asyncio.Future[None] = loop.create_future()  # done when the clock stops or starts; see `_wake_deadline_loop`
        self.displays: list[Display] = []
        self.files: list[FileChange] = []
        self.processes: list[RunningProcess] = []
        self.variables: list[VariableChange] = []
        self.overran: float | None = None  # the timeout in seconds, if the cell exceeded it
        self.clock: Clock  # made when the cell is sent
        self.open: dict[int, Question] = {}  # the questions without an answer, by their numbers
        self._question_count = 0
        self._refused: set[Denial] = set()  # refused already: the caller is not asked about them again
        self.tell = tell
        self._question_kinds = question_kinds
        self._room = _MAX_DISPLAYED
        self._sizes: list[int] = []
        self._places: dict[str, int] = {}  # of the latest display of each name
        self._clear_next = False

    def add_display(self, shown: wire.Shown) -> None:
        """Add a display to the result, or replace the earlier display of the same name if `shown` is an update of it.

        Raise WireError if there are too many displays, or if they are too large.
        """
        # The guest keeps the same limits or smaller ones: exceeding these means that the guest forged the frame.
        if len(shown.data) > _MAX_FORMS or len(shown.name or "") > _MAX_NAME:
            raise wire.WireError(f"a display must have at most {_MAX_FORMS} forms, and a name of at most {_MAX_NAME} characters")
        if self._clear_next:
            self.clear_displays()
        size = sum(len(mime) + len(content) for mime, content in shown.data.items())
        place = self._places.get(shown.name) if shown.name and shown.update else None
        if place is None:
            place = len(self.displays)
            self.displays.append(Display({}))
            self._sizes.append(0)
        self._room += self._sizes[place] - size
        self._sizes[place] = size
        self.displays[place] = Display(shown.data, shown.name)
        if shown.name:
            self._places[shown.name] = place
        if len(self.displays) > _MAX_DISPLAYS or self._room < 0:
            raise wire.WireError(f"a cell must show at most {_MAX_DISPLAYS} displays, and {_MAX_DISPLAYED} characters in them")
        if self.tell is not None:
            self.tell(Event(kind="display", display=self.displays[place], update=shown.update, is_value=shown.is_value))

    def report_output(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """Report text that the cell wrote to `stream` as an event, if the caller wants events."""
        if self._clear_next:
            self.clear_displays()
        if self.tell is not None:
            self.tell(Event(kind=stream, text=text))

    def add_question(self, asked: wire.Asked, reply: Callable[[str | None, bool], None]) -> bool:
        """Register a question of the guest, stop the clock and report an event. `reply` is called with the answer.

        Return False if the caller does not answer questions of this kind. Raise WireError if the question is malformed or too long, if
        another open question has its number, or if 64 questions of the guest are open.
        """
        numbers = [question.guest_number for question in self.open.values() if question.guest_number is not None]
        if asked.number in numbers or len(numbers) >= _MAX_OPEN or asked.about not in _KINDS or len(asked.text) > _MAX_QUESTION:
            raise wire.WireError(
                f"a question must have a known kind, a new number and at most {_MAX_QUESTION} characters; {len(numbers)} are open"
            )
        if _KINDS[asked.about] not in self._question_kinds or self.tell is None:
            return False
        kind: Literal["call", "input"] = "call" if asked.about == "call" else "input"
        number = self._open_question(Question(asked.number, reply))
        self.tell(Event(kind=kind, text=asked.text, number=number, password=asked.about == "password"))
        return True

    async def decide(self, denial: Denial) -> Decision:
        """Ask the caller whether to allow a request that the rules refuse, and return the decision. The clock stops meanwhile.

        Return `refuse` if the caller does not answer such questions or has refused the same request before, or if the cell ends first.
        """
        if self.tell is None or "network" not in self._question_kinds or self.finished.done() or denial in self._refused:
            return "refuse"
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

        def reply(text: str | None, _is_end: bool) -> None:
            decision: Decision = "always" if text == "always" else "once" if text == "once" else "refuse"
            if decision == "refuse" and len(self._refused) < _MAX_REFUSED:
                self._refused.add(denial)
            if self.tell is not None:
                self.tell(Event(kind="decision", text=decision, number=number))
            if not decided.done():  # the session closed its connection
                decided.set_result(decision)

        number = self._open_question(Question(None, reply))
        self.tell(Event(kind="network", text=denial.to_json(), number=number))
        try:
            return await decided
        finally:
            self.answer(number, None)

    def answer(self, number: int, text: str | None, *, is_end: bool = False) -> bool:
        """Answer the question with this number. Return False if no open question has it.

        If no other question is open, start the clock again.
        """
        question = self.open.pop(number, None)
        if question is None:
            return False
        if not self.open:
            self.clock.start()
        self._wake_deadline_loop()
        question.reply(text, is_end)
        return True

    def end_questions(self) -> None:
        """Refuse the requests that the host asks about, because the cell has ended. The guest drops its own questions."""
        for number in [number for number, question in self.open.items() if question.guest_number is None]:
            self.answer(number, None)

    def _open_question(self, question: Question) -> int:
        """Register a question, stop the clock, and return the number of the question."""
        self._question_count += 1
        self.open[self._question_count] = question
        self.clock.stop()
        self._wake_deadline_loop()
        return self._question_count

    def _wake_deadline_loop(self) -> None:
        changed, self.changed = self.changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    def finish(self, finished: wire.Finished) -> None:
        """Validate `finished`, the guest's last frame of the execution, and store what it reports for `result`.

        Raise WireError if the frame exceeds a limit.
        """
        for text in (finished.value, finished.text, finished.error_name, finished.error_message, finished.error_traceback):
            if isinstance(text, str) and len(text) > _MAX_TEXT:
                raise wire.WireError(f"a text of a result must have at most {_MAX_TEXT} characters, got {len(text)}")
        rows = (len(finished.files), len(finished.processes), len(finished.variables))
        if rows[0] > wire.MOST_FILES or rows[1] > wire.MOST_PROCESSES or rows[2] > wire.MOST_VARIABLES:
            raise wire.WireError(f"a result has more files, processes or variables than the host accepts: {rows}")
        if finished.count not in _SIZES:
            raise wire.WireError("the number of a cell must be from 0 to 2**63 - 1")
        for file, size, path in finished.files:
            if size not in _SIZES:
                raise wire.WireError("the size of a file must be from 0 to 2**63 - 1")
            self.files.append(FileChange(path, file, size))
        for pid, name in finished.processes:
            if pid not in _SIZES:
                raise wire.WireError("a pid must be from 0 to 2**63 - 1")
            self.processes.append(RunningProcess(pid, name))
        for variable, size, sides, type, name in finished.variables:
            if size not in _SIZES or len(sides) > _MAX_SIDES or not all(map(_SIZES.__contains__, sides)):
                raise wire.WireError(f"the sizes of a variable must be at most {_MAX_SIDES} numbers from 0 to 2**63 - 1")
            self.variables.append(VariableChange(name, variable, type, tuple(sides) or None, size))
        self.finished.set_result(finished)

    def result(
        self, cause: str | None, *, stdout: str, stderr: str, processes: tuple[RunningProcess, ...], duration: float
    ) -> CodeExecutionResult:
        """Build the result of the execution.

        The `state` in the result only reports what this execution did to the session. Later another module replaces it by a state that
        reports all that has happened since the caller's last result, as the session's ledger records it.

        Args:
            cause: Why the interpreter died. It is ignored if the cell has finished.
            stdout: The text of stdout.
            stderr: The text of stderr.
            processes: The processes that the cell left running.
            duration: How many seconds have passed since the host sent the cell.
        """
        finished = self.finished.result() if self.finished.done() else None
        error = None
        if self.overran is not None:
            ended = "interrupted" if finished else "killed"
            error = CodeError("TimeoutError", f"the cell ran longer than {self.overran:g} s and was {ended}")
        elif finished is None:
            error = CodeError("InterpreterDied", f"the session's interpreter ended ({cause})")
        elif finished.error_name is not None:
            error = CodeError(finished.error_name, finished.error_message, finished.error_traceback)
        if error is not None:
            stderr = "\n".join(filter(None, (stderr.rstrip("\n"), error.traceback or str(error))))
        return CodeExecutionResult(
            stdout=stdout,
            stderr=stderr,
            value=finished.value if finished else None,
            text=finished.text if finished else None,
            value_is_none=finished is not None and finished.value_is_none,
            execution_count=(finished.count or None) if finished else None,
            displays=tuple(self.displays),
            files=tuple(self.files) if finished else (),  # a refused frame may have added some
            processes=processes,
            variables=tuple(self.variables) if finished else (),
            error=error,
            state=State() if finished else State(variables="lost", processes="ended", reason=cause),
            duration=duration,
        )

    def clear_displays(self, *, wait: bool = False) -> None:
        """Remove from the result all displays that the cell has shown so far, and report this as an event.

        If `wait` is true, do so when the cell prints or displays something.
        """
        self._clear_next = wait
        if wait:
            return
        self.displays.clear()
        self._sizes.clear()
        self._places.clear()
        self._room = _MAX_DISPLAYED
        if self.tell is not None:
            self.tell(Event(kind="clear"))


def death_reason(status: int | None) -> str:
    """Return why an interpreter ended: `exit`, `crash` or `killed`. `status` is its wait status (wait(2)), or None if that is unknown.

    The reason is `exit` if code of the session ended the interpreter, `killed` for SIGKILL and for an unknown status, and `crash` for other
    signals and for a failure of the interpreter's own code.
    """
    if status is None:
        return "killed"
    if os.WIFEXITED(status):
        return "crash" if os.WEXITSTATUS(status) == wire.BROKEN_EXIT else "exit"
    return "killed" if os.WTERMSIG(status) == signal.SIGKILL else "crash"
