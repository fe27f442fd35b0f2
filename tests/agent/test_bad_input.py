"""Test tools, skills and approvers that misbehave: the session and the host program survive."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aca_sessions import AgentSession, SessionPool, tool
from aca_sessions.agent.approval import Call
from aca_sessions.errors import InvalidArgumentError

from ..conftest import mostly_long


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("nobody knows")


def unspeakable() -> None:
    raise Unspeakable


async def cancelled() -> None:
    raise asyncio.CancelledError


async def group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.sleep(0))
        raise LookupError("one of many")


def generator() -> object:
    return (number for number in range(3))


@pytest.mark.parametrize(
    ("act", "said"),
    mostly_long(
        [
            (lambda: sys.exit("bye"), "raised SystemExit"),
            (exit, "raised SystemExit"),
            (unspeakable, "Unspeakable"),
            (cancelled, "was cancelled"),
            (group, "unhandled errors in a TaskGroup"),
            (generator, "a generator cannot be sent"),
            (lambda: next(iter(())), "StopIteration"),
            (lambda: 1 / 0, "division by zero"),
            (lambda: "x" * 100_000_000, "larger than"),
            (lambda: [0] * 20_000_000, "larger than"),
            (lambda: float("nan"), None),
        ],
        every=4,
    ),
)
@pytest.mark.slow
async def test_a_session_survives_a_misbehaving_tool(pool: SessionPool, act: Callable[[], object], said: str | None) -> None:
    async with AgentSession(pool, tools=[tool(name="bad", effect="read")(act if act is not exit else lambda: exit())]) as agent:
        error = (await agent.run("x = 1\ntools.bad()")).error
        assert (error is None) if said is None else (said in str(error))
        assert (await agent.run("x")).value == 1
        assert len(agent.calls) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "name", mostly_long(["print", "open", "type", "import", "class", "None", "self", "tools", "mro", "items"], every=4)
)
async def test_a_tool_named_like_a_python_builtin_shadows_nothing(pool: SessionPool, name: str) -> None:
    async with AgentSession(pool, tools=[tool(name=name, effect="read")(lambda: "ours")]) as agent:
        assert (await agent.run(f"getattr(tools, {name!r})()")).value == "ours"
        assert (await agent.run("print is __builtins__.print if hasattr(__builtins__, 'print') else True")).value is True
        assert (await agent.run("[one['name'] for one in tools.list()]")).text == repr([name])


@pytest.mark.parametrize("name", mostly_long(["print", "tools", "run", "mro", "items"], "run"))
async def test_a_skill_may_be_named_like_a_python_builtin(pool: SessionPool, name: str) -> None:
    async with AgentSession(pool) as agent:
        await agent.add_skill(name, "def run(): return 'ours'")
        assert (await agent.run(f"skills.{name}()")).value == "ours"


def with_example(body: str) -> str:
    """Return the source of a skill that has an example to try."""
    return f'def run():\n    """Misbehaves.\n\n    >>> run()\n    """\n    {body}\n'


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    mostly_long(
        [
            ("import os; os._exit(1)", "InterpreterDied"),
            ("import os; os.kill(os.getpid(), 9)", "InterpreterDied"),
            ("raise SystemExit", "SystemExit"),
            ("return tools.send()", "was not allowed"),
            ("return skills.create('other', 'def run(): pass')", "there is no call named 'skills.create'"),
            ("return bytes(10 ** 10)", "MemoryError"),
        ],
        every=3,
    ),
)
async def test_a_skill_whose_examples_misbehave_is_refused(pool: SessionPool, body: str, said: str) -> None:
    send = tool(name="send", effect="irreversible")(lambda: "sent")
    source = with_example(body)
    async with AgentSession(pool, tools=[send]) as agent:
        await agent.run("x = 1")
        with pytest.raises(InvalidArgumentError, match=said):
            await agent.add_skill("bad", source)
        assert said in str((await agent.run(f"skills.create('bad', {source!r})")).error)
        assert ((await agent.run("x")).value, await agent.list_skills()) == (1, [])


@pytest.mark.long
async def test_a_skill_whose_examples_never_end_is_refused(pool: SessionPool) -> None:
    async with AgentSession(pool) as agent:
        with pytest.raises(InvalidArgumentError, match="longer than 10 s"):
            await agent.add_skill("bad", with_example("while True: pass"))
        assert await agent.list_skills() == []


async def test_a_cancelled_cell_does_not_wait_for_an_approver_that_never_returns(pool: SessionPool) -> None:
    asked, sent = asyncio.Event(), []

    async def approve(calls: Sequence[Call]) -> bool:
        asked.set()
        await asyncio.Event().wait()
        return True

    async with AgentSession(pool, tools=[tool(name="send")(lambda: sent.append(1))], approve=approve) as agent:
        running = asyncio.create_task(agent.run("x = 1\ntools.send()"))
        await asked.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await agent.run("x")).value == 1
    assert sent == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": "http://127.0.0.1:1"}, "pool must be a SessionPool, as in `async with open_pool() as pool`, got str"),
        ({"storage": "./data"}, "storage must be a storage, as in storage=FileStorage('./data'), got str"),
        ({"tools": tool(cancelled)}, "tools must be a list, as in tools=[weather], got Tool"),
        ({"tools": ["weather"]}, "each of tools must be a function, a tool or a source of tools such as McpServer(…), got str"),
        ({"approve": True}, "approve must be a function that gets a list of calls and returns True or False, got bool"),
    ],
)
def test_an_argument_of_a_wrong_type_is_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        AgentSession(**options)
    assert str(raised.value) == said


async def test_an_interrupted_call_is_recorded(pool: SessionPool) -> None:
    began = asyncio.Event()

    @tool(effect="read")
    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    async with AgentSession(pool, tools=[hang]) as agent:
        running = asyncio.create_task(agent.run("tools.hang()"))
        await began.wait()
        running.cancel()
        await asyncio.wait([running])
        assert [(one.tool, one.error, one.digest) for one in agent.calls] == [("hang", "cancelled", None)]
