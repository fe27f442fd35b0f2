"""Keep skills that outlive a session.

A skill is a function `run` with a name, which one session saves and later ones call
as `skills.NAME(...)`. Examples in its docstring are run before it is saved: if one
fails, the skill is refused. A model finds skills with `skills.search("...")`. The
source runs only in sessions, never in your program. `FileStorage` keeps a file for
each skill in a folder, which several processes can use; `RedisStorage` needs the
extra `redis` ([more](../guides/agents.md#skills)).
"""

import asyncio
import tempfile

from aca_sessions import AgentSession, FileStorage

SAVE = '''
source = """
def run(amount: float, rate: float = 0.25) -> float:
    \\"\\"\\"Return a price with tax.

    >>> run(100)
    125.0
    \\"\\"\\"
    return amount * (1 + rate)
"""
skills.create("with_tax", source)["name"]
'''


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with AgentSession(storage=FileStorage(folder)) as agent:
            print(await agent.run(SAVE))
        async with AgentSession(storage=FileStorage(folder)) as later:
            print(await later.run("skills.search('price including tax')[0]['name']"))
            print(await later.run("skills.with_tax(80)"))


asyncio.run(main())

# prints:
# 'with_tax'
# 'with_tax'
# 100.0
