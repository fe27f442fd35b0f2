"""Run cells and transfer files in an endpoint's sessions.

Code that fails gives a result with an error. All other failures raise exceptions.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, overload

from .. import telemetry
from ..contract import extensions, flat
from ..contract.records import ExecutionRequest
from ..contract.versions import VERSIONS
from ..errors import ACASessionsError, NotFoundError, NotSupportedError
from ..ledger import CallerPosition
from ..lifetime import Tasks
from ..models import (
    Checkpoint,
    CodeExecutionRequest,
    CodeExecutionResult,
    FileUploadRequest,
    Package,
    Record,
    RemoteFile,
    SavedSession,
    SessionInfo,
)
from ..network.denials import OnDenied
from ..network.given import GivenNetwork
from ..network.rules import Network
from .arguments import (
    check_trust,
    checked_install_timeout,
    checked_names,
    checked_requirements,
    checked_session_id,
    checked_timeout,
    invalid_code_error,
)
from .arguments import sanitize as take_out_of_fences
from .executions import AnswerCall, AnswerInput, Execution, Executions, background_execution, ended_execution, extension_headers
from .files import SessionFiles
from .history import UploadStep
from .http import Response, SessionsHttpClient, decode_response, shown_endpoint
from .session_ledgers import SessionLedgers
from .snippets import snippet

if TYPE_CHECKING:
    from .exports import Exports

INSTALL_SECONDS = 200.0
_INSTALL_MARGIN = 220.0  # seconds: the session may still run a cell when the packages are there
_SAVE_SECONDS = 330.0  # a little more than the server allows
_REMEMBERED = 10_000
# Not worth the variables if they do not end when cancelled.
_GENTLE_SNIPPETS = frozenset({"add_import_folder", "complete", "health", "inspect", "variables"})


class CodeInterpreter:
    """A client that runs cells and transfers files in any session of an endpoint.

    Each result reports which variables and files its session lost since the caller's previous result. All calls without the argument
    `caller` count as one caller. Each `Session` object counts as another.
    """

    def __init__(self, http: SessionsHttpClient, *, verify_after: float = 200.0) -> None:
        """Create a client over an HTTP client. `close` closes the HTTP client too.

        Args:
            http: The client of the endpoint.
            verify_after: If a session was not used for this many seconds, check before its next cell that the service has not replaced it
                by an empty one. Only endpoints that keep no ledger, such as Azure, need this.
        """
        self._http = http
        self._shown_endpoint = shown_endpoint(http._base.rstrip("/"))
        self._version = VERSIONS[http.api_version]
        self._tasks = Tasks()
        self._executions = Executions(http, self._version)
        self._files = SessionFiles(http, self._version)
        self._ledgers = SessionLedgers(self._run_own_cell, verify_after=verify_after)
        self._delivered: OrderedDict[str, CallerPosition] = OrderedDict()
        http.on_session = self._ledgers.record_instance

    @overload
    async def execute(self, request: CodeExecutionRequest, /) -> CodeExecutionResult: ...
    @overload
    async def execute(
        self, session_id: str, code: str, /, *, timeout: float | None = None, sanitize: bool = True
    ) -> CodeExecutionResult: ...
    async def execute(
        self, request: CodeExecutionRequest | str, code: str = "", /, *, timeout: float | None = None, sanitize: bool = True
    ) -> CodeExecutionResult:
        """Run a cell and return its result. A cell that fails raises nothing: its result has an `error`, and the session stays usable.

        Cancelling the call interrupts the cell, if the endpoint can interrupt cells. At other endpoints, such as Azure, the cell continues.

        Args:
            request: A request, or the name of the session.
            code: The source text, if `request` is a name.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
        """
        if isinstance(request, str):
            request = CodeExecutionRequest(session_id=request, code=code, timeout=timeout, sanitize_input=sanitize)
        return await self._execute_for(self._position_of(checked_session_id(request.session_id)), request)

    async def _execute_for(
        self, caller: CallerPosition, request: CodeExecutionRequest, on_denied: OnDenied | None = None
    ) -> CodeExecutionResult:
        """Run a cell like `execute`, for one of several callers of its session.

        `caller` is the caller's position in the session's ledger (the list of what happened to the session). The result's `state` reports
        what happened after that position. `on_denied` decides about refused requests.
        """
        if request.timeout is not None:
            checked_timeout(request.timeout)
        refused = invalid_code_error(request.code)
        if refused is not None:
            return CodeExecutionResult(session_id=request.session_id, error=refused, stderr=str(refused))
        text = take_out_of_fences(request.code) if request.sanitize_input else request.code
        with telemetry.span("execute", request.session_id, **{"code.length": len(text)}) as span:
            answered = _answered_kinds(None, None, on_denied)
            call = ExecutionRequest(code=text, timeout=request.timeout, answered=answered, transactional=request.transactional)
            result = self._deliver(request.session_id, caller, await self._execute(request.session_id, call, caller, on_denied))
            telemetry.record_client_execution(span, result)
        return result

    async def _execute_snippet(
        self, session_id: str, name: str, *arguments: str | int, timeout: float | None = None, caller: CallerPosition | None = None
    ) -> CodeExecutionResult:
        """Run a snippet, a cell that the client sends for one of its own features, and return its result.

        If this result reports lost variables or files, the user's next cell reports them too, because the user does not get this result.

        Args:
            session_id: The session.
            name: The name of a function in the module `snippets`.
            arguments: The arguments of that function after its first, `user`, which the session adds.
            timeout: The time limit in seconds, by default the endpoint's.
            caller: A position in the session's ledger. The result's `state` reports what happened after it. By default, it is the position
                of the last result that this client delivered for the session.
        """
        checked_session_id(session_id)
        caller = caller or replace(self._position_of(session_id))
        call = ExecutionRequest(code=snippet(name, *arguments), timeout=timeout, gentle=name in _GENTLE_SNIPPETS)
        return caller.deliver(await self._execute(session_id, call, caller))

    async def _execute_with(
        self, session_id: str, caller: CallerPosition, run: Callable[[], Awaitable[CodeExecutionResult]]
    ) -> CodeExecutionResult:
        """Run a user's cell by calling `run`, and return its result.

        `run` sends the cell by several snippets (cells that the client writes itself).

        `caller` is the caller's position in the session's ledger (the list of what happened to the session). The result's `state` reports
        what happened after that position.
        """
        start = self._ledgers.position_of(session_id)
        result = await run()
        result = self._ledgers.complete_result(session_id, replace(result, session_id=session_id), start, caller)
        return self._deliver(session_id, caller, result)

    def _new_position(self, session_id: str) -> CallerPosition:
        """Create a new caller's position in a session's ledger, after the last result that this client delivered for the session.

        A ledger is the list of what happened to a session. The new caller's results report only what happens after that position.
        """
        return replace(self._position_of(session_id))

    def _deliver(self, session_id: str, caller: CallerPosition, result: CodeExecutionResult) -> CodeExecutionResult:
        """Return the result with its `state` set to what happened to the session since the last result that `caller` received.

        Also move the caller's position in the ledger to the end of this result. Return the result to the caller right after this, without
        an await: a caller that is cancelled in between would miss the state.
        """
        delivered = caller.deliver(result)
        if result.record is not None and (all_callers := self._position_of(session_id)) is not caller:
            all_callers.advance(result.record)
        return delivered

    def _undo_delivery(self, session_id: str, caller: CallerPosition, result: CodeExecutionResult) -> None:
        """Undo `_deliver` for a result that did not reach its caller. The next result then reports again what the session lost."""
        for one in (caller, self._position_of(session_id)):
            if result.record is not None:
                one.undo_delivery(result.record)

    def _position_of(self, session_id: str) -> CallerPosition:
        delivered = self._delivered.get(session_id)
        if delivered is None:
            delivered = self._delivered[session_id] = CallerPosition()
            if len(self._delivered) > _REMEMBERED:
                self._delivered.popitem(last=False)
        self._delivered.move_to_end(session_id)
        return delivered

    @overload
    async def upload_file(self, request: FileUploadRequest, /) -> RemoteFile: ...
    @overload
    async def upload_file(self, session_id: str, name: str, data: bytes | str | Path, /) -> RemoteFile: ...
    async def upload_file(self, request: FileUploadRequest | str, name: str = "", data: bytes | str | Path = b"", /) -> RemoteFile:
        """Write a file into the session's /mnt/data and return its description.

        Args:
            request: A request, or the name of the session.
            name: The file's name, which may have folders in front. The folders are created.
            data: The content, or the Path of a file on this machine, which is sent without being read into memory whole.
        """
        if isinstance(request, FileUploadRequest):
            remote_file, _ = await self._upload(request.session_id, request.file_name, request.file_content)
        else:
            remote_file, _ = await self._upload(request, name, data)
        return remote_file

    async def _upload(self, session_id: str, name: str, data: bytes | str | Path) -> tuple[RemoteFile, UploadStep]:
        return await self._files.upload(session_id, name, data)

    async def list_files(self, session_id: str, folder: str = "") -> list[RemoteFile]:
        """Return the files and folders directly in /mnt/data of a session, or in a folder of it."""
        return await self._files.list(session_id, folder)

    async def download_file(self, session_id: str, name: str) -> bytes:
        """Return a file's content.

        A large file is read in parts, which all belong to one version of the file. Raise ServiceError (`FileChanged`) if the file keeps
        changing.
        """
        return await self._files.download(session_id, name)

    async def save_file(self, session_id: str, name: str, path: Path) -> int:
        """Copy a file of a session to this machine and return its size in bytes. If that fails, a file at the path stays as it was.

        Args:
            session_id: The identifier of the session.
            name: The path of the file in the session, relative to /mnt/data.
            path: The path on this machine.
        """
        return await self._files.save(session_id, name, path)

    async def delete_file(self, session_id: str, name: str) -> None:
        """Delete a file in the session's /mnt/data."""
        await self._files.delete(session_id, name)

    async def _set_network(self, session_id: str, network: Network) -> GivenNetwork:
        """Give a network to a session, and return the object that the client keeps for it until it ends the session."""
        return await self._http._networks.give(checked_session_id(session_id), GivenNetwork(network))

    def _use_network(self, session_id: str, given: GivenNetwork | None) -> None:
        """Name a network in the current task's requests about a session, unless this client has given it another network since."""
        self._http._networks.own.set((session_id, given))

    def _network_of(self, session_id: str) -> GivenNetwork | None:
        """Return the network that this client gave to a session, or None."""
        return self._http._networks.known.get(session_id)

    def _share_network(self, session_id: str, branches: Sequence[str]) -> None:
        """Name the network of a session also in requests about its branches."""
        if (network := self._http._networks.find(session_id)) is not None:
            for branch in branches:
                self._http._networks.remember(branch, network)

    async def reset(self, session_id: str, *, caller: CallerPosition | None = None) -> None:
        """Clear a session's variables and keep its files.

        A server of this package starts a fresh interpreter, even while a cell runs. Other endpoints run a cell that clears the variables.
        """
        checked_session_id(session_id)
        if await self._http.offers("reset"):
            entry = decode_response(
                await self._http.request("POST", extensions.RESET_PATH, identifier=session_id), extensions.decode_position
            )
        else:
            entry = await self._ledgers.reset(session_id, lambda mark: snippet("reset", mark))
        self._add_requested(session_id, caller, *entry)

    def _add_requested(self, session_id: str, caller: CallerPosition | None, ledger: str, position: int) -> None:
        """Remember that the caller asked for a reset or rollback, so that its results do not report lost variables because of it.

        `ledger` is the id of the session's ledger, and `position` the number of its entry about the reset or rollback.
        """
        for one in (caller, self._position_of(session_id)):
            if one is not None:
                one.add_requested(ledger, position)

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
        on_denied: OnDenied | None = None,
        caller: CallerPosition | None = None,
    ) -> Execution:
        """Start a cell in the background and return a handle to its execution.

        If the endpoint does not offer events, all events arrive when the cell has ended.

        Args:
            session_id: The session.
            code: The source text.
            timeout: The time limit in seconds, by default the endpoint's.
            sanitize: Take the code out of Markdown fences.
            on_input: Answers `input()` while the events are read.
            transactional: Undo the cell if it fails. NotSupportedError is raised at endpoints without checkpoints.
            on_call: Answers host calls while the events are read. NotSupportedError is raised at endpoints without events.
            on_denied: Decides about requests that the rules of the session's network refuse, while the events are read. It gets a `Denial`
                and returns `"once"`, `"always"`, or None to refuse it.
            caller: A position in the session's ledger. The result's `state` reports what happened after it. By default, it is the position
                of the last result that this client delivered for the session.
        """
        checked_session_id(session_id)
        caller = caller or self._position_of(session_id)
        checked_timeout(timeout)
        refused = invalid_code_error(code)
        if refused is not None:
            return ended_execution(CodeExecutionResult(session_id=session_id, error=refused, stderr=str(refused)))
        text = take_out_of_fences(code) if sanitize else code
        answered = _answered_kinds(on_input, on_call, on_denied)
        call = ExecutionRequest(code=text, timeout=timeout, answered=answered, transactional=transactional)
        if on_call is not None:
            await self._http.require("events", "answer host calls")
        if not await self._http.offers("events"):
            execution = background_execution(session_id, self._tasks.start_awaited(self._execute(session_id, call, caller)))
            return execution.amending(partial(self._deliver, session_id, caller))
        with telemetry.span("start", session_id, **{"code.length": len(text)}):
            execution = await self._executions.start(session_id, call, caller)
        return execution.answering(on_input, on_call, on_denied).amending(partial(self._deliver, session_id, caller))

    def execution(
        self,
        session_id: str,
        execution_id: str,
        *,
        on_input: AnswerInput | None = None,
        on_denied: OnDenied | None = None,
        caller: CallerPosition | None = None,
    ) -> Execution:
        """Create a handle to an execution that this or another client started earlier, without sending a request.

        Args:
            session_id: The session.
            execution_id: The execution's id.
            on_input: Answers `input()` while the events are read.
            on_denied: Decides about refused requests while the events are read.
            caller: A position in the session's ledger. The result's `state` reports what happened after it. By default, it is the position
                of the last result that this client delivered for the session.
        """
        caller = caller or self._position_of(checked_session_id(session_id))
        execution = self._executions.open_handle(session_id, execution_id, caller).answering(on_input, None, on_denied)
        return execution.amending(partial(self._deliver, session_id, caller))

    async def interrupt(self, session_id: str, execution_id: str | None = None) -> None:
        """Interrupt a cell of a session, by default the one that runs now. The result of that cell shows whether the interrupt stopped it.

        Raise NotSupportedError if the endpoint cannot interrupt cells.
        """
        await self._executions.interrupt(checked_session_id(session_id), execution_id)

    async def _cancel_quietly(self, execution: Execution) -> None:
        """Interrupt an execution whose caller was cancelled. Ignore errors.

        Try for at most 10 s, even if the caller is cancelled again.
        """
        await self._executions.cancel_quietly(execution)

    async def install(self, session_id: str, *requirements: str, timeout: float = INSTALL_SECONDS) -> CodeExecutionResult:
        """Install packages into a session and return the result. The server fetches them. An installation that fails changes nothing.

        Raise NotSupportedError if the endpoint does not fetch packages for its sessions.

        Args:
            session_id: The identifier of the session.
            *requirements: The packages, such as `humanize` or `humanize>=4`.
            timeout: The time limit in seconds, at most 3600.
        """
        checked_requirements(requirements)
        checked_install_timeout(timeout)
        await self._http.require("packages", "fetch packages for sessions")
        await self._http._networks.prepare(session_id)
        with telemetry.span("install", checked_session_id(session_id), requirements=len(requirements)):
            response = await self._http.request(
                "POST",
                extensions.PACKAGES_PATH,
                identifier=session_id,
                json=extensions.encode_install_request(requirements, timeout),
                timeout=timeout + _INSTALL_MARGIN,
            )
        return replace(decode_response(response, extensions.decode_package_result), session_id=session_id)

    async def uninstall(self, session_id: str, *names: str) -> CodeExecutionResult:
        """Uninstall packages that were installed in a session and return the result.

        Raise NotSupportedError if the endpoint cannot uninstall packages.
        """
        query = {"names": ",".join(checked_names(names))}
        await self._http.require("packages", "uninstall packages")
        path = extensions.PACKAGES_PATH
        response = await self._http.request("DELETE", path, identifier=session_id, query=query, timeout=_INSTALL_MARGIN)
        return replace(decode_response(response, extensions.decode_package_result), session_id=session_id)

    async def packages(self, session_id: str) -> list[Package]:
        """Return the packages that were installed in a session, in addition to those of its environment.

        Raise NotSupportedError if the endpoint cannot list them.
        """
        await self._http.require("packages", "list installed packages")
        response = await self._http.request("GET", extensions.PACKAGES_PATH, identifier=session_id)
        return decode_response(response, extensions.decode_packages)

    async def checkpoint(self, session_id: str, name: str | None, *, durable: bool = False) -> Checkpoint:
        """Take a checkpoint of a session and return it.

        Raise SnapshotError, which names the obstacle, if no checkpoint can be taken now.

        Args:
            session_id: The session.
            name: A name for it, or None.
            durable: Save it in the store of the service, too. NotSupportedError is raised if the service has none.
        """
        if durable:
            await self._require_store()
        body = {"name": name, **({"durable": True} if durable else {})}
        response = await self._request_checkpoints("POST", extensions.CHECKPOINTS_PATH, session_id, body)
        return decode_response(response, extensions.decode_checkpoint)

    async def checkpoints(self, session_id: str) -> list[Checkpoint]:
        """Return a session's checkpoints, the oldest first."""
        return decode_response(
            await self._request_checkpoints("GET", extensions.CHECKPOINTS_PATH, session_id), extensions.decode_checkpoints
        )

    async def _roll_back(self, session_id: str, caller: CallerPosition, *, id: str | None, name: str | None) -> Checkpoint:
        """Roll a session back to the checkpoint with this name or id, or to the latest if neither is given. Return the checkpoint.

        Args:
            session_id: The session.
            caller: The caller that asks for the rollback. Its results do not report the rollback.
            id: The id of a checkpoint.
            name: The name of a checkpoint. If a checkpoint has this name and another one has that id, the one with the name is used.
        """
        response = await self._request_checkpoints("POST", extensions.ROLLBACK_PATH, session_id, {"id": id, "name": name})
        reached = decode_response(response, extensions.decode_checkpoint)
        if "position" in decode_response(response, dict):  # else the next result reports it, with what is missing
            self._add_requested(session_id, caller, *decode_response(response, extensions.decode_position))
        return reached

    async def save(self, session_id: str) -> SavedSession:
        """Save a session in the store of its service, and return what was saved.

        Raise SnapshotError if it cannot be saved, and NotSupportedError if the service has no store.
        """
        await self._require_store()
        response = await self._http.request("POST", extensions.SAVE_PATH, identifier=session_id, timeout=_SAVE_SECONDS)
        return decode_response(response, extensions.decode_saved)

    async def saved(self) -> list[SavedSession]:
        """Return the saved sessions of the service, the oldest first. Raise NotSupportedError if the service has no store."""
        await self._require_store()
        response = await self._http.request("GET", extensions.SAVED_PATH)
        return decode_response(response, extensions.decode_saved_list)

    async def forget(self, session_id: str) -> None:
        """Delete the saves of a session. The session itself goes on, if there is one. Raise NotFoundError if there are no saves."""
        await self._require_store()
        await self._http.request("DELETE", extensions.SAVE_PATH, identifier=session_id)

    @cached_property
    def _exports(self) -> "Exports":
        from .exports import Exports  # only now: most programs move no session

        return Exports(self)

    async def export(self, session_id: str, path: str | Path) -> SavedSession:
        """Write a session into a file, which can be imported at another endpoint, and return what it has: see `Session.export`."""
        return await self._exports.export(session_id, Path(path), self._position_of(checked_session_id(session_id)))

    async def import_(self, path: str | Path, session_id: str, *, trust: bool = False) -> SavedSession:
        """Begin a session from a file that `export` wrote, and return what was restored: see `SessionPool.import_`.

        Args:
            path: The file.
            session_id: The name of the new session.
            trust: Whether you trust where the file is from. Restoring runs its code, in the sandbox of the new session.
        """
        check_trust(trust)
        saved, _ = await self._exports.import_(session_id, Path(path))
        return saved

    async def _require_store(self) -> None:
        if not await self._http.offers("save"):
            raise NotSupportedError(
                "this endpoint has no store, so sessions cannot be saved: set ACASessions:Durable:Store, or start the server with --store"
            )

    async def delete_checkpoint(self, session_id: str, id: str) -> None:
        """Remove a checkpoint of a session. The session itself stays as it is."""
        await self._request_checkpoints("DELETE", extensions.CHECKPOINT_PATH.format(id=id), session_id)

    async def _branch(
        self, session_id: str, identifiers: Sequence[str], caller: CallerPosition, *, reseed: bool
    ) -> tuple[Record, dict[str, str]]:
        """Create branches of a session, one for each of `identifiers`. Either all are created, or none.

        Return the entries of the session's ledger (the list of what happened to it) after the position of `caller`. Also return for each
        branch the position at which its own ledger begins, as `ledger:number`.
        """
        body = {"identifiers": list(identifiers), "reseed": reseed}
        try:
            response = await self._request_checkpoints("POST", extensions.BRANCHES_PATH, session_id, body, extension_headers(caller))
            return decode_response(response, extensions.decode_branch_response)
        # A cancelled call, or one whose answer was lost, may have made the branches. No caller knows of them, so they are ended.
        except BaseException:
            self._tasks.start(self._end_branches(session_id, identifiers))
            raise

    async def _end_branches(self, session_id: str, identifiers: Sequence[str]) -> None:
        with contextlib.suppress(ACASessionsError):
            # The service may still be making them. Requests about the session wait for that, so this one returns afterwards.
            await self.checkpoints(session_id)
        for identifier in identifiers:
            with contextlib.suppress(ACASessionsError):
                await self._http.request("DELETE", flat.SESSION_PATH, identifier=identifier)

    async def _request_checkpoints(
        self, method: str, path: str, session_id: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Response:
        await self._http.require("checkpoint", "take checkpoints")
        return await self._http.request(method, path, identifier=session_id, json=body, headers=headers, timeout=_SAVE_SECONDS)

    async def isolation(self) -> dict[str, str] | None:
        """Return a text for each part of the sessions' isolation, such as `network` or `seccomp`: how the service has checked it.

        The text for a part that is not enforced begins with `NOT ENFORCED: `. Return None if the endpoint does not report its isolation.
        """
        if not await self._http.offers("isolation"):
            return None
        return decode_response(await self._http.request("GET", extensions.ISOLATION_PATH), extensions.decode_isolation)

    async def supports(self, extension: str) -> bool:
        """Return whether the endpoint has an extension of Azure's API, given the extension's name, such as `checkpoint`."""
        return await self._http.offers(extension)

    async def get_session(self, session_id: str) -> SessionInfo:
        """Return the service's description of a session. Raise NotFoundError if there is no such session."""
        self._require_sessions()
        rich = {extensions.RICH_REQUEST_HEADER: "1"}
        return decode_response(await self._http.request("GET", flat.SESSION_PATH, identifier=session_id, headers=rich), flat.decode_session)

    async def delete_session(self, session_id: str, *, expired: bool = False, saved: bool = False) -> None:
        """End a session at the service.

        Raise NotFoundError if the session does not exist, and NotSupportedError if the api-version cannot end sessions.

        Args:
            session_id: The session.
            expired: Whether it ends because it was idle. Callers that continue to use it find the reason in their next result:
                `expired`, or else `terminated`.
            saved: Whether a service with a store saves the session first. It does so for a session that is idle, too. Otherwise it deletes
                the saves of the session.
        """
        self._require_sessions()
        headers = {extensions.CAUSE_HEADER: "expired" if expired else "closed"} if expired or saved else {}
        try:
            await self._http.request("DELETE", flat.SESSION_PATH, identifier=session_id, headers=headers)
        except NotFoundError:
            self._note_ended(session_id, expired=expired)
            raise
        self._note_ended(session_id, expired=expired)

    def _note_ended(self, session_id: str, *, expired: bool) -> None:
        self._http._networks.known.pop(session_id, None)
        if expired:
            self._ledgers.record_loss(session_id, "expired", with_files=True)
        else:
            self._ledgers.record_end(session_id)
            self._delivered.pop(session_id, None)

    async def list_sessions(self) -> list[SessionInfo]:
        """Return the sessions that exist at the service. Raise NotSupportedError if the api-version cannot list them."""
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
        return {info.session_id: info for info in decode_response(response, flat.decode_sessions)}

    @property
    def is_closed(self) -> bool:
        """Return whether this client is closed."""
        return self._http.is_closed

    @property
    def can_end_sessions(self) -> bool:
        """Return whether the api-version can list and end sessions. With earlier versions, sessions end only by expiry."""
        return self._version.has_sessions

    def _require_sessions(self) -> None:
        if not self._version.has_sessions:
            raise NotSupportedError(
                f"api-version {self._version.name} cannot list or end sessions: set ACASessions:SessionsHttpClient:ApiVersion to "
                "2025-02-02-preview or later"
            )

    async def close(self) -> None:
        """Cancel background tasks and close the connections.

        Sessions stay at the service until they expire. An embedded server, one that runs in this process, ends with the block that opened
        this client.
        """
        await self._tasks.cancel()
        await self._executions.close()
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _execute(
        self, session_id: str, call: ExecutionRequest, caller: CallerPosition, on_denied: OnDenied | None = None
    ) -> CodeExecutionResult:
        """Run a cell and return its result with the entries of the session's ledger that are new to `caller`.

        A ledger is the list of what happened to a session. This client keeps it if the endpoint does not.
        """
        if call.transactional:
            await self._http.require("checkpoint", "run a transactional cell")
        if await self._http.offers("rich"):
            return await self._executions.run(session_id, call, caller, on_denied=on_denied)
        return await self._ledgers.run_cell(session_id, lambda: self._executions.run(session_id, call), caller)

    async def _run_own_cell(self, session_id: str, code: str) -> CodeExecutionResult:
        return await self._executions.run(session_id, ExecutionRequest(code=code))


def _answered_kinds(on_input: AnswerInput | None, on_call: AnswerCall | None, on_denied: OnDenied | None) -> tuple[str, ...]:
    answers = {"input": on_input, "call": on_call, "network": on_denied}
    return tuple(kind for kind, answer in answers.items() if answer is not None)
