"""What is measured of every contender, in turns: a round of each, then the next round, so that all meet the same noise."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from peers import LIBRARIES, NotMeasured, Peer, WrongAnswer, private_megabytes
from results import COLD, FIGURE, FRAME, IMPORTED, INTERRUPT, MEMORY, NO_VALUE, OURS, RECOVER, VALUE, WARM, Results, Row

Maker = Callable[[], Peer]
Note = Callable[[Row, float | str], None]  # a number, or why there is none
Contender = TypeVar("Contender")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell, and how its reply is known to be right."""

    row: Row
    code: str
    text: str = ""
    pictures: int = 0
    rounds: int = 40


CELLS = (
    Cell(NO_VALUE, "x = 1"),
    Cell(VALUE, "1 + 1", "2"),
    Cell(FRAME, "df", "99", rounds=30),
    Cell(FIGURE, "plt.plot([1, 2, 3]);", pictures=1, rounds=12),
)
SETUP = """
import numpy as np, pandas as pd, matplotlib.pyplot as plt
df = pd.DataFrame(np.arange(100).reshape(20, 5), columns=list("abcde"))
"""
_PAUSE = 0.5  # spares are made meanwhile, and what ended before is gone
_BETWEEN_CELLS = 0.06  # of two contenders; an agent thinks between its cells, and ipybox is six times slower without
_IN_THE_LOOP = 0.3
_RAN_ON = 3.0


async def in_turns(
    results: Results,
    rows: tuple[Row, ...],
    contenders: Mapping[str, Contender],
    act: Callable[[Contender, Note], Awaitable[None]],
    *,
    rounds: int,
) -> None:
    """Lets each act, and notes its numbers. A wrong answer loses a round; whoever cannot do it is not asked again."""
    left = dict(contenders)
    for round in range(rounds):
        for name in list(left)[:: 1 if round % 2 else -1]:
            try:
                await act(left[name], partial(results.note, name, round))
            except Exception as failure:
                if name == OURS:
                    raise
                if isinstance(failure, WrongAnswer):
                    results.lose(rows, name, round, str(failure))
                else:
                    results.lack(rows, name, reason(failure))
                    del left[name]


async def fresh_sessions(results: Results, makers: Mapping[str, Maker], rounds: int) -> None:
    """From nothing to the first reply, to the libraries imported, and what that then takes of memory."""
    await in_turns(results, (COLD, IMPORTED, MEMORY), makers, _fresh, rounds=rounds)


async def ready_sessions(results: Results, makers: Mapping[str, Maker], rounds: int) -> None:
    """To the first reply where everything that can be done ahead of time was done."""
    await in_turns(results, (WARM,), makers, _ready, rounds=rounds)


async def round_trips(results: Results, makers: Mapping[str, Maker]) -> None:
    """Cells of four kinds in sessions that are there."""
    async with all_opened(makers) as sessions:
        for session in sessions.values():
            await session.run(SETUP)
        for cell in CELLS:
            await in_turns(results, (cell.row,), sessions, partial(_round_trip, cell), rounds=cell.rounds)


async def interrupts(results: Results, makers: Mapping[str, Maker], rounds: int) -> None:
    """From the interrupt of an endless loop to the next reply, which must know the variables."""
    async with all_opened(makers) as sessions:
        await in_turns(results, (INTERRUPT,), sessions, _interrupt, rounds=rounds)


async def recoveries(results: Results, makers: Mapping[str, Maker], rounds: int) -> None:
    """From a cell that ends its interpreter to the first reply of the next one."""
    async with all_opened(makers) as sessions:
        await in_turns(results, (RECOVER,), sessions, _recover, rounds=rounds)


async def tried(results: Results, makers: Mapping[str, Maker]) -> dict[str, Maker]:
    """Those that run on this machine, which warms them up as well; results say why the others do not."""
    able = {}
    for name, make in makers.items():
        try:
            async with opened(make) as session:
                await session.run("1 + 1")
            able[name] = make
        except Exception as failure:
            if name == OURS:
                raise
            results.not_run[name] = reason(failure)
    return able


@asynccontextmanager
async def opened(make: Maker) -> AsyncIterator[Peer]:
    session = make()
    await session.prepare()
    await session.open()
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def all_opened(makers: Mapping[str, Maker]) -> AsyncIterator[dict[str, Peer]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(opened(make)) for name, make in makers.items()}


async def answers(session: Peer, code: str, text: str, pictures: int = 0) -> None:
    """Runs a cell; a number for anything but the right answer would mean nothing."""
    reply = await session.run(code)
    if text not in reply.text or reply.pictures < pictures:
        raise WrongAnswer(f"`{code}` gave no picture" if pictures else f"`{code}` gave {reply.text!r}")


def reason(failure: Exception) -> str:
    return str(failure) if isinstance(failure, NotMeasured) else f"{type(failure).__name__}: {failure}".splitlines()[0]


async def _fresh(make: Maker, note: Note) -> None:
    await asyncio.sleep(_PAUSE)
    start = time.perf_counter()
    async with opened(make) as session:
        await answers(session, "1 + 1", "2")
        note(COLD, _milliseconds_since(start))
        await session.run(LIBRARIES)
        imported = _milliseconds_since(start)
        try:
            note(MEMORY, private_megabytes(await session.processes()))
            note(IMPORTED, imported)
        except NotMeasured as why:  # nor would the imports be its own
            note(IMPORTED, str(why))
            note(MEMORY, str(why))


async def _ready(make: Maker, note: Note) -> None:
    session = make()
    await session.prepare()
    await asyncio.sleep(_PAUSE)
    start = time.perf_counter()
    await session.open()
    try:
        await answers(session, "1 + 1", "2")
        note(WARM, _milliseconds_since(start))
    finally:
        await session.close()


async def _round_trip(cell: Cell, session: Peer, note: Note) -> None:
    await asyncio.sleep(_BETWEEN_CELLS)
    start = time.perf_counter()
    await answers(session, cell.code, cell.text, cell.pictures)
    note(cell.row, _milliseconds_since(start))


async def _interrupt(session: Peer, note: Note) -> None:
    await session.run("kept = 41")
    await asyncio.sleep(_PAUSE)
    running = asyncio.create_task(session.run("while True: pass"))
    await asyncio.sleep(_IN_THE_LOOP)
    start = time.perf_counter()
    try:
        await session.interrupt(running)
        await asyncio.wait_for(answers(session, "kept + 1", "42"), _RAN_ON)
    except TimeoutError:
        raise NotMeasured(f"the loop still ran {_RAN_ON:g} s after it was cancelled") from None
    finally:
        running.cancel()
    note(INTERRUPT, _milliseconds_since(start))


async def _recover(session: Peer, note: Note) -> None:
    await asyncio.sleep(_PAUSE)
    start = time.perf_counter()
    await session.kill()
    await answers(session, "1", "1")
    note(RECOVER, _milliseconds_since(start))


def _milliseconds_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
