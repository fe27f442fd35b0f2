"""Test Microsoft Agent Framework with its own client and a scripted model."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from agent_framework import Agent, Content, FunctionInvocationContext, FunctionMiddleware, MiddlewareFailure, MiddlewareTermination, tool
from agent_framework.openai import OpenAIChatCompletionClient
from openai import AsyncOpenAI
from samples.scripted_model import ScriptedModel

from aca_sessions import AgentSession, SessionPool
from aca_sessions.integrations.agent_framework import PythonSessionProvider, execute_tool, tools_of
from aca_sessions.integrations.model_session import ModelSession

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.long
async def test_a_result_is_content_with_its_images(pool: SessionPool) -> None:
    tool = execute_tool(ModelSession(pool))
    text, image = await tool.invoke(arguments={"code": "import matplotlib.pyplot as plt; plt.plot([1]); plt.title('Sales'); plt.show()"})
    assert text.text == "[images] 1 image, not in this text: Figure Sales"
    assert (image.type, image.media_type) == ("data", "image/png")
    assert image.uri.startswith("data:image/png;base64,iVBO")


async def test_each_conversation_has_a_session_of_its_own_and_finds_it_again(pool: SessionPool) -> None:
    def call(code: str) -> list:
        return [("execute_python", {"code": code})]

    script = [call("x = 1"), "done", call("x"), "done", call("'x' in globals()"), "done"]
    with ScriptedModel(script) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none") as connection:
            client = OpenAIChatCompletionClient("scripted", async_client=connection)
            agent = Agent(client, context_providers=[PythonSessionProvider(pool)])
            one, other = agent.create_session(), agent.create_session()
            await agent.run("go", session=one)
            restored = type(one).from_dict(one.to_dict())
            await agent.run("go", session=restored)
            assert str(model.tool_messages()[-1]) == "1"
            await agent.run("go", session=other)
            assert str(model.tool_messages()[-1]) == "False"
    assert [tool["function"]["name"] for tool in model.requests[0]["tools"]] == ["execute_python"]


def test_an_unknown_option_is_refused_in_the_name_of_the_provider() -> None:
    with pytest.raises(TypeError, match=r"^PythonSessionProvider\(\) got an unexpected keyword argument 'foo': its options are "):
        PythonSessionProvider(foo=1)  # type: ignore[call-arg]


class Log(FunctionMiddleware):
    """Records what passes, and does something first."""

    def __init__(self, act: Callable[[FunctionInvocationContext], None] = lambda context: None) -> None:
        self.passed: list[tuple[str, object, object]] = []
        self._act = act

    async def process(self, context: FunctionInvocationContext, call_next: Callable[[], Awaitable[None]]) -> None:
        self._act(context)
        await call_next()
        self.passed.append((context.function.name, context.arguments, context.session))

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.passed]


@tool
async def add(one: int, other: int = 1) -> dict[str, int]:
    """Adds."""
    return {"sum": one + other}


@tool
def draw() -> list[Content]:
    """Draws."""
    return [Content.from_text("a figure"), Content.from_data(PNG, "image/png")]


@tool(approval_mode="always_require")
async def delete(name: str) -> str:
    """Deletes."""
    return f"deleted {name}"


@asynccontextmanager
async def scripted_agent(code: str, **options: object) -> AsyncIterator[tuple[Agent, ScriptedModel]]:
    """Yield an agent whose model runs one cell."""
    with ScriptedModel([[("execute_python", {"code": code})], "done"]) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none") as connection:
            yield Agent(OpenAIChatCompletionClient("scripted", async_client=connection), tools=[add, draw, delete], **options), model


@pytest.mark.long
async def test_1000_calls_from_a_cell_are_1000_calls_of_the_function_middleware(pool: SessionPool) -> None:
    log = Log()
    called = []

    async def as_function(context: FunctionInvocationContext, call_next: Callable[[], Awaitable[None]]) -> None:
        called.append(context.function.name)
        await call_next()

    code = "sum(tools.add(one=number, other=1)['sum'] for number in range(1000))"
    async with scripted_agent(code, middleware=[log, as_function]) as (agent, model):
        conversation = agent.create_session()
        async with AgentSession(pool, tools=tools_of(agent)) as python:
            await agent.run("go", session=conversation, tools=[execute_tool(python)])
            assert len(python.calls) == 1000
        assert model.tool_messages() == ["500500"]
    assert log.names == [*called[1:], "execute_python"] == ["add"] * 1000 + ["execute_python"]
    assert log.passed[7] == ("add", {"one": 7, "other": 1}, conversation)


async def test_middleware_can_answer_and_change_what_a_cell_reads(pool: SessionPool) -> None:
    class Change(FunctionMiddleware):
        async def process(self, context: FunctionInvocationContext, call_next: Callable[[], Awaitable[None]]) -> None:
            if context.arguments.get("one") == 1:
                context.result = [Content.from_text("answered")]
                return
            await call_next()
            if context.arguments.get("one") == 2:
                context.result[0].text = "changed"

    async with scripted_agent("[tools.add(one=number) for number in (1, 2, 3)] + [tools.draw()]") as (agent, model):
        async with AgentSession(pool, tools=tools_of(agent, middleware=[Change()])) as python:
            await agent.run("go", tools=[execute_tool(python)])
        assert model.tool_messages() == [r"['answered', 'changed', {'sum': 4}, 'a figure\n']"]


@pytest.mark.long
@pytest.mark.parametrize("approves", [None, True, False])
async def test_a_tool_that_requires_approval_is_approved_by_the_host(pool: SessionPool, approves: bool | None) -> None:
    asked = []

    def approve(calls: list) -> bool:
        asked.extend(call.tool for call in calls)
        return bool(approves)

    log = Log()
    async with scripted_agent("tools.delete(name='a')", middleware=[log]) as (agent, model):
        async with AgentSession(pool, tools=tools_of(agent), approve=None if approves is None else approve) as python:
            await agent.run("go", tools=[execute_tool(python)])
        (message,) = model.tool_messages()
    assert ("deleted a" in message, "was not allowed" in message) == (bool(approves), not approves)
    assert log.names == (["delete"] if approves else []) + ["execute_python"]
    assert asked == ([] if approves is None else ["delete"])


CAUGHT = "for number in range(3):\n    try: tools.add(one=number)\n    except Exception as error: print(error)"


async def test_a_failure_of_middleware_in_a_cell_ends_the_run_of_the_agent(pool: SessionPool) -> None:
    def fail(context: FunctionInvocationContext) -> None:
        if context.arguments.get("one") == 1:
            raise MiddlewareFailure("denied by policy")

    log = Log(fail)
    async with scripted_agent(CAUGHT, middleware=[log]) as (agent, model):
        async with AgentSession(pool, tools=tools_of(agent)) as python:
            with pytest.raises(MiddlewareFailure, match="denied by policy"):
                await agent.run("go", tools=[execute_tool(python)])
        assert len(model.requests) == 1
    assert log.names == ["add"]  # the first call; the third was refused


@pytest.mark.long
async def test_middleware_that_terminates_in_a_cell_stops_the_loop_of_the_agent(pool: SessionPool) -> None:
    def end(context: FunctionInvocationContext) -> None:
        if context.arguments.get("one") == 1:
            raise MiddlewareTermination("enough")

    log = Log(end)
    async with scripted_agent(CAUGHT, middleware=[log]) as (agent, model):
        async with AgentSession(pool, tools=tools_of(agent)) as python:
            await agent.run("go", tools=[execute_tool(python)])
            result = await python.run("1")
        assert (result.value, len(model.requests)) == (1, 1)
    assert log.names == ["add"]
