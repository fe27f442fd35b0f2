"""Semantic Kernel: two kernel functions over one session. The only module that imports semantic_kernel, which takes seconds."""

import asyncio
import uuid
import warnings
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Self

from semantic_kernel.contents import ChatHistory, ChatMessageContent, FunctionCallContent, FunctionResultContent, ImageContent, TextContent
from semantic_kernel.contents.utils.author_role import AuthorRole
from semantic_kernel.filters import AutoFunctionInvocationContext
from semantic_kernel.functions import kernel_function

from ..client.made_at import caller
from ..client.pool import SessionPool
from ..connect import open_pool
from ..errors import ACASessionsError
from ..models import CodeError, CodeExecutionResult, RemoteFile
from ..settings import Settings
from .from_models import checked_code, checked_files
from .local_files import read_below, write_below

_CODE = (
    "Python source, as in a notebook cell; plain text without Markdown fences. "
    "The value of its last expression is shown, and figures are shown to the user."
)
_FILES = (
    "File names and the text of each file, written to /mnt/data, the working directory, before the code runs. "
    "A binary file is a data URI: data:application/octet-stream;base64,…"
)


class PythonResult(CodeExecutionResult):
    """A result that Semantic Kernel's host programs can show."""

    def to_contents(self) -> list[TextContent | ImageContent]:
        """What a model reads as text, and the images as images."""
        images = [ImageContent(data=image, data_format="base64", mime_type="image/png") for image in self.images]
        return [TextContent(text=str(self)), *images]


class PythonCodeInterpreterPlugin:
    """A stateful Python session for a model: `kernel.add_plugin(plugin, "PythonInterpreter")`.

    Without a pool it opens what the settings say, at its first call. It owns one session name and leases it for each call, so calls of
    one turn may run at the same time and share their variables.
    """

    # Semantic Kernel reads every public property when a plugin is added: there are none.

    def __init__(
        self,
        pool: SessionPool | None = None,
        session_id: str | None = None,
        *,
        settings: Settings | None = None,
        max_output: int = 10_000,
    ) -> None:
        """Uses the given pool, which stays its owner's, or opens one; uses the given session, or one of its own.

        A model reads at most about `max_output` characters of each result.
        """
        self._source = _Source(pool, settings)
        self._session_id = session_id or f"plugin-{uuid.uuid4()}"
        self._owns_session = session_id is None
        self._max_output = max_output
        self._warning = weakref.finalize(self, _warn_if_open, self._source, caller())

    @kernel_function
    async def execute_python(self, code: Annotated[str, _CODE]) -> CodeExecutionResult:
        """Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call."""
        return await self._run(code, {})

    @kernel_function
    async def execute_python_with_files(self, code: Annotated[str, _CODE], files: Annotated[dict[str, str], _FILES]) -> CodeExecutionResult:
        """Writes files into the session of execute_python, then runs Python code there that can read or import them."""
        return await self._run(code, files)

    def for_session(self, session_id: str) -> "PythonCodeInterpreterPlugin":
        """The same plugin over another session: one for each conversation of a server. Closing it leaves this one open."""
        sibling = PythonCodeInterpreterPlugin(session_id=session_id, max_output=self._max_output)
        sibling._source = self._source.shared()
        sibling._warning.detach()
        return sibling

    async def upload_file(self, name: str, *, folder: str | Path) -> RemoteFile:
        """Copies `folder/name` of this machine into the session. For the host program: a model is not offered this."""
        data = await asyncio.to_thread(read_below, Path(folder), name)
        async with (await self._source.open()).session(self._session_id) as session:
            return await session.upload_file(name, data)

    async def download_file(self, name: str, *, folder: str | Path) -> Path:
        """Copies a file of the session to `folder/name` on this machine. For the host program: a model is not offered this."""
        async with (await self._source.open()).session(self._session_id) as session:
            data = await session.download_file(name)
        return await asyncio.to_thread(write_below, Path(folder), name, data)

    async def list_files(self) -> list[RemoteFile]:
        """The files in the session's /mnt/data. For the host program: a model lists them with Python."""
        async with (await self._source.open()).session(self._session_id) as session:
            return await session.list_files()

    async def close(self) -> None:
        """Ends the plugin's own session, and the pool if the plugin opened it; it opens again when it is used again."""
        if self._owns_session and self._source.pool is not None:
            await self._source.pool.terminate(self._session_id)
        await self._source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, code: object, files: object) -> CodeExecutionResult:
        checked, refused = checked_files(files), checked_code(code)
        if refused is None and isinstance(checked, CodeError):
            refused = checked
        if refused is not None or isinstance(checked, CodeError):
            return self._result(CodeExecutionResult(error=refused, stderr=str(refused)))
        async with (await self._source.open()).session(self._session_id) as session:
            try:
                for name, data in checked.items():
                    await session.upload_file(name, data)
            except ACASessionsError as error:
                told = CodeError("FileError", f"a file could not be written, and the code was not run: {error}")
                return self._result(CodeExecutionResult(error=told, stderr=str(told)))
            return self._result(await session.run(str(code)))

    def _result(self, result: CodeExecutionResult) -> PythonResult:
        known = {field.name: getattr(result, field.name) for field in fields(result)}
        return PythonResult(**(known | {"session_id": self._session_id, "max_output": self._max_output}))


class ShowImages:
    """A filter that lets a model see the images that its code drew: they follow the tools' answers as a user message.

    `kernel.add_filter("auto_function_invocation", ShowImages())`, for models that take images.
    """

    def __init__(self) -> None:
        """Holds no image yet."""
        self._held: dict[int, list[ImageContent]] = {}

    async def __call__(
        self, context: AutoFunctionInvocationContext, next: Callable[[AutoFunctionInvocationContext], Awaitable[None]]
    ) -> None:
        """Lets the call happen, and holds its images until all calls of this turn are answered: nothing may come in between."""
        await next(context)
        history = context.chat_history
        if history is None:
            return
        result = context.function_result.value if context.function_result else None
        if isinstance(result, PythonResult):
            images = [content for content in result.to_contents() if isinstance(content, ImageContent)]
            self._held.setdefault(id(history), []).extend(images)
        # This call's own answer is added right after the filter; the last call of the turn finds all of them there.
        asyncio.get_running_loop().call_soon(self._show, history)

    def _show(self, history: ChatHistory) -> None:
        if not _unanswered(history) and (images := self._held.pop(id(history), [])):
            shown: list[Any] = [TextContent(text="The images that the code drew:"), *images]
            history.add_message(ChatMessageContent(role=AuthorRole.USER, items=shown))


def _unanswered(history: ChatHistory) -> set[str | None]:
    """The calls that a model made and whose answers are not in the history yet."""
    items = [item for message in history.messages for item in message.items]
    calls = {item.id for item in items if isinstance(item, FunctionCallContent)}
    return calls - {item.id for item in items if isinstance(item, FunctionResultContent)}


class _Source:
    """Where a plugin's sessions come from: a pool that somebody gave, or one that is opened at the first use."""

    def __init__(self, pool: SessionPool | None, settings: Settings | None) -> None:
        self.pool = pool
        self._settings = settings
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._lender: _Source | None = None
        self.is_open = False

    def shared(self) -> "_Source":
        """The same pool for another plugin, which does not close it."""
        borrower = _Source(self.pool, self._settings)
        borrower._lender = self
        return borrower

    async def open(self) -> SessionPool:
        if self._lender is not None:
            return await self._lender.open()
        async with self._opening:
            if self.pool is None:
                self.pool = await self._stack.enter_async_context(open_pool(self._settings))
                self.is_open = True
            return self.pool

    async def close(self) -> None:
        if self.is_open:
            self.is_open, self.pool = False, None
            await self._stack.aclose()


def _warn_if_open(source: _Source, made_at: str) -> None:
    if source.is_open:
        warnings.warn(f"a PythonCodeInterpreterPlugin made at {made_at} was never closed: use 'async with'", ResourceWarning, stacklevel=2)
