"""A code executor for AutoGen: blocks of Python run as cells of a session, and blocks for a shell as commands beside them."""

import asyncio
import uuid
import warnings
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from ..client.pool import SessionPool
from ..client.session import Session
from ..connect import open_pool
from ..errors import ExecutionError, InvalidArgumentError, imports_of
from ..guest_text import for_model
from ..models import CodeExecutionResult, Display
from ..rendering import state_line
from ..settings import Settings

with imports_of("autogen"):
    from autogen_core import CancellationToken, Component
    from autogen_core.code_executor import CodeBlock, CodeExecutor, CodeResult
    from pydantic import BaseModel

_PYTHON = frozenset(("python", "python3", "py"))
_SHELLS = {"bash": "bash", "sh": "sh", "shell": "sh"}
_SIGNAL = 128  # is added to the number of a signal that ended a command, as shells do
Answer = TypeVar("Answer")


@dataclass
class SessionCodeResult(CodeResult):
    """The result of blocks of code.

    Attributes:
        output_files: The images and HTML pages that they displayed, as files of the host. Empty without an `output_dir`.
    """

    output_files: list[Path] = field(default_factory=list)


class SessionCodeExecutorConfig(BaseModel):
    """What of an executor can be stored: its time limit and the folder for its files."""

    timeout: float = 60
    output_dir: str | None = None


class SessionCodeExecutor(CodeExecutor, Component[SessionCodeExecutorConfig]):
    """A code executor for AutoGen with one session, whose variables and files are kept from block to block."""

    component_config_schema = SessionCodeExecutorConfig
    component_provider_override = "aca_sessions.integrations.autogen.SessionCodeExecutor"

    def __init__(
        self,
        pool: SessionPool | None = None,
        session_id: str | None = None,
        *,
        settings: Settings | None = None,
        timeout: float = 60,
        output_dir: Path | str | None = None,
    ) -> None:
        """Use the given pool, which the caller closes, or open one from the settings in `start`.

        Args:
            pool: The pool of sessions.
            session_id: The session's name, by default a new one.
            settings: Where the session runs, if no pool is given. By default they are read from appsettings.json and the environment.
            timeout: The time limit of each block in seconds.
            output_dir: A folder of the host for images and HTML pages that the code displays. By default they are only named.
        """
        if timeout < 1:
            raise InvalidArgumentError(f"Timeout must be greater than or equal to 1. It is in seconds, got {timeout:g}")
        self._pool, self._session_id, self._settings, self._timeout = pool, session_id, settings, timeout
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._session: Session | None = None
        self._stack = AsyncExitStack()
        self._changing = asyncio.Lock()

    @property
    def output_dir(self) -> Path | None:
        """Return the folder of the host for what the code displays. AutoGen's executors warn of `.`, and so does this one."""
        if self._output_dir == Path():
            warnings.warn("Using the current directory as output_dir is deprecated: name a folder", DeprecationWarning, stacklevel=2)
        return self._output_dir

    async def start(self) -> None:
        """Lease the session. Do nothing if it is leased already."""
        async with self._changing:
            if self._session is None:
                async with AsyncExitStack() as stack:
                    pool = self._pool
                    if pool is None:
                        pool = await stack.enter_async_context(open_pool(self._settings))
                    self._session = await stack.enter_async_context(pool.session(self._session_id))
                    self._stack = stack.pop_all()

    async def stop(self) -> None:
        """End the session. A session with a name, of a pool that was given, is kept as the pool keeps it."""
        async with self._changing:
            self._session = None
            await self._stack.aclose()

    async def restart(self) -> None:
        """Clear the variables and end background processes. Files are kept."""
        await self._started().reset()

    async def execute_code_blocks(self, code_blocks: list[CodeBlock], cancellation_token: CancellationToken) -> SessionCodeResult:
        """Run blocks of code in order, up to the first that fails, and return what they wrote.

        Raise TimeoutError if a block runs too long, and CancelledError if the token is cancelled. Both end the block.
        """
        session = self._started()
        done = SessionCodeResult(exit_code=0, output="")
        outputs = []
        for block in code_blocks:
            language = block.language.lower()
            if language in _PYTHON:
                result = await _cancellable(session.run(block.code, timeout=self._timeout, sanitize=False), cancellation_token)
                done.exit_code = result.exit_code
                outputs.append("\n".join(filter(None, (*self._shown(result, done.output_files), state_line(result.state)))))
                if result.error is not None and result.error.name == "TimeoutError" and not result.error.traceback:
                    raise TimeoutError(outputs[-1])
            elif language in _SHELLS:
                done.exit_code, output = await _cancellable(self._run_command(session, language, block.code), cancellation_token)
                outputs.append(output)
            else:
                done.exit_code = 1
                outputs.append(f"unknown language {block.language!r:.40}: use python, bash or sh")
            if done.exit_code:
                break
        done.output = "\n".join(outputs)
        return done

    async def _run_command(self, session: Session, language: str, code: str) -> tuple[int, str]:
        """Run code for a shell, and return its exit code and what it wrote to stdout and stderr."""
        try:
            result = await session.execute_command([_SHELLS[language], "-c", f"exec 2>&1\n{code}"], timeout=self._timeout)
        except ExecutionError as error:  # the session has ended meanwhile
            return 1, str(error)
        notes = ("[output] more than this was written" if result.truncated else "", state_line(result.state))
        output = "\n".join(filter(None, (for_model(result.stdout + result.stderr), *notes)))
        if result.timed_out:
            raise TimeoutError(f"the command ran longer than {self._timeout:g} s and was ended\n{output}".rstrip("\n"))
        return (result.exit_code if result.exit_code >= 0 else _SIGNAL - result.exit_code), output

    def _shown(self, result: CodeExecutionResult, files: list[Path]) -> list[str]:
        """Return what a notebook shows under a cell, as texts. Write images and HTML pages, and add them to `files`."""
        texts = [result.stdout, result.written_to_stderr]
        for display in result.displays:
            texts.append(str(display.data.get("text/plain", "")))
            if self._output_dir is not None:
                files += _saved(display, self._output_dir)
        if all(display.data.get("text/plain") != result.text for display in result.displays):
            texts.append(result.text or "")
        if result.error is not None:
            texts.append(result.error.traceback or str(result.error))
        return [for_model(text) for text in texts if text]

    def _started(self) -> Session:
        if self._session is None:
            raise RuntimeError("Executor must be started before executing cells: use 'async with', or await start()")
        return self._session

    def _to_config(self) -> SessionCodeExecutorConfig:
        if self._pool is not None or self._settings is not None or self._session_id is not None:
            raise InvalidArgumentError("an executor can be stored only without pool, session_id and settings: set them by the environment")
        return SessionCodeExecutorConfig(timeout=self._timeout, output_dir=None if self._output_dir is None else str(self._output_dir))

    @classmethod
    def _from_config(cls, config: SessionCodeExecutorConfig) -> Self:
        return cls(timeout=config.timeout, output_dir=config.output_dir)


async def _cancellable(work: Coroutine[Any, Any, Answer], token: CancellationToken) -> Answer:
    task = asyncio.ensure_future(work)
    token.link_future(task)
    return await task


def _saved(display: Display, folder: Path) -> list[Path]:
    """Write the image of a display, or its HTML page, into a folder. Return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    html = display.data.get("text/html")
    contents = {".png": display.png, ".html": html.encode() if isinstance(html, str) else None}
    files = []
    for suffix, content in contents.items():
        if content is not None:
            path = (folder / f"{uuid.uuid4().hex}{suffix}").absolute()
            path.write_bytes(content)
            files.append(path)
    return files
