"""Keep records of calls."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from .tools.tool import Effect

_REMEMBERED = 10_000
_REMEMBERED_BYTES = 64 << 20  # of arguments, which a session chooses
_EACH = 64  # bytes, about, that any object takes
_MOST_VALUES = 10_000  # of one argument; to look at more of them takes time
_TOO_MANY = "[left out of the record: too many values]"
_DROPPED = "[dropped from the record: later arguments took its room]"
Decision = Literal["not asked", "approved", "refused", "over budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """Describe a call: `digest` is the SHA-256 of its result as JSON, `error` names the exception of a tool that failed."""

    tool: str
    effect: Effect
    arguments: Mapping[str, object]
    decision: Decision
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration: float = 0.0
    digest: str | None = None
    error: str | None = None


class Records:
    """The latest calls. With too many bytes of arguments, the oldest of these are dropped, and never a call itself."""

    def __init__(self) -> None:
        """Start with none."""
        self._whole: deque[tuple[CallRecord, int]] = deque()  # each with the size of its arguments
        self._without: deque[CallRecord] = deque()  # the older ones, whose arguments were dropped
        self._size = 0

    def __iter__(self) -> Iterator[CallRecord]:
        return iter([*self._without, *(record for record, _ in self._whole)])

    def __len__(self) -> int:
        return len(self._without) + len(self._whole)

    def append(self, record: CallRecord) -> None:
        """Keep a record."""
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
    """Return about how many bytes an argument takes; None if it has too many values to be kept."""
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
