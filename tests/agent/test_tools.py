"""Test host tools that cells call, through the guest, its wire, the server and its events, and back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import pytest

from aca_sessions import AgentSession, SessionPool, tool
from aca_sessions.errors import ACASessionsError, ConfigurationError

from ..conftest import mostly_long


@tool(effect="read", tags=["outdoors"])
async def weather(city: str, days: int = 1) -> str:
    """The weather of the next days in a city."""
    return f"sunny in {city} for {days}"


@tool
def twice(data: object) -> object:
    """Everything two times."""
    return [data, data]


@tool
def refuse(kind: Literal["small", "large"] = "small") -> None:
    """Fails."""
    raise LookupError(f"nothing {kind} is there")


@pytest.fixture
async def agent(pool: SessionPool) -> AsyncIterator[AgentSession]:
    async with AgentSession(pool, tools=[weather, twice, refuse]) as opened:
        yield opened


async def text(agent: AgentSession, code: str) -> str | None:
    return (await agent.run(code)).raise_for_error().text


async def failure(agent: AgentSession, code: str) -> str:
    return str((await agent.run(code)).error)


@pytest.mark.parametrize(
    "code",
    mostly_long(
        [
            "tools.weather(city='Oslo')",
            "tools.weather('Oslo')",
            "await tools.weather('Oslo', days=1)",
            "import asyncio\n(await asyncio.gather(tools_of('Oslo')))[0]",
            "import threading\nsaid = []\nthread = threading.Thread(target=lambda: said.append(tools.weather('Oslo')))\n"
            "thread.start()\nthread.join()\nsaid[0]",
            "getattr(tools, 'weather')(**{'city': 'Oslo'})",
        ],
        every=2,
    ),
)
async def test_a_cell_calls_a_tool_of_the_host(agent: AgentSession, code: str) -> None:
    await agent.run("async def tools_of(city):\n    return await tools.weather(city)")
    assert await text(agent, code) == "'sunny in Oslo for 1'"


async def test_many_calls_may_be_pending_at_the_same_time(pool: SessionPool) -> None:
    gate = asyncio.Event()
    waiting = []

    @tool(effect="read")
    async def wait(number: int) -> int:
        waiting.append(number)
        if len(waiting) == 20:
            gate.set()
        await gate.wait()
        return number

    code = "import asyncio\nasync def one(n): return await tools.wait(n)\nsum(await asyncio.gather(*map(one, range(20))))"
    async with AgentSession(pool, tools=[wait]) as agent:
        assert (await agent.run(code)).value == 190


@pytest.mark.parametrize(
    ("given", "answered"),
    mostly_long(
        [
            ("{'a': [1, 2.5, None, True]}", "[{'a': [1, 2.5, None, True]}, {'a': [1, 2.5, None, True]}]"),
            ("(1, 2)", "[[1, 2], [1, 2]]"),
            ("b'\\x00\\xff'", "[b'\\x00\\xff', b'\\x00\\xff']"),
            ("{'$': 'bytes', 'file': 'x'}", "[{'$': 'bytes', 'file': 'x'}, {'$': 'bytes', 'file': 'x'}]"),
            ("float('inf')", "[inf, inf]"),
            ("'ä\\ud800'", "['ä\\ud800', 'ä\\ud800']"),
        ],
        every=3,
    ),
)
async def test_values_come_back_unchanged(agent: AgentSession, given: str, answered: str) -> None:
    assert await text(agent, f"tools.twice({given})") == answered


async def test_large_values_are_carried_by_files_that_are_removed(agent: AgentSession) -> None:
    code = "big = 'x' * 3_000_000\none, two = tools.twice(big)\nraw, _ = tools.twice(bytes(5_000_000))\n(one == big, len(raw))"
    assert await text(agent, code) == "(True, 5000000)"
    assert await text(agent, "import os; [name for name in os.listdir('/mnt/data')]") == "[]"


@pytest.mark.slow
async def test_tables_keep_their_types(agent: AgentSession) -> None:
    code = "import pandas as pd\nframe = pd.DataFrame({'a': [1, 2], 'b': ['x', None]})\nback = tools.twice(frame)[0]\n"
    assert await text(agent, code + "(list(back.columns), back.a.tolist(), str(back.a.dtype))") == "(['a', 'b'], [1, 2], 'int64')"


@pytest.mark.parametrize(
    ("code", "said"),
    mostly_long(
        [
            ("tools.refuse()", "ToolError: nothing small is there"),
            ("tools.refuse(kind='huge')", "kind must be one of 'small', 'large', got 'huge'"),
            ("tools.weather()", "weather needs city"),
            ("tools.weather(5)", "city must be of type string, got 5"),
            ("tools.weather('a', 1, 2)", "expected at most 2 positional arguments, got 3"),
            ("tools.weather(town='Oslo')", "weather takes no argument town"),
            ("tools.nothing()", "AttributeError: there is no tool nothing: see tools.list()"),
            ("tools.twice(object())", "a object cannot be sent"),
            ("tools.twice({1: 2})", "a dict cannot be sent"),
            ("x = []\nx.append(x)\ntools.twice(x)", "RecursionError"),
            ("tools.twice(list(range(300_000)))", "at most 1048576 characters"),
            ("tools.twice(10 ** 5000)", "integer string conversion"),
        ],
        every=3,
    ),
)
async def test_a_call_that_is_not_possible_raises_the_reason(agent: AgentSession, code: str, said: str) -> None:
    assert said in await failure(agent, code)
    assert await text(agent, "tools.weather('Oslo')") == "'sunny in Oslo for 1'"


async def test_a_failed_tool_raises_an_exception_that_a_cell_can_catch(agent: AgentSession) -> None:
    code = "try:\n    tools.refuse()\nexcept ToolError as error:\n    said = (error.name, str(error))\nsaid"
    assert await text(agent, code) == "('LookupError', 'nothing small is there')"


async def test_tools_describe_themselves(agent: AgentSession) -> None:
    assert "weather(city: str, days: int = 1)" in (await agent.run("help(tools.weather)")).stdout
    assert "next days" in (await agent.run("help(tools.weather)")).stdout
    assert await text(agent, "[one['name'] for one in tools.list()]") == "['weather', 'twice', 'refuse']"
    assert await text(agent, "tools.search('what will the weather be')[0]['signature']") == "'weather(city: string, days: integer = 1)'"
    assert await text(agent, "dir(tools)") == "['batch', 'list', 'refuse', 'search', 'twice', 'weather']"


async def test_the_host_lists_and_searches_tools_too(agent: AgentSession) -> None:
    assert [one["name"] for one in await agent.list_tools()] == ["weather", "twice", "refuse"]
    assert (await agent.search_tools("outdoor weather", limit=1))[0]["tags"] == ["outdoors"]


async def test_a_name_that_the_user_assigns_hides_ours_until_it_is_deleted(agent: AgentSession) -> None:
    assert await text(agent, "tools = 5\ntools") == "5"
    assert await text(agent, "del tools\ntools.weather('Oslo')") == "'sunny in Oslo for 1'"
    await agent.reset()
    assert await text(agent, "tools.weather('Oslo')") == "'sunny in Oslo for 1'"


async def test_other_awaitables_are_awaited_as_usual(agent: AgentSession) -> None:
    own = "class Own:\n    async def x(self): return 'own'\n    def y(self): return self.x()\n"
    code = f"{own}tools = Own()\n[await tools.x(), await tools.y()]"
    assert await text(agent, code) == "['own', 'own']"


@pytest.mark.slow
@pytest.mark.long
async def test_the_clock_of_a_cell_stops_while_the_host_works(pool: SessionPool) -> None:
    @tool(effect="read")
    async def slow() -> str:
        await asyncio.sleep(5)
        return "done"

    async with AgentSession(pool, tools=[slow]) as agent:
        assert (await agent.run("tools.slow()", timeout=4)).value == "done"


@pytest.mark.slow
async def test_a_hanging_tool_is_stopped_at_its_timeout_and_the_session_survives(pool: SessionPool) -> None:
    @tool(effect="read", seconds=0.2)
    async def hang() -> None:
        await asyncio.Event().wait()

    async with AgentSession(pool, tools=[hang]) as agent:
        assert "hang did not answer within 0.2 s" in await failure(agent, "tools.hang()")
        assert (await agent.run("6 * 7")).value == 42


@pytest.mark.parametrize(
    ("answer", "said"),
    [(object(), "a object cannot be sent"), ({1: 2}, "a dict cannot be sent"), (bytes(70 << 20), "larger than")],
)
async def test_an_answer_that_a_tool_may_not_return_is_reported(pool: SessionPool, answer: object, said: str) -> None:
    @tool(effect="read")
    async def answers() -> object:
        return answer

    async with AgentSession(pool, tools=[answers]) as agent:
        assert said in await failure(agent, "tools.answers()")


async def test_cancelling_the_cell_cancels_the_tools_that_it_called(pool: SessionPool) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @tool(effect="read")
    async def hang() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with AgentSession(pool, tools=[hang]) as agent:
        running = asyncio.create_task(agent.run("x = 1\ntools.hang()"))
        await began.wait()
        running.cancel()
        await ended.wait()
        assert (await agent.run("x")).value == 1


async def test_a_plain_session_has_no_tools(pool: SessionPool) -> None:
    async with pool.session() as session:
        result = await session.run("tools")
    assert result.error is not None
    assert result.error.name == "NameError"


@pytest.mark.long
async def test_computing_left_by_earlier_cells_is_not_charged_to_a_waiting_cell(pool: SessionPool) -> None:
    @tool(effect="read")
    async def wait() -> str:
        await asyncio.sleep(7)
        return "done"

    async with AgentSession(pool, tools=[wait]) as agent:
        await agent.run("import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'while True: pass'])")
        assert (await agent.run("tools.wait()", timeout=5)).value == "done"


@pytest.mark.parametrize("name", ["", "1st", "a b", "list", "search", "a..b", "../x", "x" * 80])
def test_a_tool_whose_name_code_cannot_use_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="a tool's name must have"):
        tool(name=name or " ")(lambda: None)


async def test_two_tools_with_the_same_name_are_refused(pool: SessionPool) -> None:
    with pytest.raises(ConfigurationError, match="two tools named weather"):
        await AgentSession(pool, tools=[weather, weather]).start()


async def test_a_session_that_was_not_started_is_reported(pool: SessionPool) -> None:
    with pytest.raises(ACASessionsError, match="async with"):
        await AgentSession(pool).run("1")


async def test_a_decorated_function_is_still_callable() -> None:
    assert await weather("Oslo") == "sunny in Oslo for 1"
    assert twice(1) == [1, 1]
