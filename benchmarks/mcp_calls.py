"""What a call of the MCP server costs over standard input and output, beside the same cell by `Session.run`."""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from aca_sessions import open_pool

CALLS = 200


async def times(call: Callable[[], Awaitable[object]]) -> list[float]:
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await call()
        taken.append(1000 * (time.perf_counter() - started))
    return taken


async def main() -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "aca_sessions.surfaces.cli", "mcp"])
    async with (
        open_pool() as pool,
        pool.session() as session,
        stdio_client(server) as (reading, writing),
        ClientSession(reading, writing) as client,
    ):
        await client.initialize()
        run, call = [], []
        for _ in range(3):  # in turns: whatever else the machine does meets both
            run += await times(lambda: session.run("1 + 1"))
            call += await times(lambda: client.call_tool("run_python_code", {"code": "1 + 1"}))
    own, over = statistics.median(run), statistics.median(call)
    print(f"Session.run: p50 {own:.1f} ms; run_python_code over stdio: p50 {over:.1f} ms, which is {over - own:.1f} ms more")


if __name__ == "__main__":
    asyncio.run(main())
