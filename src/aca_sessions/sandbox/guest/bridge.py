"""`tools`, `skills`, `artifacts` and `deps` for code in a session.

The host decides each call. Nothing in this module is a security check, because code in the session can change it.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import io
import keyword
import linecache
import os
import threading
from collections.abc import Callable
from typing import Any

from . import batches
from .awaiting import AWAITED, NAMES, Awaiting, call_outside
from .calls import Send, Table, ToolError, call, leave_by, nobody

_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}
_awaiting = Awaiting()
Described = list[dict[str, Any]]
Texts = list[str]


def begin(transformers: list[ast.NodeTransformer], send: Send | None) -> None:
    """Provide the four names if the host takes calls from this cell, or remove them.

    Args:
        transformers: The shell's transformers of syntax trees. The one for `await tools.x()` is added or removed.
        send: Sends a call to the host and returns the reply, or None if the host takes no calls.
    """
    leave_by(send or nobody)
    if send is not None:
        tools.forget()
        # As builtins they shadow no variable of the user, and modules find them as well.
        builtins.__dict__.update({**dict(zip(NAMES, (tools, skills, artifacts, deps))), AWAITED: call_outside})
        builtins.__dict__["ToolError"] = ToolError
        if _awaiting not in transformers:
            transformers.append(_awaiting)
    elif _awaiting in transformers:
        transformers.remove(_awaiting)
        for name in (*NAMES, AWAITED, "ToolError"):
            builtins.__dict__.pop(name, None)


class _Namespace:
    is_outside = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()}: .list(), .search('...'), help() of each>"


class Tools(_Namespace):
    """Tools of the host: `tools.name(...)`, `await tools.name(...)`, `tools.list()`, `tools.search("...")`, `help(tools.name)`."""

    def __init__(self) -> None:
        self._known: dict[str, Callable[..., Any]] = {}  # filled when a tool is named for the first time in a cell

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._known:
            try:
                self._known[name] = _function(call("tools.describe", name=name))
            except ToolError as unknown:
                raise AttributeError(str(unknown)) from None
        return self._known[name]

    def __dir__(self) -> list[str]:
        return sorted({"batch", "list", "search", *(tool["name"].partition(".")[0] for tool in self.list())})

    def forget(self) -> None:
        """Forget the tools that were looked up: another cell may have other tools."""
        self._known.clear()

    def list(self) -> Described:
        """All tools: name, description, tags, signature."""
        return call("tools.list")  # type: ignore[no-any-return]

    def search(self, query: str, limit: int = 10) -> Described:
        """The tools that fit a description best."""
        return call("tools.search", query=query, limit=limit)  # type: ignore[no-any-return]

    def batch(self) -> batches.Batch:
        """`with tools.batch() as batch:` has all calls of the block decided together; then `batch.results`."""
        return batches.Batch()


def _function(described: dict[str, Any]) -> Callable[..., Any]:
    """Return a function for a tool's description, with its members as attributes."""
    signature = _signature(described["parameters"])

    def tool(*arguments: Any, **named: Any) -> Any:
        if not described["callable"]:
            raise ToolError(f"{described['name']} has no call of its own: use one of {', '.join(members)}")
        given = _given(signature, arguments, named)
        if described["effect"] != "read" and batches.open_here():
            return batches.open_here()[-1].add(described["name"], given)
        return call("tools.call", name=described["name"], arguments=given)

    members = {member["name"].rpartition(".")[2]: member for member in described["members"]}
    tool.__name__ = tool.__qualname__ = described["name"].rpartition(".")[2]
    tool.__module__ = "tools"
    tool.__doc__ = _documentation(described)
    tool.__dict__.update({name: _function(member) for name, member in members.items()})
    tool.__dict__.update(is_outside=True, __signature__=signature)
    if members and "list" not in members:
        tool.__dict__["list"] = lambda: [{"name": name, "description": member["description"]} for name, member in members.items()]
    return tool


def _given(signature: inspect.Signature, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments by their names. The host checks whether they fit the tool.

    Raise TypeError if there are too many positional ones, or if one is given twice.
    """
    names = [name for name, one in signature.parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    if len(arguments) > len(names):
        raise TypeError(f"too many positional arguments: it takes {len(names)}")
    given = dict(zip(names, arguments))
    if twice := given.keys() & named.keys():
        raise TypeError(f"{', '.join(sorted(twice))} is given twice")
    return {**given, **named}


def _signature(parameters: list[dict[str, Any]]) -> inspect.Signature:
    usable = [one for one in parameters if one["name"].isidentifier() and not keyword.iskeyword(one["name"])]
    places = [_parameter(one, by_place=one["required"]) for one in usable]
    ordered = sorted(places, key=lambda one: (one.kind, one.default is not inspect.Parameter.empty))
    if len(usable) < len(parameters):
        ordered.append(inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(ordered)


def _parameter(described: dict[str, Any], *, by_place: bool) -> inspect.Parameter:
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    annotation = _TYPES.get(str(described["schema"].get("type")), empty)
    return inspect.Parameter(described["name"], kind, default=empty if by_place else described["default"], annotation=annotation)


def _documentation(described: dict[str, Any]) -> str:
    lines = [described["description"]]
    lines += [f"  {one['name']}: {one['description']}" for one in described["parameters"] if one["description"]]
    lines += [f"  .{member['name'].rpartition('.')[2]}: {member['description']}" for member in described["members"]]
    return "\n".join(lines)


class Skills(_Namespace):
    """Functions that outlive the session: `skills.name(...)`, and create, invoke, search, list, get, delete."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def skill(*arguments: Any, **named: Any) -> Any:
            return _run_skill(name, arguments, named)

        described = self.get(name)
        if described is None:
            raise AttributeError(f"there is no skill {name}: see skills.list()")
        skill.__name__, skill.__doc__ = name, described["description"]
        skill.__dict__["is_outside"] = True
        return skill

    def create(self, name: str, source: str, description: str = "") -> dict[str, Any]:
        """Keeps a skill: source with `def run(...)` or `async def run(...)`. Examples in its docstring are tried first."""
        return call("skills.create", name=name, source=source, description=description)  # type: ignore[no-any-return]

    def invoke(self, name: str, /, *arguments: Any, **named: Any) -> Any:
        """Run a skill and return its result."""
        return _run_skill(name, arguments, named)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a skill with its source, or None if there is none of that name."""
        return call("skills.get", name=name)  # type: ignore[no-any-return]

    def list(self) -> Described:
        """All skills, without their sources."""
        return call("skills.list")  # type: ignore[no-any-return]

    def search(self, query: str, limit: int = 5) -> Described:
        """The skills that fit a description best."""
        return call("skills.search", query=query, limit=limit)  # type: ignore[no-any-return]

    def delete(self, name: str) -> bool:
        """Whether there was one to delete."""
        return bool(call("skills.delete", name=name))

    def try_examples(self, name: str, source: str) -> None:
        """Run the examples in the docstring of a skill's `run`. Raise ToolError for the first one that fails."""
        import doctest

        run = _scope_of(name, source)["run"]
        globs = {"run": lambda *arguments, **named: _called(run, arguments, named)}
        written = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.FAIL_FAST | doctest.ELLIPSIS)
        for example in doctest.DocTestFinder(recurse=False).find(run, "run", module=False, globs=globs):
            runner.run(example, out=written.write)
        if runner.failures:
            raise ToolError(written.getvalue().strip("*\n "))


def _scope_of(name: str, source: str) -> dict[str, Any]:
    """Return the names that a skill's source defines."""
    file = f"<skill {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"__name__": f"skill_{name}"}
    exec(compile(_awaiting.visit(ast.parse(source)), file, "exec"), scope)  # noqa: S102
    return scope


def _run_skill(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    scope = _scope_of(name, str(call("skills.source", name=name)))
    return _called(scope["run"], arguments, named)


def _called(run: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    answer = run(*arguments, **named)
    return _awaited(answer) if inspect.iscoroutine(answer) else answer


def _awaited(coroutine: Any) -> Any:
    """Run a coroutine in a new thread and return its result: this thread may have a running loop."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome[:] = [asyncio.run(coroutine), None]
        except BaseException as error:
            outcome[:] = [None, error]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


class Artifacts(_Namespace):
    """Data that outlives the session: save, load, list, get, exists, delete."""

    def save(self, name: str, data: Any, description: str = "", metadata: dict[str, Any] | None = None) -> dict[str, Any]:
        """Keeps text, bytes, JSON, a DataFrame, a figure as PNG, or the file that a Path names."""
        return call(  # type: ignore[no-any-return]
            "artifacts.save", name=name, data=_content(data), description=description, metadata=metadata
        )

    def load(self, name: str) -> Any:
        """The data."""
        return call("artifacts.load", name=name)

    def list(self) -> Described:
        """All artifacts: name, path, description, metadata, created_at."""
        return call("artifacts.list")  # type: ignore[no-any-return]

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the description of an artifact, or None if there is none of that name."""
        return next((one for one in self.list() if one["name"] == name), None)

    def exists(self, name: str) -> bool:
        """Whether there is one of that name."""
        return self.get(name) is not None

    def delete(self, name: str) -> None:
        """Deletes one."""
        call("artifacts.delete", name=name)


def _content(data: Any) -> Any:
    if isinstance(data, os.PathLike):
        with open(data, "rb") as file:
            return file.read()
    if type(data).__module__ == "matplotlib.figure":
        drawn = io.BytesIO()
        data.savefig(drawn, format="png")
        return drawn.getvalue()
    return _table(data) if type(data).__name__ == "DataFrame" else data


def _table(frame: Any) -> Any:
    """Return a frame as parquet if the session has a library that can write it. Otherwise return the frame, which is sent as JSON."""
    try:
        return Table(frame.to_parquet())
    except (AttributeError, ImportError, ValueError, TypeError, NotImplementedError):
        return frame


class Deps(_Namespace):
    """Packages that every session of this agent has: add, remove, list, sync."""

    def add(self, package: str) -> dict[str, Any]:
        """Keeps a requirement; while a cell runs nothing is installed, so it is there for the next cell."""
        return call("deps.add", package=package)  # type: ignore[no-any-return]

    def remove(self, package: str) -> dict[str, Any]:
        """Takes a requirement away, and the package before the next cell; what is imported of it stays until the reset."""
        return call("deps.remove", package=package)  # type: ignore[no-any-return]

    def list(self) -> Texts:
        """The requirements."""
        return call("deps.list")  # type: ignore[no-any-return]

    def sync(self) -> dict[str, Any]:
        """Has what is missing installed before the next cell."""
        return call("deps.sync")  # type: ignore[no-any-return]


tools, skills, artifacts, deps = Tools(), Skills(), Artifacts(), Deps()
