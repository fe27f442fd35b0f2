"""Cancel a long task.

Start the cell in the background, and cancel it when the user asks. The cell is
interrupted, and the session keeps its variables. A cell that does not stop within
two seconds is killed: the result then says `lost: killed`, or `rolled_back` if
there is a checkpoint. Cancelling the task that awaits `session.run(...)` does the
same, so `asyncio.timeout` works too. Azure cannot interrupt a cell: it runs to its
end.
"""

import asyncio

from aca_sessions import open_pool

SEARCH = """
found, n = [], 2
while True:
    if all(n % d for d in range(2, int(n**0.5) + 1)):
        found.append(n)
    n += 1
"""


async def main() -> None:
    async with open_pool() as pool, pool.session() as session:
        execution = await session.start(SEARCH)
        await asyncio.sleep(1)  # until the user clicks on "Cancel"
        await execution.cancel()
        result = await execution.wait()
        print(result.error.name, result.state)
        print(await session.run("found[:5]"))


asyncio.run(main())

# prints:
# KeyboardInterrupt kept
# [2, 3, 5, 7, 11]
