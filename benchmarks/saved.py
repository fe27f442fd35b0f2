"""Saving and restoring sessions, beside `numpy.save` of the same bytes into the same folder, in turns. Medians."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from aca_sessions import SessionPool, Settings, open_pool

ROUNDS, LARGE_ROUNDS = 15, 5
BYTES = 1_000_000_000
SMALL = "import math; x, y, names = 1, [1, 2], {'a': 1}\ndef f(): return x"
LARGE = f"import numpy, pandas; frame = pandas.DataFrame({{'a': numpy.random.default_rng(1).random({BYTES // 8})}})"


async def milliseconds(act: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await act()
    return (time.perf_counter() - started) * 1000


async def restored(pool: SessionPool, name: str) -> None:
    """Run the first cell of a session that has to be restored."""
    async with pool.session(name) as session:
        result = await session.run("1")
    assert result.state.variables == "restored", result.state


async def small(folder: Path) -> None:
    saves, restores, plain = [], [], []
    for _ in range(ROUNDS):
        async with open_pool(Settings(Durable={"Store": f"file://{folder}/small"})) as pool:
            async with pool.session("alice") as session:
                await session.run(SMALL)
                saves.append(await milliseconds(session.save))
            async with pool.session("warm"):
                pass
        async with open_pool(Settings(Durable={"Store": f"file://{folder}/small", "Save": "never"})) as pool:
            async with pool.session("other") as session:  # the pool has begun
                await session.run("1")
            restores.append(await milliseconds(lambda pool=pool: restored(pool, "alice")))
            async with pool.session("another") as session:
                plain.append(await milliseconds(lambda session=session: session.run("1")))
    print(f"save of a small session                         {statistics.median(saves):8.1f} ms")
    print(f"first cell of a restored small session          {statistics.median(restores):8.1f} ms")
    print(f"first cell of a new session                     {statistics.median(plain):8.1f} ms")


async def large(folder: Path) -> None:
    values = np.random.default_rng(1).random(BYTES // 8)
    writes, saves, again = [], [], []
    settings = Settings(Durable={"Store": f"file://{folder}/large"}, Sandbox={"Limits": {"MemoryMegabytes": 8192}})
    async with open_pool(settings) as pool, pool.session("alice") as session:
        await session.run(LARGE)
        for number in range(LARGE_ROUNDS):
            started = time.perf_counter()
            np.save(folder / "plain.npy", values)
            writes.append((time.perf_counter() - started) * 1000)
            await session.run(f"frame.iloc[0, 0] = {number}")
            saves.append(await milliseconds(session.save))
            again.append(await milliseconds(session.save))
        await pool.terminate("alice")
    plain, saved = statistics.median(writes), statistics.median(saves)
    print(f"numpy.save of 1 GB                              {plain:8.1f} ms")
    print(f"save of a frame of 1 GB                         {saved:8.1f} ms, {saved / plain:.1f} times as long")
    print(f"the same again, unchanged                       {statistics.median(again):8.1f} ms")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await small(Path(folder))
        await large(Path(folder))


if __name__ == "__main__":
    asyncio.run(main())
