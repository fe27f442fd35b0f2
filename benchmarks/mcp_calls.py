"""What a call of the MCP server costs over standard input and output, beside `Session.run`; and how soon a cancelled one ends.

With version 2 of the SDK, the client has no connection. The aim is 3 ms more than `Session.run`, on a machine that does nothing else. In
the same run, a server of the SDK alone shows what a call costs whose tool does nothing.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import mcp
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client

from aca_sessions import open_pool

CALLS = 200
AIM = 3.0  # milliseconds
EMPTY = """
try:
    from mcp.server.fastmcp import FastMCP as Server
except ImportError:  # version 2
    from mcp.server import MCPServer as Server
server = Server("empty")
server.add_tool(lambda code: "2", "nothing")
server.run()
"""


async def times(call: Callable[[], Awaitable[object]]) -> list[float]:
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await call()
        taken.append(1000 * (time.perf_counter() - started))
    return taken


@asynccontextmanager
async def connected(server: StdioServerParameters) -> AsyncIterator[Any]:
    if hasattr(mcp, "Client"):
        async with mcp.Client(server) as client:
            yield client
    else:
        async with stdio_client(server) as (reading, writing), ClientSession(reading, writing) as client:
            await client.initialize()
            yield client


async def cancelled(client: Any) -> float:
    """Milliseconds from the cancelling of a call until its session has run another cell: the call waits for the cell to end."""
    running = asyncio.create_task(client.call_tool("run_python_code", {"code": "while True: time.sleep(0.01)"}))
    await asyncio.sleep(0)
    number = vars(client).get("_request_id", 1) - 1  # which that task took in its first step
    while not json.loads((await client.call_tool("check_kernel_responsiveness", {})).content[0].text)["busy"]:
        pass
    started = time.perf_counter()
    if hasattr(mcp, "Client"):
        running.cancel()
    else:
        notice = types.CancelledNotification(params=types.CancelledNotificationParams(requestId=number))
        await client.send_notification(types.ClientNotification(notice))
    assert (await client.call_tool("run_python_code", {"code": "kept"})).content[0].text == "1"
    taken = 1000 * (time.perf_counter() - started)
    running.cancel()
    await asyncio.wait([running])
    return taken


async def main() -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "aca_sessions.cli.main", "mcp"])
    empty = StdioServerParameters(command=sys.executable, args=["-c", EMPTY])
    async with open_pool() as pool, pool.session() as session, connected(server) as client, connected(empty) as nothing:
        run, call, floor = [], [], []
        for _ in range(3):  # in turns: whatever else the machine does meets all
            run += await times(lambda: session.run("1 + 1"))
            call += await times(lambda: client.call_tool("run_python_code", {"code": "1 + 1"}))
            floor += await times(lambda: nothing.call_tool("nothing", {"code": "1 + 1"}))
        await client.call_tool("run_python_code", {"code": "import time; kept = 1"})
        ends = [await cancelled(client) for _ in range(20)]
    own, over = statistics.median(run), statistics.median(call)
    print(f"Session.run: p50 {own:.1f} ms; run_python_code over stdio: p50 {over:.1f} ms, which is {over - own:.1f} ms more (aim: {AIM:g})")
    print(f"A tool that does nothing, in a server of the SDK alone: p50 {statistics.median(floor):.1f} ms")
    print(f"A cancelled call, until the session ran the next cell: p50 {statistics.median(ends):.0f} ms, most {max(ends):.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())
