"""Approve each call of a tool that writes.

Code in the session calls functions of your program as `tools.NAME(...)`. Give each
an effect: `read` needs no approval, `write` and `irreversible` go to your function
`approve` first, which may be `async` and ask a person. The cell's time limit is
paused meanwhile. A refused call raises `ToolError` in the cell. Without `approve`,
writing calls run and irreversible ones are refused. Calls within `with
tools.batch():` are approved together ([more](../guides/agents.md#approval)).
"""

import asyncio
from collections.abc import Sequence

from aca_sessions import AgentSession, tool
from aca_sessions.agent.approval import Call


@tool(effect="read")
def balance(customer: str) -> int:
    """Return what a customer owes."""
    return {"Ada": 30, "Mary": 75}[customer]


@tool(effect="irreversible")
def send_reminder(customer: str) -> str:
    """Send a customer a reminder."""
    return f"sent to {customer}"


async def approve(calls: Sequence[Call]) -> list[bool]:
    """Return one decision for each call. Here a rule stands for the person."""
    names = [call.arguments["customer"] for call in calls]
    print("asked:", [call.tool for call in calls], names)
    return [name == "Mary" for name in names]


async def main() -> None:
    functions = [balance, send_reminder]
    async with AgentSession(tools=functions, approve=approve) as agent:
        print(await agent.run("tools.balance(customer='Mary')"))
        print(await agent.run("tools.send_reminder(customer='Mary')"))
        refused = await agent.run("tools.send_reminder(customer='Ada')")
        print(refused.error.name)


asyncio.run(main())

# prints:
# 75
# asked: ['send_reminder'] ['Mary']
# 'sent to Mary'
# asked: ['send_reminder'] ['Ada']
# ToolError
