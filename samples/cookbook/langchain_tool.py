"""Use a session as a LangChain tool.

`PythonTool` has plain async methods, so `StructuredTool.from_function` makes a tool
with the right name, arguments and description. Give each conversation its own
session: `python.for_session(conversation_id)`. A mistake of the model is returned
as text that it can read. Needs `pip install langchain-core`.
"""

import asyncio

from langchain_core.tools import StructuredTool

from aca_sessions import PythonTool


async def main() -> None:
    async with PythonTool() as python:
        # For an agent: create_agent(model, tools=[tool])
        tool = StructuredTool.from_function(coroutine=python.execute_python)
        await tool.ainvoke({"code": "x = 20"})
        print(await tool.ainvoke({"code": "x + 22"}))
        print(tool.name, [*tool.args])


asyncio.run(main())

# prints:
# 42
# execute_python ['code']
