"""Test what outlives a session: skills, artifacts and dependencies that cells or the host made."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from aca_sessions import AgentSession, FileStorage, SessionPool, Settings, open_pool, tool
from aca_sessions.agent.approval import Call
from aca_sessions.agent.tools.tool import Tool
from aca_sessions.errors import InvalidArgumentError, StorageError

from ..wheels import make_wheel

DOUBLE = 'def run(n):\n    """Doubles a number.\n\n    >>> run(21)\n    {said}\n    """\n    return n * 2\n'


@pytest.mark.long
async def test_a_later_session_finds_the_skills_and_artifacts_of_an_earlier_one(pool: SessionPool, tmp_path: Path) -> None:
    asked = list[int]()

    @tool(effect="irreversible")
    def send(to: str) -> str:
        """Sends a letter."""
        return f"sent to {to}"

    def approve(calls: Sequence[Call]) -> bool:
        asked.append(len(calls))
        return True

    loop = "    with tools.batch() as batch:\n        for name in names: tools.send(to=name)\n"
    source = f"async def run(names):\n{loop}    return batch.results\n"
    async with AgentSession(pool, storage=FileStorage(tmp_path), tools=[send], approve=approve) as agent:
        assert (await agent.run(f"skills.create('send_all', {source!r}, 'Sends letters to many')['origin']")).value == "session"
        await agent.run("artifacts.save('people', ['Ada', 'Grace'], 'who gets one')")
    async with AgentSession(pool, storage=FileStorage(tmp_path), tools=[send], approve=approve) as later:
        code = "name = skills.search('send a letter to many people')[0]['name']\nskills.invoke(name, names=artifacts.load('people'))"
        assert (await later.run(code)).text == "['sent to Ada', 'sent to Grace']"
        assert (await later.list_skills())[0]["uses"] == 1
    assert asked == [2]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("said", ["43", "Traceback"])
async def test_a_skill_whose_example_fails_is_not_kept(pool: SessionPool, said: str) -> None:
    async with AgentSession(pool) as agent:
        with pytest.raises(InvalidArgumentError, match="correct the examples"):
            await agent.add_skill("double", DOUBLE.format(said=said))
        assert "correct the examples" in str((await agent.run(f"skills.create('double', {DOUBLE.format(said=said)!r})")).error)
        assert await agent.list_skills() == []


@pytest.mark.long
@pytest.mark.slow
async def test_examples_run_apart_from_the_session(pool: SessionPool) -> None:
    async with AgentSession(pool) as agent:
        await agent.run("x = 1")
        evil = 'def run():\n    """Ends.\n\n    >>> run()\n    """\n    import os; os._exit(1)\n'
        with pytest.raises(InvalidArgumentError, match="InterpreterDied"):
            await agent.add_skill("evil", evil)
        assert (await agent.add_skill("double", DOUBLE.format(said="42")))["tested"] is True
        assert (await agent.run("x, skills.double(4), await skills.double(n=5)")).text == "(1, 8, 10)"


async def test_a_skill_may_be_a_coroutine_called_with_or_without_await(pool: SessionPool) -> None:
    async with AgentSession(pool) as agent:
        await agent.add_skill("wait", "import asyncio\nasync def run(n):\n    await asyncio.sleep(0)\n    return n\n")
        assert (await agent.run("import asyncio\nawait asyncio.sleep(0)\n(skills.wait(1), await skills.wait(2))")).text == "(1, 2)"


@pytest.mark.long
@pytest.mark.slow
async def test_artifacts_of_every_kind_pass_between_host_and_session(pool: SessionPool) -> None:
    code = """
import pathlib, pandas as pd, matplotlib.pyplot as plt
pathlib.Path('own.txt').write_text('text of a file')
figure, axes = plt.subplots()
artifacts.save('file', pathlib.Path('own.txt')), artifacts.save('figure', figure), artifacts.save('table', pd.DataFrame({'a': [1, 2]}))
artifacts.exists('file'), artifacts.exists('nothing'), int(artifacts.load('table').a.sum())"""
    async with AgentSession(pool) as agent:
        assert (await agent.run(code)).text == "(True, False, 3)"
        assert await agent.load_artifact("file") == b"text of a file"
        assert (await agent.load_artifact("figure")).startswith(b"\x89PNG")
        assert (await agent.load_artifact("table")).a.tolist() == [1, 2]


@pytest.mark.long
async def test_a_dependency_that_a_cell_adds_is_there_for_the_next_session(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "humanize")
    async with open_pool(Settings(Packages={"WheelFolder": str(tmp_path / "wheels")})) as pool, AgentSession(pool) as agent:
        assert "'pending': ['humanize']" in str((await agent.run("deps.add('humanize')")).text)
        assert (await agent.run("import humanize; deps.list()")).text == "['humanize']"
        assert "there-is-none could not be installed" in (await agent.run("deps.add('there-is-none')")).stderr


@pytest.mark.long
async def test_a_dependency_that_a_cell_removes_is_gone_for_the_next_session(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "humanize")
    async with open_pool(Settings(Packages={"WheelFolder": str(tmp_path / "wheels")})) as pool, AgentSession(pool) as agent:
        await agent.run("deps.add('humanize')")
        told = {"removed": [], "not_found": [], "failed": [], "removed_from_config": True, "pending": ["humanize"]}
        assert (await agent.run(f"deps.remove('humanize') == {told}")).text == "True"
        assert "No module named 'humanize'" in str((await agent.run("import humanize")).error)
        assert (await agent.run("deps.list(), deps.remove('humanize')['not_found']")).text == "([], ['humanize'])"


@pytest.mark.long
async def test_the_last_add_or_remove_of_a_package_in_a_cell_counts(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "humanize")
    async with open_pool(Settings(Packages={"WheelFolder": str(tmp_path / "wheels")})) as pool, AgentSession(pool) as agent:
        await agent.run("deps.add('humanize'), deps.remove('humanize')")
        assert "No module named 'humanize'" in str((await agent.run("import humanize")).error)
        await agent.run("deps.remove('humanize'), deps.add('humanize')")
        assert (await agent.run("import humanize")).success


class Source:
    """A source of tools that notes whether it is open."""

    def __init__(self) -> None:
        self.opening, self.may_open = asyncio.Event(), asyncio.Event()
        self.is_open = False

    async def open(self) -> list[Tool]:
        self.is_open = True
        self.opening.set()
        await self.may_open.wait()
        return []

    async def close(self) -> None:
        self.is_open = False


async def test_a_start_that_fails_to_install_leaves_nothing_open(pool: SessionPool, tmp_path: Path) -> None:
    (tmp_path / "deps").write_text("a file in the place of a folder")
    source = Source()
    source.may_open.set()
    agent = AgentSession(pool, storage=FileStorage(tmp_path), tools=[source], sync_deps_on_start=True)
    with pytest.raises(StorageError):
        await agent.start()
    assert (source.opening.is_set(), source.is_open, pool.active()) == (True, False, [])


async def test_a_close_during_the_start_closes_the_session(pool: SessionPool) -> None:
    source = Source()
    agent = AgentSession(pool, tools=[source])
    starting = asyncio.create_task(agent.start())
    await source.opening.wait()
    closing = asyncio.create_task(agent.close())
    await asyncio.sleep(0)  # the close has begun
    source.may_open.set()
    await asyncio.gather(starting, closing)
    assert (source.is_open, pool.active()) == (False, [])


@pytest.mark.slow
@pytest.mark.needs("semantic_kernel")
async def test_functions_of_a_kernel_plugin_are_tools(pool: SessionPool) -> None:
    from semantic_kernel import Kernel
    from semantic_kernel.functions import kernel_function

    from aca_sessions.integrations.semantic_kernel import tools_of

    class Numbers:
        """A plugin."""

        @kernel_function
        def add(self, one: int, other: int = 1) -> int:
            """Adds."""
            return one + other

    kernel = Kernel()
    plugin = kernel.add_plugin(Numbers(), "numbers")
    async with AgentSession(pool, tools=tools_of(plugin, kernel, effect="read")) as agent:
        assert (await agent.run("tools.numbers.add(40, other=2)")).value == 42
        assert "numbers.add needs one" in str((await agent.run("tools.numbers.add(other=2)")).error)
