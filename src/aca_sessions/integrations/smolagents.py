"""An executor for smolagents: the code of a CodeAgent runs in a session, and its tools and managed agents run on the host."""

import asyncio
import contextvars
import inspect
from functools import partial
from io import BytesIO
from typing import Any, Self

from ..agent.session import LeasedSession
from ..client.session import Session
from ..errors import NotSupportedError, imports_of
from ..guest_text import for_model
from ..interactive import InteractiveSession
from ..models import CodeExecutionResult, State
from ..rendering import error_text, state_line
from ..settings import Settings

with imports_of("smolagents"):
    import PIL.Image
    from smolagents import serialization
    from smolagents.local_python_executor import CodeOutput, PythonExecutor
    from smolagents.monitoring import AgentLogger, LogLevel
    from smolagents.serialization import SafeSerializer
    from smolagents.tools import Tool
    from smolagents.utils import AgentError

_FINAL_ANSWER = "final_answer"
_ENDED = "FinalAnswerException"


class SessionExecutor(PythonExecutor):
    """A Python executor for `smolagents.CodeAgent(executor=…)`, with variables and files that are kept from step to step.

    Code may import what is installed in the session: smolagents' list of authorized imports is not used. Tools, managed agents and
    `final_answer` are functions in the session which call the host. They get and return what smolagents can serialize without pickle.
    """

    def __init__(
        self, session: InteractiveSession | None = None, *, settings: Settings | None = None, timeout: float | None = None
    ) -> None:
        """Use the given session, which the caller closes, or start one at the first step.

        Args:
            session: An open session.
            settings: Where the session runs, if none is given. By default the settings are read from appsettings.json and the environment.
            timeout: The time limit of a step in seconds, without the time of its tools. By default the endpoint's.
        """
        self._session = InteractiveSession(settings) if session is None else session
        self._owns_session = session is None
        self._timeout = timeout
        self._live: LeasedSession | None = None
        self._tools: dict[str, Any] = {}
        self._variables: dict[str, Any] = {}  # that are not in the session yet
        self._is_prepared = False
        self._answers: list[Any] = []
        self._states: list[State] = []  # of results that the agent does not read
        self._logger = AgentLogger(level=LogLevel.OFF)  # the agent logs its errors itself

    def send_tools(self, tools: dict[str, Tool]) -> None:
        """Let the next steps call these tools and managed agents, in place of earlier ones."""
        self._tools = dict(tools)
        self._is_prepared = False

    def send_variables(self, variables: dict[str, Any]) -> None:
        """Set variables of the session before the next step. Raise SerializationError if a value would need pickle."""
        SafeSerializer.dumps(variables)
        self._variables |= variables
        self._is_prepared = self._is_prepared and not variables

    def __call__(self, code_action: str) -> CodeOutput:
        """Run the code of a step. Raise AgentError with its output if it fails."""
        if not self._is_prepared and (self._tools or self._variables):
            source = f"{inspect.getsource(_prepare)}\n_prepare(variables)"
            self._run(f"exec(compile({source!r}, '<tools>', 'exec'), {{'variables': globals()}})").raise_for_error()
            self._variables, self._is_prepared = {}, True
        self._answers.clear()
        result = self._run(code_action)
        logs = for_model(result.stdout + result.written_to_stderr)
        if lines := [line for state in self._states if (line := state_line(state))]:
            logs = "\n".join([*([logs.removesuffix("\n")] if logs else []), *lines, ""])
            self._states.clear()
        if result.error is None:
            return CodeOutput(_output(result), logs, is_final_answer=False)
        if result.error.name == _ENDED and self._answers:
            return CodeOutput(self._answers[-1], logs, is_final_answer=True)
        raise AgentError(logs + error_text(result), self._logger)

    def cleanup(self) -> None:
        """End the session, if it was started here. A later step starts another one. `CodeAgent.cleanup` calls this."""
        if self._owns_session:
            self._session.close()
            self._live, self._is_prepared = None, False
            self._states.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup()

    def _run(self, code: str) -> CodeExecutionResult:
        """Run a cell, and keep its state for the agent."""
        if self._owns_session:
            self._session.open()
        if self._live is None:
            live = self._session._call(partial(LeasedSession.create, None))
            if live.why_no_tools:
                raise NotSupportedError(f"code cannot call the agent's tools at this endpoint, because {live.why_no_tools}")
            live.set_call_handlers({"smolagents.prepare": self._sent, "tools.call": self._call_tool})
            self._live = live
        live, context = self._live, contextvars.copy_context()

        async def run(_: Session) -> CodeExecutionResult:
            self._context = context
            return await live.run(code, self._timeout)

        result = self._session._call(run)
        if result.state != State():
            self._states.append(result.state)
            self._is_prepared = self._is_prepared and result.state.variables == "kept"
        return result

    async def _sent(self) -> dict[str, Any]:
        """Return what `_prepare` needs in the session."""
        source = await asyncio.to_thread(inspect.getsource, serialization)
        return {"serializer": source, "variables": SafeSerializer.dumps(self._variables), "tools": [*self._tools]}

    async def _call_tool(self, name: str, arguments: str) -> str | None:
        """Call a tool or a managed agent in a thread, because it may wait."""
        if name not in self._tools:
            raise NameError(f"the agent has no tool named {name!r:.80} any more")
        given, named = SafeSerializer.loads(arguments)
        answer = await asyncio.to_thread(self._context.copy().run, _call_without_exit, self._tools[name], *given, **named)
        if name == _FINAL_ANSWER:
            self._answers.append(answer)
            return None
        return str(SafeSerializer.dumps(answer))


def _call_without_exit(function: Any, /, *arguments: Any, **named: Any) -> Any:
    try:
        return function(*arguments, **named)
    except SystemExit as error:  # it would end the host's program
        raise RuntimeError("the tool called sys.exit()") from error


def _output(result: CodeExecutionResult) -> Any:
    """Return the last value of a cell, or its last figure as an image, as other executors of smolagents do."""
    if result.text is None and result.images:
        return PIL.Image.open(BytesIO(result.images[-1]))
    return for_model(result.text) if result.text is not None and result.value is None else result.value


def _prepare(variables: "dict[str, object]") -> None:
    """Set the variables that the host sends, and define functions that call its tools. The source of this function is run in the session.

    The functions are builtins, so that they shadow no variable.
    """
    import builtins
    import sys
    import types

    bridge = sys.modules[type(builtins.tools).__module__]  # type: ignore[attr-defined]
    sent = bridge.call("smolagents.prepare")
    module = types.ModuleType("serializer")
    exec(sent["serializer"], module.__dict__)  # noqa: S102
    dumps, loads = module.SafeSerializer.dumps, module.SafeSerializer.loads
    ended = type("FinalAnswerException", (BaseException,), {"__doc__": "Ends the cell, because it has given the final answer."})

    def define(name: str) -> "object":
        def tool(*arguments: "object", **named: "object") -> "object":
            answer = bridge.call("tools.call", name=name, arguments=dumps([[*arguments], named]))
            if name == "final_answer":
                raise ended
            return loads(answer)

        tool.__name__ = tool.__qualname__ = name
        return tool

    for name in sent["tools"]:
        setattr(builtins, name, define(name))
    variables.update(loads(sent["variables"]))
