"""Programs of the host as tools. They are started with a list of arguments, without a shell.

A value that a session passes cannot act as an option.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...bridge.host import ToolFailedError
from .tool import DEFAULT_SECONDS, Effect, Parameter, Tool

_MOST_OUTPUT = 4 << 20  # bytes of one stream
_ENDING_SECONDS = 2.0
_MOST_ARGUMENT = 128 << 10  # bytes: MAX_ARG_STRLEN in execve(2), which counts the null byte at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of a program. It is passed as `-x` if `short` is `x`, otherwise as `--name`."""

    name: str
    type: str = "string"
    short: str = ""
    description: str = ""

    def to_arguments(self, value: object) -> list[str]:
        """Return the command-line arguments that pass this option with a value.

        A list gives one argument for each item. A boolean option gives `--name` or `-x` if the value is true, otherwise nothing.

        Option and value are one argument, such as `--name=value`, so that the value cannot be read as another option. Raise ToolFailedError
        if a value is neither text nor number, or if a short option gets "" or "=": the program would take the next argument as its value.
        """
        flag = f"-{self.short}" if self.short else f"--{self.name.replace('_', '-')}"
        if self.type == "boolean":
            return [flag] if value else []
        words = [_to_argument(one) for one in (value if isinstance(value, list) else [value])]
        # getopt(3) would take the next argument as the value, and that may be another option.
        if self.short and any(word in ("", "=") for word in words):
            raise ToolFailedError(f"{self.name} must not be empty or '=': the program would take the next argument as its value")
        return [f"{flag}{'' if self.short else '='}{word}" for word in words]

    def to_parameter(self) -> Parameter:
        """Return the tool parameter by which a call sets this option."""
        return Parameter(name=self.name, schema={"type": self.type}, required=False, description=self.description)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A tool that calls a program with some arguments preset.

    `preset` has the arguments that every call passes. `parameters` has the names of the other arguments that a call may choose, or is None
    if it may choose all others.
    """

    name: str
    description: str = ""
    preset: Mapping[str, object] = field(default_factory=dict)
    parameters: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program of the host, with the options and positional arguments that cells may pass, and recipes (tools with preset arguments)."""

    name: str
    command: Sequence[str]
    description: str = ""
    options: tuple[Option, ...] = ()
    positional: tuple[Parameter, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    effect: Effect = "write"
    tags: tuple[str, ...] = ()
    seconds: float = DEFAULT_SECONDS

    def tools(self) -> list[Tool]:
        """Return a tool for the program itself, then one for each recipe, named `program.recipe`."""
        return [self._build_tool(Recipe(name="")), *(self._build_tool(recipe) for recipe in self.recipes)]

    def _build_tool(self, recipe: Recipe) -> Tool:
        given = (*self.positional, *(option.to_parameter() for option in self.options))
        allowed = [one for one in given if one.name not in recipe.preset and (recipe.parameters is None or one.name in recipe.parameters)]
        return Tool(
            name=f"{self.name}.{recipe.name}" if recipe.name else self.name,
            act=lambda arguments: self._run({**recipe.preset, **arguments}),
            description=recipe.description or self.description,
            parameters=tuple(allowed),
            effect=self.effect,
            tags=self.tags,
            seconds=self.seconds,
        )

    def command_line(self, arguments: Mapping[str, Any]) -> list[str]:
        """Return the command line for a tool call.

        Raise ToolFailedError if a value has a wrong type, is too long, or could be read as an option.
        """
        options = [word for option in self.options if option.name in arguments for word in option.to_arguments(arguments[option.name])]
        values = self._positional_values(arguments)
        plain = []
        for parameter, value in zip(self.positional, values, strict=False):
            for word in map(_to_argument, value if isinstance(value, list) else [value]):
                if word.startswith("-"):
                    advice = "write the name of a file as './-name'"
                    raise ToolFailedError(f"{parameter.name} must not begin with '-', because it would be read as an option: {advice}")
                plain.append(word)
        for word in (*options, *plain):
            if (size := len(word.encode())) >= _MOST_ARGUMENT:
                told = f"each argument of {self.name} must be shorter than 128 KB in UTF-8 with its option"
                raise ToolFailedError(f"{told}, got {size} bytes: pass large data in a file")
        return [*self.command, *options, *plain]

    def _positional_values(self, arguments: Mapping[str, Any]) -> list[object]:
        """Return the values of the positional arguments, in the order in which the program expects them.

        Raise ToolFailedError if one is missing and a later one is given, because the program would read the later value as the missing one.
        The later value may come from the preset of a recipe.
        """
        values: list[object] = []
        missing = ""
        for one in self.positional:
            value = arguments.get(one.name)
            if value is None or value == []:
                missing = missing or one.name
            elif missing:
                raise ToolFailedError(f"{missing} must be given with {one.name}: otherwise {self.name} would take {one.name} for it")
            else:
                values.append(value)
        return values

    async def _run(self, arguments: Mapping[str, Any]) -> str:
        words = self.command_line(arguments)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise ToolFailedError(
                f"{self.name} could not be started: {error.strerror}. Check the tool's command on the host, or pass less"
            ) from error
        try:
            stdout, stderr = await asyncio.gather(
                _read_output(process.stdout, process, self.name), _read_output(process.stderr, process, self.name)
            )
            status = await process.wait()
        finally:
            await _end_process(process)
        if status:
            ended = f"ended with status {status}" if status > 0 else f"was killed by signal {-status}"
            raise ToolFailedError(f"{self.name} {ended}: {(stderr or stdout).strip()[-2000:] or 'it wrote no output'}")
        return stdout


async def _end_process(process: asyncio.subprocess.Process) -> None:
    """If a program still runs, kill its process group and wait for its end.

    Wait at most 2 s, because asyncio reports the end late if another process holds the program's output pipes open.
    """
    if process.returncode is None:
        _kill_group(process)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_SECONDS):
                await process.wait()


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _read_output(stream: asyncio.StreamReader | None, process: asyncio.subprocess.Process, name: str) -> str:
    """Read an output stream of a program to its end and return its text.

    If it has more than 4 MB, kill the program and raise ToolFailedError. Output beyond 4 MB is read and dropped, because asyncio reports
    the end of a process only when all its output was read.
    """
    data, size = bytearray(), 0
    while stream is not None and (part := await stream.read(1 << 16)):
        size += len(part)
        if size <= _MOST_OUTPUT:
            data += part
        else:
            _kill_group(process)
    if size > _MOST_OUTPUT:
        raise ToolFailedError(f"{name} wrote more than {_MOST_OUTPUT >> 20} MB of output and was killed: ask it for less")
    return data.decode("utf-8", "replace")


def _to_argument(value: object) -> str:
    match value:
        case bool() | None | list() | dict():
            raise ToolFailedError(f"an argument of a program must be text or a number, got {type(value).__name__}")
        case str() if "\0" in value:
            raise ToolFailedError("an argument of a program must not contain a null character: remove it")
    return str(value).encode("utf-8", "backslashreplace").decode()
