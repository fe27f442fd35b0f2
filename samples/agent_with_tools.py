"""An agent session: code calls tools of this program, a loop is approved at once, and a skill outlives the session."""

import asyncio
import tempfile
from collections.abc import Sequence

from aca_sessions import AgentSession, FileStorage, tool
from aca_sessions.agent.approval import Call

SKILL = '''
def run(minimum: int) -> list:
    """Names of customers who owe at least so much.

    >>> run(minimum=1000)
    []
    """
    return [one["name"] for one in tools.customers() if one["owes"] >= minimum]
'''


@tool(effect="read")
def customers() -> list[dict[str, object]]:
    """All customers, with what they owe."""
    return [{"name": "Ada", "owes": 30}, {"name": "Grace", "owes": 0}, {"name": "Mary", "owes": 75}]


@tool(effect="irreversible")
def remind(name: str) -> str:
    """Sends a customer a reminder."""
    return f"reminded {name}"


def approve(calls: Sequence[Call]) -> bool:
    print("May I?", ", ".join(f"{call.tool} {call.arguments['name']}" for call in calls))
    return True


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with AgentSession(storage=FileStorage(folder), tools=[customers, remind], approve=approve) as agent:
            await agent.add_skill("who_owes", SKILL)
            result = await agent.run(
                "with tools.batch() as batch:\n    for name in skills.who_owes(minimum=10):\n        tools.remind(name)\nbatch.results"
            )
            print(result.text)
        async with AgentSession(storage=FileStorage(folder), tools=[customers]) as later:
            print((await later.search_skills("which customers owe money"))[0]["name"])
            print((await later.run("skills.who_owes(minimum=50)")).text)


if __name__ == "__main__":
    asyncio.run(main())
