"""Many sessions at once: how fast they start, whether all answer, how long a cell takes among them, how many run in a second."""

import asyncio
import statistics
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

import psutil
from measures import Maker, Note, answers, in_turns, opened
from peers import Ours, Peer
from results import FOUR, HUNDRED, ONE, OURS, TEN, Results, Row, Stage

from aca_sessions import Session, SessionPool

MB = 1 << 20
_AT_A_TIME = 8  # sessions that start at the same moment
_SECONDS = 1.0
_SETTLED = 4  # megabytes that come and go
_PATIENCE = 20
_HELD_FREE = 2048  # megabytes that are left to the rest of the machine


async def throughput(results: Results, makers: Mapping[str, Maker], rounds: int) -> None:
    """Cells a second, each session with one cell right after the other, all clients in this one process."""
    most = dict.fromkeys(makers, 1) | {OURS: 100} | ({"ipykernel": 4} if "ipykernel" in makers else {})
    async with AsyncExitStack() as stack:
        contenders = {name: [await stack.enter_async_context(opened(makers[name])) for _ in range(count)] for name, count in most.items()}
        for row, count in ((ONE, 1), (FOUR, 4), (TEN, 10), (HUNDRED, 100)):
            enough = {name: sessions[:count] for name, sessions in contenders.items() if len(sessions) >= count}
            await in_turns(results, (row,), enough, partial(_cells_per_second, row), rounds=rounds)


async def _cells_per_second(row: Row, sessions: list[Peer], note: Note) -> None:
    start = time.perf_counter()
    counts = await asyncio.gather(*(_cells_until(session, start + _SECONDS) for session in sessions))
    note(row, sum(counts) / (time.perf_counter() - start))


async def _cells_until(session: Peer, end: float) -> int:
    count = 0
    while time.perf_counter() < end:
        await answers(session, "1 + 1", "2")
        count += 1
    return count


async def stages(results: Results, pool: SessionPool, targets: tuple[int, ...]) -> None:
    """More and more sessions, none of which is let go, as long as memory is there for them."""
    held: list[Session] = []
    free = await _settled()
    for target in targets:
        needed = (target - len(held)) * (results.stages[-1].host_megabytes if results.stages else 0)
        if needed + _HELD_FREE > _available():
            results.not_reached.append(f"{target} sessions: {needed:,.0f} MB would be needed, {_available():,.0f} MB are free")
            return
        rate = await _grow(pool, held, target)
        times = [await _asked(number, session) for number, session in enumerate(held)]
        answered = [milliseconds for milliseconds in times if milliseconds is not None]
        stage = Stage(target, len(answered), rate, statistics.median(answered), (free - _available()) / target)
        results.stages.append(stage)


async def _grow(pool: SessionPool, held: list[Session], target: int) -> float:
    """Sessions a second, each with its first reply."""
    turns = asyncio.Semaphore(_AT_A_TIME)

    async def one(number: int) -> Session:
        async with turns:
            session = await pool.get_or_create()
            await session.run(f"number = {number}")
            return session

    count, start = target - len(held), time.perf_counter()
    held += await asyncio.gather(*(one(number) for number in range(len(held), target)))
    return count / (time.perf_counter() - start)


async def _asked(number: int, session: Session) -> float | None:
    """Milliseconds of a cell, or None if it was not this session's own answer."""
    start = time.perf_counter()
    result = await session.run("number + 1")
    return (time.perf_counter() - start) * 1000 if result.text == str(number + 1) else None


async def shared_megabytes(pool: SessionPool) -> float:
    """What the parent of all sessions takes, once."""
    async with opened(partial(Ours, pool)) as session:
        interpreters = await session.processes()
        return max(process.parent().memory_info().rss for process in interpreters) / MB


async def _settled() -> float:
    """What is free when nothing more becomes free: the kernel takes its time with what ended before."""
    free = _available()
    for _ in range(_PATIENCE):
        await asyncio.sleep(1)
        before, free = free, _available()
        if abs(free - before) < _SETTLED:
            break
    return free


def _available() -> float:
    return psutil.virtual_memory().available / MB
