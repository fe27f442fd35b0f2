"""Saving and restoring sessions, beside `numpy.save` of the same bytes into the same folder, in turns. Medians, and the best of all rounds.

Without a machine of its own, look at the best: whatever else runs makes the medians longer.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from aca_sessions import SessionPool, Settings, open_interpreter, open_pool

ROUNDS, LARGE_ROUNDS, EXPIRY_ROUNDS = 15, 5, 5
BYTES = 1_000_000_000
SMALL = "import math; x, y, names = 1, [1, 2], {'a': 1}\ndef f(): return x"
LARGE = f"import numpy, pandas; frame = pandas.DataFrame({{'a': numpy.random.default_rng(1).random({BYTES // 8})}})"
EXPIRING = 10  # sessions, one after the other, each with an array of 8 MB
WARM_SECONDS = 1.0  # the pool prepares its next session meanwhile


def settings(folder: Path, when: str = "never", **others: object) -> Settings:
    return Settings(Durable={"Store": f"file://{folder}", "Save": when}, **others)


async def milliseconds(act: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await act()
    return (time.perf_counter() - started) * 1000


def show(title: str, values: list[float], note: str = "") -> None:
    print(f"{title:<56}{statistics.median(values):9.1f} ms, at best {min(values):.1f}{note}")


async def first_cell(pool: SessionPool, name: str, kind: str) -> float:
    """Return how long the first cell of a session takes. `kind` is that of its state."""
    await asyncio.sleep(WARM_SECONDS)
    async with pool.session(name) as session:
        started = time.perf_counter()
        result = await session.run("1")
        assert result.state.kind == kind, result.state
        return (time.perf_counter() - started) * 1000


async def small(folder: Path) -> None:
    saves, restored, new = [], [], []
    for number in range(ROUNDS):
        async with open_pool(settings(folder)) as pool, pool.session("alice") as session:
            await session.run(SMALL)
            await session.run(f"z = {number}")
            saves.append(await milliseconds(session.save))
        async with open_pool(settings(folder)) as pool:
            await first_cell(pool, "other", "kept")  # the pool has begun
            new.append(await first_cell(pool, "another", "kept"))
            restored.append(await first_cell(pool, "alice", "restored"))
    show("save of a small session", saves)
    show("first cell of a new session", new)
    show("first cell of a restored small session", restored)
    show("restored, beyond a new one", [one - other for one, other in zip(restored, new, strict=True)])


async def large(folder: Path) -> None:
    values = np.random.default_rng(1).random(BYTES // 8)
    writes, synced, saves, again, unchanged = [], [], [], [], []
    async with open_pool(settings(folder, Sandbox={"Limits": {"MemoryMegabytes": 8192}})) as pool, pool.session("alice") as session:
        await session.run(LARGE)
        for _ in range(LARGE_ROUNDS):
            started = time.perf_counter()
            with (folder / "plain.npy").open("wb") as file:
                np.save(file, values)
                writes.append((time.perf_counter() - started) * 1000)
                os.fsync(file.fileno())  # as a save does
            synced.append((time.perf_counter() - started) * 1000)
            await session.run("frame += 1")  # changes all of it
            saves.append(await milliseconds(session.save))
            await session.run("x = 1")
            again.append(await milliseconds(session.save))
            unchanged.append(await milliseconds(session.save))
        await pool.terminate("alice")
    show("numpy.save of 1 GB", writes)
    show("numpy.save of 1 GB, and fsync", synced)
    for base, name in ((writes, "numpy.save"), (synced, "numpy.save and fsync")):
        ratios = [one / other for one, other in zip(saves, base, strict=True)]
        show("save of a frame of 1 GB", saves, f"; {statistics.median(ratios):.1f} times as long as {name}")
    show("save after a cell that changed something else", again)
    show("save after nothing ran", unchanged)


async def expiry(folder: Path) -> None:
    """Measure the cells of a session while others expire, and are saved or not."""
    alone, plain, saving = [], [], []
    code = "import os; array = os.urandom(8_000_000)"
    async with open_interpreter(settings(folder, "idle")) as interpreter:
        for number in range(EXPIRY_ROUNDS):
            for saved, times in ((None, alone), (False, plain), (True, saving)):
                names = [f"{number}-{saved}-{one}" for one in range(EXPIRING)]
                if saved is not None:
                    for name in names:
                        await interpreter.execute(name, code)
                ending = asyncio.create_task(expire(interpreter, names, saved=saved))
                while not ending.done():
                    times.append(await milliseconds(lambda: interpreter.execute("busy", "1 + 1")))
                await ending
    for title, times in (("nothing else runs", alone), ("others end, one after the other", plain), ("others end and are saved", saving)):
        p99 = sorted(times)[int(len(times) * 0.99)]
        show(f"a cell while {title}", times, f"; p99 {p99:.1f} ms of {len(times)} cells")


async def expire(interpreter: object, names: list[str], *, saved: bool | None) -> None:
    for name in names:
        await asyncio.sleep(0.1)
        if saved is not None:
            await interpreter.delete_session(name, expired=True, saved=saved)  # type: ignore[attr-defined]


async def main() -> None:
    for measure in (small, large, expiry):
        with tempfile.TemporaryDirectory() as folder:
            await measure(Path(folder))


if __name__ == "__main__":
    asyncio.run(main())
