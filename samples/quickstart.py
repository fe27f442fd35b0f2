"""Two cells that share their variables, and a file, in an isolated session. No Azure, no Docker, no key."""

import asyncio

from aca_sessions import open_pool


async def main() -> None:
    async with open_pool() as pool, pool.session() as session:
        await session.upload_file("data.csv", "city,people\nOslo,709\nBergen,291\n")
        await session.run("import pandas as pd; people = pd.read_csv('data.csv').people")
        result = await session.run("people.sum()")
        print(result.text, result.state)

        result = await session.run("open('/etc/shadow').read()")
        print(result.success, result.error)


if __name__ == "__main__":
    asyncio.run(main())
