"""Pass data from one session to the next.

Artifacts are named results that a cell saves with `artifacts.save` and a later
session loads: text, bytes, JSON, DataFrames, figures, and files by `Path`. Nothing
is pickled. Your program reads them too. DataFrames are kept as parquet if the
session has pyarrow or fastparquet (the extra `data`), and otherwise as JSON.
Without a `storage`, artifacts end with the `AgentSession`.
"""

import asyncio
import tempfile

from aca_sessions import AgentSession, FileStorage

SAVE = "artifacts.save('totals', {'Oslo': 709, 'Bergen': 291}, 'people by city')"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with AgentSession(storage=FileStorage(folder)) as agent:
            await agent.run(SAVE)
        async with AgentSession(storage=FileStorage(folder)) as later:
            print(await later.run("sum(artifacts.load('totals').values())"))
            print(await later.load_artifact("totals"))  # in your program
            print([one["description"] for one in await later.list_artifacts()])


asyncio.run(main())

# prints:
# 1000
# {'Oslo': 709, 'Bergen': 291}
# ['people by city']
