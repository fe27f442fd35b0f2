"""A sandbox environment for Inspect, of the UK AI Security Institute, named `aca_sessions`: each sample has its own session.

Inspect finds it by an entry point of this package.
"""

from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, Literal, Self, TypeVar, overload

from ..client.session import Session
from ..connect import open_pool
from ..errors import ACASessionsError, ConfigurationError, InvalidArgumentError, PathError, imports_of
from ..models import CodeExecutionResult, CommandResult
from ..rendering import state_note
from ..settings import Settings

with imports_of("inspect"):
    from inspect_ai.util import (
        ExecResult,
        OutputLimitExceededError,
        SandboxEnvironment,
        SandboxEnvironmentConfigType,
        SandboxEnvironmentLimits,
        SandboxUnavailableError,
        SandboxUserUnsupportedError,
        sandboxenv,
    )

_USERS = (None, "user", "1000")  # the user of every session
_NOT_EXECUTABLE = 126  # the exit code of shells
Answer = TypeVar("Answer")


@sandboxenv(name="aca_sessions")
class SessionSandbox(SandboxEnvironment):
    """The session of one sample. Relative paths are in /mnt/data."""

    def __init__(self, session: Session, stack: AsyncExitStack) -> None:
        """Use a session. `stack` closes it."""
        super().__init__()
        self._session = session
        self._stack = stack
        self._loss = ""  # why the sandbox cannot be used any more
        self._note = ""  # for the next result

    @classmethod
    async def open(cls, settings: Settings | None = None) -> Self:
        """Start a session. By default the settings are read from appsettings.json and the environment. `close` ends it."""
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(open_pool(settings, spares=0))
            session = await stack.enter_async_context(pool.session())
            return cls(session, stack.pop_all())

    async def close(self) -> None:
        """End the session with its files and processes."""
        await self._stack.aclose()

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Run a command like SandboxEnvironment.exec. It is not run again after a timeout, since it may have changed files."""
        del timeout_retry, concurrency
        if user not in _USERS:
            raise SandboxUserUnsupportedError(f"a session has one user, `user` (uid 1000), so a command cannot run as {user!r:.80}")
        most = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
        running = self._session.execute_command(cmd, stdin=input or b"", cwd=cwd or ".", env=env, timeout=timeout, max_output=most)
        result = await self._checked(running)
        if result.timed_out:
            raise TimeoutError(f"the command was killed after {timeout} s")
        if result.truncated:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, result.stdout)
        if result.exit_code == _NOT_EXECUTABLE and "permission denied" in result.stderr.lower():
            raise PermissionError(result.stderr.strip())
        code = result.exit_code if result.exit_code >= 0 else 128 - result.exit_code
        note, self._note = self._note, ""
        return ExecResult(code == 0, code, result.stdout, "\n".join(filter(None, (result.stderr, note))))

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """Write a file, and create its folders."""
        await self._checked(self._session.filesystem.write(file, contents))

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """Return a file's content."""
        size = (await self._checked(self._session.filesystem.stat(file))).size
        if size > SandboxEnvironmentLimits.MAX_READ_FILE_SIZE:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
        content = await self._checked(self._session.filesystem.read(file))
        return content.decode() if text else content

    async def _checked(self, work: Awaitable[Answer]) -> Answer:
        """Await a call of the session, and return what it returns.

        Raise SandboxUnavailableError if the session was lost with the files of the sample, now or earlier: what the call found in a fresh
        session would count as the sample's.
        """
        try:
            answer = await work
        except ACASessionsError as error:
            self._note_loss(await self._look())
            if isinstance(error, PathError | InvalidArgumentError):
                raise
            raise SandboxUnavailableError(str(error)) from error
        self._note_loss(answer if isinstance(answer, CommandResult) else await self._look())
        return answer

    async def _look(self) -> CodeExecutionResult:
        """Return the result of an empty cell, because calls about files report no loss."""
        try:
            return await self._session.run("")
        except ACASessionsError as error:
            raise SandboxUnavailableError(self._loss or str(error)) from error

    def _note_loss(self, result: CommandResult | CodeExecutionResult) -> None:
        if result.state.files not in ("kept", "restored"):
            self._loss = self._loss or f"the sandbox has lost the files of the sample {state_note(result)}"
        if self._loss:
            raise SandboxUnavailableError(self._loss)
        self._note = state_note(result) or self._note

    @classmethod
    def default_concurrency(cls) -> int | None:
        """Return how many samples have a sandbox at a time."""
        return Settings().SessionPool.MaxConcurrentSessions

    @classmethod
    async def sample_init(
        cls, task_name: str, config: SandboxEnvironmentConfigType | None, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        """Start the session of a sample."""
        if config is not None:
            raise ConfigurationError(f"the sandbox has no configuration but appsettings.json and the environment, got {config!r:.80}")
        return {"default": await cls.open()}

    @classmethod
    async def sample_cleanup(
        cls, task_name: str, config: SandboxEnvironmentConfigType | None, environments: dict[str, Any], interrupted: bool
    ) -> None:
        """End the session of a sample."""
        for sandbox in environments.values():
            await sandbox.close()
