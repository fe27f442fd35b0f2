"""What E's bars name: checkpoints, going back and transactional cells beside plain ones, and how soon output is told. Medians."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from aca_sessions import Session, open_pool

ROUNDS = 15
FRAME = "import numpy, pandas; frame = pandas.DataFrame({'a': numpy.ones(62_500_000)})"  # 500 MB
FILES = "[open(f'file{n}', 'wb').write(bytes(1_000_000)) for n in range(5)]"


async def milliseconds(act: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        await act()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


async def first_output(session: Session) -> float:
    """From the guest's own clock before it prints to the event in the hands of the caller, in milliseconds."""
    taken = []
    for _ in range(ROUNDS):
        code = "import time; time.sleep(0.05); print(time.monotonic(), flush=True); time.sleep(0.2)"
        async for event in session.stream(code):
            if event.kind == "stdout":
                taken.append((time.monotonic() - float(event.text)) * 1000)
    return statistics.median(taken)


async def back_and_forth(session: Session) -> tuple[float, float]:
    """Going back alone, and the first cell behind it."""
    back, cell = [], []
    for _ in range(ROUNDS):
        back.append(await milliseconds(session.rollback, 1))
        cell.append(await milliseconds(lambda: session.run("1"), 1))
    return statistics.median(back), statistics.median(cell)


async def memory_of_checkpoints(session: Session) -> float:
    """What five of them add to what the machine has in use, in megabytes each."""
    before = free_megabytes()
    for _ in range(5):
        await session.checkpoint()
    return (before - free_megabytes()) / 5


def free_megabytes() -> float:
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024


async def main() -> None:
    async with open_pool() as pool, pool.session() as session:
        await session.run(FRAME)
        plain = await milliseconds(lambda: session.run("x = 1"))
        print(f"a plain cell                                 {plain:7.1f} ms")
        print(f"checkpoint, 500 MB frame alive               {await milliseconds(session.checkpoint):7.1f} ms")
        back, cell = await back_and_forth(session)
        print(f"going back                                   {back:7.1f} ms")
        print(f"the first cell behind it                     {cell:7.1f} ms")
        print(f"memory for each checkpoint                   {await memory_of_checkpoints(session):7.1f} MB")
    async with open_pool() as pool, pool.session() as session:
        await session.run(FILES)
        plain = await milliseconds(lambda: session.run("x = 1"))
        transactional = await milliseconds(lambda: session.run("x = 1", transactional=True))
        print(f"a transactional cell over a plain one, 5 MB  {transactional - plain:7.1f} ms")
        print(f"output written to output told                {await first_output(session):7.2f} ms")


if __name__ == "__main__":
    asyncio.run(main())
