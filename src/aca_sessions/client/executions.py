"""The executions of an endpoint: start each once, ask for its result after a lost answer, follow and interrupt it."""

import asyncio
import contextlib
import uuid
from dataclasses import replace

from ..contract import events, extensions, flat, timeline
from ..contract.records import MAX_SYNCHRONOUS_SECONDS, ExecutionCall
from ..contract.records import Execution as Record
from ..contract.versions import Version
from ..errors import ACASessionsError, NotSupportedError, ServiceError, ServiceUnavailableError
from ..models import NO_REPLY, CodeError, CodeExecutionResult
from ..tasks import Tasks
from .delivered import Delivered
from .execution import Execution, Page, ended, events_of
from .http import Response, SessionsHttpClient, decoded

_OUTPUT_LIMIT = 1 << 20  # characters of each stream; Azure cuts at 4096 unless a request sets a limit
ANSWER_MARGIN = 30.0  # an answer may come this much later than the cell's time limit
DEFAULT_WAIT = MAX_SYNCHRONOUS_SECONDS + ANSWER_MARGIN
_CANCEL_SECONDS = 10.0  # how long a cancelled call waits for the endpoint to take the interrupt
_FIRST_POLL, _SLOWEST_POLL = 0.05, 2.0
_GATEWAY = (502, 504)
_GONE = 410
_RICH = {extensions.RICH_REQUEST_HEADER: "1"}


class Executions:
    """The executions of one client, in one api-version."""

    def __init__(self, http: SessionsHttpClient, version: Version) -> None:
        self._http = http
        self._version = version
        self._dialect = version.dialect
        self._tasks = Tasks()

    async def run(self, session_id: str, call: ExecutionCall, caller: Delivered | None = None) -> CodeExecutionResult:
        """Run a cell and return its result. Cancelling the call interrupts the cell, if the endpoint can interrupt cells.

        Args:
            session_id: The session.
            call: The cell and its limits.
            caller: The caller's position in the session's ledger. The result reports what happened since then.
        """
        caller = caller or Delivered()
        id = str(uuid.uuid4())
        call = self._checked(call, asynchronous=call.timeout is not None and call.timeout > MAX_SYNCHRONOUS_SECONDS)
        try:
            record = await self._send(session_id, id, call, caller)
            while record.result is None:
                record = await self._poll(session_id, record.id, caller)
        except asyncio.CancelledError:
            await self.cancel_quietly(self.followed(session_id, id, caller))
            raise
        return record.result if record.result.session_id == session_id else replace(record.result, session_id=session_id)

    async def start(self, session_id: str, call: ExecutionCall, caller: Delivered) -> Execution:
        """Start a cell that runs in the background and return its execution.

        Raise NotSupportedError if the api-version has no asynchronous executions.
        """
        id = str(uuid.uuid4())
        try:
            record = await self._send(session_id, id, self._checked(call, asynchronous=True), caller)
        except asyncio.CancelledError:
            await self.cancel_quietly(self.followed(session_id, id, caller))
            raise
        return self.followed(session_id, id, caller) if record.result is None else ended(replace(record.result, session_id=session_id))

    def followed(self, session_id: str, id: str, caller: Delivered) -> Execution:
        """Return the handle of an execution that was started earlier, by its id."""
        return Execution(
            id=id,
            session_id=session_id,
            _page=lambda after: self._page(session_id, id, after, caller),
            _interrupt=lambda: self.interrupt(session_id, id),
            _reply=lambda number, text: self._reply(session_id, id, events.encode_reply(number, text)),
            _reply_and_read=lambda number, text, after: self._reply_and_read(
                session_id, id, events.encode_reply(number, text), after, caller
            ),
        )

    async def interrupt(self, session_id: str, id: str | None) -> None:
        """Interrupt a cell, by default the one that runs now. Its result shows what that did.

        Raise NotSupportedError if the endpoint cannot interrupt cells.
        """
        await self._http.require("interrupt", "interrupt a cell")
        path = extensions.INTERRUPT_SESSION_PATH if id is None else extensions.INTERRUPT_PATH.format(id=id)
        await self._http.request("POST", path, identifier=session_id)

    async def cancel_quietly(self, execution: Execution) -> None:
        """Interrupt a cell while its call is being cancelled, even if the caller is cancelled once more meanwhile. Errors are ignored."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks.to_its_end(_try_to_cancel(execution))

    async def close(self) -> None:
        """Wait for the requests in progress."""
        await self._tasks.finish()

    def _checked(self, call: ExecutionCall, *, asynchronous: bool) -> ExecutionCall:
        """Return the call with its mode.

        Raise NotSupportedError if the api-version has no asynchronous executions, which longer cells need.
        """
        if asynchronous and not self._dialect.HAS_EXECUTIONS:
            raise NotSupportedError(f"{self._version.name} runs no cell longer than {MAX_SYNCHRONOUS_SECONDS:g} s: use a later ApiVersion")
        return replace(call, asynchronous=asynchronous, output_limit=_OUTPUT_LIMIT)

    async def _send(self, session_id: str, id: str, call: ExecutionCall, caller: Delivered) -> Record:
        """Send a cell once.

        A cell that may have run is never sent again. After a lost answer the service is asked for the execution by its id, which the client
        chose.
        """
        wait = DEFAULT_WAIT if call.timeout is None else call.timeout + ANSWER_MARGIN
        ours = {events.ANSWERED_HEADER: events.encode_answered(call.answered), timeline.TRANSACTIONAL_HEADER: "1" * call.transactional}
        headers = {flat.OPERATION_HEADER: id, **_rich(caller), **{name: said for name, said in ours.items() if said}}
        path, body = self._dialect.EXECUTE_PATH, self._dialect.encode_call(call)
        try:
            response = await self._http.request("POST", path, identifier=session_id, headers=headers, json=body, timeout=wait)
        except (ServiceUnavailableError, ServiceError) as error:
            if not _may_have_run(error):
                raise
            return await self._after_lost_answer(session_id, id, caller)
        return self._record(response, session_id, id)

    async def _after_lost_answer(self, session_id: str, id: str, caller: Delivered) -> Record:
        """Ask for an execution whose answer was lost.

        If the service cannot be asked or does not know it, return a result without a reply.
        """
        try:
            if not self._dialect.HAS_EXECUTIONS:
                raise NotSupportedError("this api-version has no executions to ask for")
            return await self._ask(session_id, id, caller)
        except ACASessionsError as error:
            return Record(id=id, identifier=session_id, status="Failed", result=_lost_answer(session_id, error))

    async def _poll(self, session_id: str, id: str, caller: Delivered) -> Record:
        """Ask until there is a result. If the server becomes unreachable, the result is `unknown`: the cell may have run or not."""
        wait = _FIRST_POLL
        try:
            while (record := await self._ask(session_id, id, caller)).result is None:
                await asyncio.sleep(wait)
                wait = min(wait * 1.5, _SLOWEST_POLL)
        except (ServiceUnavailableError, ServiceError) as error:
            return Record(id=id, identifier=session_id, status="Failed", result=_lost_answer(session_id, error))
        return record

    async def _ask(self, session_id: str, id: str, caller: Delivered) -> Record:
        path = f"{self._dialect.EXECUTE_PATH}/{id}"
        response = await self._http.request("GET", path, identifier=session_id, headers=_rich(caller))
        return self._record(response, session_id, id)

    async def _page(self, session_id: str, id: str, after: int, caller: Delivered) -> Page:
        """Return the next events. If the endpoint has no events, poll for the whole result instead."""
        try:
            if not await self._http.offers("events"):
                result = (await self._poll(session_id, id, caller)).result or _lost_answer(session_id)
                return ([] if after else events_of(result)), after, replace(result, session_id=session_id)
            query = {"after": str(after), "wait": str(events.LONGEST_POLL)}
            path, wait = events.EVENTS_PATH.format(id=id), events.LONGEST_POLL + ANSWER_MARGIN
            response = await self._http.request("GET", path, identifier=session_id, query=query, headers=_rich(caller), timeout=wait)
        except (ServiceUnavailableError, ServiceError) as error:
            return [], after, _lost_answer(session_id, error)
        return decoded(response, lambda body: self._decoded_page(body, session_id))

    def _decoded_page(self, body: dict[str, object], session_id: str) -> Page:
        found, last = events.decode_events(body)
        member = body.get(events.EXECUTION_MEMBER)
        result = self._dialect.decode_execution(member).result if isinstance(member, dict) else None
        return found, last, replace(result, session_id=session_id) if result else None

    async def _reply_and_read(self, session_id: str, id: str, reply: dict[str, object], after: int, caller: Delivered) -> Page:
        """Reply and read the next events in one request. If it fails, only read: reading can be repeated, replying cannot."""
        query = {"after": str(after), "wait": str(events.LONGEST_POLL)}
        path, wait = events.REPLIES_PATH.format(id=id), events.LONGEST_POLL + ANSWER_MARGIN
        try:
            headers = _rich(caller)
            response = await self._http.request("POST", path, identifier=session_id, query=query, headers=headers, json=reply, timeout=wait)
        except (ServiceUnavailableError, ServiceError):
            return await self._page(session_id, id, after, caller)
        return decoded(response, lambda body: self._decoded_page(body, session_id))

    async def _reply(self, session_id: str, id: str, reply: dict[str, object]) -> None:
        """Send a reply. Ignore the error of one that comes too late (409)."""
        try:
            await self._http.request("POST", events.REPLIES_PATH.format(id=id), identifier=session_id, json=reply)
        except ServiceError as error:
            if error.status_code != 409:
                raise

    def _record(self, response: Response, session_id: str, id: str) -> Record:
        return decoded(response, lambda body: self._dialect.decode_execution(body, id=id, identifier=session_id))


def _rich(caller: Delivered) -> dict[str, str]:
    """Return the headers that ask for the extended result, with the state since the last result that the caller got."""
    return _RICH if caller.since is None else {**_RICH, extensions.SINCE_HEADER: caller.since}


async def _try_to_cancel(execution: Execution) -> None:
    with contextlib.suppress(ACASessionsError, TimeoutError):
        async with asyncio.timeout(_CANCEL_SECONDS):
            await execution.cancel()


def _may_have_run(error: ServiceUnavailableError | ServiceError) -> bool:
    """Return whether the cell may have run in spite of the error.

    A gateway's 502 or 504 means that its server gave no answer. The server may have received the request.
    """
    return error.sent if isinstance(error, ServiceUnavailableError) else error.status_code in _GATEWAY


def _lost_answer(session_id: str, error: ACASessionsError | None = None) -> CodeExecutionResult:
    # 410: the server knows that the execution ended, but has dropped its result.
    if isinstance(error, ServiceError) and error.status_code == _GONE:
        lost = CodeError("ResultGone", "the cell ran, and its result is not kept any more: fetch results sooner")
    else:
        lost = CodeError("ConnectionError", "the answer was lost: whether the cell ran is not known")
    return CodeExecutionResult(session_id=session_id, error=lost, stderr=str(lost), state=NO_REPLY)
