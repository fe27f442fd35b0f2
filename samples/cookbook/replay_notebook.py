"""Replay a notebook at another endpoint.

`replay(path, session)` runs the cells of a notebook again, with its uploads and
packages, and reports which outputs differ. Use it to test a new version, another
environment, or Azure against your laptop: open the other place with
`open_pool(endpoint="https://…")`. Random numbers and measured times count as
differences. Of an image only its size in pixels is compared. A failed cell does not
stop the replay.
"""

import asyncio

from aca_sessions import open_pool, replay


async def main() -> None:
    async with open_pool() as pool, pool.session() as session:
        await session.run("import os\nos.environ.get('HOME')")
        await session.run("print(6 * 7)")
        await session.run("import random; random.random()")
        session.write_notebook("analysis.ipynb")
    # At another place: open_pool(endpoint="https://…")
    async with open_pool() as pool, pool.session() as session:
        report = await replay("analysis.ipynb", session)
        print([cell.verdict for cell in report.cells], report.same)


asyncio.run(main())

# prints:
# ['same', 'same', 'output differs'] False
