"""What stands between a call and its tool: who allows it, what it may use up, and what is written down of it."""

import hashlib
import inspect
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from .tools.tool import Effect, Tool, ToolFailedError

_REMEMBERED = 10_000
Decision = Literal["not asked", "approved", "refused", "over budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that somebody is asked to allow."""

    tool: str
    effect: Effect
    arguments: Mapping[str, object]


Approve = Callable[[Sequence[Call]], "bool | Sequence[bool] | Awaitable[bool | Sequence[bool]]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """What became of a call: `digest` is the SHA-256 of its result as JSON, `error` names the exception of a tool that failed."""

    tool: str
    effect: Effect
    arguments: Mapping[str, object]
    decision: Decision
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration: float = 0.0
    digest: str | None = None
    error: str | None = None


@dataclass(slots=True)
class _Used:
    calls: int = 0
    seconds: float = 0.0
    size: int = 0


class Approval:
    """Decides calls and remembers them. A tool that reads is not asked for; without anybody to ask, nothing irreversible is done."""

    def __init__(self, approve: Approve | None) -> None:
        """Asks the given function, with one call or with all of a batch."""
        self._approve = approve
        self._used: defaultdict[str, _Used] = defaultdict(_Used)
        self.records: deque[CallRecord] = deque(maxlen=_REMEMBERED)

    async def decide(self, calls: Sequence[tuple[Tool, Mapping[str, object]]]) -> list[Decision]:
        """One decision for each, asked for together."""
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
        """Whoever answers something else than so many decisions has not allowed anything."""
        if self._approve is None:
            return [False] * len(calls)
        answer = self._approve(calls)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, bool):
            return [answer] * len(calls)
        decided = list(answer) if isinstance(answer, Sequence) else []
        return [one is True for one in decided] if len(decided) == len(calls) else [False] * len(calls)

    def take(self, tool: Tool) -> None:
        """Counts a call before it is made, so that calls at the same time count; ToolFailedError over the tool's budget."""
        used, budget = self._used[tool.name], tool.budget
        limits = {"calls": (budget.calls, used.calls), "seconds": (budget.seconds, used.seconds), "bytes": (budget.size, used.size)}
        for name, (limit, spent) in limits.items():
            if limit is not None and spent >= limit:
                raise ToolFailedError(f"the budget of {tool.name} is used up: {limit:g} {name} in this session")
        used.calls += 1

    def seconds_left(self, tool: Tool) -> float:
        """How long a call of it may take."""
        limit = tool.budget.seconds
        return tool.seconds if limit is None else min(tool.seconds, max(limit - self._used[tool.name].seconds, 0.0))

    def spend(self, tool: Tool, seconds: float, size: int) -> None:
        """Counts what a call used."""
        used = self._used[tool.name]
        used.seconds += seconds
        used.size += size


def digest(text: str, files: Mapping[str, bytes]) -> str:
    """Names a result without keeping it; the names of its files are drawn by chance, so their contents take that place."""
    for name, data in files.items():
        text = text.replace(name, hashlib.sha256(data).hexdigest())
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def why_refused(tool: Tool) -> str:
    """What code in the session is told."""
    return f"{tool.name} is {tool.effect} and was not allowed: do something else, or ask for it to be allowed"
