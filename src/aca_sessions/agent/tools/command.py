"""Programs of the host as tools. They are started with a list of arguments, never by a shell.

A value from a session cannot become an option that the tool does not have.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .tool import DEFAULT_SECONDS, Effect, Parameter, Tool, ToolFailedError

_MOST_OUTPUT = 4 << 20  # bytes of one stream
_ENDING_SECONDS = 2.0
_MOST_ARGUMENT = 128 << 10  # bytes: MAX_ARG_STRLEN in execve(2), which counts the null byte at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of a program. The short form is used if there is one."""

    name: str
    type: str = "string"
    short: str = ""
    description: str = ""

    def words(self, value: object) -> list[str]:
        """Return the arguments for a value. Option and value are one argument, so that the value cannot be read as another option.

        Raise ToolFailedError if that is not possible.
        """
        flag = f"-{self.short}" if self.short else f"--{self.name.replace('_', '-')}"
        if self.type == "boolean":
            return [flag] if value else []
        words = [_word(one) for one in (value if isinstance(value, list) else [value])]
        # getopt(3) would take the next argument as the value, and that may be another option.
        if self.short and any(word in ("", "=") for word in words):
            raise ToolFailedError(f"{self.name} must not be empty: its program would take the next argument in its place")
        return [f"{flag}{'' if self.short else '='}{word}" for word in words]

    def parameter(self) -> Parameter:
        """Return the option as a parameter of a tool."""
        return Parameter(name=self.name, schema={"type": self.type}, required=False, description=self.description)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A way to call a program: options with fixed values, and which of the others can be given (None: all)."""

    name: str
    description: str = ""
    preset: Mapping[str, object] = field(default_factory=dict)
    parameters: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program of the host and the arguments that it can be called with."""

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
        """Return a tool for the program itself and one for each recipe."""
        return [self._tool(Recipe(name="")), *(self._tool(recipe) for recipe in self.recipes)]

    def _tool(self, recipe: Recipe) -> Tool:
        given = (*self.positional, *(option.parameter() for option in self.options))
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

    def words(self, arguments: Mapping[str, Any]) -> list[str]:
        """Return the whole command line as a list of arguments."""
        options = [word for option in self.options if option.name in arguments for word in option.words(arguments[option.name])]
        values = self._positional(arguments)
        plain = [_word(item) for value in values for item in (value if isinstance(value, list) else [value])]
        for word in plain:
            if word.startswith("-"):
                raise ToolFailedError("a value that begins with '-' would be read as an option: give it another way")
        for word in (*options, *plain):
            if len(word.encode()) >= _MOST_ARGUMENT:
                raise ToolFailedError("an argument of a program must be shorter than 128 KB, counted in UTF-8 and with its option")
        return [*self.command, *options, *plain]

    def _positional(self, arguments: Mapping[str, Any]) -> list[object]:
        """Return the positional values in their order. Raise ToolFailedError if one is missing before another.

        The program would take the next value for the missing one, and a recipe may have set that.
        """
        values: list[object] = []
        missing = ""
        for one in self.positional:
            value = arguments.get(one.name)
            if value is None or value == []:
                missing = missing or one.name
            elif missing:
                raise ToolFailedError(f"{missing} must be given: {self.name} would take {one.name} for it")
            else:
                values.append(value)
        return values

    async def _run(self, arguments: Mapping[str, Any]) -> str:
        words = self.words(arguments)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise ToolFailedError(f"{self.name} could not be started: {error.strerror}") from None
        try:
            stdout, stderr = await asyncio.gather(_read(process.stdout, process), _read(process.stderr, process))
            status = await process.wait()
        finally:
            await _end(process)
        if status:
            raise ToolFailedError(f"{self.name} ended with {status}: {(stderr or stdout).strip()[-2000:]}")
        return stdout


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a program that still runs, with its process group. Wait at most 2 s, because another process may hold its pipes open."""
    if process.returncode is None:
        _kill(process)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_SECONDS):
                await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _read(stream: asyncio.StreamReader | None, process: asyncio.subprocess.Process) -> str:
    """Read a stream to its end. Kill the program if it writes more than 4 MB, and raise ToolFailedError.

    The excess is read as well: asyncio reports the end of a process only when its pipes are at their end.
    """
    data, size = bytearray(), 0
    while stream is not None and (part := await stream.read(1 << 16)):
        size += len(part)
        if size <= _MOST_OUTPUT:
            data += part
        else:
            _kill(process)
    if size > _MOST_OUTPUT:
        raise ToolFailedError(f"the program wrote more than {_MOST_OUTPUT >> 20} MB: ask for less")
    return data.decode("utf-8", "replace")


def _word(value: object) -> str:
    match value:
        case bool() | None | list() | dict():
            raise ToolFailedError("an argument of a program is text or a number")
        case str() if "\0" in value:
            raise ToolFailedError("an argument of a program must not contain a null character")
    return str(value).encode("utf-8", "backslashreplace").decode()
