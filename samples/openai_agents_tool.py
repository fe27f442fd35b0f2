"""OpenAI Agents: the plain async method as a function tool. (Its strict mode has no mapping of files, so it is off.)"""

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from scripted_model import ScriptedModel

from aca_sessions import PythonTool


def last_answer(messages: list[dict]) -> str:
    return str([message["content"] for message in messages if message["role"] == "tool"][-1])


async def main() -> None:
    set_tracing_disabled(True)
    arguments = {"code": "import data; sum(data.values)", "files": {"data.py": "values = [20, 22]"}}
    with ScriptedModel([[("execute_python_with_files", arguments)], last_answer]) as scripted:
        async with AsyncOpenAI(base_url=scripted.base_url, api_key="none") as client, PythonTool() as python:
            agent = Agent(
                name="Analyst",
                model=OpenAIChatCompletionsModel("scripted", client),
                tools=[function_tool(python.execute_python_with_files, strict_mode=False)],
            )
            print((await Runner.run(agent, "Sum the values.")).final_output)


if __name__ == "__main__":
    asyncio.run(main())
