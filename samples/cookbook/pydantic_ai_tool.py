"""Use a session as a Pydantic-AI tool.

`Tool(python.execute_python)` is enough: name, arguments and description come from
the method. Give each conversation its own session, which keeps its variables and
files: `python.for_session(conversation_id)`. Needs `pip install pydantic-ai-slim`.
Here a function stands for the model; in your program the first argument is for
example `"openai:gpt-4o"`.
"""

import asyncio

from pydantic_ai import Agent, ModelResponse, TextPart, Tool, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from aca_sessions import PythonTool

CODE = "sum(range(10))"


def model(messages: list, info: AgentInfo) -> ModelResponse:
    """Call the tool once, then answer with what it returned."""
    if len(messages) == 1:
        return ModelResponse([ToolCallPart("execute_python", {"code": CODE})])
    return ModelResponse([TextPart(f"It is {messages[-1].parts[0].content}.")])


async def main() -> None:
    async with PythonTool() as python:
        agent = Agent(FunctionModel(model), tools=[Tool(python.execute_python)])
        print((await agent.run("Sum the numbers below 10.")).output)


asyncio.run(main())

# prints:
# It is 45.
