"""How long the first things take: `make bench`. Medians; each beside the same thing without us, in the same run."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aca_sessions import Session, open_pool

SCRIPT = str(Path(sys.executable).with_name("aca-sessions"))


def command(*arguments: str, rounds: int = 9) -> float:
    """Milliseconds of a whole process."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


async def each(act: Callable[[], Awaitable[object]], rounds: int) -> float:
    """Milliseconds of one call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        await act()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


async def semantic_kernel(rounds: int = 300) -> dict[str, float]:
    """The same cell through the session, the plugin and the kernel, in turn, so that all meet the same noise."""
    from semantic_kernel import Kernel

    from aca_sessions import PythonCodeInterpreterPlugin

    async with open_pool() as pool, pool.session("bench") as session:
        plugin = PythonCodeInterpreterPlugin(pool, "bench")
        kernel = Kernel()
        function = kernel.add_plugin(plugin, "py")["execute_python"]
        ways = {
            "Session.run": lambda: session.run("x = 1"),
            "plugin.execute_python": lambda: plugin.execute_python("x = 1"),
            "kernel.invoke": lambda: kernel.invoke(function, code="x = 1"),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, act in ways.items():
                start = time.perf_counter()
                await act()
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) * 1000 for name, values in times.items()}
    base = medians["Session.run"]
    return {f"{name}('x = 1'), above Session.run": value - base for name, value in medians.items() if name != "Session.run"}


async def sessions() -> dict[str, float]:
    async with open_pool(max_concurrent_sessions=1000) as pool:

        async def first_reply() -> None:
            session: Session = await pool.get_or_create()
            await session.run("1 + 1")
            ended.append(session.session_id)

        ended: list[str] = []
        await first_reply()
        further = await each(first_reply, 40)
        for name in ended:
            await pool.release(name)
        async with pool.session() as session:
            return {
                "a further session to its first reply": further,
                "a plain cell, Session.run('x = 1')": await each(lambda: session.run("x = 1"), 500),
                "a cell with a value, Session.run('1 + 1')": await each(lambda: session.run("1 + 1"), 500),
            }


def main() -> None:
    bare, package = command(sys.executable, "-c", "pass"), command(sys.executable, "-c", "import aca_sessions")
    rows = {
        "a bare interpreter": bare,
        "import aca_sessions, above that": package - bare,
        "aca-sessions run 'print(6*7)', cold": command(SCRIPT, "run", "print(6*7)"),
        **asyncio.run(sessions()),
        **asyncio.run(semantic_kernel()),
    }
    width = max(map(len, rows))
    for name, milliseconds in rows.items():
        print(f"{name:<{width}}  {milliseconds:8.2f} ms")


if __name__ == "__main__":
    main()
