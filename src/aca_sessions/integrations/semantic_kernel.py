"""Semantic Kernel: kernel functions that run Python in one session. Only this module imports semantic_kernel, which takes seconds."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Unpack

from semantic_kernel import Kernel
from semantic_kernel.connectors.ai.embedding_generator_base import EmbeddingGeneratorBase
from semantic_kernel.contents import ChatHistory, ChatMessageContent, FunctionCallContent, FunctionResultContent, ImageContent, TextContent
from semantic_kernel.contents.utils.author_role import AuthorRole
from semantic_kernel.filters import AutoFunctionInvocationContext
from semantic_kernel.functions import KernelFunction, KernelPlugin, kernel_function

from ..agent.library.search import Embed
from ..agent.tools.tool import Effect, Parameter, Tool
from ..models import CodeExecutionResult
from ..settings import Settings
from .model_session import CODE, FILES, PACKAGES, ModelSession, Options, install_function, model_function


class PythonResult(CodeExecutionResult):
    """A result that Semantic Kernel programs can show: `to_contents` converts it to Semantic Kernel's contents."""

    def to_contents(self) -> list[TextContent | ImageContent]:
        """Return the text that a model reads, and the images, as contents of Semantic Kernel."""
        images = [ImageContent(data=image, data_format="base64", mime_type="image/png") for image in self.images]
        return [TextContent(text=str(self)), *images]


class PythonCodeInterpreterPlugin(ModelSession):
    """A stateful Python session for a model: `kernel.add_plugin(plugin, "PythonInterpreter")`.

    If no pool is given, the first call opens a pool from the settings. Each call leases the same session by its name, so that calls of one
    turn can run at the same time and share variables. It has two kernel functions, and with `install_packages=True` a third.
    """

    # Semantic Kernel reads every public property when a plugin is added, so this class has none. It sends these docstrings to models.

    _result_type = PythonResult

    @model_function
    @kernel_function
    async def execute_python(self, code: Annotated[str, CODE]) -> CodeExecutionResult:
        """Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call."""
        return await self.run(code)

    @model_function
    @kernel_function
    async def execute_python_with_files(self, code: Annotated[str, CODE], files: Annotated[dict[str, str], FILES]) -> CodeExecutionResult:
        """Writes files into the session of execute_python, then runs Python code there that can read or import them."""
        return await self.run(code, files)

    @install_function
    @kernel_function
    async def install_packages(self, packages: Annotated[list[str], PACKAGES]) -> CodeExecutionResult:
        """Installs Python packages for execute_python. If it fails, nothing was installed."""
        return await self.install(packages)


def add_aca_sessions(
    kernel: Kernel, settings: Settings | None = None, *, plugin_name: str = "PythonInterpreter", **options: Unpack[Options]
) -> PythonCodeInterpreterPlugin:
    """Add a Python session to a kernel and return its plugin. `async with add_aca_sessions(kernel):` ends the session after the block.

    Args:
        kernel: Gets the functions execute_python and execute_python_with_files, and with `install_packages=True` that one too.
        settings: Where sessions run. By default the ACASessions section of appsettings.json and of the environment.
        plugin_name: The name under which models find the functions.
        options: `timeout`, `install_packages` and other options of PythonCodeInterpreterPlugin.
    """
    plugin = PythonCodeInterpreterPlugin(settings=settings, **options)
    kernel.add_plugin(plugin, plugin_name)
    return plugin


class ShowImages:
    """A filter that shows a model the images that its code drew: it adds them to the history as a user message, after the answers of tools.

    Use it for models that accept images: `kernel.add_filter("auto_function_invocation", ShowImages())`.
    """

    # It has no state: the images are in the answers, which the history holds. So they end with their history and cannot reach another one.

    async def __call__(
        self, context: AutoFunctionInvocationContext, next: Callable[[AutoFunctionInvocationContext], Awaitable[None]]
    ) -> None:
        """Run the call. Then add images if all calls of the turn are answered, because a model's API allows no message between answers."""
        await next(context)
        if context.chat_history is not None:
            # Semantic Kernel adds this call's answer right after its filters; the last call of the turn finds all answers there.
            asyncio.get_running_loop().call_soon(_show_images, context.chat_history)


def _show_images(history: ChatHistory) -> None:
    """Add the images in the latest turn's answers to the history, as a user message.

    A second call adds nothing, because that message is then the last one.
    """
    images = [image for answer in _latest_answers(history) for image in _images(answer)]
    if images:
        shown: list[Any] = [TextContent(text="The images that the code drew:"), *images]
        history.add_message(ChatMessageContent(role=AuthorRole.USER, items=shown))


def _latest_answers(history: ChatHistory) -> list[FunctionResultContent]:
    """Return the tool answers at the end of a history, or [] if a call of the same turn has no answer yet.

    Calls of earlier turns do not count, because a call that was cancelled is never answered.
    """
    answers: list[FunctionResultContent] = []
    for message in reversed(history.messages):
        found = [item for item in message.items if isinstance(item, FunctionResultContent)]
        if not found:
            calls = {item.id or "unknown" for item in message.items if isinstance(item, FunctionCallContent)}
            return answers if calls <= {answer.id for answer in answers} else []
        answers[:0] = found
    return answers


def _images(answer: FunctionResultContent) -> list[ImageContent]:
    result = getattr(answer.inner_content, "value", None)
    return [content for content in result.to_contents() if isinstance(content, ImageContent)] if isinstance(result, PythonResult) else []


def tools_of(plugin: KernelPlugin, kernel: Kernel, *, effect: Effect = "write") -> list[Tool]:
    """Return each function of a plugin as a tool of an `AgentSession`, named `plugin.function`. The kernel's filters apply to its calls.

    Args:
        plugin: The plugin.
        kernel: The kernel that runs the functions.
        effect: The effect of all functions (`read`, `write` or `irreversible`), by which calls are approved.
    """
    return [_tool(function, kernel, f"{plugin.name}.{name}", effect) for name, function in plugin.functions.items()]


def embed_by(generator: EmbeddingGeneratorBase) -> Embed:
    """Return an `embed` function for an `AgentSession` that calls a Semantic Kernel embedding service."""

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        vectors = await generator.generate_embeddings(list(texts))
        return [[float(number) for number in vector] for vector in vectors]

    return embed


def _tool(function: KernelFunction, kernel: Kernel, name: str, effect: Effect) -> Tool:
    async def act(arguments: Mapping[str, Any]) -> object:
        result = await function.invoke(kernel, **arguments)
        return None if result is None else _plain(result.value)

    parameters = [
        Parameter(
            name=one.name or "",
            schema=one.schema_data or {},
            required=bool(one.is_required),
            default=one.default_value,
            description=one.description or "",
        )
        for one in function.parameters
    ]
    return Tool(name=name, act=act, description=function.description or "", parameters=tuple(parameters), effect=effect)


def _plain(value: Any) -> object:
    """Convert a value so that it can be sent to a session: a pydantic object to a dict, an object of an unknown type to text."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return value if value is None or isinstance(value, bool | int | float | str | bytes | list | dict) else str(value)
