"""The history of a session: what was done with it, in order. It is enough to write a notebook and to run everything again."""

import asyncio
import hashlib
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from ..models import CodeExecutionResult

_MOST_STEPS = 1000
_MOST_BYTES = 32 << 20
_LARGEST_FILE = 4 << 20


@dataclass(frozen=True, slots=True)
class Ran:
    """A cell as it was sent, and its result:

    None while it runs, or if no result came. `rolled_back` means that its variables were undone.
    """

    code: str
    result: CodeExecutionResult | None = None
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file that the host wrote. The content of a file over 4 MB is not kept."""

    path: str
    size: int
    sha256: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """A file that the host deleted."""

    path: str


@dataclass(frozen=True, slots=True)
class Reset:
    """A reset by the host, which cleared the variables."""


@dataclass(frozen=True, slots=True)
class Installed:
    """Packages that were installed, as the caller named them."""

    requirements: tuple[str, ...]


Step = Ran | Uploaded | Deleted | Reset | Installed


class History:
    """The latest steps of a session: at most 1,000 and 32 MB. The oldest are dropped first, and `left_out` counts them."""

    def __init__(self) -> None:
        self._steps: dict[int, Step] = {}
        self._sizes: dict[int, int] = {}
        self._numbers = itertools.count()
        self._marks: dict[str, int] = {}
        self.left_out = 0

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return all steps that are kept, the oldest first."""
        return tuple(self._steps.values())

    @property
    def cells(self) -> tuple[Ran, ...]:
        """Return the cells among the steps."""
        return tuple(step for step in self._steps.values() if isinstance(step, Ran))

    def begin(self, code: str) -> int:
        """Note a cell that was sent. Return the number to `end` it by."""
        return self.note(Ran(code))

    def end(self, number: int, result: CodeExecutionResult) -> CodeExecutionResult:
        """Note the result of a cell and return it. If it reports a rollback, note that on the cells that the rollback undid."""
        known = self._steps.get(number)
        if isinstance(known, Ran):
            self._keep(number, Ran(known.code, result, known.rolled_back))
        record = result.record
        for entry in record.entries if record is not None else ():
            if entry.variables == "rolled_back":
                # A rollback that happened during this cell undid the cell too.
                own = record is not None and entry.position > record.start
                self._undo_cells(self._marks.get(entry.checkpoint, -1) if entry.checkpoint else number - 1, number + own)
        return result

    def _undo_cells(self, after: int, before: int) -> None:
        """Note on the cells between two numbers that their variables were rolled back."""
        for number, step in self._steps.items():
            if after < number < before and isinstance(step, Ran):
                self._steps[number] = replace(step, rolled_back=True)

    def note(self, step: Step) -> int:
        """Note a step and return its number."""
        number = next(self._numbers)
        self._keep(number, step)
        return number

    def mark(self, checkpoint: str) -> None:
        """Note that a checkpoint was taken here. The latest 1,000 are known."""
        self._marks[checkpoint] = next(self._numbers)
        if len(self._marks) > _MOST_STEPS:
            del self._marks[next(iter(self._marks))]

    def go_back(self, checkpoint: str) -> None:
        """Forget the steps after a checkpoint, because a rollback undid them.

        If the checkpoint is not known, for example because it was not taken through this object, forget all steps and count one as left
        out: what was done before it is not known.
        """
        mark = self._marks.get(checkpoint, -1)
        for number in [number for number in self._steps if number > mark]:
            del self._steps[number], self._sizes[number]
        self.left_out += mark < 0

    def copy(self) -> "History":
        """Return an independent copy of the history until now, for a session that branches off."""
        twin = History()
        twin._steps, twin._sizes, twin._marks = self._steps.copy(), self._sizes.copy(), self._marks.copy()
        twin._numbers, twin.left_out = itertools.count(next(self._numbers)), self.left_out
        return twin

    def _keep(self, number: int, step: Step) -> None:
        self._steps[number], self._sizes[number] = step, _size(step)
        # One step is always kept, however large.
        while len(self._steps) > _MOST_STEPS or (sum(self._sizes.values()) > _MOST_BYTES and len(self._steps) > 1):
            oldest = next(iter(self._steps))
            del self._steps[oldest], self._sizes[oldest]
            self.left_out += 1

    def __len__(self) -> int:
        return len(self._steps)


async def uploaded(path: str, data: bytes | Path) -> Uploaded:
    """Return the step of an upload. A file on this machine is read in a thread."""
    return await asyncio.to_thread(_read, path, data) if isinstance(data, Path) else _of_bytes(path, data)


def _read(path: str, source: Path) -> Uploaded:
    size = source.stat().st_size
    if size <= _LARGEST_FILE:
        return _of_bytes(path, source.read_bytes())
    with source.open("rb") as file:
        return Uploaded(path, size, hashlib.file_digest(file, "sha256").hexdigest(), None)


def _of_bytes(path: str, content: bytes) -> Uploaded:
    kept = content if len(content) <= _LARGEST_FILE else None
    return Uploaded(path, len(content), hashlib.sha256(content).hexdigest(), kept)


def _size(step: Step) -> int:
    match step:
        case Ran(code, CodeExecutionResult() as result):
            shown = sum(len(content) for display in result.displays for content in display.data.values() if isinstance(content, str))
            return len(code) + len(result.stdout) + len(result.stderr) + len(result.text or "") + shown
        case Ran(code):
            return len(code)
        case Uploaded(content=bytes(content)):
            return len(content)
    return 0
