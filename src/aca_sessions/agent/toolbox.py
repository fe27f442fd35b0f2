"""Answer the host calls of an agent session (calls from a cell to functions of the host).

Calls of tools are validated, approved, limited in time and recorded.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..bridge.host import CallHandler, ToolFailedError, encode, message_of
from ..errors import ConfigurationError
from .approval import Approval, CallRecord, Decision, digest, refusal_message
from .library.artifacts import Artifacts
from .library.dependencies import Deps, PackageChanges
from .library.search import Embed, Search
from .library.skills import Skills
from .tools.tool import Parameter, Tool

Described = list[dict[str, Any]]


class ToolBox:
    """The tools that cells of an agent session can call, by name."""

    def __init__(self, tools: Sequence[Tool], approval: Approval, embed: Embed | None = None) -> None:
        """Store the tools by name and prepare searches in them. Raise ConfigurationError if two tools have the same name.

        Args:
            tools: The tools.
            approval: Decides which calls are allowed, counts what they use of the tools' budgets, and keeps their records.
            embed: A function that returns a vector for each text, so that searches compare meanings. By default searches compare words.
        """
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ConfigurationError(f"there are two tools named {tool.name}: rename one, as in @tool(name='...')")
            self._tools[tool.name] = tool
        self._approval = approval
        self._search = Search(embed)
        self._search.set_texts({tool.name: f"{tool.description} {' '.join(tool.tags)}" for tool in tools})

    def __len__(self) -> int:
        return len(self._tools)

    def list(self) -> Described:
        """Return a dict for each tool, with its name, description, tags, effect and signature."""
        return [_describe(tool) for tool in self._tools.values()]

    async def search(self, query: str, limit: int) -> Described:
        """Return at most `limit` tools that match a query, the best match first, as dicts like those of `list`."""
        return [_describe(self._tools[name]) for name in await self._search.best(query, limit)]

    def describe(self, name: str) -> dict[str, Any]:
        """Return a dict that describes a tool: its description, effect, parameters and `members`.

        `members` is a list with such a dict for each tool one level below: for `github`, one for the tool `github.search`. If there is no
        tool `github`, but only members, `callable` is False. Raise ToolFailedError if there is neither.
        """
        tool = self._tools.get(name)
        below = [other for other in self._tools if other.startswith(f"{name}.") and "." not in other[len(name) + 1 :]]
        if tool is None and not below:
            raise ToolFailedError(f"there is no tool {name[:100]}: see tools.list()")
        described = {"name": name, "callable": tool is not None, "members": [self.describe(member) for member in below]}
        if tool is None:
            return described | {"description": f"The tools of {name}.", "effect": "read", "parameters": []}
        return described | {
            "description": tool.description,
            "effect": tool.effect,
            "parameters": [one.to_dict() for one in tool.parameters],
        }

    async def call(self, name: str, arguments: Mapping[str, Any]) -> object:
        """Validate the arguments, ask for approval if the tool needs it, call the tool and return its result.

        Raise TypeError if the arguments do not match. Raise ToolFailedError if there is no such tool, if the call is refused, or if it
        exceeds a limit. Exceptions that the tool raises reach the caller.
        """
        return await self.call_validated(self._find_tool(name, arguments), arguments)

    async def call_validated(self, tool: Tool, arguments: Mapping[str, Any]) -> object:
        """Ask for approval of a tool call if the tool needs it, run the tool, record the call and return the result.

        The caller must have validated the arguments.
        """
        (decision,) = await self._approval.decide([(tool, arguments)])
        return await self._call_decided(tool, arguments, decision)

    async def batch(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> Described:
        """Ask once for approval of several calls, then make the allowed ones.

        Return a dict for each call, with its result as `value` or its error message as `error`. If a tool is unknown or an argument is
        wrong, make no call and raise ToolFailedError or TypeError.
        """
        checked = [(self._find_tool(name, arguments), arguments) for name, arguments in calls]
        decisions = await self._approval.decide(checked)
        return [
            await self._call_in_batch(tool, arguments, decision) for (tool, arguments), decision in zip(checked, decisions, strict=True)
        ]

    async def _call_in_batch(self, tool: Tool, arguments: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
        try:
            return {"value": await self._call_decided(tool, arguments, decision)}
        except Exception as error:
            return {"error": message_of(error)}

    def _find_tool(self, name: str, arguments: Mapping[str, Any]) -> Tool:
        tool = self._tools.get(name)
        if tool is None:
            raise ToolFailedError(f"there is no tool {name[:100]}: see tools.list()")
        tool.check(arguments)
        return tool

    async def _call_decided(self, tool: Tool, arguments: Mapping[str, Any], decision: Decision) -> object:
        """Run a tool and return its result. Raise ToolFailedError if the decision is `refused` or the tool's budget is used up.

        Record the call in every case: also if it is refused, over budget, failed or cancelled.
        """
        record, records = CallRecord(tool=tool.name, effect=tool.effect, arguments=arguments, decision=decision), self._approval.records
        if decision == "refused":
            records.append(record)
            raise ToolFailedError(refusal_message(tool))
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
            value = await self._run_with_limit(tool, arguments, reserved.seconds)
            text, files = encode(value)
            error = ""
            return value
        except Exception as failure:
            error = type(failure).__name__
            raise
        finally:
            duration = time.perf_counter() - started
            self._approval.release(tool, reserved, seconds=duration, size=len(text) + sum(map(len, files.values())))
            known = digest(text, files) if not error else None
            records.append(replace(record, duration=duration, digest=known, error=error or None))

    async def _run_with_limit(self, tool: Tool, arguments: Mapping[str, Any], seconds: float) -> object:
        try:
            async with asyncio.timeout(seconds) as limit:
                return await tool.act(dict(arguments))
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ToolFailedError(
                f"{tool.name} did not answer within {seconds:g} s: ask it for less, or raise the tool's seconds or budget on the host"
            ) from error
        except SystemExit as error:  # a tool must not end the host's program
            advice = "a tool must return a value or raise another exception, so remove its call of sys.exit() (or of what calls it)"
            raise ToolFailedError(f"{tool.name} raised SystemExit: {advice}") from error
        except asyncio.CancelledError as error:
            # The caller was cancelled if `cancelling()` is not 0. Otherwise the tool raised CancelledError by itself, which is its failure.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ToolFailedError(
                f"{tool.name} was cancelled, but not by its caller: a tool must return a value or raise another exception"
            ) from error


def _describe(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "tags": list(tool.tags),
        "effect": tool.effect,
        "signature": tool.signature,
    }


def host_calls(toolbox: ToolBox, skills: Skills, artifacts: Artifacts, deps: Deps, changes: PackageChanges) -> dict[str, CallHandler]:
    """Return the functions that answer host calls (calls from a cell to the host), by name, such as `tools.call`.

    `toolbox` also asks for approval of `deps.add` and `deps.remove`. `changes` collects the packages that these calls request. They are
    installed or removed later, when no cell runs.
    """
    return {
        **tool_handlers(toolbox),
        **_skill_handlers(skills),
        **_artifact_handlers(artifacts),
        **_dependency_handlers(toolbox, deps, changes),
    }


def tool_handlers(toolbox: ToolBox) -> dict[str, CallHandler]:
    """Return the functions that answer the host calls about tools, by name, such as `tools.call`."""

    async def list_tools() -> object:
        return toolbox.list()

    async def search(query: str, limit: int) -> object:
        return await toolbox.search(_check_text(query, "a query"), _check_limit(limit))

    async def describe(name: str) -> object:
        return toolbox.describe(_check_text(name, "a tool's name"))

    async def call(name: str, arguments: object) -> object:
        return await toolbox.call(_check_text(name, "a tool's name"), _check_dict(arguments, "a tool's arguments"))

    async def batch(calls: object) -> object:
        match calls:
            case [*each]:
                return await toolbox.batch([_parse_call(one) for one in each])
        raise ToolFailedError(f"a batch must be a list of calls, got {type(calls).__name__}")

    return {"tools.list": list_tools, "tools.search": search, "tools.describe": describe, "tools.call": call, "tools.batch": batch}


def _skill_handlers(skills: Skills) -> dict[str, CallHandler]:
    async def create(name: str, source: str, description: str) -> object:
        return await skills.add(name, source, _check_text(description, "a skill's description"), origin="session")

    async def delete(name: str) -> object:
        return await skills.remove(name, origin="session")

    async def search(query: str, limit: int) -> object:
        return await skills.search(_check_text(query, "a query"), _check_limit(limit))

    return {
        "skills.create": create,
        "skills.search": search,
        "skills.list": skills.list,
        "skills.get": skills.get,
        "skills.source": skills.source,
        "skills.delete": delete,
    }


def _artifact_handlers(artifacts: Artifacts) -> dict[str, CallHandler]:
    async def save(name: str, data: Any, description: str, metadata: object) -> object:
        return await artifacts.save(
            name, data, description, None if metadata is None else dict(_check_dict(metadata, "an artifact's metadata"))
        )

    return {
        "artifacts.list": artifacts.list,
        "artifacts.save": save,
        "artifacts.load": artifacts.load_into_session,
        "artifacts.delete": artifacts.delete,
    }


def _dependency_handlers(toolbox: ToolBox, deps: Deps, changes: PackageChanges) -> dict[str, CallHandler]:
    """Return the functions that answer the host calls `deps.list`, `deps.add`, `deps.remove` and `deps.sync`, by name.

    `deps.add` and `deps.remove` change the requirements in the storage at once. Packages are only collected in `changes`: they are
    installed or removed when no cell runs. `deps.add` and `deps.remove` need approval like calls of a tool, because they change later
    sessions too. `deps.sync` needs none, because it installs only what is in the storage already.
    """

    async def add(arguments: dict[str, Any]) -> object:
        package = arguments["package"]
        changes.add(await deps.add(package, origin="session"))
        return {"installed": [], "already_present": [], "failed": [], "pending": [package]}

    async def remove(arguments: dict[str, Any]) -> object:
        package = arguments["package"]
        configured, there = await deps.remove(package, origin="session"), await changes.is_installed(package)
        changes.remove(package)
        described = {"removed": [], "not_found": [] if there else [package], "failed": [], "removed_from_config": configured}
        return described | {"pending": [package] if there else []}

    async def sync() -> object:
        wanted = await deps.list()
        for requirement in wanted:
            changes.add(requirement)
        return {"installed": [], "already_present": [], "failed": [], "pending": wanted}

    def with_approval(name: str, act: Callable[[dict[str, Any]], Awaitable[object]]) -> CallHandler:
        tool = Tool(name=name, act=act, parameters=(Parameter(name="package", schema={"type": "string"}),))

        async def answer(package: object) -> object:
            deps.check_unlocked()
            tool.check({"package": package})
            return await toolbox.call_validated(tool, {"package": package})

        return answer

    return {
        "deps.list": deps.list,
        "deps.add": with_approval("deps.add", add),
        "deps.remove": with_approval("deps.remove", remove),
        "deps.sync": sync,
    }


def _parse_call(one: object) -> tuple[str, Mapping[str, Any]]:
    match one:
        case {"name": str(name), "arguments": dict(arguments)}:
            return name, arguments
    # Only types are named, because values may be secret.
    got = {key: type(value).__name__ for key, value in one.items()} if isinstance(one, dict) else type(one).__name__
    raise ToolFailedError(f"each call of a batch must be {{'name': text, 'arguments': dict}}, got {str(got)[:200]}")


def _check_dict(arguments: object, what: str) -> Mapping[str, Any]:
    if not isinstance(arguments, dict):
        raise ToolFailedError(f"{what} must be a dict, got {type(arguments).__name__}")
    return arguments


def _check_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ToolFailedError(f"{what} must be text, got {type(value).__name__}")
    return value


def _check_limit(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= 1000:
        raise ToolFailedError(f"a limit must be an integer between 0 and 1000, got {value!r:.20}")
    return value
