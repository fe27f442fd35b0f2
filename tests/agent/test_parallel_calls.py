"""Test calls that a cell makes at the same time: every call gets its answer, whatever its size, and the session survives."""

import asyncio
import json

import pytest

from aca_sessions import AgentSession, Session, SessionPool, tool

AT_ONCE = "import asyncio\nasync def go(n): return await tools.rows(n)\nout = await asyncio.gather(*(go(n) for n in range(6)))\n"
IN_THREADS = """
import threading
shell = get_ipython()
sizes = []
threads = [threading.Thread(target=lambda: sizes.append(len(shell._send_call('{}')))) for _ in range(4)]
[thread.start() for thread in threads]
"""


@tool(effect="read")
async def rows(n: int) -> list[object]:
    """Rows of a table, about 1.2 MB of JSON, with no text that would go by a file."""
    await asyncio.sleep(0)
    return [n, ["x" * 60_000] * 20]


async def test_large_parallel_answers_arrive_whole(pool: SessionPool) -> None:
    async with AgentSession(pool, tools=[rows]) as agent:
        await agent.run("kept = 1")
        assert (await agent.run(f"{AT_ONCE}[(n, len(of)) for n, of in out]", timeout=20)).text == str([(n, 20) for n in range(6)])
        after = await agent.run("kept", timeout=20)
        assert (after.value, str(after.state)) == (1, "kept")


@pytest.mark.parametrize("size", [1_000, 100_000, 3_000_000])
async def test_parallel_answers_to_threads_arrive_whole(session: Session, size: int) -> None:
    answer = json.dumps({"value": "x" * size})

    async def on_call(_text: str) -> str:
        return answer

    execution = await session.start(f"{IN_THREADS}[thread.join() for thread in threads]\nsizes", on_call=on_call, timeout=20)
    assert (await execution.wait()).text == str([len(answer)] * 4)
    assert (await session.run("6 * 7")).value == 42


async def test_host_and_guest_write_at_the_same_time_without_deadlock(session: Session) -> None:
    """Fill both directions: the host reads while its answers wait, and the guest reads in a thread while its displays wait."""

    async def on_call(_text: str) -> str:
        return json.dumps({"value": "x" * 3_000_000})

    shows = "from IPython.display import display, HTML\nfor n in range(20): display(HTML('y' * 1_000_000))\n"
    execution = await session.start(f"{IN_THREADS}{shows}[thread.join() for thread in threads]\nlen(sizes)", on_call=on_call, timeout=20)
    result = await execution.wait()
    assert (result.error, result.value, len(result.displays)) == (None, 4, 20)


async def test_an_interrupt_among_large_answers_leaves_the_session_usable(pool: SessionPool) -> None:
    async with AgentSession(pool, tools=[rows]) as agent:
        for _ in range(5):
            await agent.run("kept = 1")
            calls = len(agent.calls)
            running = asyncio.create_task(agent.run(f"while True:\n    {AT_ONCE.replace(chr(10), chr(10) + '    ')}"))
            while len(agent.calls) < calls + 12 and not running.done():
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running])
            after = await agent.run("kept", timeout=100)
            if str(after.state) != "lost: killed":  # a busy machine gives the cell no processor in the two seconds that it has to end
                break
        assert (after.value, str(after.state)) == (1, "kept")
