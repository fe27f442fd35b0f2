"""py-code-mode's spellings: `Session(storage=…, executor=…)` over an agent session. What an executor isolates is here always isolated."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ..agent.redis_storage import RedisStorage as _RedisStorage
from ..agent.session import AgentSession
from ..agent.skills import Skills
from ..agent.storage import FileStorage as _FileStorage
from ..agent.tools.tool import Tool, ToolSource
from ..models import CodeExecutionResult

__all__ = [
    "ContainerConfig",
    "ContainerExecutor",
    "ExecutionResult",
    "FileStorage",
    "InProcessConfig",
    "InProcessExecutor",
    "RedisStorage",
    "Session",
    "SubprocessConfig",
    "SubprocessExecutor",
]


class FileStorage(_FileStorage):
    """A folder that outlives sessions."""

    def get_skill_library(self) -> Skills:
        """The skills in it."""
        return Skills(self)


class RedisStorage(_RedisStorage):
    """Keys of a Redis that outlive sessions."""

    def get_skill_library(self) -> Skills:
        """The skills in it."""
        return Skills(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """What became of a cell, as py-code-mode tells it; `result` is the whole of it."""

    value: Any
    stdout: str
    error: str | None
    execution_time_ms: float
    backend_info: dict[str, Any]
    result: CodeExecutionResult

    @property
    def is_ok(self) -> bool:
        """Whether it ran to its end."""
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubprocessConfig:
    """What of py-code-mode's configurations has a meaning here: its virtual environments and kernels are not needed."""

    tools_path: Path | None = None
    default_timeout: float | None = 60.0
    allow_runtime_deps: bool = True
    deps: Sequence[str] = ()
    deps_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcessConfig(SubprocessConfig):
    """The same: no code runs in this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig(SubprocessConfig):
    """The same: the sandbox needs no container."""

    default_timeout: float | None = 30.0
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class SubprocessExecutor:
    """Where cells run: here always in an isolated session."""

    config: SubprocessConfig = field(default_factory=SubprocessConfig)


class InProcessExecutor(SubprocessExecutor):
    """The same."""


class ContainerExecutor(SubprocessExecutor):
    """The same."""


class Session:
    """py-code-mode's session: its methods and their answers, over an `AgentSession`, whose other abilities `agent` has."""

    def __init__(
        self, storage: _FileStorage | _RedisStorage, executor: SubprocessExecutor | None = None, sync_deps_on_start: bool = False
    ) -> None:
        """Opens nothing yet."""
        config = executor.config if executor is not None else SubprocessConfig()
        self._timeout = (config.timeout if isinstance(config, ContainerConfig) else None) or config.default_timeout
        self._first = _requirements(config)
        self._sync = sync_deps_on_start
        self.agent = AgentSession(storage=storage, tools=_tools_of(config), allow_runtime_deps=config.allow_runtime_deps)
        self._storage = storage

    @classmethod
    def from_base(cls, path: Path | str, timeout: float = 30.0, *, sync_deps_on_start: bool = False, **options: Any) -> Self:
        """Over a folder with `tools/`, `skills/`, `artifacts/` and `requirements.txt`."""
        base = Path(path)
        given = SubprocessConfig(default_timeout=timeout, tools_path=base / "tools", deps_file=base / "requirements.txt")
        config = replace(given, deps=options.pop("extra_deps", ()), **options)
        return cls(FileStorage(base), SubprocessExecutor(config), sync_deps_on_start)

    async def start(self) -> None:
        """Begins the session; `async with` does it."""
        await self.agent.start()
        if self._sync:
            await self.sync_deps()

    async def close(self) -> None:
        """Ends the session; what was kept is in the storage."""
        await self.agent.close()

    async def reset(self) -> None:
        """Clears the variables and keeps the namespaces."""
        await self.agent.reset()

    async def run(self, code: str, timeout: float | None = None) -> ExecutionResult:
        """What became of a cell. One that takes too long is interrupted, and the next one does not wait for it."""
        result = await self.agent.run(code, timeout=self._timeout if timeout is None else timeout)
        error = None if result.error is None else str(result.error)
        told = {"state": str(result.state)}
        return ExecutionResult(
            value=_value(result),
            stdout=result.stdout,
            error=error,
            execution_time_ms=result.duration * 1000,
            backend_info=told,
            result=result,
        )

    @property
    def storage(self) -> _FileStorage | _RedisStorage:
        """What outlives the session."""
        return self._storage

    async def list_deps(self) -> list[str]:
        """The requirements, with those that the executor was configured with."""
        kept = await self.agent.list_deps()
        return [*(one for one in self._first if one not in kept), *kept]

    async def sync_deps(self) -> dict[str, Any]:
        """Installs all requirements: `installed`, `already_present`, `failed`."""
        return await self.agent.install_all(await self.list_deps())

    def __getattr__(self, name: str) -> Any:
        """Everything else has the same name and answer there."""
        if name.startswith("_") or name == "agent":
            raise AttributeError(name)
        return getattr(self.agent, name)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _tools_of(config: SubprocessConfig) -> list[Tool | ToolSource]:
    from ..agent.tools.described import tools_in

    return [] if config.tools_path is None else tools_in(Path(config.tools_path))


def _requirements(config: SubprocessConfig) -> list[str]:
    if config.deps_file is None or not Path(config.deps_file).is_file():
        return [*config.deps]
    lines = (line.partition("#")[0].strip() for line in Path(config.deps_file).read_text().splitlines())
    return [*config.deps, *(line for line in lines if line)]


def _value(result: CodeExecutionResult) -> Any:
    """A last value that is a literal as itself, as py-code-mode has it; everything else as its text."""
    if result.text is None or not isinstance(result.value, str):
        return result.value
    try:
        return ast.literal_eval(result.text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return result.value
