"""The routes of executions while they run: their events by long-poll, and replies to their questions."""

import math

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import events, extensions, values
from ..hosting import Hosting
from .cell_routes import encoded
from .executions import RunningExecution
from .requests import addressed
from .sessions import Sessions
from .table import Routes
from .uploads import limited

_MAX_REPLY = 64 << 20


class LiveRoutes:
    """The handlers of events, for the sessions of one server. A reader that goes away or is slow changes nothing about its cell."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._plain = hosting.plain

    def table(self) -> Routes:
        """Return the routes, all of them extensions. A plain server has none."""
        if self._plain:
            return []
        return [(events.EVENTS_PATH, "GET", self.read), (events.REPLIES_PATH, "POST", self.reply)]

    async def read(self, request: Request) -> Response:
        """Return the events of an execution after a number, as soon as there are any. The last response has the result."""
        execution = self._execution(request)
        return await self._page(request, execution, _after(request.query_params.get("after", "0")))

    async def reply(self, request: Request) -> Response:
        """Reply to a question of an execution. If the caller names a number, return the events after it."""
        execution = self._execution(request)
        try:
            number, text = events.decode_reply(values.parse(await limited(request, _MAX_REPLY, _MAX_REPLY).body()))
        except ValueError as error:
            raise values.invalid(str(error)) from None
        await self._sessions.find(addressed(request, plain=False)[1]).executions.answer(execution, number, text)
        after = request.query_params.get("after")
        return JSONResponse({}) if after is None else await self._page(request, execution, _after(after))

    def _execution(self, request: Request) -> RunningExecution:
        _, identifier = addressed(request, plain=False)
        session = self._sessions.find(identifier)
        session.touch()
        return session.executions.find(request.path_params["id"])

    async def _page(self, request: Request, execution: RunningExecution, after: int) -> Response:
        version, _ = addressed(request, plain=False)
        found, last = await execution.events.after(after, within=_wait(request.query_params.get("wait", "")))
        body = events.encode_events(found, last)
        if execution.events.closed:
            rich = request.headers.get(extensions.RICH_REQUEST_HEADER) == "1"
            body[events.EXECUTION_MEMBER] = encoded(version, execution, rich=rich, since=request.headers.get(extensions.SINCE_HEADER))
        return JSONResponse(body)


def _after(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise values.invalid("'after' is not the number of an event")
    return int(text)


def _wait(text: str) -> float:
    try:
        seconds = float(text or events.LONGEST_POLL)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 3600:
        raise values.invalid("'wait' is not a number of seconds")
    return min(seconds, events.LONGEST_POLL)
