"""Test agent sessions at every kind of endpoint: in process, over TCP with TLS, and where a cell cannot send events."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aca_sessions import AgentSession, SessionPool, Settings, open_pool, tool
from aca_sessions.errors import InvalidArgumentError

from ..conftest import mostly_long
from ..scenarios.endpoints import NAMES, settings_of, trusted

pytestmark = pytest.mark.slow


@tool(effect="read")
async def weather(city: str, days: int = 1) -> str:
    """The weather in a city."""
    return f"sunny in {city} for {days}"


@tool(effect="read")
def twice(data: object) -> object:
    """Everything two times."""
    return [data, data]


@tool
def refuse() -> None:
    """Fails."""
    raise LookupError("nothing is there")


@pytest.fixture(scope="module", params=[pytest.param(NAMES[0], marks=pytest.mark.long), *NAMES[1:]])
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    with settings_of(request.param, folder) as settings:
        yield settings, folder / "cert.pem"


@pytest.fixture
async def pool(endpoint: tuple[Settings, Path]) -> AsyncIterator[SessionPool]:
    settings, certificate = endpoint
    with trusted(certificate):
        async with open_pool(settings) as opened:
            yield opened


@pytest.fixture
async def agent(pool: SessionPool) -> AsyncIterator[AgentSession]:
    async with AgentSession(pool, tools=[weather, twice, refuse]) as opened:
        yield opened


THREADS = """
import threading
said = []
threads = [threading.Thread(target=lambda city=city: said.append(tools.weather(city))) for city in ('Oslo', 'Rome')]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sorted(said)"""


@pytest.mark.parametrize(
    ("code", "text"),
    mostly_long(
        [
            ("tools.weather('Oslo')", "'sunny in Oslo for 1'"),
            ("await tools.weather('Oslo', days=2)", "'sunny in Oslo for 2'"),
            ("import asyncio\nasync def one(n): return await tools.twice(n)\nlen(await asyncio.gather(*map(one, range(20))))", "20"),
            (THREADS, "['sunny in Oslo for 1', 'sunny in Rome for 1']"),
            ("def f(): return tools.weather('Oslo')\nf()", "'sunny in Oslo for 1'"),
            ("[one['name'] for one in tools.list()]", "['weather', 'twice', 'refuse']"),
            ("tools = 5\ntools", "5"),
            ("big = 'x' * 3_000_000\nraw, _ = tools.twice(bytes(5_000_000))\n(tools.twice(big)[0] == big, len(raw))", "(True, 5000000)"),
            ("import pandas as pd\ntools.twice(pd.DataFrame({'a': [1, 2]}))[0].a.tolist()", "[1, 2]"),
            ("tools.twice({'$': 1, 'a': [None, True, 2.5]})", "[{'$': 1, 'a': [None, True, 2.5]}, {'$': 1, 'a': [None, True, 2.5]}]"),
            (
                "try:\n    tools.refuse()\nexcept ToolError as error:\n    said = (error.name, str(error))\nsaid",
                "('LookupError', 'nothing is there')",
            ),
        ],
        every=4,
    ),
)
async def test_a_cell_calls_tools_of_the_host(agent: AgentSession, code: str, text: str) -> None:
    assert agent.supports("host_tools")
    assert (await agent.run(code)).raise_for_error().text == text


@pytest.mark.parametrize(
    ("code", "said"),
    mostly_long(
        [
            ("tools.refuse()", "ToolError: nothing is there"),
            ("tools.nothing()", "there is no tool nothing: see tools.list()"),
            ("tools.twice(object())", "a object cannot be sent"),
            ("tools.twice(list(range(300_000)))", "at most 1048576 characters"),
        ],
        every=3,
    ),
)
async def test_a_call_that_is_not_possible_raises_the_reason(agent: AgentSession, code: str, said: str) -> None:
    result = await agent.run(code)
    assert said in str(result.error)
    assert said in result.stderr
    assert "calls.py" not in result.stderr
    assert (await agent.run("tools.weather('Oslo')")).text == "'sunny in Oslo for 1'"


async def test_state_persists_between_cells_and_reset_clears_it(agent: AgentSession) -> None:
    await agent.run("x = tools.weather('Oslo')")
    assert (await agent.run("x")).value == "sunny in Oslo for 1"
    await agent.reset()
    assert (await agent.run("'x' in globals(), tools.weather('Rome')")).text == "(False, 'sunny in Rome for 1')"


async def test_a_hanging_or_endless_tool_is_stopped_at_its_limits(pool: SessionPool) -> None:
    @tool(effect="read", seconds=0.2)
    async def hang() -> None:
        import asyncio

        await asyncio.Event().wait()

    large = tool(name="large", effect="read")(lambda: bytes(70 << 20))
    async with AgentSession(pool, tools=[hang, large]) as agent:
        assert "hang did not answer within 0.2 s" in str((await agent.run("tools.hang()")).error)
        assert "larger than a call may answer" in str((await agent.run("tools.large()")).error)


async def test_skills_are_tested_saved_and_called(agent: AgentSession) -> None:
    source = 'def run(n):\n    """Doubles.\n\n    >>> run(21)\n    {}\n    """\n    return n * 2\n'
    with pytest.raises(InvalidArgumentError, match="correct the examples"):
        await agent.add_skill("double", source.format(43))
    with pytest.raises(InvalidArgumentError, match="InterpreterDied"):
        await agent.add_skill("evil", 'def run():\n    """Ends.\n\n    >>> run()\n    """\n    import os; os._exit(1)\n')
    assert (await agent.add_skill("double", source.format(42)))["tested"] is True
    code = f"skills.create('again', {source.format(42)!r})['tested'], skills.double(4), await skills.double(n=5)"
    assert (await agent.run(code)).text == "(True, 8, 10)"


async def test_artifacts_pass_between_host_and_session(agent: AgentSession) -> None:
    code = "artifacts.save('a', {'b': bytes(100)})\nartifacts.exists('a'), len(artifacts.load('a')['b'])"
    await agent.save_artifact("from outside", b"bytes")
    assert (await agent.run("artifacts.load('from outside')")).text == "b'bytes'"
    assert (await agent.run("artifacts.save('text', 'x' * 100_000)\nlen(artifacts.load('text'))")).value == 100_000
    assert "ToolError" in str((await agent.run(code)).error)
