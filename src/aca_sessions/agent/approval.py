"""Decide which tool calls are allowed, enforce the budgets of tools, and record all calls."""

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
    """The record of one call of a tool. `digest` is the SHA-256 of the result as JSON, or None if the tool did not return a result.

    `error` is `cancelled` if the call was cancelled, the exception's name if the tool failed, else None.
    """

    tool: str
    effect: Effect
    arguments: Mapping[str, object]
    decision: Decision
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration: float = 0.0
    digest: str | None = None
    error: str | None = None


class Records:
    """The records of the latest 10,000 tool calls. If all arguments take more than 64 MB, the arguments of the oldest calls are dropped."""

    def __init__(self) -> None:
        self._with_arguments: deque[tuple[CallRecord, int]] = deque()  # each with the size of its arguments
        self._without_arguments: deque[CallRecord] = deque()  # the older ones, whose arguments were dropped
        self._size = 0

    def __iter__(self) -> Iterator[CallRecord]:
        return iter([*self._without_arguments, *(record for record, _ in self._with_arguments)])

    def __len__(self) -> int:
        return len(self._without_arguments) + len(self._with_arguments)

    def append(self, record: CallRecord) -> None:
        """Add the record of a call. If there are more than 10,000 records, drop the oldest one.

        If all arguments take more than 64 MB, drop the arguments of the oldest calls. An argument with more than 10,000 values is replaced
        by a note.
        """
        sizes = {name: _estimate_size(argument) for name, argument in record.arguments.items()}
        size = sum(filter(None, sizes.values()))
        if None in sizes.values():
            kept = {name: _TOO_MANY if sizes[name] is None else argument for name, argument in record.arguments.items()}
            record = replace(record, arguments=kept)
        self._with_arguments.append((record, size))
        self._size += size
        while self._size > _REMEMBERED_BYTES or len(self._with_arguments) > _REMEMBERED:
            oldest, size = self._with_arguments.popleft()
            self._size -= size
            self._without_arguments.append(replace(oldest, arguments=dict.fromkeys(oldest.arguments, _DROPPED)))
        while len(self) > _REMEMBERED:
            self._without_arguments.popleft()


def _estimate_size(argument: object) -> int | None:
    """Estimate how many bytes of memory an argument takes. Return None if it has over 10,000 values: counting more takes too long."""
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
    """A tool call that needs approval: what the approval function receives."""

    tool: str
    effect: Effect
    arguments: Mapping[str, object]


Approve = Callable[[Sequence[Call]], "bool | Sequence[bool] | Awaitable[bool | Sequence[bool]]"]


@dataclass(slots=True, eq=False)
class Reservation:
    """Seconds of a tool's budget that are reserved for one running call."""

    seconds: float


@dataclass(slots=True)
class _BudgetUse:
    calls: int = 0
    seconds: float = 0.0
    size: int = 0
    running: list[Reservation] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Approval:
    """Decides which tool calls of one agent session are allowed, tracks how much of each tool's budget is used, and records the calls.

    Calls of tools with the effect `read` are always allowed. Without an approval function, calls of tools with the effect `irreversible`
    are refused, and all others are allowed.
    """

    def __init__(self, approve: Approve | None) -> None:
        """Store the approval function, sync or async. If it is None, only calls of irreversible tools are refused.

        The function is called with a list of the calls that need approval: one call, or several that were made in a batch. It returns one
        bool for all of them, or a list with one bool for each.
        """
        self._approve = approve
        self._budget_uses: defaultdict[str, _BudgetUse] = defaultdict(_BudgetUse)
        self.records = Records()

    async def decide(self, calls: Sequence[tuple[Tool, Mapping[str, object]]]) -> list[Decision]:
        """Return for each call, in the same order, whether it is `approved`, `refused` or `not asked` (allowed without approval).

        Call the approval function at most once, with all calls that need approval.
        """
        asked = [place for place, (tool, _) in enumerate(calls) if tool.effect != "read"]
        decisions: list[Decision] = ["not asked"] * len(calls)
        if self._approve is None:
            for place in asked:
                decisions[place] = "refused" if calls[place][0].effect == "irreversible" else "not asked"
        elif asked:
            shown = [Call(tool=tool.name, effect=tool.effect, arguments=arguments) for tool, arguments in (calls[place] for place in asked)]
            for place, allowed in zip(asked, await self._ask_approval(shown), strict=True):
                decisions[place] = "approved" if allowed else "refused"
        return decisions

    async def _ask_approval(self, calls: Sequence[Call]) -> list[bool]:
        """Call the approval function. Return for each call whether it is allowed.

        If the function returns one bool, that decides all calls. If it returns a sequence as long as `calls`, a call is allowed only if its
        item is True. Any other value refuses all calls.
        """
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
        """Count a call of a tool, and reserve seconds of the tool's budget for it.

        Raise ToolFailedError if the budget is used up. If running calls have reserved so many seconds that too few are left for this call,
        wait until one of them ends. If the budget limits bytes, wait until no other call runs, because the size of a result is known only
        when its call ends.
        """
        used, budget = self._budget_uses[tool.name], tool.budget
        while True:
            _check_budget(tool, used)
            left = math.inf if budget.seconds is None else budget.seconds - used.seconds
            seconds = min(tool.seconds, left)
            fits = seconds <= left - sum(one.seconds for one in used.running)
            if not used.running or (fits and budget.size is None):
                break
            used.released.clear()
            await used.released.wait()
        used.calls += 1
        used.running.append(Reservation(seconds))
        return used.running[-1]

    def release(self, tool: Tool, reservation: Reservation, *, seconds: float, size: int) -> None:
        """Release the reservation of a call that has ended, and count its duration in seconds and the bytes of its result."""
        used = self._budget_uses[tool.name]
        used.running.remove(reservation)
        used.seconds += seconds
        used.size += size
        used.released.set()


def _check_budget(tool: Tool, used: _BudgetUse) -> None:
    budget = tool.budget
    limits = {"calls": (budget.calls, used.calls), "seconds": (budget.seconds, used.seconds), "bytes": (budget.size, used.size)}
    for name, (limit, spent) in limits.items():
        if limit is not None and spent >= limit:
            told = f"the budget of {tool.name} is used up: {limit:.15g} {name} in this session"
            raise ToolFailedError(f"{told}. Go on without it, or raise its Budget on the host")


def digest(text: str, files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of a tool call's result, for the call's record.

    `text` is the result as JSON. It refers to bytes, tables and long texts by random names, which `files` maps to their contents. Each name
    is replaced by the hash of its content first, so that equal results have equal digests.
    """
    for name, data in files.items():
        text = text.replace(name, hashlib.sha256(data).hexdigest())
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def refusal_message(tool: Tool) -> str:
    """Return the error message that a cell gets if its call of a tool was refused."""
    advice = "do without it, or ask the session's owner to allow it in AgentSession(approve=...)"
    return f"{tool.name} is {tool.effect} and was not allowed: {advice}"
