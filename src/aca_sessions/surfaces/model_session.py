"""One session as a model uses it, for any framework: checked arguments, results of limited size, and files for the host program."""

import asyncio
import uuid
import weakref
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

from ..client.arguments import checked_path
from ..client.made_at import Line, caller
from ..client.pool import SessionPool
from ..connect import open_pool
from ..errors import ACASessionsError
from ..models import CodeError, CodeExecutionResult, RemoteFile
from ..owner import Owner
from ..settings import Settings
from .from_models import checked_code, checked_files
from .local_files import read_below, write_below

CODE = (
    "Python source, as in a notebook cell; plain text without Markdown fences. "
    "The value of its last expression is shown, and figures are shown to the user."
)
FILES = (
    "File names and the text of each file, written to /mnt/data, the working directory, before the code runs. "
    "A binary file is a data URI: data:application/octet-stream;base64,…"
)


_NO_FILES: Mapping[str, str] = MappingProxyType({})


class ModelSession:
    """A session that is leased for each call. So calls of one turn may run at the same time and share their variables."""

    def __init__(
        self,
        pool: SessionPool | None = None,
        session_id: str | None = None,
        *,
        settings: Settings | None = None,
        max_output: int = 10_000,
    ) -> None:
        """Use the given pool, which the caller closes, or open one at the first call.

        Args:
            pool: The pool of sessions.
            session_id: The session's name, by default a new one. `close` ends a session with a new name.
            settings: Where sessions run, if no pool is given. By default the ACASessions section of appsettings.json and of the
                environment.
            max_output: About how many characters of a result a model reads.
        """
        self._source = _Source(pool, settings)
        self._session_id = session_id or f"model-{uuid.uuid4()}"
        self._owns_session = session_id is None
        self._max_output = max_output
        self._warning = weakref.finalize(self, _warn_if_open, self._source, type(self).__name__, caller())

    async def run(self, code: object, files: object = _NO_FILES) -> CodeExecutionResult:
        """Write the files, run the cell and return its result. A model's mistakes (a file outside /mnt/data, for example) are results."""
        checked = checked_files(files)
        refused = checked_code(code) or (checked if isinstance(checked, CodeError) else _refused_names(checked))
        if refused is not None or isinstance(checked, CodeError):
            return self._result(CodeExecutionResult(error=refused, stderr=str(refused)))
        async with (await self._source.open()).session(self._session_id) as session:
            try:
                for name, data in checked.items():
                    await session.upload_file(name, data)
            except ACASessionsError as error:
                told = _not_written(error)
                return self._result(CodeExecutionResult(error=told, stderr=str(told)))
            return self._result(await session.run(str(code)))

    def for_session(self, session_id: str) -> Self:
        """Return one for another session of the same pool, such as one for each conversation of a server.

        Closing it leaves this one open.
        """
        sibling = type(self)(session_id=session_id, max_output=self._max_output)
        sibling._warning.detach()
        sibling._source = self._source.shared()
        return sibling

    async def upload_file(self, name: str, *, folder: str | Path) -> RemoteFile:
        """Copy `folder/name` of this machine into the session. This is for the host program: it is not offered to a model."""
        data = await asyncio.to_thread(read_below, Path(folder), name)
        async with (await self._source.open()).session(self._session_id) as session:
            return await session.upload_file(name, data)

    async def download_file(self, name: str, *, folder: str | Path) -> Path:
        """Copy a file of the session to `folder/name` on this machine. This is for the host program: it is not offered to a model."""
        async with (await self._source.open()).session(self._session_id) as session:
            data = await session.download_file(name)
        return await asyncio.to_thread(write_below, Path(folder), name, data)

    async def list_files(self) -> list[RemoteFile]:
        """Return the files in the session's /mnt/data. This is for the host program: a model lists them with Python."""
        async with (await self._source.open()).session(self._session_id) as session:
            return await session.list_files()

    async def close(self) -> None:
        """End the session if its name is this object's own, and close the pool if this object opened it.

        It opens again when it is used again.

        A pool that this object opened is closed whichever event loop calls, and its sessions end with it.
        """
        if self._source.is_open:
            await self._source.close()
        elif self._owns_session and self._source.pool is not None:
            await self._source.pool.terminate(self._session_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _result(self, result: CodeExecutionResult) -> CodeExecutionResult:
        return replace(result, session_id=self._session_id, max_output=self._max_output)


def _refused_names(names: Iterable[str]) -> CodeError | None:
    """Return why one of the files cannot be written, or None. All names are checked before any file is written."""
    try:
        for name in names:
            checked_path(name)
    except ACASessionsError as error:
        return _not_written(error)
    return None


def _not_written(error: ACASessionsError) -> CodeError:
    return CodeError("FileError", f"a file could not be written, and the code was not run: {error}")


class _Source:
    """The pool of a plugin: one that the caller gave, or one that is opened at the first use."""

    def __init__(self, pool: SessionPool | None, settings: Settings | None) -> None:
        self.pool = pool
        self._settings = settings
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._lender: _Source | None = None
        self._owner = Owner()
        self.is_open = False

    def shared(self) -> "_Source":
        """Return the same pool for another plugin, which does not close it."""
        borrower = _Source(self.pool, self._settings)
        borrower._lender = self
        return borrower

    async def open(self) -> SessionPool:
        if self._lender is not None:
            return await self._lender.open()
        async with self._opening:
            if self.pool is None:
                self.pool = await self._stack.enter_async_context(open_pool(self._settings))
                self.is_open, self._owner = True, Owner()
            return self.pool

    @property
    def is_forgotten(self) -> bool:
        """Return whether this process opened the pool and has not closed it."""
        return self.is_open and self._owner.is_here

    async def close(self) -> None:
        if self.is_open:
            self.is_open, self.pool = False, None
            await self._stack.aclose()


def _warn_if_open(source: _Source, what: str, made_at: Line) -> None:
    if source.is_forgotten:
        made_at.warn_unclosed(f"a {what}", "async with")
