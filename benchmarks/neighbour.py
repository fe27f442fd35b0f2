"""How long the host's event loop and another session's cell wait while one session is hostile, beside one that does nothing."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from aca_sessions import Session, open_pool

SECONDS = 6.0
_FORKS = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
end = time.time() + {seconds}
def hop():  # each makes two and ends, so that no list of processes is ever right
    while time.time() < end:
        made = 0
        while made < 2 and time.time() < end:
            try:
                if os.fork() == 0:
                    made = 0
                    continue
                made += 1
            except OSError:
                time.sleep(0.00002)
        os._exit(0)
if os.fork() == 0:
    hop()
    os._exit(0)
time.sleep({seconds} / 2)
"""
NEIGHBOURS = {
    "nothing": "import time; time.sleep({seconds})",
    "computes in each process it may have": "import os, time\nend = time.time() + {seconds}\nfor _ in range(60):\n    if os.fork() == 0:\n"
    "        while time.time() < end: pass\n        os._exit(0)\nwhile time.time() < end: pass",
    "prints without end": "import time\nend = time.time() + {seconds}\nwhile time.time() < end: print('x' * 1000)",
    "forks without end": _FORKS,
    "forks without end, then fails in a transaction": _FORKS + "\nraise ValueError",
}


async def lag(times: list[float]) -> None:
    """Note how much later than asked for the event loop wakes a sleeper."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(0.005)
        times.append((time.perf_counter() - start - 0.005) * 1000)


async def cells(session: Session, times: list[float]) -> None:
    while True:
        start = time.perf_counter()
        await session.run("1 + 1")
        times.append((time.perf_counter() - start) * 1000)
        await asyncio.sleep(0.01)


async def during(act: Callable[[], Awaitable[object]], other: Session) -> tuple[list[float], list[float]]:
    late: list[float] = []
    took: list[float] = []
    measuring = [asyncio.create_task(lag(late)), asyncio.create_task(cells(other, took))]
    await act()
    for task in measuring:
        task.cancel()
    await asyncio.wait(measuring)
    return late, took


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def main() -> None:
    print(f"{'the neighbour':<48}{'loop: p50':>10}{'p99':>8}{'most':>8}   {'a cell: p50':>11}{'p99':>8}{'most':>8}  (ms)")
    for name, code in NEIGHBOURS.items():
        async with open_pool() as pool, pool.session() as hostile, pool.session() as other:
            await asyncio.gather(hostile.run("1"), other.run("1"))
            run = hostile.run(code.format(seconds=SECONDS), transactional="transaction" in name)
            late, took = await during(lambda run=run: run, other)  # type: ignore[misc]
        figures = [f"{statistics.median(late):>10.2f}", *(f"{quantile(late, part):>8.1f}" for part in (0.99, 1))]
        figures += [f"   {statistics.median(took):>11.2f}", *(f"{quantile(took, part):>8.1f}" for part in (0.99, 1))]
        print(f"{name:<48}{''.join(figures)}")


if __name__ == "__main__":
    asyncio.run(main())
