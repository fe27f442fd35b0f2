"""Retry after a lost session.

A session can end between two cells: it was idle for too long, used too much memory,
or a full server needed its place. The next result reports this once, in
`result.state`: `lost: expired`, `lost: memory`, … That cell ran in a fresh session,
so it probably failed. Keep the code that builds the session's state, and run it
again when the variables are lost. A cell whose state is `unknown` may have run:
repeat only what can run twice.
"""

import asyncio

from aca_sessions import CodeExecutionResult, Session, open_pool

DATA = b"city,people\nOslo,709\nBergen,291\n"
READ = "import csv; rows = list(csv.DictReader(open('data.csv')))"


async def prepare(session: Session) -> None:
    """Build the state that later cells need."""
    await session.upload_file("data.csv", DATA)
    result = await session.run(READ)
    result.raise_for_error()


async def run(session: Session, code: str) -> CodeExecutionResult:
    result = await session.run(code)
    if result.state.variables == "lost":
        print("prepare again:", result.state)
        await prepare(session)
        result = await session.run(code)
    return result


async def main() -> None:
    async with open_pool() as pool, pool.session("ann") as session:
        await prepare(session)
        await pool.terminate("ann")  # as if it had expired
        result = await run(session, "sum(int(row['people']) for row in rows)")
        print(result, result.state)


asyncio.run(main())

# prints:
# prepare again: lost: terminated
# 1000 kept
