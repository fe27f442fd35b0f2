"""Use the MCP server from a Semantic Kernel agent.

`MCPStdioPlugin` starts `aca-sessions mcp` and adds its tools to the kernel: run
code, install packages, manage several sessions. Use it if other MCP clients share
the set-up. If the sessions run on another machine, start `aca-sessions mcp --http`
there, and use `MCPStreamableHttpPlugin`. For a single program,
`add_aca_sessions(kernel)` needs no second process, and returns images to the
program. The sessions end with the `async with` block ([more](../guides/mcp.md)).
"""

import asyncio
import os
import sys

from semantic_kernel import Kernel
from semantic_kernel.connectors.mcp import MCPStdioPlugin

# In short: command="aca-sessions", args=["mcp"]
COMMAND, ARGUMENTS = sys.executable, ["-m", "aca_sessions.cli.main", "mcp"]


async def main() -> None:
    kernel = Kernel()
    async with MCPStdioPlugin(
        name="Python",
        description="Isolated Python sessions",
        command=COMMAND,
        args=ARGUMENTS,
        env={**os.environ},  # by default the server does not get your settings
    ) as server:
        functions = kernel.add_plugin(server).functions
        await kernel.invoke(functions["run_python_code"], code="x = 20")
        result = await kernel.invoke(functions["run_python_code"], code="x + 22")
        print(result.value[0].text)


asyncio.run(main())

# prints:
# 42
