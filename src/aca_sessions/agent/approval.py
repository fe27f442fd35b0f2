"""The decision about tool calls: whether they are allowed, and how much of a budget they can use."""

import asyncio
import hashlib
import inspect
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .records import Decision, Records
from .tools.tool import Effect, Tool, ToolFailedError


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
