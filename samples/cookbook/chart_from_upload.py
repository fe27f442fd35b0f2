"""Analyse an upload and return a chart.

Write the upload into the session, run the code, and take the PNG from
`result.images`. Matplotlib figures need no `savefig`: each figure that a cell
leaves open becomes an image. A failed cell raises nothing, so check
`result.success`. An upload may have 128 MB, and all files of a session together 256
MB (`Sandbox:Limits:DiskMegabytes`). Code needs `pip install 'aca-sessions[data]'`
for pandas.
"""

import asyncio
from pathlib import Path

from aca_sessions import SessionPool, open_pool

CODE = """
import pandas as pd
sales = pd.read_csv("upload.csv")
sales.plot(x="month", y="sold", title="Sold per month")
sales.sold.sum()
"""


async def analyse(pool: SessionPool, upload: bytes) -> tuple[str, bytes]:
    """Return the text of the answer, and the chart as PNG."""
    async with pool.session() as session:  # a new one, which ends with the block
        await session.upload_file("upload.csv", upload)
        result = await session.run(CODE, timeout=30)
        result.raise_for_error()
        return result.output, result.images[0]


async def main() -> tuple[str, bytes]:
    async with open_pool() as pool:
        return await analyse(pool, b"month,sold\nJan,120\nFeb,135\nMar,180\n")


text, chart = asyncio.run(main())
Path("chart.png").write_bytes(chart)
print("sold:", text)
print(chart[:4])

# prints:
# sold: 435
# b'\x89PNG'
