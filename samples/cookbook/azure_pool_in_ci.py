"""Test code for an Azure pool in CI, with a local stand-in.

`aca-sessions serve --plain` offers Azure's HTTP API and nothing more, so a program
that works against it uses no extension that Azure lacks. Point the program to it by
two environment variables, and it needs no account, no network and no change.
`python -m pytest` instead of the program below runs your tests in the same way. The
stand-in runs on Linux; a container needs [some flags](../guides/containers.md). How
it differs from Azure is listed in [Fidelity to
Azure](../reference/azure-fidelity.md).
"""

import os
import subprocess
import sys

PROGRAM = """
import asyncio
from aca_sessions import open_pool

async def main():
    async with open_pool() as pool, pool.session() as session:
        print(await session.run("6 * 7"))
        print("checkpoints:", await session.supports("checkpoint"))

asyncio.run(main())
"""

# In a shell: aca-sessions serve --plain --port 0
arguments = ["-m", "aca_sessions.cli.main", "serve", "--plain", "--port", "0"]
serve = [sys.executable, *arguments]
with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
    # It prints "Endpoint: http://127.0.0.1:PORT" and "ApiKey: KEY".
    endpoint, key = (server.stdout.readline().split()[1] for _ in range(2))
    settings = {
        "ACASessions__SessionsHttpClient__Endpoint": endpoint,
        "ACASessions__SessionsHttpClient__ApiKey": key,
    }
    program = [sys.executable, "-c", PROGRAM]
    subprocess.run(program, env=os.environ | settings, check=True)
    server.terminate()

# prints:
# 42
# checkpoints: False
