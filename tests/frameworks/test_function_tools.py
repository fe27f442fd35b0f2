"""Run the suite for integrations with `PythonTool` as a tool of frameworks that take plain functions."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from aca_sessions import PythonTool, Settings
from aca_sessions.testing import IntegrationSuite

pytestmark = pytest.mark.long
Run = Callable[[str], Awaitable[str]]


class TestLangChain(IntegrationSuite):
    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Run]:
        tools = pytest.importorskip("langchain_core.tools", reason="make test-integrations installs it")
        async with PythonTool(settings=settings) as python:
            tool = tools.StructuredTool.from_function(coroutine=python.execute_python)

            async def run(code: str) -> str:
                return await tool.ainvoke({"code": code})

            yield run


class TestOpenAIAgents(IntegrationSuite):
    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Run]:
        agents = pytest.importorskip("agents", reason="make test-integrations installs it")
        async with PythonTool(settings=settings) as python:
            tool = agents.function_tool(python.execute_python)

            async def run(code: str) -> str:
                arguments = json.dumps({"code": code})
                context = agents.tool_context.ToolContext(None, tool_name=tool.name, tool_call_id="1", tool_arguments=arguments)
                return await tool.on_invoke_tool(context, arguments)

            yield run


class TestPydanticAI(IntegrationSuite):
    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Run]:
        pydantic_ai = pytest.importorskip("pydantic_ai", reason="make test-integrations installs it")
        models = pytest.importorskip("pydantic_ai.models.function")
        messages = pytest.importorskip("pydantic_ai.messages")
        async with PythonTool(settings=settings) as python:

            async def run(code: str) -> str:
                """Let a scripted model call the tool once, and return what it read."""

                def model(history: list, _info: object) -> object:
                    last = history[-1].parts[-1]
                    if isinstance(last, messages.ToolReturnPart):
                        return messages.ModelResponse(parts=[messages.TextPart(last.content)])
                    return messages.ModelResponse(parts=[messages.ToolCallPart("execute_python", {"code": code})])

                agent = pydantic_ai.Agent(models.FunctionModel(model), tools=[pydantic_ai.Tool(python.execute_python)])
                return (await agent.run("go")).output

            yield run
