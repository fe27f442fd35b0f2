"""Give a model more time or memory.

The plugin and the other tools for models take `timeout`, `memory_megabytes` and
`disk_megabytes`. Defaults: 100 seconds for a cell, 2048 MB of memory, 256 MB of
files. `timeout` may be up to 24 hours; Azure stops a cell [after 220
seconds](../guides/azure.md). A cell that takes longer is interrupted, and its
variables are kept. A cell that reaches a limit ends with a hint that the model can
act on.

With a `pool` of your own or an Endpoint, `memory_megabytes` and `disk_megabytes`
are refused. Set `Sandbox:Limits` where the sessions run: in the settings that open
the pool, or in those of the server. `timeout` works there as well.
"""

import asyncio

from semantic_kernel import Kernel

from aca_sessions import add_aca_sessions


async def main() -> None:
    async with add_aca_sessions(Kernel(), timeout=0.5, memory_megabytes=256) as python:
        result = await python.execute_python("numbers = [1, 2]\nwhile True: pass")
        print(result.error.name, await python.execute_python("numbers"))
        result = await python.execute_python("bytearray(300 << 20)")
        print(result.error.name, result.hint)
    async with add_aca_sessions(Kernel(), timeout=200, memory_megabytes=512) as python:
        print(await python.execute_python("len(bytearray(300 << 20)) >> 20"))


asyncio.run(main())

# prints:
# TimeoutError [1, 2]
# MemoryError the session's limit of memory (256 MB) was reached: work on smaller parts of the data, or delete variables
# 300
