"""Use a session as a tool of the OpenAI Agents SDK.

`function_tool` makes a tool of the plain async method of `PythonTool`. For files, add `execute_python_with_files` with `strict_mode=False`,
because the strict mode has no mapping type. Needs `pip install openai-agents`. Here a script stands for the model
([_scripted_model.py](../../samples/scripted_model.py)); leave `model=` out to use OpenAI's.
"""

import asyncio

from _scripted_model import ScriptedModel
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from aca_sessions import PythonTool

SCRIPT = [[("execute_python", {"code": "sum(range(10))"})], lambda messages: f"It is {messages[-1]['content']}."]


async def main() -> None:
    set_tracing_disabled(True)  # it would send traces to OpenAI
    with ScriptedModel(SCRIPT) as scripted:
        async with AsyncOpenAI(base_url=scripted.base_url, api_key="none") as client, PythonTool() as python:
            model = OpenAIChatCompletionsModel("scripted", client)
            agent = Agent(name="Analyst", model=model, tools=[function_tool(python.execute_python)])
            print((await Runner.run(agent, "Sum the numbers below 10.")).final_output)


asyncio.run(main())

# prints:
# It is 45.
