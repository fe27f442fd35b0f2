"""Microsoft Agent Framework: one session for each conversation, images as content."""

import asyncio

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient
from openai import AsyncOpenAI
from scripted_model import ScriptedModel

from aca_sessions.integrations.agent_framework import PythonSessionProvider


def call(code: str) -> list[tuple[str, dict[str, object]]]:
    return [("execute_python", {"code": code})]


def last_answer(messages: list[dict]) -> str:
    return str([message["content"] for message in messages if message["role"] == "tool"][-1])


async def main() -> None:
    script = [call("x = 20"), "noted", call("x + 22"), last_answer, call("'x' in globals()"), last_answer]
    with ScriptedModel(script) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none") as connection, PythonSessionProvider() as python:
            client = OpenAIChatCompletionClient("scripted", async_client=connection)
            agent = Agent(client, context_providers=[python])
            conversation, another = agent.create_session(), agent.create_session()
            await agent.run("Keep 20.", session=conversation)
            print("and 22 makes", await agent.run("Add 22.", session=conversation))
            print("another conversation knows it:", await agent.run("Do you know x?", session=another))


if __name__ == "__main__":
    asyncio.run(main())
