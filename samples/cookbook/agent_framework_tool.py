"""Use sessions in Microsoft Agent Framework.

`PythonSessionProvider` gives each conversation (`agent.create_session()`) its own
Python session, and returns charts as images. It adds the tool and its instructions
to the agent. Needs `pip install agent-framework-core agent-framework-openai`. Here
a script stands for the model: save
[scripted_model.py](../../samples/scripted_model.py) beside the program as
`_scripted_model.py`.
"""

import asyncio

from _scripted_model import ScriptedModel
from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient
from openai import AsyncOpenAI

from aca_sessions.integrations.agent_framework import PythonSessionProvider

CALL, READ = "execute_python", lambda messages: str(messages[-1]["content"])
SCRIPT = [
    [(CALL, {"code": "x = 20"})],
    "Noted.",
    [(CALL, {"code": "x + 22"})],
    READ,
    [(CALL, {"code": "'x' in globals()"})],
    READ,
]


async def main() -> None:
    with ScriptedModel(SCRIPT) as model:
        openai = AsyncOpenAI(base_url=model.base_url, api_key="none")
        async with openai, PythonSessionProvider() as python:
            client = OpenAIChatCompletionClient("scripted", async_client=openai)
            agent = Agent(client, context_providers=[python])
            ann, bob = agent.create_session(), agent.create_session()
            await agent.run("Remember 20.", session=ann)
            print("Ann:", await agent.run("Add 22.", session=ann))
            print("Bob:", await agent.run("Do you know x?", session=bob))


asyncio.run(main())

# prints:
# Ann: 42
# Bob: False
