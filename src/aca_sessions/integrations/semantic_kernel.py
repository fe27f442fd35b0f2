"""Run Python in a session from Semantic Kernel. Only this module imports semantic_kernel, which takes seconds."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Unpack, cast

from ..agent.library.search import Embed
from ..agent.tools.tool import Effect, Parameter, Tool
from ..errors import InvalidArgumentError, imports_of
from ..models import CodeExecutionResult
from ..settings import Settings
from .model_session import (
    CODE,
    FILES,
    PACKAGES,
    Function,
    ModelSession,
    Options,
    check_options,
    install_function,
    model_function,
    plain_value,
)

with imports_of("semantic-kernel"):
    from semantic_kernel import Kernel
    from semantic_kernel.connectors.ai.embedding_generator_base import EmbeddingGeneratorBase
    from semantic_kernel.contents import (
        ChatHistory,
        ChatMessageContent,
        FunctionCallContent,
        FunctionResultContent,
        ImageContent,
        TextContent,
    )
    from semantic_kernel.contents.utils.author_role import AuthorRole
    from semantic_kernel.filters import AutoFunctionInvocationContext
    from semantic_kernel.functions import KernelFunction, KernelPlugin, kernel_function

_CODE = f"{CODE} The calling program gets figures as PNG images."

# Models are told to send a list, but some send text. Semantic Kernel would refuse text for a list, and passes a union on unparsed.
_LIST = {"schema_data": {"type": "array", "items": {"type": "string"}, "description": PACKAGES}}


def _kernel_function(function: Function) -> Function:
    """Decorate a function of a plugin, as Semantic Kernel's `kernel_function` does, and keep its type for type checkers."""
    return cast(Function, kernel_function(function))


class PythonResult(CodeExecutionResult):
    """The result of a cell, which `to_contents` converts to the message contents of Semantic Kernel."""

    def to_contents(self) -> list[TextContent | ImageContent]:
        """Return the result's text, as a model reads it, and then its images, as message contents of Semantic Kernel."""
        images = [ImageContent(data=image, data_format="base64", mime_type="image/png") for image in self.images]
        return [TextContent(text=str(self)), *images]


class PythonCodeInterpreterPlugin(ModelSession):
    """A Semantic Kernel plugin that runs a model's Python in one session: `kernel.add_plugin(plugin, "PythonInterpreter")`.

    The plugin has the kernel functions `execute_python` and `execute_python_with_files`, and with `install_packages=True` also
    `install_packages`. If no pool is given, the first call opens a pool from the settings. Calls can run at the same time, for example
    those that a model makes in one turn. They share the session's variables.
    """

    # Semantic Kernel reads every public property when a plugin is added, so this class has none. It sends these docstrings to models.

    _result_type = PythonResult

    if TYPE_CHECKING:

        async def run(self, code: object, files: object = ..., *, timeout: float | None = None) -> PythonResult:
            """Run a cell.

            Args:
                code: The source text.
                files: Contents of files by name: text, or data URIs.
                timeout: The time limit in seconds, by default the plugin's.
            """

        async def install(self, packages: object) -> PythonResult:
            """Install packages."""

        async def _install_for_model(self, packages: object) -> PythonResult: ...

    @model_function
    @_kernel_function
    async def execute_python(self, code: Annotated[str, _CODE]) -> PythonResult:
        """Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call."""
        return await self.run(code)

    @model_function
    @_kernel_function
    async def execute_python_with_files(self, code: Annotated[str, _CODE], files: Annotated[dict[str, str], FILES]) -> PythonResult:
        """Writes files into the session of execute_python, then runs Python code there that can read or import them."""
        return await self.run(code, files)

    @install_function
    @_kernel_function
    async def install_packages(self, packages: Annotated[list[str] | str, PACKAGES, _LIST]) -> PythonResult:
        """Installs Python packages for execute_python. If it fails, nothing was installed."""
        return await self._install_for_model(packages)


def add_aca_sessions(
    kernel: Kernel, settings: Settings | None = None, *, plugin_name: str = "PythonInterpreter", **options: Unpack[Options]
) -> PythonCodeInterpreterPlugin:
    """Add a Python session to a kernel as a plugin, and return the plugin.

    Use it as `async with add_aca_sessions(kernel):`, which ends the session after the block.

    Args:
        kernel: The kernel that gets the functions execute_python and execute_python_with_files, and with `install_packages=True` also
            install_packages.
        settings: Where sessions run. By default the settings are read from appsettings.json (section ACASessions) and from environment
            variables.
        plugin_name: The name under which models find the functions.
        options: `timeout`, `install_packages` and other options of PythonCodeInterpreterPlugin.
    """
    check_options(options, "add_aca_sessions")
    if not isinstance(kernel, Kernel):
        raise InvalidArgumentError(f"kernel must be a Kernel of Semantic Kernel, got {type(kernel).__name__}")
    if not isinstance(plugin_name, str) or not re.fullmatch(r"\w+", plugin_name, re.ASCII):
        raise InvalidArgumentError(f"plugin_name must be letters, digits and '_', got {plugin_name!r:.200}")
    plugin = PythonCodeInterpreterPlugin(settings=settings, **options)
    kernel.add_plugin(plugin, plugin_name)
    return plugin


_signature = inspect.signature(add_aca_sessions)
_options = (one for one in inspect.signature(ModelSession).parameters.values() if one.name in Options.__annotations__)
vars(add_aca_sessions)["__signature__"] = _signature.replace(parameters=[*[*_signature.parameters.values()][:-1], *_options])


class ShowImages:
    """A Semantic Kernel filter that shows a model the images that its code drew, in a user message after the results of its tool calls.

    Use it for models that accept images: `kernel.add_filter("auto_function_invocation", ShowImages())`.
    """

    # It has no state: the images are in the answers, which the history holds. So they end with their history and cannot reach another one.

    async def __call__(
        self, context: AutoFunctionInvocationContext, next: Callable[[AutoFunctionInvocationContext], Awaitable[None]]
    ) -> None:
        """Make one tool call of a model. After the last call of a turn, add the images to the history.

        They are not added earlier, because a model's API allows no message between the results of a turn's tool calls.
        """
        await next(context)
        if context.chat_history is not None:
            # Semantic Kernel adds this call's answer right after its filters; the last call of the turn finds all answers there.
            asyncio.get_running_loop().call_soon(_show_images, context.chat_history)


def _show_images(history: ChatHistory) -> None:
    """Add the images in the latest turn's tool results to the history, as a user message. Do nothing if a tool call has no result yet.

    If this is called twice, the second call adds nothing: the history then ends with the user message, not with tool results.
    """
    images = [image for answer in _latest_answers(history) for image in _images(answer)]
    if images:
        shown: list[Any] = [TextContent(text="The images that the code drew:"), *images]
        history.add_message(ChatMessageContent(role=AuthorRole.USER, items=shown))


def _latest_answers(history: ChatHistory) -> list[FunctionResultContent]:
    """Return the tool results at the end of a history, or [] if a tool call of the same turn has no result yet.

    Calls of earlier turns do not count, because a call that was cancelled never gets a result.
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
    """Convert each function of a Semantic Kernel plugin to a tool of an `AgentSession`, named `plugin.function`.

    The kernel's filters apply to calls of these tools.

    Args:
        plugin: The plugin.
        kernel: The kernel that runs the functions.
        effect: What all of the functions do: `read`, `write` or `irreversible`. An `AgentSession` decides by it which calls need approval.
    """
    return [_tool(function, kernel, f"{plugin.name}.{name}", effect) for name, function in plugin.functions.items()]


def embed_by(generator: EmbeddingGeneratorBase) -> Embed:
    """Make an `embed` argument for an `AgentSession`: a function that gets vectors for texts from a Semantic Kernel embedding service."""

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        vectors = await generator.generate_embeddings(list(texts))
        return [[float(number) for number in vector] for vector in vectors]

    return embed


def _tool(function: KernelFunction, kernel: Kernel, name: str, effect: Effect) -> Tool:
    async def act(arguments: Mapping[str, Any]) -> object:
        result = await function.invoke(kernel, **arguments)
        return None if result is None else plain_value(result.value)

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
