"""Adapters for Microsoft Agent Framework.

They are tools that run Python, a provider that gives each conversation its own session, and the tools of an agent for cells to call.
"""

import uuid
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Self, Unpack

from ..agent.session import AgentSession as ToolSession
from ..agent.tools.tool import Tool, parameters_of_schema
from ..client.pool import SessionPool
from ..errors import imports_of
from ..models import CodeExecutionResult
from ..settings import Settings
from .model_session import CODE, PACKAGES, ModelSession, Options, check_options, plain_value

with imports_of("agent-framework"):
    from agent_framework import (
        SKIP_PARSING,
        Agent,
        AgentSession,
        Content,
        ContextProvider,
        FunctionInvocationContext,
        FunctionTool,
        MiddlewareException,
        MiddlewareTypes,
        SessionContext,
        SupportsAgentRun,
        tool,
    )

_INSTRUCTIONS = "Use execute_python for calculations and data: it is a notebook whose variables and files are kept between calls."
_CODE = f"{CODE} PNG images of figures follow the result."
_EXECUTE = "Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call."
_TOOLS = "Code can call the program's other functions: tools.name(argument=value); tools.list() lists them."
_INSTALL = "Installs Python packages for execute_python. If it fails, nothing was installed."


@dataclass(slots=True)
class _Call:
    """A call of execute_python, and the exception by which function middleware ended the agent's run during a host call of its cell."""

    context: FunctionInvocationContext
    ended_by: MiddlewareException | None = None


_running: ContextVar[_Call | None] = ContextVar("execute_python", default=None)  # host calls are answered in tasks of the call


def execute_tool(session: ModelSession | ToolSession) -> FunctionTool:
    """Make a tool for Agent Framework, named `execute_python`, that runs code in `session`.

    Each call of the tool returns the text of the cell's result, then its images. `session` may be an `AgentSession` of this package, whose
    cells can call tools (see `tools_of`).
    """

    async def execute_python(code: Annotated[str, _CODE], context: FunctionInvocationContext) -> CodeExecutionResult:
        call = _Call(context)
        token = _running.set(call)
        try:
            result = await session.run(code)
        finally:
            _running.reset(token)
        if call.ended_by is not None:
            raise call.ended_by
        return result

    about = _TOOLS if isinstance(session, ToolSession) else session._about_access
    return tool(execute_python, description=f"{_EXECUTE} {about}".rstrip(), result_parser=_contents)


def tools_of(agent: Agent, *, middleware: Sequence[MiddlewareTypes] = ()) -> list[Tool]:
    """Convert the function tools of an agent to tools of an `AgentSession`, so that cells can call them.

    Function middleware of the agent and of its client applies to these calls. A tool with the approval mode `always_require` has the effect
    `irreversible`: the `AgentSession` calls its function `approve` first, and refuses the call if it has none.

    Args:
        agent: The agent. Give it the session by `agent.run(…, tools=[execute_tool(session)])`.
        middleware: Further middleware, such as that of `agent.run(…, middleware=[…])`, which the agent's own does not include.
    """
    functions = [one for one in agent.default_options.get("tools") or () if isinstance(one, FunctionTool) and not one.declaration_only]
    return [_tool_of(function, agent, middleware) for function in functions]


def _tool_of(function: FunctionTool, agent: Agent, middleware: Sequence[MiddlewareTypes]) -> Tool:
    # Agent Framework runs middleware only in its own loop: it has no public function for that.
    from agent_framework._middleware import FunctionMiddlewarePipeline, categorize_middleware

    async def act(arguments: Mapping[str, Any]) -> object:
        pipeline = FunctionMiddlewarePipeline(
            *getattr(agent.client, "function_middleware", ()), *categorize_middleware(agent.middleware, middleware)["function"]
        )
        call = _running.get()
        if call is None:
            return await _invoke(function, pipeline, FunctionInvocationContext(function, arguments))
        if call.ended_by is not None:
            raise PermissionError(f"{function.name} was not called: an earlier call ended the agent's run")
        shared = call.context
        context = FunctionInvocationContext(function, arguments, session=shared.session, kwargs=shared.kwargs, tools=shared.tools)
        try:
            return await _invoke(function, pipeline, context)
        except MiddlewareException as error:
            call.ended_by = call.ended_by or error
            raise PermissionError(f"{function.name} ended the agent's run: {error}") from error

    return Tool(
        name=function.name,
        act=act,
        description=function.description,
        parameters=parameters_of_schema(function.parameters()),
        effect="irreversible" if function.approval_mode == "always_require" else "write",
    )


async def _invoke(function: FunctionTool, pipeline: Any, context: FunctionInvocationContext) -> object:
    """Run a function in its middleware. Return its own value if no middleware changed the contents made of it, otherwise their text."""
    context.metadata["call_id"] = f"call_{uuid.uuid4().hex}"
    value, before = None, None

    async def invoke(context: FunctionInvocationContext) -> Any:
        nonlocal value, before
        value = await function.invoke(arguments=context.arguments, context=context, skip_parsing=True)
        parser: Any = function.result_parser or FunctionTool.parse_result
        if parser is SKIP_PARSING:
            return value
        contents = parser(value)
        contents = [Content.from_text(contents)] if isinstance(contents, str) else contents
        before = _as_dicts(contents)
        return contents

    result = await pipeline.execute(context, invoke)
    if isinstance(result, Content) and result.type == "function_approval_request":
        raise PermissionError(f"{function.name} needs approval, for which a cell cannot wait: set AgentSession(approve=...) on the host")
    contents = _as_dicts(result)
    if contents is None:
        return plain_value(result)
    is_plain = not isinstance(value, Content) and not _as_dicts(value)
    return plain_value(value) if is_plain and contents == before else "\n".join(one.text or "" for one in result)


def _as_dicts(contents: Any) -> list[dict[str, Any]] | None:
    is_contents = isinstance(contents, list) and all(isinstance(one, Content) for one in contents)
    return [one.to_dict() for one in contents] if is_contents else None


def install_tool(session: ModelSession) -> FunctionTool:
    """Make a tool for Agent Framework, named `install_packages`, that installs packages into `session`.

    Each call returns an error if the session's option `install_packages` is off.
    """

    async def install_packages(packages: Annotated[list[str], PACKAGES]) -> CodeExecutionResult:
        return await session._install_for_model(packages)

    return tool(install_packages, description=f"{_INSTALL} {session._about_install}".rstrip(), result_parser=_contents)


class PythonSessionProvider(ContextProvider):
    """A context provider for Agent Framework that gives each conversation its own session, with the tool `execute_python`.

    If models may install packages, there is a second tool, `install_packages`. The conversation's state contains the session's name, so a
    conversation that is stored and loaded again continues with its session.
    """

    def __init__(
        self, pool: SessionPool | None = None, *, settings: Settings | None = None, source_id: str = "python", **options: Unpack[Options]
    ) -> None:
        """Use the given pool, which the caller closes, or open a pool from the settings at the first call.

        Args:
            pool: The pool of sessions.
            settings: Where sessions run, if no pool is given. By default the settings are read from appsettings.json (section ACASessions)
                and from environment variables.
            source_id: The provider's name in Agent Framework.
            options: `timeout`, `max_output`, `install_packages` and other options of ModelSession.
        """
        super().__init__(source_id)
        check_options(options, "PythonSessionProvider")
        self._sessions = ModelSession(pool, settings=settings, **options)

    async def before_run(self, *, agent: SupportsAgentRun, session: AgentSession, context: SessionContext, state: dict[str, Any]) -> None:
        """Add to `context` the tools for this conversation's session, and instructions on how to use them.

        The session's name is in `state`. A conversation without one gets a new name.
        """
        del agent, session
        name = state.setdefault("session_id", f"conversation-{uuid.uuid4()}")
        context.extend_instructions(self.source_id, _INSTRUCTIONS)
        python = self._sessions.for_session(name)
        context.extend_tools(self.source_id, [execute_tool(python), *([install_tool(python)] if python._can_install else [])])

    async def close(self) -> None:
        """Close the pool if the provider opened it. Otherwise do nothing."""
        await self._sessions.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _contents(result: CodeExecutionResult) -> list[Content]:
    return [Content.from_text(str(result)), *(Content.from_data(image, "image/png") for image in result.images)]
