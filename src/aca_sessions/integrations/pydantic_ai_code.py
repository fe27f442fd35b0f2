"""Code mode for the agents of Pydantic AI: the model writes Python that calls the agent's other tools as functions, in a session."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Annotated, Any

from ..agent.approval import Approval
from ..agent.session import LeasedSession
from ..agent.toolbox import ToolBox, tool_handlers
from ..agent.tools.tool import Tool, parameters_of_schema
from ..client.pool import SessionPool
from ..errors import ConfigurationError, NotSupportedError, imports_of

with imports_of("pydantic-ai"):
    from typing import NotRequired

    from pydantic import Field, TypeAdapter
    from pydantic_ai import BinaryContent, ToolReturn
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, UsageLimitExceeded
    from pydantic_ai.messages import ToolCallPart
    from pydantic_ai.tool_manager import ToolManager
    from pydantic_ai.tools import AgentDepsT, RunContext, ToolDefinition, ToolDenied
    from pydantic_ai.toolsets import AbstractToolset, WrapperToolset
    from pydantic_ai.toolsets.abstract import ToolsetTool
    from pydantic_core import SchemaValidator, to_jsonable_python
    from typing_extensions import TypedDict

_RUN_CODE = "run_code"
_DESCRIPTION = (
    "Run a cell of Python in an isolated session, as in a notebook: variables are kept between calls, and the value of the last expression "
    "is returned. Call these functions in it; each waits for its result. Do in one cell what needs several calls:"
)
_MOST_OUTPUT = 10_000  # characters of a result for a model
_TOOL_SECONDS = 3600.0  # the framework has its own limits


class _Arguments(TypedDict):
    code: Annotated[str, Field(description="The source text of the cell.")]
    restart: NotRequired[Annotated[bool, Field(description="Whether to clear all variables first.")]]


_ARGUMENTS = TypeAdapter(_Arguments)


@dataclass
class SessionCodeMode(AbstractCapability[AgentDepsT]):
    """A capability that replaces an agent's tools by one, `run_code`, in which the model's code calls them as functions.

    Tools that need an approval, or whose results come from elsewhere, stay as they are. Each run has a session of its own.
    """

    pool: SessionPool
    _: KW_ONLY
    timeout: float | None = None

    def get_wrapper_toolset(self, toolset: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
        """Wrap the agent's tools."""
        return CodeToolset(toolset, pool=self.pool, timeout=self.timeout)


@dataclass(kw_only=True)
class _RunSession:
    """The session of one run, from its first cell on."""

    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    live: LeasedSession | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self, pool: SessionPool) -> LeasedSession:
        async with self.opening:
            if self.live is None:
                self.live = await LeasedSession.create(pool, await self.stack.enter_async_context(pool.session()))
            if self.live.why_no_tools:
                raise NotSupportedError(f"code cannot call tools in sessions of this endpoint, because {self.live.why_no_tools}")
            return self.live


@dataclass
class _RunCodeTool(ToolsetTool[AgentDepsT]):
    functions: dict[str, ToolsetTool[AgentDepsT]] = field(kw_only=True)


@dataclass
class CodeToolset(WrapperToolset[AgentDepsT]):
    """A toolset with one tool, `run_code`, in which the model's code calls the tools of another toolset as `tools.NAME(...)`.

    Attributes:
        wrapped: The other toolset.
        pool: The pool of sessions, which the caller closes.
        timeout: The time limit in seconds of a cell, without the time in which it waits for tools. By default it is the endpoint's.
    """

    _: KW_ONLY
    pool: SessionPool
    timeout: float | None = None
    _run: _RunSession = field(default_factory=_RunSession, repr=False)  # shared by the copies that the framework makes for its steps

    async def for_run(self, ctx: RunContext[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
        """Return a copy with a session of its own."""
        return replace(self, wrapped=await self.wrapped.for_run(ctx), _run=_RunSession())

    async def __aexit__(self, *args: Any) -> bool | None:
        """End the session."""
        try:
            return await super().__aexit__(*args)
        finally:
            self._run.live = None
            await self._run.stack.aclose()

    async def get_tools(self, ctx: RunContext[AgentDepsT]) -> dict[str, ToolsetTool[AgentDepsT]]:
        """Return `run_code`, and the tools that code cannot call."""
        wrapped = await self.wrapped.get_tools(ctx)
        functions = {name: one for name, one in wrapped.items() if _is_function(one.tool_def) and ctx.is_tool_available(one.tool_def)}
        others = {name: one for name, one in wrapped.items() if name not in functions}
        if _RUN_CODE in others:
            raise ConfigurationError(f"there are two tools named {_RUN_CODE}: rename yours")
        listed = [f"tools.{one.signature}: {one.description}".rstrip(": ") for one in map(_as_tool, functions.values())]
        definition = ToolDefinition(
            name=_RUN_CODE,
            description="\n".join([_DESCRIPTION, *listed]),
            parameters_json_schema=_ARGUMENTS.json_schema(),
            sequential=True,
            metadata={"code_arg_name": "code", "code_arg_language": "python"},
        )
        run_code = _RunCodeTool(
            toolset=self, tool_def=definition, max_retries=1, args_validator=SchemaValidator(_ARGUMENTS.core_schema), functions=functions
        )
        return {**others, _RUN_CODE: run_code}

    async def call_tool(self, name: str, tool_args: dict[str, Any], ctx: RunContext[AgentDepsT], tool: ToolsetTool[AgentDepsT]) -> Any:
        """Run a cell and return its result as text, with its images. Or call another tool."""
        if not isinstance(tool, _RunCodeTool):
            return await self.wrapped.call_tool(name, tool_args, ctx, tool)
        live = await self._run.open(self.pool)
        if tool_args.get("restart"):
            await live.session.reset()
        exceeded: list[UsageLimitExceeded] = []
        tools = [_as_tool(one, self._caller(one, ctx, exceeded)) for one in tool.functions.values()]
        live.set_call_handlers(tool_handlers(ToolBox(tools, Approval(None))))
        result = replace(await live.run(tool_args["code"], self.timeout), max_output=_MOST_OUTPUT)
        if exceeded:
            raise exceeded[0]
        images = [BinaryContent(data=image, media_type="image/png") for image in result.images]
        return ToolReturn(return_value=str(result), content=images) if images else str(result)

    def _caller(
        self, tool: ToolsetTool[AgentDepsT], ctx: RunContext[AgentDepsT], exceeded: list[UsageLimitExceeded]
    ) -> Callable[[dict[str, Any]], Awaitable[object]]:
        """Return a function that calls a tool as the framework does: with validation, hooks, traces and the limit of calls."""
        name = tool.tool_def.name
        root = ctx.tool_manager.root_capability if ctx.tool_manager is not None else None
        manager = ToolManager(self.wrapped, root_capability=root, ctx=ctx, tools={name: tool})

        async def act(arguments: dict[str, Any]) -> object:
            if ctx.usage_limits is not None:
                try:  # this call and `run_code` itself are counted when they have succeeded
                    ctx.usage_limits.check_before_tool_call(replace(ctx.usage, tool_calls=ctx.usage.tool_calls + 2))
                except UsageLimitExceeded as error:
                    exceeded.append(error)
                    raise
            call = ToolCallPart(name, arguments, tool_call_id=f"{ctx.tool_call_id}-{uuid.uuid4().hex[:8]}")
            try:
                value = await manager.handle_call(call, wrap_validation_errors=False)
            except (ApprovalRequired, CallDeferred) as error:
                raise RuntimeError(f"{name} needs an approval or a later answer, so code cannot call it with these arguments") from error
            if isinstance(value, ToolDenied):
                raise RuntimeError(f"the call of {name} was denied: {value.message}")
            value = value.return_value if isinstance(value, ToolReturn) else value
            return value if isinstance(value, bytes) else to_jsonable_python(value)

        return act


async def _refuse(arguments: dict[str, Any]) -> object:
    raise RuntimeError("this tool is only described")


def _as_tool(tool: ToolsetTool[Any], act: Callable[[dict[str, Any]], Awaitable[object]] = _refuse) -> Tool:
    """Return a tool that cells can call. Its effect is `read`, because approvals are the framework's."""
    known = tool.tool_def
    return Tool(
        name=known.name,
        act=act,
        description=known.description or "",
        parameters=parameters_of_schema(known.parameters_json_schema),
        effect="read",
        seconds=known.timeout or _TOOL_SECONDS,
    )


def _is_function(known: ToolDefinition) -> bool:
    """Return whether code can call a tool: its calls need no person, it is not for the framework itself, and cells can have its name."""
    if known.kind != "function" or known.tool_kind or known.unless_native or known.name == _RUN_CODE:
        return False
    try:
        Tool(name=known.name, act=_refuse)
    except ConfigurationError:
        return False
    return True
