"""Run ten sessions in parallel.

A pool leases sessions to concurrent tasks. At most `max_concurrent_sessions` (10)
are leased at the same time; further tasks wait for up to 60 seconds. Each session
has its own process, so their cells use all processors. Within one session, cells
run one after the other. A session without a name ends with its block, so the tasks
share nothing. `aca-sessions doctor` reports how many sessions fit on a machine.
"""

import asyncio

from aca_sessions import SessionPool, open_pool

COUNT = """
def is_prime(n):
    return all(n % d for d in range(2, int(n**0.5) + 1))
sum(map(is_prime, range(start, start + 1000)))
"""


async def count_primes(pool: SessionPool, start: int) -> int:
    async with pool.session() as session:
        result = await session.run(f"start = {start}{COUNT}")
        return int(result.raise_for_error().value)


async def main() -> None:
    async with open_pool(max_concurrent_sessions=10) as pool:
        counts = await asyncio.gather(
            *(count_primes(pool, start) for start in range(10_000, 20_000, 1000))
        )
        print(len(counts), sum(counts))


asyncio.run(main())

# prints:
# 10 1033
