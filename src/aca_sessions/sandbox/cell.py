"""The cell that runs in an interpreter: what is known of it so far, and what became of it. What a guest says of it is checked here."""

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
from .policy import STILL_SECONDS

_MAX_DISPLAYS = 1000
_MAX_DISPLAYED = 32 << 20
_MAX_TEXT = 2 << 20
_MAX_DIGITS = 19
_MAX_NAME = 200
_SHAPE = re.compile(r"-|\d{1,18}(x\d{1,18}){0,31}", re.ASCII)
_MAX_OPEN = 64  # questions at a time
_MAX_QUESTION = 1 << 20  # characters; larger things go by files
_KINDS = ("input", "call")


class CellNotStartedError(Exception):
    """The cell was cancelled before it was sent."""


class CellNotSentError(GuestDiedError):
    """The interpreter ended before the cell was sent: it can be run in another one."""


class Clock:
    """The seconds that a cell has used. It stands still until the cell starts, and while the cell waits for answers of the host.

    Other threads and processes of the cell may go on meanwhile: what they compute counts then, at most a second in a second. The time that
    the clock stands still in all is limited, or a cell that asks again and again would have no deadline.
    """

    def __init__(self, computed: Callable[[], float] = lambda: 0.0, now: Callable[[], float] = time.perf_counter) -> None:
        """Stand still.

        Args:
            computed: Returns the processor time of the cell's processes in seconds.
            now: Returns the time in seconds.
        """
        self._computed = computed
        self._now = now
        self._used = 0.0
        self._since: float | None = None
        self._stopped: tuple[float, float] | None = None  # when, and what the process had computed by then
        self._still = 0.0

    @property
    def used(self) -> float:
        """So many until now."""
        running = self._now() - self._since if self._since is not None else 0.0
        busy, idle = self._while_stopped()
        return self._used + running + busy + max(0.0, self._still + idle - STILL_SECONDS)

    def stop(self) -> None:
        """Stand still from now on, but for what the process computes."""
        if self._since is not None:
            self._used += self._now() - self._since
            self._since, self._stopped = None, (self._now(), self._computed())

    def go_on(self) -> None:
        """Run again."""
        busy, idle = self._while_stopped()
        self._used, self._still, self._stopped = self._used + busy, self._still + idle, None
        self._since = self._now()

    def _while_stopped(self) -> tuple[float, float]:
        """Return how long the process computed and how long it waited since the clock was stopped."""
        if self._stopped is None:
            return 0.0, 0.0
        waited = self._now() - self._stopped[0]
        busy = min(max(self._computed() - self._stopped[1], 0.0), waited)
        return busy, waited - busy


class Cell:
    """The cell that runs now, and what is known of it so far."""

    def __init__(self, execution: str, tell: Callable[[Event], None] | None = None, *, answered: Sequence[str] = ()) -> None:
        """Sent, but not started. What it does is told as it comes; what it asks for may be answered or not."""
        loop = asyncio.get_running_loop()
        self.execution = execution
        self.started: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[wire.Finished] = loop.create_future()
        self.turned: asyncio.Future[None] = loop.create_future()
        self.displays: list[Display] = []
        self.overran: float | None = None
        self.clock = Clock()
        self.open: set[int] = set()
        self.tell = tell
        self._answered = answered
        self._room = _MAX_DISPLAYED
        self._sizes: list[int] = []
        self._places: dict[str, int] = {}  # of the latest display of each name

    def show(self, shown: wire.Shown) -> None:
        """Add a display. The guest keeps a smaller budget: exceeding this one means that it forged the frame."""
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
        """It wrote something."""
        if self.tell is not None:
            self.tell(Event(kind=stream, text=text))

    def ask(self, asked: wire.Asked) -> bool:
        """Whether somebody may answer; until then its clock stands still."""
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
        """Takes note of an answer; False where it is too late for one."""
        if number not in self.open:
            return False
        self.open.remove(number)
        if not self.open:
            self.clock.go_on()
        self._turn()
        return True

    def _turn(self) -> None:
        """Wake the deadline loop so that it computes the time left again."""
        turned, self.turned = self.turned, asyncio.get_running_loop().create_future()
        turned.set_result(None)

    def clear(self) -> None:
        """What was displayed so far is not part of the result."""
        self.displays.clear()
        self._sizes.clear()
        self._places.clear()
        self._room = _MAX_DISPLAYED
        if self.tell is not None:
            self.tell(Event(kind="clear"))


def error_of(cell: Cell, finished: wire.Finished | None, cause: str | None) -> CodeError | None:
    """Return what failed. What it did to the session's state is added when that is known (`ledger.with_state`)."""
    if cell.overran is not None:
        return CodeError("TimeoutError", f"the cell ran longer than {cell.overran:g} s and was {'interrupted' if finished else 'killed'}")
    if finished is None:
        return CodeError("InterpreterDied", f"the session's interpreter ended ({cause})")
    if finished.error_name is None:
        return None
    return CodeError(finished.error_name, finished.error_message, finished.error_traceback)


def check(finished: wire.Finished) -> None:
    """Validate what the field types cannot express, while the frame can still be refused."""
    texts = (finished.value, finished.text, finished.error_name, finished.error_message, finished.error_traceback)
    if any(isinstance(text, str) and len(text) > _MAX_TEXT for text in texts):
        raise wire.WireError("a text over the size limit")
    changes_of(finished)
    processes_of(finished)
    variables_of(finished)


def changes_of(finished: wire.Finished) -> tuple[FileChange, ...]:
    """Return what the cell did to files."""
    changes = []
    for told in finished.files:
        match told.split(" ", 2):
            case ["created" | "changed" | "deleted" as kind, size, path] if size.isdecimal() and len(size) < _MAX_DIGITS:
                changes.append(FileChange(path, kind, int(size)))
            case _:
                raise wire.WireError("a file change of another shape")
    return tuple(changes)


def processes_of(finished: wire.Finished) -> tuple[RunningProcess, ...]:
    """Return the processes that the cell left running."""
    found = []
    for told in finished.processes:
        match told.split(" ", 1):
            case [pid, name] if pid.isdecimal() and len(pid) < _MAX_DIGITS:
                found.append(RunningProcess(int(pid), name))
            case _:
                raise wire.WireError("a process of another shape")
    return tuple(found)


def variables_of(finished: wire.Finished) -> tuple[VariableChange, ...]:
    """Return what the cell did to the user's variables."""
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
    """Why an interpreter ended, by its wait status; None where its init ended before it could tell."""
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
    """Return a cell's result. `cause` is why the interpreter died, if it did."""
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
