"""Show charts to a vision model.

In OpenAI's chat API, a tool message holds only text: a model reads a description of
the chart that its code drew. Add the filter `ShowImages`: it puts the images into
the chat, in a user message after the results of the turn's tool calls. Images cost
tokens, so use it only for models that see. Here a script stands for the model: save
[scripted_model.py](../../samples/scripted_model.py) as `_scripted_model.py` beside
the program.
"""

import asyncio

from _scripted_model import ScriptedModel
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.filters import FilterTypes

from aca_sessions import add_aca_sessions
from aca_sessions.integrations.semantic_kernel import ShowImages

DRAW = """
import matplotlib.pyplot as plt
plt.plot([120, 135, 180])
plt.title("Lamps sold")
"""


def look(messages: list[dict]) -> str:
    """Return what the model received: the tool message, and what follows it."""
    described, shown = messages[-2]["content"], messages[-1]["content"]
    return f"{described.splitlines()[-1]}\n{[part['type'] for part in shown]}"


async def main() -> None:
    script = [[("PythonInterpreter-execute_python", {"code": DRAW})], look]
    with ScriptedModel(script) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none") as client:
            kernel = Kernel()
            kernel.add_service(OpenAIChatCompletion("gpt-4o", async_client=client))
            async with add_aca_sessions(kernel):
                kernel.add_filter(FilterTypes.AUTO_FUNCTION_INVOCATION, ShowImages())
                agent = ChatCompletionAgent(kernel=kernel, name="Analyst")
                print(await agent.get_response("How do lamps sell?"))


asyncio.run(main())

# prints:
# [images] 1 image, not in this text: Figure Lamps sold
# ['text', 'image_url']
