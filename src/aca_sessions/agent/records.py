"""The records of tool calls."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from .tools.tool import Effect

_REMEMBERED = 10_000
_REMEMBERED_BYTES = 64 << 20  # of arguments, whose size a session chooses
_EACH = 64  # about how many bytes any object takes
_MOST_VALUES = 10_000  # of one argument; counting more takes too long
_TOO_MANY = "[left out of the record: too many values]"
_DROPPED = "[dropped from the record: later arguments took its room]"
Decision = Literal["not asked", "approved", "refused", "over budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """A call of a tool. `digest` is the SHA-256 of its result as JSON. `error` is the name of the exception if the tool failed."""

    tool: str
    effect: Effect
    arguments: Mapping[str, object]
    decision: Decision
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration: float = 0.0
    digest: str | None = None
    error: str | None = None


class Records:
    """The latest 10,000 calls. If arguments take too many bytes, the oldest arguments are dropped, but never the calls themselves."""

    def __init__(self) -> None:
        self._whole: deque[tuple[CallRecord, int]] = deque()  # each with the size of its arguments
        self._without: deque[CallRecord] = deque()  # the older ones, whose arguments were dropped
        self._size = 0

    def __iter__(self) -> Iterator[CallRecord]:
        return iter([*self._without, *(record for record, _ in self._whole)])

    def __len__(self) -> int:
        return len(self._without) + len(self._whole)

    def append(self, record: CallRecord) -> None:
        """Add a record, and drop what exceeds the limits."""
        sizes = {name: _size_of(argument) for name, argument in record.arguments.items()}
        size = sum(filter(None, sizes.values()))
        if None in sizes.values():
            kept = {name: _TOO_MANY if sizes[name] is None else argument for name, argument in record.arguments.items()}
            record = replace(record, arguments=kept)
        self._whole.append((record, size))
        self._size += size
        while self._size > _REMEMBERED_BYTES or len(self._whole) > _REMEMBERED:
            oldest, size = self._whole.popleft()
            self._size -= size
            self._without.append(replace(oldest, arguments=dict.fromkeys(oldest.arguments, _DROPPED)))
        while len(self) > _REMEMBERED:
            self._without.popleft()


def _size_of(argument: object) -> int | None:
    """Return about how many bytes an argument takes, or None if it has too many values to be recorded."""
    size = looked_at = 0
    left = [argument]
    while left:
        looked_at += 1
        if looked_at + len(left) > _MOST_VALUES:
            return None
        match left.pop():
            case str() | bytes() as one:
                size += len(one)
            case Mapping() as one:
                left += [*one.keys(), *one.values()]
            case list() as one:
                left += one
        size += _EACH
    return size
