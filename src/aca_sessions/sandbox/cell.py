"""An execution as the host sees it: its state while the cell runs, and its result. What the guest reports is validated here."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from typing import Literal

from ..errors import GuestDiedError
from ..models import CodeError, CodeExecutionResult, Display, Event, FileChange, RunningProcess, State, VariableChange
from . import wire
from .policy import INTERRUPT_GRACE, QUEUED_SECONDS, STILL_SECONDS

_MAX_DISPLAYS = 1000
_MAX_DISPLAYED = 32 << 20  # characters in all displays of a cell
_MAX_TEXT = 2 << 20  # characters
_MAX_DIGITS = 19  # a number has fewer digits than this
_MAX_NAME = 200  # characters
_SHAPE = re.compile(r"-|\d{1,18}(x\d{1,18}){0,31}", re.ASCII)
_MAX_OPEN = 64  # questions at a time
_MAX_QUESTION = 1 << 20  # characters; larger things go by files
_KINDS = ("input", "call")


class CellNotStartedError(Exception):
    """Raised when the execution was cancelled before the cell was sent to the guest."""


class CellNotSentError(GuestDiedError):
    """Raised when the interpreter ended before the cell was sent. The caller can run the cell in another interpreter."""


class Clock:
    """The seconds of its timeout that a cell has used. The clock is stopped until the cell starts, and while the cell waits for the host.

    While the clock is stopped, other threads and processes of the cell may continue. Their processor time counts then, at most one second
    for each second. The clock can stand still for STILL_SECONDS in total, and further waiting counts as used. Without that limit, a cell
    that asks again and again would have no deadline.
    """

    def __init__(self, computed: Callable[[], float] = lambda: 0.0, now: Callable[[], float] = time.perf_counter) -> None:
        """Create a stopped clock.

        Args:
            computed: Returns the processor time of the cell's processes in seconds.
            now: Returns the time in seconds.
        """
        self._computed = computed
        self._now = now
        self._used = 0.0
        self._since: float | None = None
        self._stopped: tuple[float, float] | None = None  # when it was stopped, and the processor time at that moment
        self._still = 0.0  # seconds without computing in earlier stops

    @property
    def used(self) -> float:
        """Return the seconds used until now."""
        running = self._now() - self._since if self._since is not None else 0.0
        busy, idle = self._while_stopped()
        return self._used + running + busy + max(0.0, self._still + idle - STILL_SECONDS)

    def stop(self) -> None:
        """Stop the clock. From now on, only processor time of the cell's processes counts."""
        if self._since is not None:
            self._used += self._now() - self._since
            self._since, self._stopped = None, (self._now(), self._computed())

    def go_on(self) -> None:
        """Start the clock, for the first time or again."""
        busy, idle = self._while_stopped()
        self._used, self._still, self._stopped = self._used + busy, self._still + idle, None
        self._since = self._now()

    def _while_stopped(self) -> tuple[float, float]:
        """Return for how many seconds the cell's processes computed, and for how many they did not, since the clock was stopped."""
        if self._stopped is None:
            return 0.0, 0.0
        waited = self._now() - self._stopped[0]
        busy = min(max(self._computed() - self._stopped[1], 0.0), waited)
        return busy, waited - busy


class Grace:
    """The seconds that an interpreter has to obey a signal: INTERRUPT_GRACE, and those for which it waited for a processor.

    On a busy machine an interpreter may get no processor for seconds, and would lose its variables although it obeys. Code of the session
    can keep its own interpreter waiting. So at most QUEUED_SECONDS are added.
    """

    def __init__(self, queued: Callable[[], float], now: Callable[[], float] = time.perf_counter) -> None:
        """Begin to count.

        Args:
            queued: Returns for how many seconds the interpreter has waited for a processor since it started.
            now: Returns the time in seconds.
        """
        self._queued = queued
        self._now = now
        self._before = queued()
        self._until = now() + INTERRUPT_GRACE

    @property
    def left(self) -> float:
        """Return the seconds left."""
        return self._until + min(max(self._queued() - self._before, 0.0), QUEUED_SECONDS) - self._now()


class Cell:
    """The execution that runs now: how far it is, what it displayed, and which of its questions are open."""

    def __init__(self, execution: str, tell: Callable[[Event], None] | None = None, *, answered: Sequence[str] = ()) -> None:
        """Create the state of an execution that has not started.

        Args:
            execution: The id of the execution.
            tell: Receives each event as it happens. If it is None, no question of the cell can be answered.
            answered: The kinds of questions that the caller answers: `input`, `call`.
        """
        loop = asyncio.get_running_loop()
        self.execution = execution
        self.started: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[wire.Finished] = loop.create_future()
        self.turned: asyncio.Future[None] = loop.create_future()  # done when the clock stops or starts; see `_turn`
        self.displays: list[Display] = []
        self.overran: float | None = None  # the timeout in seconds, if the cell exceeded it
        self.clock = Clock()
        self.open: set[int] = set()  # numbers of questions without an answer
        self.tell = tell
        self._answered = answered
        self._room = _MAX_DISPLAYED
        self._sizes: list[int] = []
        self._places: dict[str, int] = {}  # of the latest display of each name

    def show(self, shown: wire.Shown) -> None:
        """Add a display, or replace the one that an update names. Raise WireError if the displays exceed a limit."""
        # The guest keeps a smaller budget: exceeding this one means that the guest forged the frame.
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
        if len(self.displays) > _MAX_DISPLAYS or self._room < 0 or len(shown.name or "") > _MAX_NAME:
            raise wire.WireError("more displays than a cell may show")
        if self.tell is not None:
            self.tell(Event(kind="display", display=self.displays[place]))

    def wrote(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """Report text that the cell wrote to a stream."""
        if self.tell is not None:
            self.tell(Event(kind=stream, text=text))

    def ask(self, asked: wire.Asked) -> bool:
        """Register a question and stop the clock. Return False if the caller does not answer questions of this kind.

        Raise WireError if the question is malformed or too long, if its number is in use, or if 64 questions are open.
        """
        if asked.number in self.open or len(self.open) >= _MAX_OPEN or asked.about not in _KINDS or len(asked.text) > _MAX_QUESTION:
            raise wire.WireError("a question of another kind, one that is too long, or one too many")
        if asked.about not in self._answered or self.tell is None:
            return False
        self.open.add(asked.number)
        self.clock.stop()
        self._turn()
        self.tell(Event(kind="call" if asked.about == "call" else "input", text=asked.text, number=asked.number))
        return True

    def answered(self, number: int) -> bool:
        """Remove a question that has its answer. Return False if the question is not open. The clock starts when none is left."""
        if number not in self.open:
            return False
        self.open.remove(number)
        if not self.open:
            self.clock.go_on()
        self._turn()
        return True

    def _turn(self) -> None:
        """Wake the deadline loop so that it recomputes the time left."""
        turned, self.turned = self.turned, asyncio.get_running_loop().create_future()
        turned.set_result(None)

    def clear(self) -> None:
        """Drop everything displayed so far from the result."""
        self.displays.clear()
        self._sizes.clear()
        self._places.clear()
        self._room = _MAX_DISPLAYED
        if self.tell is not None:
            self.tell(Event(kind="clear"))


def error_of(cell: Cell, finished: wire.Finished | None, cause: str | None) -> CodeError | None:
    """Return the error of an execution, or None if it succeeded.

    The state of the session is not known yet: `ledger.with_state` adds it to the message later.

    Args:
        cell: The execution.
        finished: The guest's last frame, or None if the interpreter died.
        cause: Why the interpreter died.
    """
    if cell.overran is not None:
        return CodeError("TimeoutError", f"the cell ran longer than {cell.overran:g} s and was {'interrupted' if finished else 'killed'}")
    if finished is None:
        return CodeError("InterpreterDied", f"the session's interpreter ended ({cause})")
    if finished.error_name is None:
        return None
    return CodeError(finished.error_name, finished.error_message, finished.error_traceback)


def check(finished: wire.Finished) -> None:
    """Validate what the field types of a frame cannot express. Raise WireError if the frame must be refused."""
    texts = (finished.value, finished.text, finished.error_name, finished.error_message, finished.error_traceback)
    if any(isinstance(text, str) and len(text) > _MAX_TEXT for text in texts):
        raise wire.WireError("a text over the size limit")
    changes_of(finished)
    processes_of(finished)
    variables_of(finished)


def changes_of(finished: wire.Finished) -> tuple[FileChange, ...]:
    """Parse the changes that the cell made to files. Raise WireError if one is malformed."""
    changes = []
    for told in finished.files:
        match told.split(" ", 2):
            case ["created" | "changed" | "deleted" as kind, size, path] if size.isdecimal() and len(size) < _MAX_DIGITS:
                changes.append(FileChange(path, kind, int(size)))
            case _:
                raise wire.WireError("a file change of another shape")
    return tuple(changes)


def processes_of(finished: wire.Finished) -> tuple[RunningProcess, ...]:
    """Parse the processes that the cell left running. Raise WireError if one is malformed."""
    found = []
    for told in finished.processes:
        match told.split(" ", 1):
            case [pid, name] if pid.isdecimal() and len(pid) < _MAX_DIGITS:
                found.append(RunningProcess(int(pid), name))
            case _:
                raise wire.WireError("a process of another shape")
    return tuple(found)


def variables_of(finished: wire.Finished) -> tuple[VariableChange, ...]:
    """Parse the changes that the cell made to the user's variables. Raise WireError if one is malformed."""
    changes = []
    for told in finished.variables:
        match told.split(" ", 4):
            case ["added" | "changed" | "deleted" as kind, size, shape, type, name] if _is_size(size) and _SHAPE.fullmatch(shape):
                sides = None if shape == "-" else tuple(map(int, shape.split("x")))
                changes.append(VariableChange(name, kind, "" if type == "-" else type, sides, int(size)))
            case _:
                raise wire.WireError("a variable change of another shape")
    return tuple(changes)


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS


def reason_of(status: int | None) -> str:
    """Return why an interpreter ended: `exit`, `crash` or `killed`.

    Args:
        status: The wait status (wait(2)), or None if the session's first process ended before it could report one.
    """
    if status is None:
        return "killed"
    if os.WIFEXITED(status):
        return "crash" if os.WEXITSTATUS(status) == wire.BROKEN_EXIT else "exit"
    return "killed" if os.WTERMSIG(status) == signal.SIGKILL else "crash"


def result_of(
    cell: Cell,
    finished: wire.Finished | None,
    cause: str | None,
    *,
    streams: tuple[str, str],
    processes: tuple[RunningProcess, ...],
    duration: float,
) -> CodeExecutionResult:
    """Return the result of an execution.

    Args:
        cell: The execution.
        finished: The guest's last frame, or None if the interpreter died.
        cause: Why the interpreter died, or None if it lives.
        streams: The text of stdout and of stderr.
        processes: The processes that the cell left running.
        duration: Seconds from the moment the host sent the cell.
    """
    stdout, stderr = streams
    error = error_of(cell, finished, cause)
    told = "\n".join(part for part in (stderr.rstrip("\n"), error.traceback or str(error)) if part) if error else stderr
    return CodeExecutionResult(
        stdout=stdout,
        stderr=told,
        value=finished.value if finished else None,
        text=finished.text if finished else None,
        value_is_none=finished is not None and finished.value_is_none,
        displays=tuple(cell.displays),
        files=changes_of(finished) if finished else (),
        processes=processes,
        variables=variables_of(finished) if finished else (),
        error=error,
        state=State() if finished else State(variables="lost", processes="ended", reason=cause),
        duration=duration,
    )
