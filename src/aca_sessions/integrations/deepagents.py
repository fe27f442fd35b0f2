"""A sandbox for the agents of deepagents (LangChain): one session runs their commands and keeps their files."""

import asyncio
import json
import threading
import uuid
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Self

from ..client.commands import COMMAND_SECONDS
from ..client.pool import SessionPool
from ..client.session import Session
from ..errors import ACASessionsError, ExecutionError, InvalidArgumentError, PathError, ServiceError, imports_of
from ..interactive import Answer, Arguments, InteractiveSession, Method
from ..models import State
from ..settings import Settings
from ..telemetry import hash_name
from .model_session import ModelSession

with imports_of("deepagents"):
    from deepagents.backends.protocol import ExecuteResponse, FileDownloadResponse, FileUploadResponse
    from deepagents.backends.sandbox import BaseSandbox

_TIMED_OUT = 124  # the exit code of timeout(1)
_ERRORS = {
    FileNotFoundError: "file_not_found",
    NotADirectoryError: "file_not_found",
    IsADirectoryError: "is_directory",
    PermissionError: "permission_denied",
    InvalidArgumentError: "invalid_path",
}


class SessionSandbox(BaseSandbox):
    """A sandbox for `create_deep_agent(backend=...)`: one session, which runs the agent's commands and keeps its files.

    Without a pool it opens the session in a thread of its own, so that any thread and any event loop can use it. With a pool it has only
    the methods with `a`, for `agent.ainvoke` in the event loop of the pool.
    """

    def __init__(
        self,
        pool: SessionPool | None = None,
        session_id: str | None = None,
        *,
        settings: Settings | None = None,
        timeout: float = COMMAND_SECONDS,
    ) -> None:
        """Use the given pool, which the caller closes, or open one from the settings at the first call.

        Args:
            pool: The pool of sessions.
            session_id: The session's name, by default a new one. If you give both a pool and a name, `aclose` does not end the session.
            settings: Where sessions run, if no pool is given. By default the settings are read from appsettings.json (section ACASessions)
                and from environment variables.
            timeout: The time limit in seconds of commands that set none.
        """
        name = session_id or f"sandbox-{uuid.uuid4()}"
        self._id = hash_name(name)
        self._timeout = timeout
        self._closed = False
        self._pool = pool
        if pool is None:
            self._opening = threading.Lock()
            self._own = InteractiveSession(settings, session_id=name)
            self._own._name = type(self).__name__
        else:
            self._leases = ModelSession(pool, name)
            self._ends = session_id is None

    @property
    def id(self) -> str:
        """Return a hash of the session's name. The name itself is a secret, which gives access to the session."""
        return self._id

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """Run a command in /mnt/data. A timeout of 0 means no limit.

        If the session lost something since the last command, the output is JSON that says what, and has the command's output and exit code.
        """
        return self._open()._call(self._execute, command, timeout)

    async def aexecute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """Run a command like `execute`. Cancelling the call ends the command."""
        return await self._call(self._execute, command, timeout)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Write files at absolute paths, and create their folders."""
        return self._open()._call(_upload, files)

    async def aupload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Write files like `upload_files`."""
        return await self._call(_upload, files)

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """Read files at absolute paths."""
        return self._open()._call(_download, paths)

    async def adownload_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """Read files like `download_files`."""
        return await self._call(_download, paths)

    def close(self) -> None:
        """End the session. The sandbox cannot be used afterwards."""
        self._open(closes=True).close()

    async def aclose(self) -> None:
        """End the session, unless it is of a pool and you gave its name. The sandbox cannot be used afterwards."""
        if self._pool is None:
            await asyncio.to_thread(self.close)
        elif self._ends and not self._closed:
            await self._leases.end_session()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _open(self, *, closes: bool = False) -> InteractiveSession:
        if self._pool is not None:
            raise ACASessionsError("a sandbox with a pool has no blocking methods: use agent.ainvoke, or a sandbox without a pool")
        with self._opening:  # agents call tools in several threads
            if closes:
                self._closed = True
                return self._own
            self._check_open()
            return self._own.open()

    def _check_open(self) -> None:
        if self._closed:
            raise ACASessionsError("the sandbox is closed: create a new one")

    async def _call(self, work: Method[Arguments, Answer], *arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
        if self._pool is not None:
            self._check_open()
            async with self._leases._leased(self._pool) as session:
                return await work(session, *arguments, **named)
        own = await asyncio.to_thread(self._open)
        portal, session = own._require_open()
        call = own._cancel_on_close(portal.start_task_soon(partial(work, session, *arguments, **named)))
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            if self._closed:  # otherwise the caller is cancelled
                raise ACASessionsError("the sandbox was closed while this call ran, so its result is lost") from None
            raise

    async def _execute(self, session: Session, command: str, timeout: int | None) -> ExecuteResponse:
        limit = self._timeout if timeout is None else timeout or None
        try:
            done = await session.execute_command(["/bin/sh", "-c", f"exec 2>&1\n{command}"], cwd=".", timeout=limit)
        except ExecutionError as error:
            return _as_error(str(error))
        output, code = done.stdout, done.exit_code if done.exit_code >= 0 else 128 - done.exit_code
        if done.timed_out:
            output, code = f"{output}\n[killed: it ran for more than {limit:g} s]\n", _TIMED_OUT
        if done.state != State():
            lost = f"the state of this sandbox is {done.state}; {done.state.consequence}"
            return _as_error(f"{lost}. The command ran after that", output=output, exit_code=code)
        return ExecuteResponse(output=output, exit_code=code, truncated=done.truncated)


def _as_error(message: str, **more: Any) -> ExecuteResponse:
    """Return JSON that the file operations of BaseSandbox, which parse output, take for an error, and that a model can read."""
    return ExecuteResponse(output=json.dumps({"error": message, **more}), exit_code=None)


async def _upload(session: Session, files: Sequence[tuple[str, bytes]]) -> list[FileUploadResponse]:
    return [FileUploadResponse(path=path, error=(await _try(path, session.filesystem.write(path, data)))[1]) for path, data in files]


async def _download(session: Session, paths: Sequence[str]) -> list[FileDownloadResponse]:
    found = [(path, *await _try(path, session.filesystem.read(path))) for path in paths]
    return [FileDownloadResponse(path=path, content=content, error=error) for path, content, error in found]


async def _try(path: str, call: Coroutine[Any, Any, Answer]) -> tuple[Answer | None, Any]:
    """Return the result of a call on a file and None, or None and the error, by its name in deepagents if it has one."""
    try:
        if not path.startswith("/"):
            call.close()
            raise InvalidArgumentError("paths must be absolute")
        return await call, None
    except (PathError, InvalidArgumentError, ServiceError) as error:
        return None, next((name for kind, name in _ERRORS.items() if isinstance(error, kind)), str(error))
