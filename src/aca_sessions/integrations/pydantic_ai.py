"""Workspaces for the agents of Pydantic AI: each is a session."""

import asyncio
import contextlib
import math
import posixpath
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from ..client.commands import MOST_OUTPUT
from ..client.pool import SessionPool
from ..client.session import Session
from ..errors import ExecutionError, imports_of
from ..ledger import CallerPosition, format_position
from ..models import CodeExecutionResult, FileStatus, State

with imports_of("pydantic-ai"):
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.tools import AgentDepsT, RunContext
    from pydantic_ai.workspaces import (
        CommandResult,
        FileEntry,
        WorkspaceBackend,
        WorkspaceOutputLimitError,
        WorkspaceRef,
        WorkspaceTimeoutError,
        WorkspaceUnavailableError,
    )

_PROVIDER = "aca-sessions"
_PREFIX = "workspace-"  # of the names of their sessions: a ref from a message history must not lead to other sessions of the pool


@dataclass
class SessionWorkspaces(AbstractCapability[AgentDepsT]):
    """A capability that gives each run a workspace of its own, or the one that its message history names."""

    pool: SessionPool
    _: KW_ONLY
    id: str | None = "aca_sessions_workspace"

    @classmethod
    def combine(cls, capabilities: Sequence[AbstractCapability[AgentDepsT]]) -> AbstractCapability[AgentDepsT]:
        """Return the last one."""
        return capabilities[-1]

    def get_workspace(self, ctx: RunContext[AgentDepsT], *, ref: WorkspaceRef | None) -> WorkspaceBackend | None:
        """Return a new workspace, or the one of `ref` if that is a session of this package."""
        del ctx
        return SessionWorkspace(self.pool, ref) if ref is None or ref.provider == _PROVIDER else None


class SessionWorkspace:
    """A workspace of Pydantic AI that is a session of a pool. The first operation starts the session, or finds the one of a ref.

    The session ends when the pool is closed, when it was idle for too long, or by `delete`. Then all operations raise
    WorkspaceUnavailableError, and no other session takes its place.
    """

    def __init__(self, pool: SessionPool, ref: WorkspaceRef | None = None) -> None:
        """Use a session of the given pool, which the caller closes: the one of `ref`, or a new one."""
        self._pool = pool
        self._ref = ref
        self._starting: asyncio.Task[None] | None = None
        self._folder = ""
        self._ended = ""
        self._position = CallerPosition()
        self._name = f"{_PREFIX}{uuid.uuid4()}"
        if ref is not None:
            self._name, _, position = ref.id.partition(":")
            if ref.provider != _PROVIDER or not self._name.startswith(_PREFIX) or not position.partition(":")[2].isdecimal():
                raise ValueError(f"ref must be the one of a SessionWorkspace, got one of the provider {ref.provider!r:.80}")
            self._position = CallerPosition.parse(position, unreported=State())

    @property
    def ref(self) -> WorkspaceRef | None:
        """Return the name by which another object, also in another program with the same endpoint, finds this workspace.

        It is None before the first operation. Who has it and can use the endpoint can use the workspace.
        """
        return self._ref

    async def working_dir(self) -> str:
        """Return the folder in which commands start, /mnt/data."""
        async with self._session():
            return self._folder

    async def run(
        self,
        command: str | Sequence[str],
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        cwd: str | None = None,
    ) -> CommandResult:
        """Run a command and return its result. Cancelling the call ends the command with the processes that it has started."""
        if isinstance(command, str) != shell:
            raise TypeError("command must be a text with shell=True, or a list of arguments without")
        if timeout is not None and not (isinstance(timeout, int | float) and math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be a positive number of seconds or None, got {timeout!r:.40}")
        async with self._session() as session:
            done = await session.execute_command(command, env=env, timeout=timeout, cwd=cwd or self._folder)
        if done.timed_out:
            raise WorkspaceTimeoutError(f"the command was ended after {timeout:g} s", stdout=done.stdout, stderr=done.stderr)
        if done.truncated:
            message = f"the command wrote more than {MOST_OUTPUT} bytes: write into a file, and read that"
            raise WorkspaceOutputLimitError(message, limit=MOST_OUTPUT, stdout=done.stdout, stderr=done.stderr)
        code = done.exit_code if done.exit_code >= 0 else 128 - done.exit_code  # killed by a signal
        return CommandResult(exit_code=code, stdout=done.stdout, stderr=done.stderr)

    async def read_bytes(self, path: str) -> bytes:
        """Return a file's content."""
        async with self._session() as session:
            return await session.filesystem.read(path)

    async def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file, and create its folders. A link is followed."""
        async with self._session() as session:
            await session.filesystem.write(path, data)

    async def stat(self, path: str) -> FileEntry:
        """Return what is known of a file or folder. A link is followed."""
        async with self._session() as session:
            return _entry(path, await session.filesystem.stat(path))

    async def list_dir(self, path: str) -> list[FileEntry]:
        """Return the entries of a folder, sorted by name."""
        async with self._session() as session:
            entries = []
            for found in await session.filesystem.list_folder(path):
                target = found
                if found.kind == "link":
                    with contextlib.suppress(OSError):  # it leads nowhere, or around in circles
                        target = await session.filesystem.stat(found.path)
                entries.append(_entry(found.path, target))
            return entries

    async def make_dir(self, path: str) -> None:
        """Create a folder and those above it. Do nothing if it exists."""
        async with self._session() as session:
            await session.filesystem.make_folder(path)

    async def remove(self, path: str) -> None:
        """Delete a file, a link, or a folder with what is in it. Raise ValueError for the working directory and what is above it."""
        async with self._session() as session:
            name = posixpath.basename(path.rstrip("/"))
            above = await session.filesystem.resolve(posixpath.dirname(path.rstrip("/")) or "/")
            target = posixpath.join(above, name) if name not in ("", ".", "..") else await session.filesystem.resolve(path)
            if f"{self._folder}/".startswith(f"{target.rstrip('/')}/"):
                raise ValueError(f"the working directory and what is above it cannot be deleted, got {path!r:.200}")
            await session.filesystem.remove(target, recursive=True)

    async def exists(self, path: str) -> bool:
        """Return whether a file or folder exists. A link is followed."""
        async with self._session() as session:
            return await session.filesystem.exists(path)

    async def realpath(self, path: str) -> str:
        """Return the absolute path without links. It need not exist."""
        async with self._session() as session:
            return await session.filesystem.resolve(path)

    async def delete(self) -> None:
        """End the session, which deletes the workspace. Runs never do this."""
        await self._pool.terminate(self._name)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        """Lease the session for a `with` block. Raise WorkspaceUnavailableError if its files are gone."""
        if self._ended:
            raise WorkspaceUnavailableError(self._ended)
        try:
            if self._starting is None or (self._starting.done() and (self._starting.cancelled() or self._starting.exception())):
                self._starting = asyncio.ensure_future(self._start())
            await asyncio.shield(self._starting)  # a caller that is cancelled leaves neither half a start nor a session without a ref
            async with self._lease() as session:
                yield session
        except _FilesGoneError as error:
            self._ended = f"the session of this workspace has ended: {error}"
            raise WorkspaceUnavailableError(self._ended) from error

    async def _start(self) -> None:
        async with self._lease() as session:
            self._folder = await session.filesystem.resolve("")
        if self._ref is None:
            position = format_position(self._position.ledger or "", self._position.position)
            self._ref = WorkspaceRef(provider=_PROVIDER, id=f"{self._name}:{position}")

    @contextlib.asynccontextmanager
    async def _lease(self) -> AsyncIterator[Session]:
        async with self._pool.session(self._name) as leased:
            session = _WorkspaceSession(leased._interpreter, self._name)
            session._caller = self._position
            yield session


class _FilesGoneError(ExecutionError):
    """The files of a session are gone: it has ended since the workspace was made."""


class _WorkspaceSession(Session):
    """A session of which each operation raises _FilesGoneError if it found its files gone, and a new session in place of its own."""

    async def _run_snippet(
        self, name: str, *arguments: str | int, timeout: float | None = None, caller: CallerPosition | None = None
    ) -> CodeExecutionResult:
        result = await super()._run_snippet(name, *arguments, timeout=timeout, caller=caller)
        if result.state.files == "lost":
            raise _FilesGoneError(f"{result.state}; {result.state.consequence}")
        return result


def _entry(path: str, status: FileStatus) -> FileEntry:
    size = status.size if status.kind == "file" else None
    return FileEntry(name=posixpath.basename(path.rstrip("/")), path=path, is_dir=status.kind == "folder", size=size)
