"""Let cells call your function.

A tool is a function of your program that code in the session calls as
`tools.NAME(...)`, in loops and conditions too. It runs in your process, with your
rights and your network, while the code stays isolated: check the arguments as you
would those of a request. Arguments and results are JSON, bytes or DataFrames.
`effect="read"` needs no approval. Models find tools with `tools.list()` and
`help(tools.NAME)`.
"""

import asyncio

from aca_sessions import AgentSession, tool

PRICES = {"lamp": 40, "chair": 75, "table": 120}


@tool(effect="read")
async def price(product: str) -> int:
    """Return the price of a product, from your database for example."""
    if product not in PRICES:
        raise ValueError(f"product must be one of {[*PRICES]}, got {product!r}")
    return PRICES[product]


async def main() -> None:
    async with AgentSession(tools=[price]) as agent:
        print(await agent.run("sum(map(tools.price, ['lamp', 'lamp', 'chair']))"))
        print((await agent.run("tools.price('sofa')")).error)


asyncio.run(main())

# prints:
# 155
# ToolError: product must be one of ['lamp', 'chair', 'table'], got 'sofa'
