"""Semantic Kernel: two kernel functions over one session. The only module that imports semantic_kernel, which takes seconds."""

import asyncio
import json
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Self

from semantic_kernel.functions import kernel_function

from ..client.pool import SessionPool
from ..connect import open_pool
from ..errors import ACASessionsError
from ..models import CodeError, CodeExecutionResult

_CODE = (
    "Python source, as in a notebook cell; plain text without Markdown fences. "
    "The value of its last expression is shown, and figures are shown to the user."
)
_FILES = "File names and the text of each file. They are written to /mnt/data, the working directory, before the code runs."


class PythonCodeInterpreterPlugin:
    """A stateful Python session for a model: `kernel.add_plugin(plugin, "PythonInterpreter")`.

    Without a pool it opens what the settings say, at its first call. It owns one session name and leases it for each call, so calls of
    one turn may run at the same time and share their variables.
    """

    # Semantic Kernel reads every public property when a plugin is added: there are none.

    def __init__(self, pool: SessionPool | None = None, session_id: str | None = None) -> None:
        """Uses the given pool, which stays its owner's, and the given session, or one of its own."""
        self._pool = pool
        self._session_id = session_id or f"plugin-{uuid.uuid4()}"
        self._owns_session = session_id is None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    @kernel_function
    async def execute_python(self, code: Annotated[str, _CODE]) -> CodeExecutionResult:
        """Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call."""
        return await self._run(code, {})

    @kernel_function
    async def execute_python_with_files(self, code: Annotated[str, _CODE], files: Annotated[dict[str, str], _FILES]) -> CodeExecutionResult:
        """Writes text files into the session of execute_python, then runs Python code there that can read or import them."""
        checked = _checked(files)
        if isinstance(checked, CodeError):
            return CodeExecutionResult(session_id=self._session_id, error=checked, stderr=str(checked))
        return await self._run(code, checked)

    async def close(self) -> None:
        """Ends the plugin's own session, and the pool if the plugin opened it."""
        if self._pool is not None and self._owns_session:
            await self._pool.terminate(self._session_id)
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, code: str, files: Mapping[str, str]) -> CodeExecutionResult:
        pool = await self._opened()
        async with pool.session(self._session_id) as session:
            for name, text in files.items():
                try:
                    await session.upload_file(name, text)
                except ACASessionsError as error:
                    told = CodeError("FileError", f"a file could not be written and the code was not run: {error}")
                    return CodeExecutionResult(session_id=self._session_id, error=told, stderr=str(told))
            return await session.run(code)

    async def _opened(self) -> SessionPool:
        async with self._opening:
            if self._pool is None:
                self._pool = await self._stack.enter_async_context(open_pool())
            return self._pool


def _checked(files: object) -> dict[str, str] | CodeError:
    """The files as a model meant them; it may send the mapping as JSON text."""
    if isinstance(files, str):
        try:
            files = json.loads(files)
        except ValueError:
            files = None
    if not isinstance(files, Mapping) or not all(isinstance(part, str) for pair in files.items() for part in pair):
        return CodeError("TypeError", 'files must map file names to their text, for example {"data.csv": "a,b\\n1,2\\n"}')
    return dict(files)
