"""Set limits per tenant.

Limits belong to a pool, so give each tenant or plan a pool with its own `Policy`:
memory, files, processes and time of each session, and with
`max_concurrent_sessions` how many are in use at the same time. Sessions of
different `tenant` names share no fork server, and so no address layout: set it for
tenants that are hostile to each other. Over HTTP, run one `aca-sessions serve` for
each tenant, because every key of a server can use all of its sessions.
"""

import asyncio
from contextlib import AsyncExitStack

from aca_sessions import Limits, Policy, open_pool

MB = 1 << 20
PLANS = {
    "free": Limits(memory=256 * MB, disk=32 * MB, processes=32, cell_timeout=10),
    "paid": Limits(memory=1024 * MB, disk=256 * MB, processes=64, cell_timeout=60),
}
TENANTS = {"acme": "free", "globex": "paid"}


async def main() -> None:
    async with AsyncExitStack() as stack:
        pools = {}
        for tenant, plan in TENANTS.items():
            policy = Policy(limits=PLANS[plan], tenant=tenant)
            opening = open_pool(policy=policy, max_concurrent_sessions=5)
            pools[tenant] = await stack.enter_async_context(opening)
        for tenant, pool in pools.items():
            async with pool.session("ann") as session:
                result = await session.run("len(bytearray(400 << 20)) >> 20")
                print(tenant, result.error or result.value, result.state)


asyncio.run(main())

# prints:
# acme MemoryError kept
# globex 400 kept
