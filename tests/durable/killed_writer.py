"""Kill writers of saves at random moments, and check after each that the newest save is whole. Run with the path of a folder.

This is a program of its own, so that the writers can be forked in some milliseconds.
"""

import asyncio
import os
import random
import signal
import sys
import time

from aca_sessions.durable.saves import Saves
from aca_sessions.durable.sealing import Sealer
from aca_sessions.durable.store import open_store

from .streams import OWNER

ROUNDS, ENOUGH = 20, 10  # kills, and saves that were committed at least


async def write_forever(url: str, ready: int) -> None:
    async with open_store(url) as store:
        saves = Saves(store, Sealer(), inline_bytes=0, max_bytes=10_000_000)
        lease = await saves.take(OWNER, "server", 60)
        assert lease is not None
        save = await saves.newest(OWNER)
        number = save.manifest["number"] if save else 0
        os.write(ready, b"x")
        while True:
            number += 1
            async with await saves.begin(OWNER, lease.fence) as writer:
                await writer.add("variables", b"%d" % number * 50_000)
                await writer.add("same", b"same" * 50_000)
                await writer.commit({"number": number})


async def check(url: str) -> int:
    """Read the newest save and the one before. Return the number of the newest."""
    async with open_store(url) as store:
        saves = Saves(store, Sealer(), inline_bytes=0, max_bytes=10_000_000)
        newest, older = await saves.newest(OWNER), await saves.older(OWNER)
        for save in (newest, older):
            if save is not None:
                assert bytes(await saves.read(OWNER, save.blobs["variables"])) == b"%d" % save.manifest["number"] * 50_000
                assert bytes(await saves.read(OWNER, save.blobs["same"])) == b"same" * 50_000
        if newest and older:
            assert older.manifest["number"] == newest.manifest["number"] - 1
        return newest.manifest["number"] if newest else 0


async def commit_once_more(url: str) -> list[str]:
    """Commit one more save. Return the keys in the store."""
    async with open_store(url) as store:
        saves = Saves(store, Sealer(), inline_bytes=0, max_bytes=10_000_000)
        lease = await saves.take(OWNER, "server", 60)
        assert lease is not None
        for number in range(2):
            async with await saves.begin(OWNER, lease.fence) as writer:
                await writer.add("variables", b"%d" % number)
                await writer.commit({"number": number})
        return await store.keys()


def main() -> None:
    url, last, rounds = sys.argv[1], 0, 0
    is_ready, ready = os.pipe()
    while (rounds := rounds + 1) <= ROUNDS or last < ENOUGH:
        process = os.fork()
        if process == 0:
            asyncio.run(write_forever(url, ready))
        os.read(is_ready, 1)
        time.sleep(random.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        number = asyncio.run(check(url))
        assert number >= last
        last = number
    print(last, len(asyncio.run(commit_once_more(url))))


if __name__ == "__main__":
    main()
