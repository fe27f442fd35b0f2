"""What an agent session adds to a session: a call of a tool, a thousand of them, a search over many skills, and the run itself.

py-code-mode is on no package index, so it is not measured beside these. Its code waits 100 ms after each cell for what may still come.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from aca_sessions import AgentSession, FileStorage, Session, SessionPool, open_pool, tool
from aca_sessions.agent.library.skills import Skills
from aca_sessions.models import CodeExecutionResult

ROUNDS = 200
NONE = float("inf")
SKILLS = 10_000
VERBS = ["fetch", "parse", "plot", "count", "send", "resize", "merge", "sort", "check", "convert"]
THINGS = ["invoice", "picture", "table", "report", "address", "series", "archive", "letter", "payment", "calendar"]
TIMED = "import time\ndef _measured():\n    before = time.perf_counter()\n    tools.nothing()\n    return time.perf_counter() - before\n"
ONE_BY_ONE = f"{TIMED}import statistics\nstatistics.median(_measured() for _ in range({ROUNDS})) * 1000"
IN_A_LOOP = "import time\nbefore = time.perf_counter()\nfor _ in range(1000): tools.nothing()\ntime.perf_counter() - before"


@tool(effect="read")
async def nothing() -> None:
    """Does nothing."""


async def inside(agent: AgentSession, code: str) -> float:
    """A number that a cell measured."""
    return float((await agent.run(code)).raise_for_error().text or "nan")


async def calls(agent: AgentSession) -> dict[str, tuple[float, float]]:
    """Of a call that does nothing, as the cell sees it."""
    one, loop = await inside(agent, ONE_BY_ONE), [await inside(agent, IN_A_LOOP) for _ in range(3)]
    return {
        f"one call of a tool from inside a cell (median of {ROUNDS})": (one, 3),
        "1,000 calls in a loop (median of 3)": (statistics.median(loop) * 1000, 2000),
    }


async def runs(agent: AgentSession, session: Session) -> dict[str, tuple[float, float]]:
    """The same cell either way, in turns: whatever else the machine does meets both."""
    plain, agents = list[float](), list[float]()
    for _ in range(ROUNDS):
        plain.append(await _milliseconds(lambda: session.run("1 + 1")))
        agents.append(await _milliseconds(lambda: agent.run("1 + 1")))
    one, other = statistics.median(plain), statistics.median(agents)
    return {"Session.run (median)": (one, NONE), "AgentSession.run (median)": (other, NONE), "… which is more by": (other - one, NONE)}


async def searches(folder: Path) -> dict[str, tuple[float, float]]:
    """Over files that a person could have written; the first search takes them apart."""
    for number in range(SKILLS):
        verb, thing = VERBS[number % 10], THINGS[number // 10 % 10]
        about = f"{verb.title()} each {thing} of customer {number}, and tell how often that was."
        text = f'def run(data):\n    """{about}"""\n    return data\n'
        (folder / f"{verb}_{thing}_{number}.py").write_text(text)
    skills = Skills(FileStorage(folder.parent))
    first = await _milliseconds(lambda: skills.search("send the invoice", 5))
    queries = [f"{verb} the {thing} of a customer" for verb in VERBS for thing in THINGS]
    taken = [await _milliseconds(partial(skills.search, query, 5)) for query in queries]
    assert len(await skills.search(queries[0], 5)) == 5
    return {
        f"a search over {SKILLS:,} skills (median of {len(taken)})": (statistics.median(taken), 20),
        "… the first, which reads them": (first, NONE),
    }


async def _milliseconds(act: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    done = await act()
    taken = (time.perf_counter() - started) * 1000
    if isinstance(done, CodeExecutionResult):
        done.raise_for_error()
    return taken


async def measured(pool: SessionPool, folder: Path) -> dict[str, tuple[float, float]]:
    """Milliseconds, and what they are to stay below."""
    async with AgentSession(pool, tools=[nothing]) as agent, pool.session() as session:
        for one in (agent, session):
            await one.run("1 + 1")
        return {**await calls(agent), **await runs(agent, session), **await searches(folder)}


async def main() -> None:
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "skills").mkdir()
        async with open_pool() as pool:
            rows = await measured(pool, Path(base) / "skills")
    width = max(map(len, rows))
    for name, (milliseconds, bar) in rows.items():
        print(f"{name:<{width}}  {milliseconds:9.2f} ms{'' if bar == NONE else f'   (bar {bar:g} ms)'}")


if __name__ == "__main__":
    asyncio.run(main())
