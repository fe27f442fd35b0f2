"""The classes of py-code-mode. `Session(storage=…, executor=…)` is an `AgentSession`: cells run isolated, whichever executor is given."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..agent.library.search import Embed
from ..agent.library.storage import FileStorage, MemoryStorage
from ..agent.session import AgentSession
from ..agent.tools.tool import Tool, ToolSource
from ..models import CodeExecutionResult

if TYPE_CHECKING:
    from ..agent.library.redis_storage import RedisStorage

    StorageBackend = FileStorage | MemoryStorage | RedisStorage

__all__ = [
    "ContainerConfig",
    "ContainerExecutor",
    "ExecutionResult",
    "FileStorage",
    "InProcessConfig",
    "InProcessExecutor",
    "MemoryStorage",
    "RedisStorage",
    "Session",
    "StorageBackend",
    "SubprocessConfig",
    "SubprocessExecutor",
]


def __getattr__(name: str) -> object:
    """Import what needs the library redis at its first use: programs with files do without it (PEP 562)."""
    if name not in ("RedisStorage", "StorageBackend"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..agent.library.redis_storage import RedisStorage

    return RedisStorage if name == "RedisStorage" else FileStorage | MemoryStorage | RedisStorage


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """The result of a cell, with the fields of py-code-mode's result. `result` is the `CodeExecutionResult` that it was made from."""

    value: Any
    stdout: str
    error: str | None
    execution_time_ms: float
    backend_info: dict[str, Any]
    result: CodeExecutionResult

    @property
    def is_ok(self) -> bool:
        """Return whether the cell ended without an error."""
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubprocessConfig:
    """The configuration of an executor: tools, dependencies, and the time limit of a cell.

    py-code-mode's other settings are about virtual environments and kernels, which are not needed here.

    Attributes:
        tools_path: The folder of the files that describe tools.
        default_timeout: The time limit of a cell in seconds.
        allow_runtime_deps: Whether code in a session may add dependencies.
        deps: Dependencies of sessions, as in lines of requirements.txt.
        deps_file: A file with further dependencies, one a line. A missing file is ignored.
    """

    tools_path: Path | None = None
    default_timeout: float | None = 60.0
    allow_runtime_deps: bool = True
    deps: Sequence[str] = ()
    deps_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcessConfig(SubprocessConfig):
    """The configuration of an `InProcessExecutor`, with the fields of `SubprocessConfig`.

    Despite the name, cells run in an isolated session and not in this process.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig(SubprocessConfig):
    """The configuration of a `ContainerExecutor`. Despite the name, no container is used.

    `timeout` takes precedence over `default_timeout`.
    """

    default_timeout: float | None = 30.0
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class SubprocessExecutor:
    """Holds a configuration for `Session`. Despite the name it runs nothing: cells run in an isolated session."""

    config: SubprocessConfig = field(default_factory=SubprocessConfig)


class InProcessExecutor(SubprocessExecutor):
    """The same as `SubprocessExecutor`, under py-code-mode's name for an executor in the program's own process."""


class ContainerExecutor(SubprocessExecutor):
    """The same as `SubprocessExecutor`, under py-code-mode's name for an executor in a container."""


class Session(AgentSession):
    """An `AgentSession` with the interface of py-code-mode's session: it has the same arguments, and `run` returns an ExecutionResult."""

    def __init__(
        self,
        storage: "StorageBackend",
        executor: SubprocessExecutor | None = None,
        sync_deps_on_start: bool = False,
        *,
        embed: Embed | None = None,
    ) -> None:
        """Configure the session. An `async with` block starts it.

        Args:
            storage: Where skills, artifacts and dependencies are kept.
            executor: Has the configuration of tools, dependencies and the time limit of a cell. Cells are isolated with every executor.
            sync_deps_on_start: Whether to install the dependencies when the session starts.
            embed: Returns a vector for each text, so that searches compare meanings. By default searches compare words.
        """
        config = executor.config if executor is not None else SubprocessConfig()
        super().__init__(
            storage=storage,
            tools=_read_tools(config),
            embed=embed,
            sync_deps_on_start=sync_deps_on_start,
            allow_runtime_deps=config.allow_runtime_deps,
        )
        self._timeout = (config.timeout if isinstance(config, ContainerConfig) else None) or config.default_timeout
        self._configured_deps = _read_requirements(config)
        self._backend = storage

    @classmethod
    def from_base(  # type: ignore[override]  # py-code-mode's own arguments
        cls, path: Path | str, timeout: float = 30.0, *, sync_deps_on_start: bool = False, embed: Embed | None = None, **options: Any
    ) -> Self:
        """Create a session from a folder with `tools/`, `skills/`, `artifacts/` and `requirements.txt`.

        Args:
            path: The folder.
            timeout: The time limit of a cell in seconds.
            sync_deps_on_start: Whether to install the dependencies when the session starts.
            embed: Returns a vector for each text, so that searches compare meanings. By default searches compare words.
            **options: Fields of `SubprocessConfig`, except that `deps` is named `extra_deps`.
        """
        base = Path(path)
        given = SubprocessConfig(default_timeout=timeout, tools_path=base / "tools", deps_file=base / "requirements.txt")
        config = replace(given, deps=options.pop("extra_deps", ()), **options)
        return cls(FileStorage(base), SubprocessExecutor(config), sync_deps_on_start, embed=embed)

    async def run(self, code: str, timeout: float | None = None) -> ExecutionResult:  # type: ignore[override]  # py-code-mode's own result
        """Run a cell and return its result. `timeout` is the cell's time limit in seconds, by default the executor's.

        A cell that runs longer is interrupted, so it does not delay the next cell.
        """
        result = await super().run(code, timeout=self._timeout if timeout is None else timeout)
        return ExecutionResult(
            value=_parse_value(result),
            stdout=result.stdout,
            error=None if result.error is None else str(result.error),
            execution_time_ms=result.duration * 1000,
            backend_info={"state": str(result.state)},
            result=result,
        )

    @property
    def storage(self) -> "StorageBackend":
        """Return the storage of skills, artifacts and dependencies. It stays when the session ends."""
        return self._backend

    async def list_deps(self) -> list[str]:
        """Return all dependencies as requirements: those of the executor's configuration, and those in the storage."""
        kept = await super().list_deps()
        return [*(one for one in self._configured_deps if one not in kept), *kept]


def _read_tools(config: SubprocessConfig) -> list[Tool | ToolSource]:
    from ..agent.tools.yaml_files import read_tools_folder

    return [] if config.tools_path is None else read_tools_folder(Path(config.tools_path))


def _read_requirements(config: SubprocessConfig) -> list[str]:
    if config.deps_file is None or not Path(config.deps_file).is_file():
        return [*config.deps]
    lines = (line.partition("#")[0].strip() for line in Path(config.deps_file).read_text().splitlines())
    return [*config.deps, *(line for line in lines if line)]


def _parse_value(result: CodeExecutionResult) -> Any:
    """Return the value of a cell's last expression. If only its text is known, such as `[1, 2]`, parse the text as py-code-mode does.

    Return the text itself if it is not a Python literal.
    """
    if result.text is None or not isinstance(result.value, str):
        return result.value
    try:
        return ast.literal_eval(result.text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return result.value
