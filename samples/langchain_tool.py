"""LangChain: the plain async method as a StructuredTool."""

import asyncio

from langchain_core.tools import StructuredTool

from aca_sessions import PythonTool


async def main() -> None:
    async with PythonTool() as python:
        tool = StructuredTool.from_function(coroutine=python.execute_python_with_files)
        print(sorted(tool.args))
        print(await tool.ainvoke({"code": "import data; sum(data.values)", "files": {"data.py": "values = [20, 22]"}}))


if __name__ == "__main__":
    asyncio.run(main())
