"""Test your agent without a model.

A script stands for the model and makes the tool calls that you write. Everything else is real, from the framework's function calling to the
isolated session. [_scripted_model.py](../../samples/scripted_model.py) serves OpenAI's chat API at a local port, so it works with every
client that takes a `base_url`. A step of the script can be a function of the messages, which checks what the model was sent.
"""

import asyncio

from _scripted_model import ScriptedModel
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion

from aca_sessions import add_aca_sessions


async def ask(client: AsyncOpenAI, question: str) -> str:
    """Your agent, which the test calls."""
    kernel = Kernel(services=[OpenAIChatCompletion(ai_model_id="gpt-4o", async_client=client)])
    async with add_aca_sessions(kernel):
        return str(await ChatCompletionAgent(kernel=kernel, name="Analyst").get_response(question))


async def main() -> None:
    script = [
        [("PythonInterpreter-execute_python", {"code": "x = 1 / 0"})],  # the model makes a mistake,
        [("PythonInterpreter-execute_python", {"code": "6 * 7"})],  # corrects it,
        lambda messages: f"The answer is {messages[-1]['content']}.",  # and reads the result
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
