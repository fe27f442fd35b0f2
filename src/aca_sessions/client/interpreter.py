"""The request/result style: each call names its session. Failed code is a result; only what is not about the code is raised."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Self, overload
from urllib.parse import quote

from .. import telemetry
from ..contract import extensions, flat
from ..contract.records import ExecutionCall
from ..contract.versions import version_named
from ..errors import NotFoundError, NotSupportedError
from ..models import CodeExecutionRequest, CodeExecutionResult, FileUploadRequest, Package, RemoteFile, SessionInfo, State
from ..tasks import Tasks
from . import packages
from .arguments import checked_data, checked_path, checked_session_id, checked_timeout, refusal
from .continuity import Continuity, with_earlier_loss
from .execution import AnswerCall, AnswerInput, Execution, ended, in_background
from .executions import DEFAULT_WAIT, Executions
from .http import SessionsHttpClient, decoded
from .own_cells import own_cell
from .packages import INSTALL_SECONDS
from .sanitize import sanitize as take_out_of_fences
from .timeline import Timeline

FILES_PATH = "files"
_RANGE = 8 << 20


class CodeInterpreter:
    """Runs cells and moves files, in any session of an endpoint."""

    def __init__(self, http: SessionsHttpClient, *, verify_after: float = 200.0) -> None:
        """Speaks through the given client and closes it at the end.

        At an endpoint that does not tell when it began a session anew, one unused for `verify_after` seconds is looked at first.
        """
        self._http = http
        self._version = version_named(http.api_version)
        self._dialect = self._version.dialect
        self._tasks = Tasks()
        self._executions = Executions(http, self._version)
        self.timeline = Timeline(http)
        self._continuity = Continuity(self._run_our_own, verify_after=verify_after)
        http.on_session = self._continuity.seen

    @overload
    async def execute(self, request: CodeExecutionRequest, /) -> CodeExecutionResult: ...
    @overload
    async def execute(
        self, session_id: str, code: str, /, *, timeout: float | None = None, sanitize: bool = True
    ) -> CodeExecutionResult: ...
    async def execute(
        self, request: CodeExecutionRequest | str, code: str = "", /, *, timeout: float | None = None, sanitize: bool = True
    ) -> CodeExecutionResult:
        """What became of a cell. Cancelling the call interrupts the cell, and its session stays usable."""
        if isinstance(request, str):
            request = CodeExecutionRequest(session_id=request, code=code, timeout=timeout, sanitize_input=sanitize)
        checked_session_id(request.session_id)
        checked_timeout(request.timeout)
        refused = refusal(request.code)
        if refused is not None:
            return CodeExecutionResult(session_id=request.session_id, error=refused, stderr=str(refused))
        text = take_out_of_fences(request.code) if request.sanitize_input else request.code
        with telemetry.span("execute", request.session_id, **{"code.length": len(text)}) as span:
            call = ExecutionCall(code=text, timeout=request.timeout, transactional=request.transactional)
            result = self._continuity.tell(request.session_id, await self._execute_knowingly(request.session_id, call))
            telemetry.executed(span, result)
        return result

    async def execute_own(self, session_id: str, name: str, *arguments: str | int, timeout: float | None = None) -> CodeExecutionResult:
        """What became of a cell of ours, by its name. What it hears of a loss is told with the user's next cell."""
        checked_session_id(session_id)
        result = await self._execute_knowingly(session_id, ExecutionCall(code=own_cell(name, *arguments), timeout=timeout))
        self._continuity.keep(session_id, result.state)
        return result

    def concluded(self, session_id: str, result: CodeExecutionResult) -> CodeExecutionResult:
        """Takes note of a user's cell that was run by cells of ours; the result tells a loss that they heard of."""
        told = self._continuity.tell(session_id, replace(result, session_id=session_id))
        if told.state.kind != "kept":
            self._continuity.after(session_id, told)
        return told

    @overload
    async def upload_file(self, request: FileUploadRequest, /) -> RemoteFile: ...
    @overload
    async def upload_file(self, session_id: str, name: str, data: bytes | str | Path, /) -> RemoteFile: ...
    async def upload_file(self, request: FileUploadRequest | str, name: str = "", data: bytes | str | Path = b"", /) -> RemoteFile:
        """Writes a file into the session's /mnt/data; the name may have folders in front. A Path is sent without being read whole."""
        if isinstance(request, FileUploadRequest):
            return await self._upload(request.session_id, request.file_name, request.file_content)
        return await self._upload(request, name, data)

    async def _upload(self, session_id: str, name: str, data: object) -> RemoteFile:
        folder, name = checked_path(name)
        content = checked_data(data)
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        with telemetry.span("upload", session_id, bytes=size), contextlib.ExitStack() as stack:
            response = await self._http.request(
                "POST",
                self._dialect.UPLOAD_PATH,
                identifier=session_id,
                query=_path(folder),
                file=(name, stack.enter_context(content.open("rb")) if isinstance(content, Path) else content),
                timeout=DEFAULT_WAIT,
            )
        return decoded(response, self._dialect.decode_upload)

    async def list_files(self, session_id: str, folder: str = "") -> list[RemoteFile]:
        """The files in /mnt/data, or in a folder of it."""
        response = await self._http.request("GET", FILES_PATH, identifier=session_id, query=_path(folder))
        return decoded(response, self._dialect.decode_files)

    async def download_file(self, session_id: str, name: str) -> bytes:
        """A file's content."""
        return b"".join([part async for part in self._parts(session_id, name)])

    async def save_file(self, session_id: str, name: str, path: Path) -> int:
        """Writes a file's content to a path on this machine and answers its size; no more than a part is held in memory."""
        size = 0
        with path.open("wb") as file:
            async for part in self._parts(session_id, name):
                size += await asyncio.to_thread(file.write, part)
        return size

    async def _parts(self, session_id: str, name: str) -> AsyncIterator[bytes]:
        """In ranges where the endpoint has them: in process an answer is held in memory whole."""
        ranged = await self._http.offers("ranges")
        part, size = await self._read(session_id, name, 0 if ranged else None)
        yield part
        read = len(part)
        while part and read < size:
            part, size = await self._read(session_id, name, read)
            yield part
            read += len(part)

    async def delete_file(self, session_id: str, name: str) -> None:
        """Deletes a file."""
        folder, name = checked_path(name)
        await self._http.request("DELETE", f"{FILES_PATH}/{quote(name, safe='')}", identifier=session_id, query=_path(folder))

    async def reset(self, session_id: str) -> None:
        """Clears a session's variables; its files stay. Where the endpoint can, in a fresh interpreter: even in the middle of a cell."""
        checked_session_id(session_id)
        if await self._http.offers("reset"):
            await self._http.request("POST", extensions.RESET_PATH, identifier=session_id)
        else:
            (await self.execute_own(session_id, "reset")).raise_for_error()

    async def start(
        self,
        session_id: str,
        code: str,
        *,
        timeout: float | None = None,
        sanitize: bool = True,
        on_input: AnswerInput | None = None,
        transactional: bool = False,
        on_call: AnswerCall | None = None,
    ) -> Execution:
        """A cell in the background: followed live where the endpoint can, delivered at its end where it cannot."""
        checked_session_id(session_id)
        checked_timeout(timeout)
        refused = refusal(code)
        if refused is not None:
            return ended(CodeExecutionResult(session_id=session_id, error=refused, stderr=str(refused)))
        text = take_out_of_fences(code) if sanitize else code
        answered = _answered(on_input, on_call)
        call = ExecutionCall(code=text, timeout=timeout, answered=answered, transactional=transactional)
        if on_call is not None:
            await self._http.require("events", "answer what a cell calls")
        if not await self._http.offers("events"):
            return in_background(session_id, self._tasks.own(self._execute_knowingly(session_id, call)))
        with telemetry.span("start", session_id, **{"code.length": len(text)}):
            execution = await self._executions.start(session_id, call)
        return execution.answering(on_input, on_call).amending(lambda result: self._told(session_id, result))

    def execution(self, session_id: str, execution_id: str, *, on_input: AnswerInput | None = None) -> Execution:
        """A cell that was started earlier, by its id: from here or by another client."""
        return self._executions.followed(checked_session_id(session_id), execution_id).answering(on_input)

    async def interrupt(self, session_id: str, execution_id: str | None = None) -> None:
        """Interrupts a cell of a session, or the one that runs now; what that did is in the cell's result."""
        await self._executions.interrupt(checked_session_id(session_id), execution_id)

    async def cancel_quietly(self, execution: Execution) -> None:
        """Interrupts a cell that nobody follows any more, on the way out: even if the caller is cancelled again meanwhile."""
        await self._executions.cancel_quietly(execution)

    async def install(self, session_id: str, *requirements: str, timeout: float = INSTALL_SECONDS) -> CodeExecutionResult:
        """What became of installing packages into a session; failed, it changed nothing."""
        return await packages.install(self._http, session_id, requirements, timeout)

    async def uninstall(self, session_id: str, *names: str) -> CodeExecutionResult:
        """What became of taking installed packages away again."""
        return await packages.uninstall(self._http, session_id, names)

    async def packages(self, session_id: str) -> list[Package]:
        """What a session has installed beside what its environment has."""
        return await packages.listed(self._http, session_id)

    async def isolation(self) -> dict[str, str] | None:
        """What separates sessions from their host, part by part; None where the endpoint does not say."""
        if not await self._http.offers("isolation"):
            return None
        return decoded(await self._http.request("GET", extensions.ISOLATION_PATH), extensions.decode_isolation)

    async def supports(self, extension: str) -> bool:
        """Whether the endpoint has what goes beyond Azure's API, by name."""
        return await self._http.offers(extension)

    async def get_session(self, session_id: str) -> SessionInfo:
        """What the service knows of a session; NotFoundError or ServiceError where it has none."""
        self._require_sessions()
        return decoded(await self._http.request("GET", flat.SESSION_PATH, identifier=session_id), flat.decode_session)

    async def delete_session(self, session_id: str) -> None:
        """Ends a session at the service."""
        self._require_sessions()
        try:
            await self._http.request("DELETE", flat.SESSION_PATH, identifier=session_id)
        except NotFoundError:
            self._continuity.forget(session_id)
            raise
        self._continuity.forget(session_id)

    async def list_sessions(self) -> list[SessionInfo]:
        """The sessions that the service keeps."""
        self._require_sessions()
        found: dict[str, SessionInfo] = {}
        while page := await self._sessions_after(len(found)):
            if found.keys() >= page.keys():  # it gives all at once
                break
            found |= page
        return [*found.values()]

    async def _sessions_after(self, skip: int) -> dict[str, SessionInfo]:
        query, rich = {"skip": str(skip)} if skip else None, {extensions.RICH_REQUEST_HEADER: "1"}
        response = await self._http.request("GET", flat.SESSIONS_PATH, query=query, headers=rich)
        return {info.session_id: info for info in decoded(response, flat.decode_sessions)}

    def expired(self, session_id: str) -> None:
        """The session was ended for idleness, and one begins anew under its name: that is told with its first result."""
        self._continuity.keep(session_id, State("lost", "expired"))

    @property
    def can_end_sessions(self) -> bool:
        """Whether the api-version has sessions to end; with earlier ones they only expire."""
        return self._version.has_sessions

    def _require_sessions(self) -> None:
        if not self._version.has_sessions:
            raise NotSupportedError(f"{self._version.name} has no sessions to ask for or to end: use 2025-02-02-preview or later")

    async def close(self) -> None:
        """Ends the connections; sessions go on at the service until they expire."""
        await self._tasks.cancel()
        await self._executions.close()
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _execute_knowingly(self, session_id: str, call: ExecutionCall) -> CodeExecutionResult:
        """Our own server tells what became of a session; elsewhere we look ourselves."""
        if call.transactional:
            await self._http.require("checkpoint", "run a transactional cell")
        if await self._http.offers("rich"):
            result = await self._executions.run(session_id, call)
            return self._continuity.tell_replaced(session_id, result)
        loss = await self._continuity.before(session_id)
        result = await self._executions.run(session_id, call)
        self._continuity.after(session_id, result)
        if self._continuity.is_replaced(session_id):
            loss = await self._continuity.before(session_id) or loss
        return with_earlier_loss(result, loss)

    def _told(self, session_id: str, result: CodeExecutionResult) -> CodeExecutionResult:
        """The result of a cell that was followed, with what its user has not heard of."""
        return self._continuity.tell(session_id, self._continuity.tell_replaced(session_id, result))

    async def _run_our_own(self, session_id: str, code: str) -> CodeExecutionResult:
        return await self._executions.run(session_id, ExecutionCall(code=code))

    async def _read(self, session_id: str, name: str, start: int | None) -> tuple[bytes, int]:
        """A part of a file, and the size of all of it."""
        folder, name = checked_path(name)
        headers = {} if start is None else {"range": f"bytes={start}-{start + _RANGE - 1}"}
        path = self._dialect.content_path(name)
        response = await self._http.request("GET", path, identifier=session_id, query=_path(folder), headers=headers, timeout=DEFAULT_WAIT)
        size = response.headers.get("content-range", "").rpartition("/")[2]
        return response.content, int(size) if size.isdecimal() else len(response.content)


def _answered(on_input: AnswerInput | None, on_call: AnswerCall | None) -> tuple[str, ...]:
    answers = {"input": on_input, "call": on_call}
    return tuple(kind for kind, answer in answers.items() if answer is not None)


def _path(folder: str) -> dict[str, str]:
    return {"path": folder} if folder else {}
