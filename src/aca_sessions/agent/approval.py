"""The decision about tool calls: whether they are allowed, and how much of a budget they can use."""

import asyncio
import hashlib
import inspect
import math
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from ..bridge.host import ToolFailedError
from .tools.tool import Effect, Tool

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that the approval function is asked to allow."""

    tool: str
    effect: Effect
    arguments: Mapping[str, object]


Approve = Callable[[Sequence[Call]], "bool | Sequence[bool] | Awaitable[bool | Sequence[bool]]"]


@dataclass(slots=True, eq=False)
class Reservation:
    """The seconds of its tool's budget that a call can use while it runs."""

    seconds: float


@dataclass(slots=True)
class _Used:
    calls: int = 0
    seconds: float = 0.0
    size: int = 0
    running: list[Reservation] = field(default_factory=list)
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Approval:
    """The decisions about calls, the budgets and the records.

    Tools that read are always allowed. Without an approval function, irreversible ones are refused and the others are allowed.
    """

    def __init__(self, approve: Approve | None) -> None:
        """Take the function that decides. It is called with one call, or with all calls of a batch."""
        self._approve = approve
        self._used: defaultdict[str, _Used] = defaultdict(_Used)
        self.records = Records()

    async def decide(self, calls: Sequence[tuple[Tool, Mapping[str, object]]]) -> list[Decision]:
        """Return a decision for each call. All calls that need an approval are decided together."""
        asked = [place for place, (tool, _) in enumerate(calls) if tool.effect != "read"]
        decisions: list[Decision] = ["not asked"] * len(calls)
        if self._approve is None:
            for place in asked:
                decisions[place] = "refused" if calls[place][0].effect == "irreversible" else "not asked"
        elif asked:
            shown = [Call(tool=tool.name, effect=tool.effect, arguments=arguments) for tool, arguments in (calls[place] for place in asked)]
            for place, allowed in zip(asked, await self._asked(shown), strict=True):
                decisions[place] = "approved" if allowed else "refused"
        return decisions

    async def _asked(self, calls: Sequence[Call]) -> list[bool]:
        """Call the approval function. Any answer other than a bool, or as many decisions as calls, allows nothing."""
        if self._approve is None:
            return [False] * len(calls)
        answer = self._approve(calls)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, bool):
            return [answer] * len(calls)
        decided = list(answer) if isinstance(answer, Sequence) else []
        return [one is True for one in decided] if len(decided) == len(calls) else [False] * len(calls)

    async def reserve(self, tool: Tool) -> Reservation:
        """Reserve a call of a tool and its seconds. Raise ToolFailedError if the tool's budget is used up.

        Wait while calls that run may use up the rest. The size of an answer is known only when it has come, so with a limit of bytes calls
        run one after another.
        """
        used, budget = self._used[tool.name], tool.budget
        while True:
            _check(tool, used)
            left = math.inf if budget.seconds is None else budget.seconds - used.seconds
            seconds = min(tool.seconds, left)
            fits = seconds <= left - sum(one.seconds for one in used.running)
            if not used.running or (fits and budget.size is None):
                break
            used.settled.clear()
            await used.settled.wait()
        used.calls += 1
        used.running.append(Reservation(seconds))
        return used.running[-1]

    def settle(self, tool: Tool, reservation: Reservation, *, seconds: float, size: int) -> None:
        """Count what a call used, and release its reservation."""
        used = self._used[tool.name]
        used.running.remove(reservation)
        used.seconds += seconds
        used.size += size
        used.settled.set()


def _check(tool: Tool, used: _Used) -> None:
    budget = tool.budget
    limits = {"calls": (budget.calls, used.calls), "seconds": (budget.seconds, used.seconds), "bytes": (budget.size, used.size)}
    for name, (limit, spent) in limits.items():
        if limit is not None and spent >= limit:
            raise ToolFailedError(f"the budget of {tool.name} is used up: {limit:g} {name} in this session")


def digest(text: str, files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of a result.

    The names of its files are random, so the hashes of their contents take their place.
    """
    for name, data in files.items():
        text = text.replace(name, hashlib.sha256(data).hexdigest())
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def why_refused(tool: Tool) -> str:
    """Return the error message for code in a session whose call was refused."""
    return f"{tool.name} is {tool.effect} and was not allowed: do something else, or ask for it to be allowed"
