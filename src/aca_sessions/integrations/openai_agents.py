"""A sandbox client for the OpenAI Agents SDK: the workspace of a SandboxAgent is a folder of a session."""

import asyncio
import contextlib
import io
import shlex
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal, Self

from ..client.commands import MOST_OUTPUT
from ..client.pool import SessionPool
from ..client.session import Session
from ..connect import open_pool
from ..errors import ACASessionsError, InvalidArgumentError, imports_of
from ..models import CommandResult
from ..settings import Settings

with imports_of("openai-agents"):
    from agents.sandbox.errors import (
        ExecTimeoutError,
        ExecTransportError,
        WorkspaceArchiveReadError,
        WorkspaceArchiveWriteError,
        WorkspaceReadNotFoundError,
        WorkspaceStartError,
        WorkspaceWriteTypeError,
    )
    from agents.sandbox.manifest import Manifest
    from agents.sandbox.session import SandboxSession
    from agents.sandbox.session.base_sandbox_session import BaseSandboxSession
    from agents.sandbox.session.dependencies import Dependencies
    from agents.sandbox.session.manager import Instrumentation
    from agents.sandbox.session.runtime_helpers import RESOLVE_WORKSPACE_PATH_HELPER, RuntimeHelperScript
    from agents.sandbox.session.sandbox_client import BaseSandboxClient, BaseSandboxClientOptions
    from agents.sandbox.session.sandbox_session_state import SandboxSessionState
    from agents.sandbox.session.tar_workspace import shell_tar_exclude_args
    from agents.sandbox.snapshot import SnapshotBase, SnapshotSpec, resolve_snapshot
    from agents.sandbox.types import ExecResult, User

WORKSPACE = "/mnt/data/workspace"
_HOME = "/mnt/data"
_DEFAULT_ROOT = Manifest().root  # at the top of the file system, where no session can write
_SIGNAL = 128  # is added to the number of a signal that ended a command, as shells do
_READ_SECONDS = 60.0


class SessionSandboxClientOptions(BaseSandboxClientOptions):
    """Options of a sandbox.

    Attributes:
        session_name: The name of its session, which gives access to it. By default a new one. The session ends when the sandbox is deleted.
    """

    type: Literal["aca_sessions"] = "aca_sessions"
    session_name: str | None = None


class SessionSandboxState(SandboxSessionState):
    """The state of a sandbox, for a later `resume`. It has the name of the session, which gives access to the session."""

    type: Literal["aca_sessions"] = "aca_sessions"
    session_name: str


class _SandboxSession(BaseSandboxSession):
    """A sandbox whose commands and files are those of a session."""

    state: SessionSandboxState

    def __init__(self, state: SessionSandboxState, session: Session, stack: AsyncExitStack) -> None:
        self.state = state
        self._stack = stack  # ends the lease
        self._session: Session | None = session
        self._why_gone = "the sandbox was shut down"
        self._has_root = False

    @property
    def _mark(self) -> str:
        """Return the path of a file that only the session of this sandbox has, and not one of the same name that was started later."""
        return f"{_HOME}/.sandbox-{self.state.session_id.hex}"

    async def _run(self, *command: str, cwd: str = _HOME, timeout: float | None = None, most: int = MOST_OUTPUT) -> CommandResult:
        """Run a command. Raise ExecTransportError if that is impossible, or if the session's files are not those of before."""
        if self._session is None:
            raise ExecTransportError(command=command, message=self._why_gone, retryable=False)
        try:
            variables = await self.state.manifest.environment.resolve()
            result = await self._session.execute_command(command, cwd=cwd, env=variables, timeout=timeout, max_output=most)
        except ACASessionsError as error:
            if isinstance(error, FileNotFoundError) and cwd != _HOME:
                await self._run("true")  # raises an error with the reason if the folder was lost with the session
            raise ExecTransportError(command=command, cause=error, message=f"the command could not be run: {error}") from error
        if result.state.files != "kept":
            reason = f"the sandbox is not as it was: {result.state}; {result.state.consequence}"
            if result.state.files == "lost":
                self._session, self._why_gone = None, reason
            raise ExecTransportError(command=command, message=reason, retryable=False)
        return result

    async def _exec_internal(self, *command: str | Path, timeout: float | None = None) -> ExecResult:
        if not self._has_root:  # the SDK may run commands before `start`
            await self._prepare_backend_workspace()
        result = await self._run(*map(str, command), cwd=self.state.manifest.root, timeout=timeout)
        if result.timed_out:
            raise ExecTimeoutError(command=command, timeout_s=timeout)
        stderr = result.raw_stderr + (b"\nmore than this was written\n" if result.truncated else b"")
        code = result.exit_code if result.exit_code >= 0 else _SIGNAL - result.exit_code
        return ExecResult(stdout=result.raw_stdout, stderr=stderr, exit_code=code)

    async def _prepare_backend_workspace(self) -> None:
        made = await self._run("sh", "-c", 'mkdir -p -- "$1" && : > "$2"', "sh", self.state.manifest.root, self._mark)
        if not made.success:
            raise WorkspaceStartError(
                path=Path(self.state.manifest.root),
                message=f"the root of the workspace must be a folder in {_HOME}, such as {WORKSPACE}: {made.stderr.strip()}",
            )
        self._has_root = True

    async def is_preserved(self) -> bool:
        """Return whether the session still has the workspace."""
        is_marked = (await self._run("test", "-e", self._mark)).success
        self._has_root |= is_marked
        return is_marked

    async def _validate_path_access(self, path: Path | str, *, for_write: bool = False) -> Path:
        return await self._validate_remote_path_access(path, for_write=for_write)

    def _runtime_helpers(self) -> tuple[RuntimeHelperScript, ...]:
        return (RESOLVE_WORKSPACE_PATH_HELPER,)

    async def read(self, path: Path, *, user: str | User | None = None) -> io.IOBase:
        found = await self._validate_path_access(path) if user is None else await self._check_read_with_exec(path, user=user)
        try:
            return io.BytesIO(await self._opened().filesystem.read(str(found)))
        except FileNotFoundError as error:
            raise WorkspaceReadNotFoundError(path=path, cause=error) from error
        except (ACASessionsError, OSError) as error:
            raise WorkspaceArchiveReadError(path=path, cause=error) from error

    async def _read_bounded(self, path: Path, *, max_bytes: int) -> bytes:
        found = str(await self._validate_path_access(path))
        command = ("head", "-c", str(max_bytes), "--", found)
        result = await self._run(*command, timeout=_READ_SECONDS, most=max_bytes)
        if not result.success:
            answer = ExecResult(stdout=b"", stderr=result.raw_stderr, exit_code=result.exit_code)
            await self._raise_read_error_from_exec(path=path, workspace_path=Path(found), command=command, result=answer)
        return result.raw_stdout

    async def write(self, path: Path, data: io.IOBase, *, user: str | User | None = None) -> None:
        if user is not None:
            await self._check_write_with_exec(path, user=user)
        content = _content(data, path)
        target = await self._validate_path_access(path, for_write=True)
        try:
            await self._opened().filesystem.write(str(target), content)
        except (ACASessionsError, OSError) as error:
            raise WorkspaceArchiveWriteError(path=target, cause=error) from error

    async def running(self) -> bool:
        try:
            return await self.is_preserved()
        except ExecTransportError:
            return False

    async def persist_workspace(self) -> io.IOBase:
        root, archive = self.state.manifest.root, f".persisted-{uuid.uuid4().hex}.tar"
        excluded = [*shell_tar_exclude_args(self._persist_workspace_skip_relpaths()), "--exclude='./.persisted-*.tar'"]
        # Without hard links, which the SDK refuses in archives.
        command = f"tar --hard-dereference {' '.join(excluded)} -C {shlex.quote(root)} -cf {_HOME}/{archive} ."
        try:
            made = await self._run("sh", "-c", command)
            if not made.success:
                raise WorkspaceArchiveReadError(path=Path(root), context={"reason": "tar_failed", "output": made.stderr})
            return io.BytesIO(await self._opened().download_file(archive))
        except (ACASessionsError, ExecTransportError) as error:
            raise WorkspaceArchiveReadError(path=Path(root), cause=error) from error
        finally:
            await self._delete_quietly(archive)

    async def hydrate_workspace(self, data: io.IOBase) -> None:
        # The archive is unpacked by tar in the sandbox, so links in it lead nowhere else, and tar refuses members with '..'.
        root, archive = Path(self.state.manifest.root), f".persisted-{uuid.uuid4().hex}.tar"
        content = _content(data, root)
        try:
            await self._opened().upload_file(archive, content)
            made = await self._run("sh", "-c", 'mkdir -p -- "$1" && tar -C "$1" -xf "$2"', "sh", str(root), f"{_HOME}/{archive}")
            if not made.success:
                raise WorkspaceArchiveWriteError(path=root, context={"reason": "tar_extract_failed", "output": made.stderr})
        except (ACASessionsError, ExecTransportError) as error:
            raise WorkspaceArchiveWriteError(path=root, cause=error) from error
        finally:
            await self._delete_quietly(archive)

    async def _shutdown_backend(self) -> None:
        self._session = None
        await self._stack.aclose()

    def _opened(self) -> Session:
        if self._session is None:
            raise ACASessionsError(self._why_gone)
        return self._session

    async def _delete_quietly(self, file: str) -> None:
        if self._session is not None:
            with contextlib.suppress(ACASessionsError):
                await self._session.delete_file(file)


class SessionSandboxClient(BaseSandboxClient[SessionSandboxClientOptions | None]):
    """A sandbox client for `SandboxRunConfig(client=…)` of the OpenAI Agents SDK. Each sandbox is a session of a pool."""

    backend_id = "aca_sessions"
    supports_default_options = True

    def __init__(
        self,
        pool: SessionPool | None = None,
        *,
        settings: Settings | None = None,
        instrumentation: Instrumentation | None = None,
        dependencies: Dependencies | None = None,
    ) -> None:
        """Use the given pool, which the caller closes, or open one from the settings for the first sandbox.

        Args:
            pool: The pool of sessions.
            settings: Where sessions run, if no pool is given. By default they are read from appsettings.json and the environment.
            instrumentation: Where the SDK sends events of sandboxes.
            dependencies: What the SDK's snapshots and mounts need.
        """
        self._pool, self._settings = pool, settings
        self._instrumentation = instrumentation or Instrumentation()
        self._dependencies = dependencies
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._owns_pool = False

    async def create(
        self,
        *,
        snapshot: SnapshotSpec | SnapshotBase | None = None,
        manifest: Manifest | None = None,
        options: SessionSandboxClientOptions | None = None,
    ) -> SandboxSession:
        """Lease a session for a new sandbox. Its workspace is /mnt/data/workspace, unless the manifest has another root."""
        given = manifest or Manifest()
        if given.root == _DEFAULT_ROOT:
            given = given.model_copy(update={"root": WORKSPACE})
        if given.users or given.groups:
            raise InvalidArgumentError("the users and groups of a manifest are not supported: a session has one user, so leave them out")
        self._validate_manifest_for_create(given)
        id = uuid.uuid4()
        state = SessionSandboxState(
            session_id=id,
            manifest=given,
            snapshot=resolve_snapshot(snapshot, str(id)),
            session_name=(options and options.session_name) or f"sandbox-{uuid.uuid4()}",
        )
        return self._wrap_session(await self._lease(state), instrumentation=self._instrumentation)

    async def resume(self, state: SandboxSessionState) -> SandboxSession:
        """Lease the session of an earlier sandbox. If it has ended, the SDK restores the workspace from the snapshot or the manifest."""
        if not isinstance(state, SessionSandboxState):
            raise InvalidArgumentError(f"state must be that of a SessionSandboxClient, got {type(state).__name__}")
        state.assert_path_grants_rebound()
        inner = await self._lease(state)
        try:
            is_preserved = await inner.is_preserved()
        except BaseException:
            await inner.shutdown()
            raise
        state.workspace_root_ready = state.workspace_root_ready and is_preserved
        inner._set_start_state_preserved(is_preserved)
        return self._wrap_session(inner, instrumentation=self._instrumentation)

    async def delete(self, session: SandboxSession) -> SandboxSession:
        """End the session of a sandbox, with its files."""
        state = session.state
        if not isinstance(state, SessionSandboxState):
            raise InvalidArgumentError(f"session must be of a SessionSandboxClient, got one of {type(state).__name__}")
        await session.shutdown()
        if self._pool is not None:
            await self._pool.terminate(state.session_name)
        return session

    def deserialize_session_state(self, payload: dict[str, object]) -> SandboxSessionState:
        """Return the state that `serialize_session_state` made a dict of."""
        return self._deserialize_session_state_payload(payload, SessionSandboxState)

    async def close(self) -> None:
        """Close the pool and its sessions, if it was opened here."""
        async with self._opening:
            if self._owns_pool:
                self._pool, self._owns_pool = None, False
            await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _lease(self, state: SessionSandboxState) -> _SandboxSession:
        async with self._opening:
            if self._pool is None:
                self._pool = await self._stack.enter_async_context(open_pool(self._settings))
                self._owns_pool = True
            pool = self._pool
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(pool.session(state.session_name))
            return _SandboxSession(state, session, stack.pop_all())


def _content(data: io.IOBase, path: Path) -> bytes:
    content = data.read()
    if isinstance(content, str):
        return content.encode()
    if not isinstance(content, bytes | bytearray):
        raise WorkspaceWriteTypeError(path=path, actual_type=type(content).__name__)
    return bytes(content)
