"""Use a session as a tool of the OpenAI Agents SDK.

`function_tool` makes a tool of the plain async method of `PythonTool`. For files,
add `execute_python_with_files` with `strict_mode=False`, because the strict mode
has no mapping type. Needs `pip install openai-agents`. Here a script stands for the
model: save [scripted_model.py](../../samples/scripted_model.py) beside the program
as `_scripted_model.py`. Leave `model=` out to use OpenAI's.
"""

import asyncio

from _scripted_model import ScriptedModel
from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner, function_tool
from openai import AsyncOpenAI

from aca_sessions import PythonTool

SCRIPT = [
    [("execute_python", {"code": "sum(range(10))"})],
    lambda messages: f"It is {messages[-1]['content']}.",
]


async def main() -> None:
    with ScriptedModel(SCRIPT) as scripted:
        client = AsyncOpenAI(base_url=scripted.base_url, api_key="none")
        async with client, PythonTool() as python:
            agent = Agent(
                name="Analyst",
                model=OpenAIChatCompletionsModel("scripted", client),
                tools=[function_tool(python.execute_python)],
            )
            no_traces = RunConfig(tracing_disabled=True)  # they would go to OpenAI
            result = await Runner.run(agent, "Sum it up.", run_config=no_traces)
            print(result.final_output)


asyncio.run(main())

# prints:
# It is 45.
