"""The table of host calls: code in a session can call these names and nothing else."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .artifacts import Artifacts
from .deps import Deps, is_installed
from .live import Live
from .outside import Answer
from .skills import Skills
from .toolbox import ToolBox
from .tools.tool import Parameter, Tool, ToolFailedError


def table(toolbox: ToolBox, skills: Skills, artifacts: Artifacts, deps: Deps, live: Live) -> dict[str, Answer]:
    """Return the calls of all four namespaces.

    Args:
        toolbox: The calls of `tools`. It also decides `deps.add` and `deps.remove`.
        skills: The calls of `skills`.
        artifacts: The calls of `artifacts`.
        deps: The calls of `deps`.
        live: The session, whose pending packages `deps` changes.
    """
    return {**_tools(toolbox), **_skills(skills), **_artifacts(artifacts), **_deps(toolbox, deps, live)}


def _tools(toolbox: ToolBox) -> dict[str, Answer]:
    async def listed() -> object:
        return toolbox.list()

    async def searched(query: str, limit: int) -> object:
        return await toolbox.search(_text(query), _count(limit))

    async def described(name: str) -> object:
        return toolbox.describe(_text(name))

    async def called(name: str, arguments: object) -> object:
        return await toolbox.call(_text(name), _named(arguments))

    async def batch(calls: object) -> object:
        match calls:
            case [*each]:
                return await toolbox.batch([_call(one) for one in each])
        raise ToolFailedError("a batch is a list of calls")

    return {"tools.list": listed, "tools.search": searched, "tools.describe": described, "tools.call": called, "tools.batch": batch}


def _skills(skills: Skills) -> dict[str, Answer]:
    async def create(name: str, source: str, description: str) -> object:
        return await skills.add(name, source, _text(description), origin="session")

    async def delete(name: str) -> object:
        return await skills.remove(name, origin="session")

    async def searched(query: str, limit: int) -> object:
        return await skills.search(_text(query), _count(limit))

    return {
        "skills.create": create,
        "skills.search": searched,
        "skills.list": skills.list,
        "skills.get": skills.get,
        "skills.source": skills.source,
        "skills.delete": delete,
    }


def _artifacts(artifacts: Artifacts) -> dict[str, Answer]:
    async def save(name: str, data: Any, description: str, metadata: object) -> object:
        return await artifacts.save(name, data, description, None if metadata is None else dict(_named(metadata)))

    return {
        "artifacts.list": artifacts.list,
        "artifacts.save": save,
        "artifacts.load": artifacts.load_into_session,
        "artifacts.delete": artifacts.delete,
    }


def _deps(toolbox: ToolBox, deps: Deps, live: Live) -> dict[str, Answer]:
    """Return the calls of `deps`.

    While a cell runs, nothing is installed into its session and nothing is removed: that waits for the end of the cell. A package that a
    session adds is installed and kept for later sessions, so adding is decided like a call of a tool. `sync` only installs what was decided
    before.
    """

    async def add(arguments: dict[str, Any]) -> object:
        package = arguments["package"]
        live.packages.add(await deps.remember(package, origin="session"))
        return {"installed": [], "already_present": [], "failed": [], "pending": [package]}

    async def remove(arguments: dict[str, Any]) -> object:
        package = arguments["package"]
        configured, there = await deps.forget(package, origin="session"), await is_installed(live.session, package)
        live.packages.remove(package)
        told = {"removed": [], "not_found": [] if there else [package], "failed": [], "removed_from_config": configured}
        return told | {"pending": [package] if there else []}

    async def sync() -> object:
        wanted = await deps.list()
        for requirement in wanted:
            live.packages.add(requirement)
        return {"installed": [], "already_present": [], "failed": [], "pending": wanted}

    def decided(name: str, act: Callable[[dict[str, Any]], Awaitable[object]]) -> Answer:
        tool = Tool(name=name, act=act, parameters=(Parameter(name="package", schema={"type": "string"}),))

        async def answer(package: object) -> object:
            deps.check_unlocked()
            tool.check({"package": package})
            return await toolbox.make(tool, {"package": package})

        return answer

    return {"deps.list": deps.list, "deps.add": decided("deps.add", add), "deps.remove": decided("deps.remove", remove), "deps.sync": sync}


def _call(one: object) -> tuple[str, Mapping[str, Any]]:
    match one:
        case {"name": str(name), "arguments": dict(arguments)}:
            return name, arguments
    raise ToolFailedError("a call has a name and arguments")


def _named(arguments: object) -> Mapping[str, Any]:
    if not isinstance(arguments, dict):
        raise ToolFailedError("arguments are given by name")
    return arguments


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ToolFailedError("a name, a query or a description is text")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= 1000:
        raise ToolFailedError("a limit is a number up to 1000")
    return value
