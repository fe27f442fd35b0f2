"""Attack the protocol by which a cell in a thread of a session calls tools of the host."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from aca_sessions import AgentSession, SessionPool, Settings, open_pool, tool

from ..cli.test_cli import Server
from ..conftest import mostly_long

pytestmark = pytest.mark.slow

BY_HAND = """
import sys, json
guest = next(module for name, module in sys.modules.items() if name.endswith('.bridge.threaded_guest'))
def by_hand(**call): return guest._send_call(json.dumps(call))
def forge(line):
    guest.answer_poll = lambda marker, said: guest.write_uncaptured(chr(10) + marker + line + chr(10))
    by_hand(name="tools.list", arguments={})
"""
SEND = json.dumps({"name": "tools.call", "arguments": {"name": "send", "arguments": {}}})


def over(**parts: object) -> str:
    """Return the line that reports the end of a cell, with other fields than it should have."""
    result = {"stdout": "", "stderr": "", "value": None, "text": None, "error": None, "displays": [], **parts}
    return json.dumps({"cell": "over", "result": result})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with Server("--port", "0", "--api-key", "key", "--plain") as server:
        yield server.endpoint


@pytest.fixture
async def pool(endpoint: str) -> AsyncIterator[SessionPool]:
    async with open_pool(Settings(Endpoint=endpoint, ApiKey="key")) as opened:
        yield opened


@pytest.mark.parametrize(
    "line",
    mostly_long(
        [
            "nothing",
            "{}",
            "[" * 100_000,
            "1" * 5000,
            '{"cell": "runs"}',
            '{"cell": "runs", "calls": [[-1, ""]], "waited": 0.0, "computed": 0.0}',
            '{"cell": "runs", "calls": [[true, ""]], "waited": 0.0, "computed": 0.0}',
            '{"cell": "runs", "calls": [["1", ""]], "waited": 0.0, "computed": 0.0}',
            '{"cell": "runs", "calls": [], "waited": "0", "computed": 0.0}',
            json.dumps({"cell": "runs", "calls": [[1, "x" * 2_000_000]], "waited": 0.0, "computed": 0.0}),
            '{"cell": "over", "result": {}}',
            over(stdout=1),
            over(value=[]),
            over(error=[1, 2, 3]),
            over(displays=[[{"a": 1}, None]]),
            over(text="x" * 3_000_000),
            '{"file": "../../etc/passwd"}',
            '{"file": ".call-00000000000000000000000000000000"}',
        ],
        every=6,
    ),
    ids=lambda line: line[:60],
)
async def test_a_report_of_a_cell_in_a_thread_is_validated(pool: SessionPool, line: str) -> None:
    """What a session reports of a cell that runs in one of its threads is checked: if it is malformed, nothing of it is believed."""
    async with AgentSession(pool) as agent:
        await agent._live.session.upload_file("line", line)
        result = await agent.run(f"{BY_HAND}\nforge(open('/mnt/data/line').read())")
    assert (result.value, result.text, str(result.state)) == (None, None, "unknown: no reply")
    assert str(result.error) == "ConnectionError: the session gave no answer: check whether the cell had an effect before you run it again"


@pytest.mark.parametrize(
    "call",
    mostly_long(
        [
            "tools.send()",
            "by_hand(name='tools.call', arguments={'name': 'send', 'arguments': {}})",
            "by_hand(name='tools.call', arguments={'name': 'hidden', 'arguments': {}})",
            "by_hand(name='artifacts.save', arguments={'name': '/tmp/x', 'data': '', 'description': '', 'metadata': None})",
            "skills.create('s', 'def run(): return tools.send()'); skills.s()",
            f"forge(json.dumps({{'cell': 'runs', 'calls': [[7, {SEND!r}]], 'waited': 0.0}}))",
        ],
        every=3,
    ),
)
async def test_a_call_of_a_cell_in_a_thread_needs_approval_like_any_other(pool: SessionPool, call: str) -> None:
    """A call of a cell that runs in a thread of its session is one that the session was given, and is decided on the host's side."""
    sent = []
    send = tool(name="send", effect="irreversible")(lambda: sent.append(1))
    tool(name="hidden")(lambda: sent.append(2))
    async with AgentSession(pool, tools=[send]) as agent:
        await agent.run(f"{BY_HAND}\n{call}", timeout=2)
        assert {one.decision for one in agent.calls} <= {"refused"}
    assert sent == []


@pytest.mark.long
async def test_a_repeated_call_is_made_once(pool: SessionPool) -> None:
    """A call that a session sends again and again, in answer to each question about its cell, is made once."""
    made = []
    count = tool(name="count", effect="read")(lambda: made.append(1))
    call = json.dumps({"name": "tools.call", "arguments": {"name": "count", "arguments": {}}})
    line = json.dumps({"cell": "runs", "calls": [[7, call]] * 100, "waited": 0.0, "computed": 0.0})
    async with AgentSession(pool, tools=[count]) as agent:
        result = await agent.run(f"{BY_HAND}\nforge({line!r})", timeout=1)
    assert (made, str(result.state)) == ([1], "unknown: still running")


async def test_unanswered_calls_are_accepted_only_up_to_a_limit(pool: SessionPool) -> None:
    """Of the calls of a cell that runs in a thread of its session, the host has at most 64 at a time, however many the session sends."""
    begun = []

    @tool(effect="read")
    async def hang() -> None:
        begun.append(1)
        await asyncio.Event().wait()

    call = json.dumps({"name": "tools.call", "arguments": {"name": "hang", "arguments": {}}})
    forged = f"""
import itertools, time
numbers, met = itertools.count(1), itertools.count(1)
def tell(marker, said):
    line = json.dumps({{"cell": "runs", "calls": [[next(numbers), {call!r}] for _ in range(60)], "waited": 0.0, "computed": 0.0}})
    guest.write_uncaptured(chr(10) + marker + line + chr(10))
    open("/mnt/data/met", "w").write(str(next(met)))
guest.answer_poll = tell
time.sleep(60)
"""
    async with AgentSession(pool, tools=[hang]) as agent:
        session = agent._live.session
        await session.upload_file("met", b"0")
        running = asyncio.create_task(agent.run(f"{BY_HAND}{forged}"))
        while int(await session.download_file("met") or 0) < 4:
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait([running])
    assert len(begun) == 64


THREAD = "import threading\ndef burn():\n    while True: pass\nthreading.Thread(target=burn, daemon=True).start()\ntools.wait()"
THREAD_AND_CALLS = THREAD.replace("tools.wait()", "while True: tools.list()")


@pytest.mark.parametrize("code", mostly_long([THREAD, THREAD_AND_CALLS], THREAD_AND_CALLS), ids=["one call", "many calls"])
@pytest.mark.long
async def test_computing_of_a_cell_in_a_thread_counts_while_it_waits_for_the_host(pool: SessionPool, code: str) -> None:
    """What a cell in a thread of its session computes while its calls are made counts to its time, as far as the session reports it."""
    wait = tool(name="wait", effect="read")(asyncio.Event().wait)
    async with asyncio.timeout(120), AgentSession(pool, tools=[wait]) as agent:
        result = await agent.run(code, timeout=1)
    assert (result.error.name, "longer than 1 s" in result.error.message) == ("TimeoutError", True)
