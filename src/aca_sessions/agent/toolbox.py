"""The tools of one agent session: they are found by name, and calls are checked, decided, limited in time and recorded."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConfigurationError
from . import values
from .approval import Approval, digest, why_refused
from .records import CallRecord, Decision
from .search import Embed, Search
from .tools.tool import Tool, ToolFailedError, message_of

Described = list[dict[str, Any]]


class ToolBox:
    """All tools that code in a session can call."""

    def __init__(self, tools: Sequence[Tool], approval: Approval, embed: Embed | None = None) -> None:
        """Take the tools. Raise ConfigurationError if two have the same name.

        Args:
            tools: The tools.
            approval: Decides calls, counts budgets and keeps records.
            embed: Makes vectors of texts, so that searches are by meaning and not by words.
        """
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ConfigurationError(f"there are two tools named {tool.name}: rename one, as in @tool(name='...')")
            self._tools[tool.name] = tool
        self._approval = approval
        self._search = Search(embed)
        self._search.over({tool.name: f"{tool.description} {' '.join(tool.tags)}" for tool in tools})

    def __len__(self) -> int:
        return len(self._tools)

    def list(self) -> Described:
        """Return all tools, each with name, description, tags, effect and signature."""
        return [_told(tool) for tool in self._tools.values()]

    async def search(self, query: str, limit: int) -> Described:
        """Return the tools that fit a description, the best first."""
        return [_told(self._tools[name]) for name in await self._search.best(query, limit)]

    def describe(self, name: str) -> dict[str, Any]:
        """Return a tool with its parameters and the tools below its name (`name.member`). Raise ToolFailedError if there is none."""
        tool = self._tools.get(name)
        below = [other for other in self._tools if other.startswith(f"{name}.") and "." not in other[len(name) + 1 :]]
        if tool is None and not below:
            raise ToolFailedError(f"there is no tool {name}: see tools.list()")
        told = {"name": name, "callable": tool is not None, "members": [self.describe(member) for member in below]}
        if tool is None:
            return told | {"description": f"The tools of {name}.", "effect": "read", "parameters": []}
        return told | {"description": tool.description, "effect": tool.effect, "parameters": [one.described() for one in tool.parameters]}

    async def call(self, name: str, arguments: Mapping[str, Any]) -> object:
        """Call a tool and return its answer. Raise ToolFailedError if it does not exist or must not be called."""
        return await self.make(self._checked(name, arguments), arguments)

    async def make(self, tool: Tool, arguments: Mapping[str, Any]) -> object:
        """Decide a call, carry it out and record it."""
        (decision,) = await self._approval.decide([(tool, arguments)])
        return await self._made(tool, arguments, decision)

    async def batch(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> Described:
        """Return the outcome of each call, as `value` or `error`. All are decided together, then carried out one after another."""
        checked = [(self._checked(name, arguments), arguments) for name, arguments in calls]
        decisions = await self._approval.decide(checked)
        return [await self._outcome(tool, arguments, decision) for (tool, arguments), decision in zip(checked, decisions, strict=True)]

    async def _outcome(self, tool: Tool, arguments: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
        try:
            return {"value": await self._made(tool, arguments, decision)}
        except Exception as error:
            return {"error": message_of(error)}

    def _checked(self, name: str, arguments: Mapping[str, Any]) -> Tool:
        tool = self._tools.get(name)
        if tool is None:
            raise ToolFailedError(f"there is no tool {name}: see tools.list()")
        tool.check(arguments)
        return tool

    async def _made(self, tool: Tool, arguments: Mapping[str, Any], decision: Decision) -> object:
        """Carry out a call that was decided. Every outcome is recorded: a refusal, a spent budget, a failure, a cancellation."""
        record, records = CallRecord(tool=tool.name, effect=tool.effect, arguments=arguments, decision=decision), self._approval.records
        if decision == "refused":
            records.append(record)
            raise ToolFailedError(why_refused(tool))
        try:
            reserved = await self._approval.reserve(tool)
        except ToolFailedError:
            records.append(replace(record, decision="over budget"))
            raise
        except asyncio.CancelledError:
            records.append(replace(record, error="cancelled"))
            raise
        started, error, text, files = time.perf_counter(), "cancelled", "", dict[str, bytes]()
        try:
            value = await self._timed(tool, arguments, reserved.seconds)
            text, files = values.encode(value)
            error = ""
            return value
        except Exception as failure:
            error = type(failure).__name__
            raise
        finally:
            duration = time.perf_counter() - started
            self._approval.settle(tool, reserved, seconds=duration, size=len(text) + sum(map(len, files.values())))
            known = digest(text, files) if not error else None
            records.append(replace(record, duration=duration, digest=known, error=error or None))

    async def _timed(self, tool: Tool, arguments: Mapping[str, Any], seconds: float) -> object:
        try:
            async with asyncio.timeout(seconds) as limit:
                return await tool.act(dict(arguments))
        except TimeoutError:
            if not limit.expired():
                raise
            raise ToolFailedError(f"{tool.name} did not answer within {seconds:g} s") from None
        except SystemExit:  # a tool must not end the host's program
            raise ToolFailedError(f"{tool.name} tried to end the program that it belongs to") from None
        except asyncio.CancelledError:
            # The caller was cancelled if `cancelling()` is not 0. Otherwise the tool raised CancelledError by itself, which is its failure.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ToolFailedError(f"{tool.name} was cancelled by something of its own") from None


def _told(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "tags": list(tool.tags),
        "effect": tool.effect,
        "signature": tool.signature,
    }
