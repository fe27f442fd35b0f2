"""Export a session as a stream of bytes, and begin a session from one. Neither needs a store."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from ..contract.records import ProblemError
from ..durable.chunks import Data, closing
from ..durable.records import MOST_NAMED, ExportReader, Manifest, describe_lost, encode_notebook, encode_record
from ..durable.sealed_stream import seal
from ..errors import SaveCorruptedError, SaveTooLargeError, SnapshotError
from ..guest_text import shown_name
from ..ledger import Ledger
from ..lifetime import stream_from
from ..models import SavedSession
from ..sandbox.sandbox import Sandbox
from ..sandbox.session.saved_state import StateReader
from .hosted_session import HostedSession
from .sessions import Sessions

_EXPORT_SECONDS = _IMPORT_SECONDS = 300.0
_LOOK_SECONDS = 0.25  # between two looks whether the session was ended
_ENDED = "the session was ended while it was imported: import it again"
Put = Callable[[Data], Awaitable[None]]


class MovedSessions:
    """Exports and imports the sessions of one server."""

    def __init__(self, sessions: Sessions, *, max_bytes: int) -> None:
        """Use the sessions of a server. An exported session has at most `max_bytes`."""
        self._sessions = sessions
        self._max_bytes = max_bytes

    @asynccontextmanager
    async def export(self, session: HostedSession, notebook: bytes, since: str | None) -> AsyncIterator[AsyncIterator[bytes]]:
        """Export a session between two cells, and yield its chunks for an `async with` block, whose end also ends the export.

        Raise SnapshotError at once if the session cannot be exported.

        Args:
            session: The session.
            notebook: The caller's notebook as JSON, or empty.
            since: The caller's position in the session's ledger.
        """

        async def write(put: Put) -> None:
            await session.executions.run_in_turn(lambda sandbox: self._write(session, sandbox, notebook, since, put), cancellable=True)

        async with closing(stream_from(write)) as records:
            iterator = records.__aiter__()
            first = await anext(iterator)

            async def content() -> AsyncIterator[Data]:
                yield first
                async for record in iterator:
                    yield record

            yield seal(content())

    async def _write(self, session: HostedSession, sandbox: Sandbox, notebook: bytes, since: str | None, put: Put) -> None:
        await sandbox.interpreter()  # if it had died, the ledger says so now
        ledger, position = session.ledger, session.ledger.position

        async def receive(reader: StateReader) -> None:
            # The fork that writes the state was made just now. A loss before that would not be in the manifest.
            if ledger.between(position, ledger.position).kind != "kept":
                raise SnapshotError("the session lost its variables or files before it could be exported: export it again")
            reader.max_bytes, reader.announced = self._max_bytes, len(notebook)
            state, _ = ledger.state_and_record(since, position, position, default=ledger.fetched)
            manifest = Manifest(
                created=datetime.now(UTC),
                packages=[f"{package.name}=={package.version}" for package in sandbox.packages.installed],
                cells=session.executions.accepted_count,
                gone=[part for part in ("variables", "files") if getattr(state, part) in ("lost", "unknown")],
                missing=state.missing[:MOST_NAMED],
            )
            start = manifest.encode() + encode_notebook(notebook)
            try:
                async for part in reader.parts():
                    await put(start + part if start else part)
                    start = b""
            except (SnapshotError, SaveTooLargeError) as error:
                if start or reader.is_inside:
                    raise
                await put(encode_record({"kind": "failed", "why": str(error)}))  # so that the client can say why

        await sandbox.save(receive, timeout=_EXPORT_SECONDS)

    async def import_(self, identifier: str, chunks: AsyncIterator[bytes], is_gone: Callable[[], Awaitable[bool]]) -> SavedSession:
        """Begin a session from an exported one, and return what was restored. If that fails, the session is ended.

        Raise ProblemError: 409 if a session of this name is live or saved, 400 if the stream is damaged.

        Args:
            identifier: The name of the session.
            chunks: The exported session.
            is_gone: Returns whether the client has gone: the session is ended then, because the client does not know of it.
        """
        sessions = self._sessions
        sessions._check_not_draining()
        sessions._check_starting_limit()
        sessions._check_descriptors()
        with ExitStack() as in_use:
            earlier = sessions._ledgers.get(identifier)
            reserved = sessions._reserve([identifier], in_use)
            try:
                if sessions.saved is not None:
                    await sessions.saved.claim(identifier)
                sealed = _until_ended(reserved[0][0], chunks)
                async with asyncio.timeout(_IMPORT_SECONDS), ExportReader(sealed, max_bytes=self._max_bytes) as reader:
                    return await _unless_ended(reserved[0][0], self._fill(*reserved[0], reader, is_gone))
            except BaseException as error:
                if not reserved[0][0].ended:  # a later session of this name has lost nothing by this
                    reserved[0][0].ledger = earlier or Ledger()
                await sessions._cancel_branches(reserved)
                raise _to_problem(error) from error

    async def _fill(
        self,
        session: HostedSession,
        opened: "asyncio.Future[Sandbox]",
        reader: ExportReader,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> SavedSession:
        began = time.perf_counter()
        sandbox, ledger = await session.network.open_sandbox(self._sessions._sandboxes), session.ledger
        try:
            sandbox.ledger = ledger
            manifest, _ = await reader.read_manifest()
            gone: dict[str, str] = {}
            if manifest.packages:  # before the variables, which may need them
                installed = await sandbox.packages.install(manifest.packages, timeout=_IMPORT_SECONDS)
                gone = dict.fromkeys(manifest.packages, installed.error.message) if installed.error is not None else {}
            await sandbox.interpreter()
            before = ledger.position
            missing = await sandbox.restore(reader.parts(), timeout=_IMPORT_SECONDS)
            if not reader.is_whole:  # its own code has said too early that it is restored
                raise SaveCorruptedError("the code in the exported session has interfered with its restore")
            if await is_gone():
                raise SnapshotError(_ENDED)
            if session.ended or ledger.between(before, ledger.position).kind != "kept" or not sandbox.usable:
                raise SnapshotError(_ENDED)
            # No await from here: the session is there completely, or not at all.
            shown = describe_lost(manifest, reader.variables.lost | missing, gone)
            ledger.record_import(manifest.created, missing=tuple(shown), gone=manifest.gone)
            opened.set_result(sandbox)
        except BaseException:
            await sandbox.close()
            raise
        return SavedSession(
            session_id=session.identifier,
            created=manifest.created,
            variables=reader.variables.saved,
            lost=shown,
            size=reader.size,
            python=shown_name(reader.variables.python),
            cells=manifest.cells,
            seconds=round(time.perf_counter() - began, 3),
        )


async def _unless_ended(session: HostedSession, work: Coroutine[Any, Any, SavedSession]) -> SavedSession:
    """Await the filling of a session, and cancel it if the session is ended meanwhile, also by a server that stops: that waits for this."""
    filling = asyncio.create_task(work)
    try:
        while not filling.done():
            await asyncio.wait({filling}, timeout=_LOOK_SECONDS)
            if session.ended:
                raise SnapshotError(_ENDED)
        return filling.result()
    finally:
        filling.cancel()
        await asyncio.wait({filling})
        if not filling.cancelled():
            filling.exception()  # retrieved, so that asyncio does not log it


async def _until_ended(session: HostedSession, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        if session.ended:
            raise SnapshotError(_ENDED)
        if chunk:
            yield chunk


def _to_problem(error: BaseException) -> BaseException:
    match error:
        case SaveCorruptedError():
            return ProblemError(400, "ExportDamaged", str(error))
        case SaveTooLargeError():
            return ProblemError(413, "RequestTooLarge", str(error))
        case TimeoutError():
            return ProblemError(408, "ImportTimedOut", f"the session was not imported within {_IMPORT_SECONDS:g} s: import a smaller one")
    return error
