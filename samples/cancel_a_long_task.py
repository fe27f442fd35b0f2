"""A cell that takes too long is cancelled; what it had computed so far is still there."""

import asyncio
import contextlib

from aca_sessions import open_pool

SEARCH = """
found = []
n = 2
while True:
    if all(n % d for d in range(2, int(n ** 0.5) + 1)):
        found.append(n)
    n += 1
"""


async def main() -> None:
    async with open_pool() as pool, pool.session() as session:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                await session.run(SEARCH)
        result = await session.run("found[:5], len(found) > 100")
        print(result.text, result.state)

        result = await session.run("import time; time.sleep(60)", timeout=0.5)
        print(result.error)


if __name__ == "__main__":
    asyncio.run(main())
