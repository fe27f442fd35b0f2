"""Tools for every framework that accepts plain async methods, such as LangChain, OpenAI Agents and Pydantic-AI."""

from typing import Annotated

from .model_session import CODE, FILES, ModelSession


class PythonTool(ModelSession):
    """A stateful Python session whose methods are tools: pass `tool.execute_python`, or both."""

    # Frameworks send these docstrings to models.
    async def execute_python(self, code: Annotated[str, CODE]) -> str:
        """Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call.

        Args:
            code: Python source, as in a notebook cell; plain text without Markdown fences.
        """
        return str(await self.run(code))

    async def execute_python_with_files(self, code: Annotated[str, CODE], files: Annotated[dict[str, str], FILES]) -> str:
        """Writes files into the session of execute_python, then runs Python code there that can read or import them.

        Args:
            code: Python source, as in a notebook cell; plain text without Markdown fences.
            files: File names and the text of each file; a binary file is a base64 data URI.
        """
        return str(await self.run(code, files))
