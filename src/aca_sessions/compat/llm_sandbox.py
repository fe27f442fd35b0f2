"""The session classes of llm-sandbox. To use them, a script imports them from `aca_sessions.compat.llm_sandbox` instead.

Some arguments of llm-sandbox have no effect here, most of them about containers. A session that gets any of them warns once.
"""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from .. import Limits, Policy
from ..client.session import Session
from ..errors import InvalidArgumentError, NotSupportedError
from ..interactive import InteractiveSession
from ..models import CodeExecutionResult

OnText = Callable[[str], object]

_WORKDIR = "/sandbox"
_DATA = "/mnt/data"
_LS = 'ls() { command ls -H "$@"; }; '  # /sandbox is a link: a plain `ls -l` would list the link and not the files
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class KernelType(StrEnum):
    """The kind of interpreter that runs cells. IPython is the only one."""

    IPYTHON = "ipython"


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractiveSettings:
    """The settings of a session.

    Attributes:
        kernel_type: The kind of interpreter; `ipython` is the only one.
        max_memory: The memory limit of the session, such as "512MB" or "2GB". None means this package's default of 2 GB.
        history_size: How many of the latest cells IPython's `In` and `Out` keep.
        timeout: The time limit of a cell in seconds. None means the default of the sandbox.
        poll_interval: Has no effect, because results are not polled for.
    """

    kernel_type: KernelType | str = KernelType.IPYTHON
    max_memory: str | None = "1GB"  # None is the default of sessions, 2 GB
    history_size: int = 1000
    timeout: float | None = 300
    poll_interval: float = 0.1


class _IgnoredOptions(TypedDict, total=False):
    """The arguments of llm-sandbox that have no effect here, most of them about containers and images."""

    backend: Any
    client: Any
    image: Any
    dockerfile: Any
    container_id: Any
    keep_template: Any
    commit_container: Any
    commit_image_tag: Any
    verbose: Any
    stream: Any
    runtime_configs: Any
    skip_environment_setup: Any
    encoding_errors: Any
    workdir: Any
    session_timeout: Any
    security_policy: Any


class Options(_IgnoredOptions, total=False):
    """The keyword arguments of a session class: the fields of `InteractiveSettings`, `libraries`, and other arguments of llm-sandbox."""

    kernel_type: KernelType | str
    max_memory: str | None
    history_size: int
    timeout: float | None
    poll_interval: float
    libraries: Sequence[str] | None
    execution_timeout: float | None
    default_timeout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleOutput:
    """The result of a cell or a shell command. `stdout` includes the value of a cell's last expression."""

    exit_code: int
    stdout: str
    stderr: str

    def success(self) -> bool:
        """Return whether the exit code is 0."""
        return self.exit_code == 0

    def text(self) -> str:
        """Return `stdout`."""
        return self.stdout

    def to_json(self, **options: Any) -> str:
        """Return all fields as JSON text. `options` are passed to `json.dumps`."""
        return json.dumps(asdict(self), **options)


class _Session(InteractiveSession):
    """The session behind the public classes of this module. In it, `/sandbox` is a link to the working directory, as in llm-sandbox."""

    def __init__(self, name: str, policy: Policy, timeout: float | None) -> None:
        super().__init__(policy=policy, timeout=timeout)
        self._name = name
        self._is_prepared = False

    def open(self) -> Self:
        """Start the session and make `%pwd` and shells show its working directory as `/sandbox`."""
        super().open()
        self._prepare()
        return self

    def reset(self) -> None:
        """Clear the session's variables and keep its files."""
        super().reset()
        self._prepare()

    def run(self, code: str, **options: Any) -> CodeExecutionResult:
        """Run a cell and return its result. If the interpreter is new, first make it show its working directory as `/sandbox`."""
        if not self._is_prepared:
            self._prepare()
        result = super().run(code, **options)
        self._is_prepared = result.state.kind == "kept"
        return result

    def _prepare(self) -> None:
        self._call(Session._run_snippet, "show_workdir_as", _WORKDIR)
        self._is_prepared = True


class InteractiveSandboxSession:
    """A session that keeps its variables from one `run` to the next. Use it in a `with` block."""

    def __init__(
        self, *, lang: str = "python", interactive_settings: InteractiveSettings | None = None, **options: Unpack[Options]
    ) -> None:
        """Configure the session. `open` or a `with` block starts it.

        Args:
            lang: The language: `python` is the only one.
            interactive_settings: The settings as one object.
            **options: The same settings as keyword arguments, which take precedence; `libraries` to install at the start; and
                `execution_timeout` or `default_timeout` in seconds, which take precedence over `timeout`.

        Raises:
            NotSupportedError: The language is not Python.
            TypeError: An option has an unknown name.
            InvalidArgumentError: `max_memory` is not a size.
            ValueError: `kernel_type` is unknown.
        """
        if str(lang).lower() != "python":
            raise NotSupportedError(f"lang must be 'python', got {str(lang)!r:.80}: leave it out")
        given: dict[str, Any] = {**options}
        self.settings = replace(interactive_settings or InteractiveSettings(), **_pop_settings(given))
        self._libraries = _to_list(given.pop("libraries", None))
        limits = given.pop("execution_timeout", None), given.pop("default_timeout", None)
        _check_options(given)
        self._session = _Session(type(self).__name__, _policy(self.settings), limits[0] or limits[1] or self.settings.timeout)

    def open(self) -> None:
        """Start the session and install its `libraries`.

        If they cannot be installed, end the session and raise ExecutionError.
        """
        try:
            self._session.open()
            if self._libraries:
                self._session.install(*self._libraries).raise_for_error()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the session. Its variables and files are lost."""
        self._session.close()

    def run(
        self,
        code: str,
        libraries: Sequence[str] | None = None,
        timeout: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> ConsoleOutput:
        """Run a cell and return its result.

        Args:
            code: The source text of the cell.
            libraries: Packages to install first if they are missing.
            timeout: The time limit in seconds; None is the session's own.
            on_stdout: Called with each text that the cell writes to stdout.
            on_stderr: Called with each text that the cell writes to stderr.
        """
        result = self._session.run(code, libraries=_to_list(libraries), timeout=timeout, on_stdout=on_stdout, on_stderr=on_stderr)
        return _console_output(result)

    def install(self, libraries: Sequence[str] | None = None) -> ConsoleOutput:
        """Install packages into the session and return the result. Do nothing if `libraries` is empty."""
        wanted = _to_list(libraries)
        return _console_output(self._session.install(*wanted)) if wanted else ConsoleOutput(exit_code=0, stdout="", stderr="")

    def execute_command(self, command: str, workdir: str | None = None) -> ConsoleOutput:
        """Run a shell command in the session and return its result.

        It runs in the folder `workdir`, by default in the working directory of cells.
        """
        folder = f"cd {_quote_for_shell(workdir)} && " if workdir else ""
        done = self._session.execute_command(_LS + folder + command)
        self._session._is_prepared &= done.state.kind == "kept"
        return ConsoleOutput(exit_code=done.exit_code, stdout=done.stdout, stderr=done.stderr)

    def execute_commands(self, commands: Sequence[str | tuple[str, str | None]], workdir: str | None = None) -> ConsoleOutput:
        """Run shell commands in order until one fails. Return the result of the last one that ran.

        Args:
            commands: Commands, or pairs of a command and its working directory.
            workdir: The working directory of commands that have none.
        """
        done = ConsoleOutput(exit_code=0, stdout="", stderr="")
        for one in commands:
            command, folder = one if isinstance(one, tuple) else (one, workdir)
            done = self.execute_command(command, folder)
            if not done.success():
                break
        return done

    def copy_to_runtime(self, src: str, dest: str) -> None:
        """Copy the file `src` of this machine to the path `dest` in the session."""
        self._session.upload_file(_to_data_path(dest), Path(src))

    def copy_from_runtime(self, src: str, dest: str) -> None:
        """Copy the file `src` of the session to the path `dest` on this machine."""
        self._session.save_file(_to_data_path(src), Path(dest))

    def __enter__(self) -> "InteractiveSandboxSession":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SandboxSession(InteractiveSandboxSession):
    """A session that clears its variables before each `run`. Files and installed libraries stay."""

    def run(
        self,
        code: str,
        libraries: Sequence[str] | None = None,
        timeout: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> ConsoleOutput:
        """Clear the variables, run a program and return its result.

        Args:
            code: The source text of the program.
            libraries: Packages to install first if they are missing.
            timeout: The time limit in seconds; None is the session's own.
            on_stdout: Called with each text that the program writes to stdout.
            on_stderr: Called with each text that the program writes to stderr.
        """
        self._session.reset()
        return super().run(code, libraries, timeout, on_stdout, on_stderr)

    def __enter__(self) -> "SandboxSession":
        self.open()
        return self


def _pop_settings(options: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(InteractiveSettings)}
    return {name: options.pop(name) for name in [*options] if name in names}


def _check_options(options: dict[str, Any]) -> None:
    unknown = sorted(options.keys() - _IgnoredOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"the session has no arguments {', '.join(unknown)[:200]}: leave them out, or correct their names")
    if options:
        warnings.warn(
            f"{', '.join(sorted(options))}: this has no effect, because sessions run without containers: leave it out", stacklevel=4
        )


def _policy(settings: InteractiveSettings) -> Policy:
    KernelType(settings.kernel_type)
    limits = Limits(history=settings.history_size)
    return Policy(limits=limits if settings.max_memory is None else replace(limits, memory=_parse_size(settings.max_memory)), spares=0)


def _parse_size(size: str | int) -> int:
    parts = _SIZE.fullmatch(str(size).strip())
    if parts is None:
        raise InvalidArgumentError(f"max_memory must be a size such as '512MB' or '2GB', got {size!r:.80}")
    return int(float(parts[1]) * 1024 ** _POWERS[parts[2].upper()])


def _to_list(libraries: Sequence[str] | str | None) -> list[str]:
    return [libraries] if isinstance(libraries, str) else list(libraries or ())


def _console_output(result: CodeExecutionResult) -> ConsoleOutput:
    shown = result.output
    return ConsoleOutput(
        exit_code=result.exit_code, stdout=shown if shown.endswith("\n") or not shown else f"{shown}\n", stderr=result.stderr
    )


def _to_data_path(path: str) -> str:
    for folder in (_WORKDIR, _DATA):
        if path.startswith(f"{folder}/"):
            return path.removeprefix(f"{folder}/")
    if path.startswith("/"):
        raise InvalidArgumentError(f"a path in the session must be below {_WORKDIR} or {_DATA}, got {path!r:.80}")
    return path


def _quote_for_shell(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"
