"""Write to a storage from other processes, for tests: `python writers.py write|crash|full|read-only PLACE`."""

import asyncio
import os
import signal
import sys

from aca_sessions import FileStorage, RedisStorage
from aca_sessions.agent.library.artifacts import Artifacts
from aca_sessions.agent.library.dependencies import Deps
from aca_sessions.agent.library.skills import Skills
from aca_sessions.agent.library.storage import Storage
from aca_sessions.errors import StorageError

SIZE = 200_000
SOURCE = "def run():\n    return '{}'\n"
POINTS = 60
POINT_SECONDS = 0.001


def opened(place: str) -> Storage:
    """Open the storage of a place: a folder, or the URL of a Redis and a prefix."""
    if place.startswith("redis:"):
        url, prefix = place.split()
        return RedisStorage(url, prefix=prefix)
    return FileStorage(place)


async def write(storage: Storage, who: str, rounds: int) -> None:
    """Change one record, artifact and skill again and again."""
    artifacts, deps, skills = Artifacts(storage), Deps(storage), Skills(storage)
    for number in range(rounds):
        await artifacts.save("one", who * SIZE)
        await deps.add(f"{who}-{number}")
        await skills.add("shared", SOURCE.format(who * SIZE)[:60_000] + "'")


async def check(storage: Storage) -> None:
    """Check that everything stored is whole."""
    artifacts, skills = Artifacts(storage), Skills(storage)
    for told in await artifacts.list():
        text = await artifacts.load(told["name"])
        assert (len(text), len(set(text))) == (SIZE, 1)
    for name in await storage.names("skills"):
        skill = await skills.get(name)
        assert skill is not None
        assert skill["source"].endswith("'")
    assert all("-" in one for one in await Deps(storage).list())


def crash(place: str) -> None:
    """Kill writers at many points. Each writes into what the ones before it left."""
    for point in range(POINTS):
        child = os.fork()
        if child == 0:
            signal.setitimer(
                signal.ITIMER_REAL, (point + 1) * POINT_SECONDS
            )  # no handler for SIGALRM: the signal ends the process where it is
            asyncio.run(write(opened(place if point % 10 else f"{place}-{point}"), "ab"[point % 2], 1000))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGALRM
        asyncio.run(check(opened(place)))


async def fill(storage: Storage) -> None:
    """Write until there is no room. What was there stays whole, and deleting makes room again."""
    artifacts = Artifacts(storage)
    await Skills(storage).add("double", "def run(n): return n * 2")
    try:
        for number in range(1000):
            await artifacts.save(f"a{number}", "x" * 100_000)
    except StorageError as full:
        print(full)
    told = await artifacts.list()
    assert [len(await artifacts.load(one["name"])) for one in told] == [100_000] * len(told)
    await artifacts.delete("a0")
    await artifacts.save("a1", "x")


async def look(storage: Storage) -> None:
    """Read storage that cannot be written."""
    assert await Artifacts(storage).load("a1") == "x"
    assert await Skills(storage).source("double") == "def run(n): return n * 2"
    try:
        await Artifacts(storage).save("a2", "x")
    except StorageError as read_only:
        print(read_only)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", place, who]:
            asyncio.run(write(opened(place), who, 20))
        case ["crash", place]:
            crash(place)
        case ["full", place]:
            asyncio.run(fill(opened(place)))
        case ["read-only", place]:
            asyncio.run(look(opened(place)))
