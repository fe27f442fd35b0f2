"""A chat that continues tomorrow.

With a store, a session is saved when its pool closes or it expires, and restored
when its name is used again: variables, functions, files and packages are there
before the first cell. `result.state` says `restored`, and `state.missing` names
what could not be kept, such as an open file. Give the model both: `str(result)`
has them. `pool.terminate(name)` ends a chat for good, and deletes its save.
"""

import asyncio
import tempfile

from aca_sessions import Settings, open_pool


async def chat(store: str, *cells: str) -> None:
    settings = Settings(Durable={"Store": f"file://{store}"})  # or redis://…
    async with open_pool(settings) as pool, pool.session("chat-42") as session:
        for cell in cells:
            result = await session.run(cell)
            missing = ", ".join(result.state.missing)
            told = f"{result.state.kind:8}  {result.text or ''}"
            print((f"{told}  (without {missing})" if missing else told).rstrip())


async def main() -> None:
    with tempfile.TemporaryDirectory() as store:
        await chat(
            store,
            "def tax(x): return x * rate",
            "rate = 0.2; log = open('log.txt', 'w')",
        )
        await chat(store, "tax(100)", "rate = 0.25; tax(100)")


asyncio.run(main())

# prints:
# kept
# kept
# restored  20.0  (without log)
# kept      25.0
