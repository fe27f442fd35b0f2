"""Pydantic-AI: the plain async method as a tool."""

import asyncio

from openai import AsyncOpenAI
from pydantic_ai import Agent, Tool
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from scripted_model import ScriptedModel

from aca_sessions import PythonTool


def last_answer(messages: list[dict]) -> str:
    return str([message["content"] for message in messages if message["role"] == "tool"][-1])


async def main() -> None:
    arguments = {"code": "import data; sum(data.values)", "files": {"data.py": "values = [20, 22]"}}
    with ScriptedModel([[("execute_python_with_files", arguments)], last_answer]) as scripted:
        async with AsyncOpenAI(base_url=scripted.base_url, api_key="none") as client, PythonTool() as python:
            model = OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client))
            agent = Agent(model, tools=[Tool(python.execute_python_with_files)])
            print((await agent.run("Sum the values.")).output)


if __name__ == "__main__":
    asyncio.run(main())
