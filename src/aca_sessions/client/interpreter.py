"""The client in request/result style: each call names its session. Failed code is a result; all other failures are raised."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, overload

from .. import telemetry
from ..contract import extensions, flat
from ..contract.records import ExecutionCall
from ..contract.versions import version_named
from ..errors import NotFoundError, NotSupportedError
from ..models import CodeExecutionRequest, CodeExecutionResult, FileUploadRequest, Package, RemoteFile, SessionInfo
from ..tasks import Tasks
from . import packages
from .arguments import checked_session_id, checked_timeout, refusal
from .continuity import Continuity
from .delivered import Delivered
from .execution import AnswerCall, AnswerInput, Execution, ended, in_background
from .executions import Executions
from .http import SessionsHttpClient, decoded
from .own_cells import own_cell
from .packages import INSTALL_SECONDS
from .sanitize import sanitize as take_out_of_fences
from .session_files import SessionFiles
from .timeline import Timeline

_REMEMBERED = 10_000


class CodeInterpreter:
    """A client that runs cells and moves files in any session of an endpoint.

    A loss of a session is reported until one result of it was received. All calls without a `Session` object count as one caller.
    """

    def __init__(self, http: SessionsHttpClient, *, verify_after: float = 200.0) -> None:
        """Use an HTTP client, and close it at the end.

        Args:
            http: The client of the endpoint.
            verify_after: At an endpoint that keeps no ledger, seconds without use after which a session is checked to be still the same
                one.
        """
        self._http = http
        self._version = version_named(http.api_version)
        self._tasks = Tasks()
        self._executions = Executions(http, self._version)
        self._files = SessionFiles(http, self._version)
        self.timeline = Timeline(http)
        self._continuity = Continuity(self._run_our_own, verify_after=verify_after)
        self._delivered: OrderedDict[str, Delivered] = OrderedDict()
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
        """Run a cell and return its result. The session stays usable.

        Cancelling the call interrupts the cell, if the endpoint can interrupt cells. At other endpoints, such as Azure, the cell runs on.

        Args:
            request: A request, or the name of the session.
            code: The source text, if `request` is a name.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
        """
        if isinstance(request, str):
            request = CodeExecutionRequest(session_id=request, code=code, timeout=timeout, sanitize_input=sanitize)
        return await self.execute_for(self._delivered_of(request.session_id), request)

    async def execute_for(self, caller: Delivered, request: CodeExecutionRequest) -> CodeExecutionResult:
        """Run a cell for one of several callers of a session. The state of its result is for this caller."""
        checked_session_id(request.session_id)
        checked_timeout(request.timeout)
        refused = refusal(request.code)
        if refused is not None:
            return CodeExecutionResult(session_id=request.session_id, error=refused, stderr=str(refused))
        text = take_out_of_fences(request.code) if request.sanitize_input else request.code
        with telemetry.span("execute", request.session_id, **{"code.length": len(text)}) as span:
            call = ExecutionCall(code=text, timeout=request.timeout, transactional=request.transactional)
            result = self.deliver(request.session_id, caller, await self._execute_knowingly(request.session_id, call, caller))
            telemetry.executed(span, result)
        return result

    async def execute_own(
        self, session_id: str, name: str, *arguments: str | int, timeout: float | None = None, caller: Delivered | None = None
    ) -> CodeExecutionResult:
        """Run a cell of the client by its name, and return its result.

        It delivers nothing to the user: the user's next cell reports a loss as well.

        Args:
            session_id: The session.
            name: A module of `cells`.
            arguments: The arguments of its `main`.
            timeout: The time limit in seconds, by default the endpoint's.
            caller: The position that the result's state starts from, by default the latest one delivered for this session.
        """
        checked_session_id(session_id)
        caller = caller or self._delivered_of(session_id).copy()
        call = ExecutionCall(code=own_cell(name, *arguments), timeout=timeout)
        return caller.deliver(await self._execute_knowingly(session_id, call, caller))

    async def execute_by(
        self, session_id: str, caller: Delivered, run: Callable[[], Awaitable[CodeExecutionResult]]
    ) -> CodeExecutionResult:
        """Run a user's cell by a function that uses cells of the client. Return its result with the state for this caller."""
        start = self._continuity.position(session_id)
        result = await run()
        result = self._continuity.conclude(session_id, replace(result, session_id=session_id), start, caller)
        return self.deliver(session_id, caller, result)

    def caller(self, session_id: str) -> Delivered:
        """Return the position of a new caller. It starts after what was delivered to earlier ones."""
        return self._delivered_of(session_id).copy()

    def deliver(self, session_id: str, caller: Delivered, result: CodeExecutionResult) -> CodeExecutionResult:
        """Return the result as its caller gets it. Call this right before handing the result over, with no await in between."""
        told, all_callers = caller.deliver(result), self._delivered_of(session_id)
        if all_callers is not caller and result.record is not None:
            all_callers.meet(result.record)
            all_callers.advance(result.record)
        return told

    def take_back(self, session_id: str, caller: Delivered, result: CodeExecutionResult) -> None:
        """Note that the caller did not get a result, so that what it reported is reported again."""
        for one in (caller, self._delivered_of(session_id)):
            if result.record is not None:
                one.go_back(result.record)

    def _delivered_of(self, session_id: str) -> Delivered:
        delivered = self._delivered.setdefault(session_id, Delivered())
        self._delivered.move_to_end(session_id)
        while len(self._delivered) > _REMEMBERED:
            self._delivered.popitem(last=False)
        return delivered

    @overload
    async def upload_file(self, request: FileUploadRequest, /) -> RemoteFile: ...
    @overload
    async def upload_file(self, session_id: str, name: str, data: bytes | str | Path, /) -> RemoteFile: ...
    async def upload_file(self, request: FileUploadRequest | str, name: str = "", data: bytes | str | Path = b"", /) -> RemoteFile:
        """Write a file into the session's /mnt/data and return its description.

        Args:
            request: A request, or the name of the session.
            name: The file's name, which may have folders in front. They are created.
            data: The content. A Path is sent without reading the file whole.
        """
        if isinstance(request, FileUploadRequest):
            return await self._files.upload(request.session_id, request.file_name, request.file_content)
        return await self._files.upload(request, name, data)

    async def list_files(self, session_id: str, folder: str = "") -> list[RemoteFile]:
        """Return the files in /mnt/data, or in a folder of it."""
        return await self._files.list(session_id, folder)

    async def download_file(self, session_id: str, name: str) -> bytes:
        """Return a file's content.

        Parts of a large file are of one version. If the file keeps changing, ServiceError (`FileChanged`) is raised.
        """
        return await self._files.download(session_id, name)

    async def save_file(self, session_id: str, name: str, path: Path) -> int:
        """Write a file's content to a path on this machine and return its size. A file at that path is replaced whole or not at all."""
        return await self._files.save(session_id, name, path)

    async def delete_file(self, session_id: str, name: str) -> None:
        """Delete a file."""
        await self._files.delete(session_id, name)

    async def reset(self, session_id: str, *, caller: Delivered | None = None) -> None:
        """Clear a session's variables and keep its files. Our own server starts a fresh interpreter, even in the middle of a cell."""
        checked_session_id(session_id)
        if await self._http.offers("reset"):
            entry = decoded(await self._http.request("POST", extensions.RESET_PATH, identifier=session_id), extensions.decode_position)
        else:
            entry = await self._continuity.reset(session_id, lambda mark: own_cell("reset", mark))
        self.note_asked(session_id, caller, *entry)

    def note_asked(self, session_id: str, caller: Delivered | None, ledger: str, position: int) -> None:
        """Note that the caller itself caused an entry of the ledger, by a reset or a rollback. It is not reported to that caller."""
        for one in (caller, self._delivered_of(session_id)):
            if one is not None:
                one.note_asked(ledger, position)

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
        caller: Delivered | None = None,
    ) -> Execution:
        """Start a cell in the background and return its execution. At endpoints without events it delivers everything at its end.

        Args:
            session_id: The session.
            code: The source text.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
            on_input: Answers `input()` while the events are read.
            transactional: Undo the cell if it fails. NotSupportedError is raised at endpoints without checkpoints.
            on_call: Answers host calls while the events are read. NotSupportedError is raised at endpoints without events.
            caller: The position that the result's state starts from.
        """
        checked_session_id(session_id)
        caller = caller or self._delivered_of(session_id)
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
            execution = in_background(session_id, self._tasks.own(self._execute_knowingly(session_id, call, caller)))
            return execution.amending(partial(self.deliver, session_id, caller))
        with telemetry.span("start", session_id, **{"code.length": len(text)}):
            execution = await self._executions.start(session_id, call, caller)
        return execution.answering(on_input, on_call).amending(partial(self.deliver, session_id, caller))

    def execution(
        self, session_id: str, execution_id: str, *, on_input: AnswerInput | None = None, caller: Delivered | None = None
    ) -> Execution:
        """Return an execution that was started earlier, here or by another client.

        Args:
            session_id: The session.
            execution_id: The execution's id.
            on_input: Answers `input()` while the events are read.
            caller: The position that the result's state starts from.
        """
        caller = caller or self._delivered_of(checked_session_id(session_id))
        execution = self._executions.followed(session_id, execution_id, caller).answering(on_input)
        return execution.amending(partial(self.deliver, session_id, caller))

    async def interrupt(self, session_id: str, execution_id: str | None = None) -> None:
        """Interrupt a cell of a session, by default the one that runs now. The cell's result shows what that did."""
        await self._executions.interrupt(checked_session_id(session_id), execution_id)

    async def cancel_quietly(self, execution: Execution) -> None:
        """Interrupt a cell while its call is being cancelled, even if the caller is cancelled once more meanwhile."""
        await self._executions.cancel_quietly(execution)

    async def install(self, session_id: str, *requirements: str, timeout: float = INSTALL_SECONDS) -> CodeExecutionResult:
        """Install packages into a session and return the result. A failed installation changes nothing."""
        return await packages.install(self._http, session_id, requirements, timeout)

    async def uninstall(self, session_id: str, *names: str) -> CodeExecutionResult:
        """Uninstall packages that a session installed and return the result."""
        return await packages.uninstall(self._http, session_id, names)

    async def packages(self, session_id: str) -> list[Package]:
        """Return the packages that a session installed, beside those of its environment."""
        return await packages.listed(self._http, session_id)

    async def isolation(self) -> dict[str, str] | None:
        """Return what separates sessions from their host, part by part, or None if the endpoint does not report it."""
        if not await self._http.offers("isolation"):
            return None
        return decoded(await self._http.request("GET", extensions.ISOLATION_PATH), extensions.decode_isolation)

    async def supports(self, extension: str) -> bool:
        """Return whether the endpoint has an extension of Azure's API, by its name."""
        return await self._http.offers(extension)

    async def get_session(self, session_id: str) -> SessionInfo:
        """Return what the service knows of a session. Raise NotFoundError if it has none."""
        self._require_sessions()
        return decoded(await self._http.request("GET", flat.SESSION_PATH, identifier=session_id), flat.decode_session)

    async def delete_session(self, session_id: str, *, expired: bool = False) -> None:
        """End a session at the service. With `expired` its next caller gets the reason `expired` for the loss."""
        self._require_sessions()
        headers = {extensions.CAUSE_HEADER: "expired"} if expired else {}
        try:
            await self._http.request("DELETE", flat.SESSION_PATH, identifier=session_id, headers=headers)
        except NotFoundError:
            self._note_ended(session_id, expired=expired)
            raise
        self._note_ended(session_id, expired=expired)

    def _note_ended(self, session_id: str, *, expired: bool) -> None:
        if expired:
            self._continuity.note_lost(session_id, "expired", with_files=True)
        else:
            self._continuity.forget(session_id)
            self._delivered.pop(session_id, None)

    async def list_sessions(self) -> list[SessionInfo]:
        """Return the sessions that the service keeps. Raise NotSupportedError if the api-version cannot list them."""
        self._require_sessions()
        found: dict[str, SessionInfo] = {}
        while page := await self._sessions_after(len(found)):
            if found.keys() >= page.keys():  # a service that ignores `skip` answers with the same sessions again
                break
            found |= page
        return [*found.values()]

    async def _sessions_after(self, skip: int) -> dict[str, SessionInfo]:
        query, rich = {"skip": str(skip)} if skip else None, {extensions.RICH_REQUEST_HEADER: "1"}
        response = await self._http.request("GET", flat.SESSIONS_PATH, query=query, headers=rich)
        return {info.session_id: info for info in decoded(response, flat.decode_sessions)}

    @property
    def is_closed(self) -> bool:
        """Return whether its connections are closed. If they are, an embedded server and its sessions have ended."""
        return self._http.is_closed

    @property
    def can_end_sessions(self) -> bool:
        """Return whether the api-version can end sessions. With earlier ones they only expire."""
        return self._version.has_sessions

    def _require_sessions(self) -> None:
        if not self._version.has_sessions:
            raise NotSupportedError(f"{self._version.name} cannot list or end sessions: use 2025-02-02-preview or later")

    async def close(self) -> None:
        """Close the connections. Sessions stay at the service until they expire; those of an embedded server end."""
        await self._tasks.cancel()
        await self._executions.close()
        await self.timeline.close()
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _execute_knowingly(self, session_id: str, call: ExecutionCall, caller: Delivered) -> CodeExecutionResult:
        """Run a cell and return its result with the ledger's record. Our own server keeps the ledger; elsewhere the client does."""
        if call.transactional:
            await self._http.require("checkpoint", "run a transactional cell")
        if await self._http.offers("rich"):
            return await self._executions.run(session_id, call, caller)
        return await self._continuity.execute(session_id, lambda: self._executions.run(session_id, call), caller)

    async def _run_our_own(self, session_id: str, code: str) -> CodeExecutionResult:
        return await self._executions.run(session_id, ExecutionCall(code=code))


def _answered(on_input: AnswerInput | None, on_call: AnswerCall | None) -> tuple[str, ...]:
    answers = {"input": on_input, "call": on_call}
    return tuple(kind for kind, answer in answers.items() if answer is not None)
