"""The session's half of host calls: the objects `tools`, `skills`, `artifacts` and `deps` for cells.

A call is sent as JSON. Bytes, long texts and tables in it are written to files in the session's data folder, and deleted after they were
read. Nothing in this module is a security check, because code in the session can change it: the host checks each call.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import importlib
import inspect
import io
import json
import keyword
import linecache
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..sandbox.guest.folders import session_folders
from . import codec

if TYPE_CHECKING:
    from typing import Self

NAMES = ("tools", "skills", "artifacts", "deps")
AWAITED = "__host_call__"
_MOST_SENT = 1 << 20  # characters of a call's JSON
_MAX_CONCURRENT = 32  # calls; further ones wait
_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}
_slots = threading.BoundedSemaphore(_MAX_CONCURRENT)
Send = Callable[[str], str]
Described = list[dict[str, Any]]
Texts = list[str]


class ToolError(RuntimeError):
    """A host call failed. The message is that of the exception on the host, and `name` is the name of its type."""

    name = ""


def refuse_call(text: str) -> str:
    """Raise ToolError, because the host answers no host calls of this cell. `text` is ignored."""
    raise ToolError("host calls are not answered here: run the cell in an AgentSession")


_send: Send = refuse_call


def call(name: str, /, **arguments: object) -> Any:
    """Make a host call and return its value. Blocks until the host has answered. May be called from any thread.

    Args:
        name: The name of the call, such as `tools.call`.
        arguments: The arguments of the call.

    Raises:
        ToolError: The call was refused or failed, or its arguments are too large.
        TypeError: An argument has a type that cannot be sent.
    """
    try:
        text = json.dumps({"name": name, "arguments": codec.pack(arguments, write_file)})
    except OverflowError as error:
        raise ToolError(f"{error}: send large things as one text or as bytes") from error
    if len(text) > _MOST_SENT:
        reason = f"the arguments of a call must have at most {_MOST_SENT} characters of JSON, got {len(text)}"
        raise ToolError(f"{reason}: send large things as one text or as bytes")
    with _slots:
        answer = json.loads(_send(text))
    if "error" in answer:
        failed = ToolError(answer["error"]["message"])
        failed.name = answer["error"]["name"]
        raise failed
    return codec.unpack(answer["value"], read_file)


def write_file(data: bytes) -> str:
    """Write data to a new file in the session's data folder and return its name. The host reads the file and deletes it."""
    name = codec.new_file_name()
    with open(os.path.join(session_folders.data, name), "xb") as file:
        file.write(data)
    return name


def read_file(kind: str, name: str) -> Any:
    """Read a file that the host wrote to the session's data folder, delete the file, and return the value that was in it.

    `kind` is `bytes`, `text` or `table`.
    """
    path = os.path.join(session_folders.data, name)
    with open(path, "rb") as file:
        data = file.read()
    os.unlink(path)
    if kind == "bytes":
        return data
    if kind == "text":
        return data.decode()
    pandas = importlib.import_module("pandas")
    if data.startswith(b"PAR1"):
        return pandas.read_parquet(io.BytesIO(data))
    return pandas.read_json(io.BytesIO(data), orient="table")


async def run_in_thread(work: Callable[[], Any]) -> Any:
    """Run a function in a new thread and return its result, so that other tasks of the event loop continue meanwhile."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    # Not a pool: a thread that stayed would keep the session from being forked for a checkpoint.
    threading.Thread(target=_set_result, args=(work, loop, done), daemon=True).start()
    value, error = await done
    if error is not None:
        raise error
    return value


def _set_result(work: Callable[[], Any], loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any]) -> None:
    outcome: tuple[Any, BaseException | None]
    try:
        outcome = work(), None
    except BaseException as error:
        outcome = None, error
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(outcome))


class PendingResult:
    """The result of a tool call in a `with tools.batch()` block. The call is made when the block ends; then `value` can be read."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._outcome: dict[str, Any] | None = None

    @property
    def value(self) -> Any:
        """Return the value of the call. Raise ToolError if the call was refused or failed, or if the `with` block has not ended."""
        if self._outcome is None:
            reason = "the batch is still open, or its 'with' block raised an exception"
            raise ToolError(f"this call was not made, because {reason}: read .value after a block that ended without one")
        if "error" in self._outcome:
            raise ToolError(self._outcome["error"])
        return self._outcome["value"]

    def set_outcome(self, outcome: dict[str, Any]) -> None:
        """Store the result of the call: a dict with either `value` or `error`."""
        self._outcome = outcome

    def __repr__(self) -> str:
        return f"<later: {self._description}>"


_open = threading.local()


class Batch:
    """Collects the tool calls of a `with` block. They are approved together and made when the block ends.

    Calls of tools that only read are not collected: they are made immediately.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[str, dict[str, Any], PendingResult]] = []

    @property
    def results(self) -> list[Any]:
        """Return the values of all collected calls, in the order of the calls. Raise ToolError if one was refused or failed."""
        return [pending.value for _, _, pending in self._calls]

    def add(self, name: str, arguments: dict[str, Any]) -> PendingResult:
        """Add a tool call to the batch. Return an object whose `value` can be read after the `with` block."""
        self._calls.append((name, arguments, PendingResult(name)))
        return self._calls[-1][2]

    def __enter__(self) -> Self:
        _open.batches = [*_open_batches(), self]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        _open.batches = _open_batches()[:-1]
        if kind is None and self._calls:
            outcomes = call("tools.batch", calls=[{"name": name, "arguments": arguments} for name, arguments, _ in self._calls])
            for (_, _, pending), outcome in zip(self._calls, outcomes):
                pending.set_outcome(outcome)


def _open_batches() -> list[Batch]:
    """Return the batches whose `with` blocks this thread has entered and not left, the innermost last."""
    return getattr(_open, "batches", [])


class AwaitRewriter(ast.NodeTransformer):
    """Rewrite `await tools.x(1)` to `await __host_call__(tools.x, 1)`, so that other tasks continue during the call."""

    def visit_Await(self, node: ast.Await) -> ast.Await:
        """Rewrite an awaited call of `tools`, `skills`, `artifacts` or `deps`. Return every other `await` as it is."""
        self.generic_visit(node)
        called = node.value
        if isinstance(called, ast.Call) and isinstance(called.func, ast.Attribute) and _first_name(called.func) in NAMES:
            node.value = ast.Call(ast.Name(AWAITED, ast.Load()), [called.func, *called.args], called.keywords)
            ast.fix_missing_locations(ast.copy_location(node.value, called))
        return node


def _first_name(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


async def call_in_thread(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """Call `function` and return its value. Use a new thread for a function of `tools`, `skills`, `artifacts` or `deps`.

    The event loop's other tasks continue meanwhile. Any other function is called in this thread, and its value is awaited if possible.
    """
    if getattr(function, "is_host_call", False) or getattr(type(getattr(function, "__self__", None)), "is_host_call", False):
        return await run_in_thread(lambda: function(*arguments, **named))
    # The user may have another object of that name: call and await it as usual.
    answer = function(*arguments, **named)
    return await answer if inspect.isawaitable(answer) else answer


_await_rewriter = AwaitRewriter()


def define_names(transformers: list[ast.NodeTransformer], send: Send | None) -> None:
    """Define `tools`, `skills`, `artifacts`, `deps` and ToolError as builtins, or remove them if the host answers no calls of this cell.

    Args:
        transformers: The list of the IPython shell's AST transformers. AwaitRewriter is added to it or removed from it.
        send: Sends a call to the host and returns the answer, or None if the host answers no calls.
    """
    global _send
    _send = send or refuse_call
    if send is not None:
        tools.forget()
        # As builtins they shadow no variable of the user, and modules find them as well.
        builtins.__dict__.update({**dict(zip(NAMES, (tools, skills, artifacts, deps))), AWAITED: call_in_thread})
        builtins.__dict__["ToolError"] = ToolError
        if _await_rewriter not in transformers:
            transformers.append(_await_rewriter)
    elif _await_rewriter in transformers:
        transformers.remove(_await_rewriter)
        for name in (*NAMES, AWAITED, "ToolError"):
            builtins.__dict__.pop(name, None)


class _Namespace:
    is_host_call = True

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
        """Clear the cached tool functions, because the next cell may have other tools."""
        self._known.clear()

    def list(self) -> Described:
        """Return all tools, each with name, description, tags, effect and signature."""
        return call("tools.list")  # type: ignore[no-any-return]

    def search(self, query: str, limit: int = 10) -> Described:
        """Return the tools that match a query, the best first, at most `limit`."""
        return call("tools.search", query=query, limit=limit)  # type: ignore[no-any-return]

    def batch(self) -> Batch:
        """Return a batch: calls in `with tools.batch() as batch:` are approved together, then made. Read `batch.results`."""
        return Batch()


def _function(described: dict[str, Any]) -> Callable[..., Any]:
    """Return a function that calls the tool with this description.

    Tools one level below it, such as `a.b` for the tool `a`, are attributes of the function.
    """
    signature = _signature(described["parameters"])

    def tool(*arguments: Any, **named: Any) -> Any:
        if not described["callable"]:
            callable_ones = ", ".join(member["name"] for member in members.values())
            raise ToolError(f"{described['name']} is a group of tools, which cannot be called: call one of {callable_ones}")
        given = _bind_arguments(described["name"], signature, arguments, named)
        if described["effect"] != "read" and _open_batches():
            return _open_batches()[-1].add(described["name"], given)
        return call("tools.call", name=described["name"], arguments=given)

    members = {member["name"].rpartition(".")[2]: member for member in described["members"]}
    tool.__name__ = tool.__qualname__ = described["name"].rpartition(".")[2]
    tool.__module__ = "tools"
    tool.__doc__ = _documentation(described)
    tool.__dict__.update({name: _function(member) for name, member in members.items()})
    tool.__dict__.update(is_host_call=True, __signature__=signature)
    if members and "list" not in members:
        tool.__dict__["list"] = lambda: [{"name": name, "description": member["description"]} for name, member in members.items()]
    return tool


def _bind_arguments(tool: str, signature: inspect.Signature, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name. The host checks whether they match the tool.

    Raise TypeError if there are too many positional arguments, or if an argument is given by position and by name.
    """
    names = [name for name, one in signature.parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    if len(arguments) > len(names):
        reason = f"{tool} expected at most {len(names)} positional arguments, got {len(arguments)}"
        raise TypeError(f"{reason}: call it as {tool}{signature}")
    given = dict(zip(names, arguments))
    if twice := given.keys() & named.keys():
        raise TypeError(f"{tool} expected {', '.join(sorted(twice))} once, got it by position and by name: leave one out")
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
    """Functions that outlive the session: call `skills.name(...)`, or create, invoke, search, list, get and delete them."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def skill(*arguments: Any, **named: Any) -> Any:
            return _run_skill(name, arguments, named)

        described = self.get(name)
        if described is None:
            raise AttributeError(f"there is no skill {name}: see skills.list()")
        skill.__name__, skill.__doc__ = name, described["description"]
        skill.__dict__["is_host_call"] = True
        return skill

    def create(self, name: str, source: str, description: str = "") -> dict[str, Any]:
        """Save a skill and return it. A skill of that name is replaced.

        The source defines `def run(...)` or `async def run(...)`. Examples in its docstring are run first, and must succeed.
        """
        return call("skills.create", name=name, source=source, description=description)  # type: ignore[no-any-return]

    def invoke(self, name: str, /, *arguments: Any, **named: Any) -> Any:
        """Run a skill with these arguments and return its result."""
        return _run_skill(name, arguments, named)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a skill with its source, or None if no skill has that name."""
        return call("skills.get", name=name)  # type: ignore[no-any-return]

    def list(self) -> Described:
        """Return all skills, without their sources."""
        return call("skills.list")  # type: ignore[no-any-return]

    def search(self, query: str, limit: int = 5) -> Described:
        """Return the skills that match a query, the best first, at most `limit`, without their sources."""
        return call("skills.search", query=query, limit=limit)  # type: ignore[no-any-return]

    def delete(self, name: str) -> bool:
        """Delete a skill. Return whether it existed."""
        return bool(call("skills.delete", name=name))

    def try_examples(self, name: str, source: str) -> None:
        """Run the examples in the docstring of a skill's `run`, without saving the skill. Raise ToolError at the first one that fails."""
        import doctest

        run = _scope_of(name, source)["run"]
        globs = {"run": lambda *arguments, **named: _call_or_await(run, arguments, named)}
        written = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.FAIL_FAST | doctest.ELLIPSIS)
        for example in doctest.DocTestFinder(recurse=False).find(run, "run", module=False, globs=globs):
            runner.run(example, out=written.write)
        if runner.failures:
            raise ToolError(written.getvalue().strip("*\n "))


def _scope_of(name: str, source: str) -> dict[str, Any]:
    """Run the source of the skill `name`. Return the names that the source defines, with their values."""
    file = f"<skill {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"__name__": f"skill_{name}"}
    exec(compile(_await_rewriter.visit(ast.parse(source)), file, "exec"), scope)  # noqa: S102
    return scope


def _run_skill(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    scope = _scope_of(name, str(call("skills.source", name=name)))
    return _call_or_await(scope["run"], arguments, named)


def _call_or_await(run: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    answer = run(*arguments, **named)
    return _run_coroutine(answer) if inspect.iscoroutine(answer) else answer


def _run_coroutine(coroutine: Any) -> Any:
    """Run a coroutine in a new thread and return its result, because this thread may have a running event loop."""
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
        """Save data under a name and return the artifact's description. An artifact of that name is replaced.

        The data may be text, bytes, a JSON value, a DataFrame or a matplotlib figure (saved as PNG). For a Path, its file is saved.
        """
        return call(  # type: ignore[no-any-return]
            "artifacts.save", name=name, data=_content(data), description=description, metadata=metadata
        )

    def load(self, name: str) -> Any:
        """Return the data of an artifact as it was saved. Raise ToolError if no artifact has that name."""
        return call("artifacts.load", name=name)

    def list(self) -> Described:
        """Return all artifacts, each with name, path, description, metadata and created_at."""
        return call("artifacts.list")  # type: ignore[no-any-return]

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the description of an artifact without its data, or None if no artifact has that name."""
        return next((one for one in self.list() if one["name"] == name), None)

    def exists(self, name: str) -> bool:
        """Return whether an artifact has that name."""
        return self.get(name) is not None

    def delete(self, name: str) -> None:
        """Delete an artifact. Do nothing if no artifact has that name."""
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
    """Return a DataFrame as parquet, or unchanged if no library in the session can write parquet: then it is sent as JSON."""
    try:
        return codec.Table(frame.to_parquet())
    except (AttributeError, ImportError, ValueError, TypeError, NotImplementedError):
        return frame


class Deps(_Namespace):
    """Packages that every session of this agent has: add, remove, list, sync."""

    def add(self, package: str) -> dict[str, Any]:
        """Save a requirement, such as `pandas>=2`. Its package is installed as soon as no cell runs.

        Return a dict that lists the requirement under `pending`.
        """
        return call("deps.add", package=package)  # type: ignore[no-any-return]

    def remove(self, package: str) -> dict[str, Any]:
        """Remove a requirement. Its package is removed as soon as no cell runs. Modules that were imported from it stay until a reset."""
        return call("deps.remove", package=package)  # type: ignore[no-any-return]

    def list(self) -> Texts:
        """Return the requirements, in the order in which they were added."""
        return call("deps.list")  # type: ignore[no-any-return]

    def sync(self) -> dict[str, Any]:
        """Have all saved requirements installed into this session as soon as no cell runs.

        Return a dict that lists them under `pending`.
        """
        return call("deps.sync")  # type: ignore[no-any-return]


tools, skills, artifacts, deps = Tools(), Skills(), Artifacts(), Deps()
