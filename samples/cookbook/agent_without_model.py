"""Test your agent without a model.

A script stands for the model and makes the tool calls that you write. Everything
else is real, from the framework's function calling to the isolated session.
[scripted_model.py](../../samples/scripted_model.py), which you save beside the
program as `_scripted_model.py`, serves OpenAI's chat API at a local port, so it
works with every client that takes a `base_url`. A step of the script can be a
function of the messages, which checks what the model was sent.
"""

import asyncio

from _scripted_model import ScriptedModel
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion

from aca_sessions import add_aca_sessions

FUNCTION = "PythonInterpreter-execute_python"


async def ask(client: AsyncOpenAI, question: str) -> str:
    """Your agent, which the test calls."""
    kernel = Kernel()
    kernel.add_service(OpenAIChatCompletion("gpt-4o", async_client=client))
    async with add_aca_sessions(kernel):
        agent = ChatCompletionAgent(kernel=kernel, name="Analyst")
        return str(await agent.get_response(question))


async def main() -> None:
    script = [
        [(FUNCTION, {"code": "x = 1 / 0"})],  # the model makes a mistake,
        [(FUNCTION, {"code": "6 * 7"})],  # corrects it, and reads the result:
        lambda messages: f"The answer is {messages[-1]['content']}.",
    ]
    with ScriptedModel(script) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none") as client:
            print(await ask(client, "What is 6 * 7?"))
        print(model.tool_messages()[0].splitlines()[-1])
        print(len(model.requests), "requests")


asyncio.run(main())

# prints:
# The answer is 42.
# ZeroDivisionError: division by zero
# 3 requests
