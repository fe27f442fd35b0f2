"""Code and its files in one call, as a model sends them: a module to import, and a binary file as a data URI."""

import asyncio
import base64

from aca_sessions import PythonCodeInterpreterPlugin


async def main() -> None:
    packed = base64.b64encode(bytes(range(10))).decode()
    files = {"data.py": "values = [1, 2, 3, 4, 5]", "raw.bin": f"data:application/octet-stream;base64,{packed}"}
    async with PythonCodeInterpreterPlugin() as python:
        result = await python.execute_python_with_files(
            "import data\nprint(f'Sum: {sum(data.values)}')\nlen(open('raw.bin', 'rb').read())", files
        )
        print(result)


if __name__ == "__main__":
    asyncio.run(main())
