"""Semantic Kernel: two kernel functions over one session. The only module that imports semantic_kernel, which takes seconds."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Annotated, Any

from semantic_kernel.contents import ChatHistory, ChatMessageContent, FunctionCallContent, FunctionResultContent, ImageContent, TextContent
from semantic_kernel.contents.utils.author_role import AuthorRole
from semantic_kernel.filters import AutoFunctionInvocationContext
from semantic_kernel.functions import kernel_function

from ..models import CodeExecutionResult
from .model_session import CODE, FILES, ModelSession


class PythonResult(CodeExecutionResult):
    """A result that Semantic Kernel's host programs can show."""

    def to_contents(self) -> list[TextContent | ImageContent]:
        """What a model reads as text, and the images as images."""
        images = [ImageContent(data=image, data_format="base64", mime_type="image/png") for image in self.images]
        return [TextContent(text=str(self)), *images]


class PythonCodeInterpreterPlugin(ModelSession):
    """A stateful Python session for a model: `kernel.add_plugin(plugin, "PythonInterpreter")`.

    Without a pool it opens what the settings say, at its first call. It owns one session name and leases it for each call, so calls of
    one turn may run at the same time and share their variables.
    """

    # Semantic Kernel reads every public property when a plugin is added: there are none.

    @kernel_function
    async def execute_python(self, code: Annotated[str, CODE]) -> CodeExecutionResult:
        """Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call."""
        return _showable(await self.run(code))

    @kernel_function
    async def execute_python_with_files(self, code: Annotated[str, CODE], files: Annotated[dict[str, str], FILES]) -> CodeExecutionResult:
        """Writes files into the session of execute_python, then runs Python code there that can read or import them."""
        return _showable(await self.run(code, files))


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


def _showable(result: CodeExecutionResult) -> PythonResult:
    return PythonResult(**{field.name: getattr(result, field.name) for field in fields(result)})


def _unanswered(history: ChatHistory) -> set[str | None]:
    """The calls that a model made and whose answers are not in the history yet."""
    items = [item for message in history.messages for item in message.items]
    calls = {item.id for item in items if isinstance(item, FunctionCallContent)}
    return calls - {item.id for item in items if isinstance(item, FunctionResultContent)}
