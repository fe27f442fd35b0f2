"""The routes of checkpoints, rollbacks and branches. These happen between two cells, in the order of the requests."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import extensions, timeline, values
from ..hosting import Hosting
from ..ledger import format_position
from ..sandbox.sandbox import Sandbox
from .requests import addressed
from .sessions import HostedSession, Sessions
from .table import Routes
from .uploads import limited

_MAX_REQUEST = 64 << 10


class TimelineRoutes:
    """The handlers of checkpoints, rollbacks and branches, for the sessions of one server."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._plain = hosting.plain or hosting.shell

    def table(self) -> Routes:
        """Return the routes, all of them extensions. A plain server and a pool of shells have none."""
        if self._plain:
            return []
        return [
            (timeline.CHECKPOINTS_PATH, "POST", self.take),
            (timeline.CHECKPOINTS_PATH, "GET", self.list),
            (timeline.CHECKPOINT_PATH, "DELETE", self.drop),
            (timeline.ROLLBACK_PATH, "POST", self.roll_back),
            (timeline.BRANCHES_PATH, "POST", self.branch),
        ]

    async def take(self, request: Request) -> Response:
        """Take a checkpoint of a session and return its description."""
        name = timeline.decode_name(await _body(request), "name")
        session = self._session(request)
        with session.used():
            moment = await session.executions.in_turn(lambda sandbox: sandbox.checkpoint(name))
        return JSONResponse(timeline.encode_checkpoint(moment.told()))

    async def list(self, request: Request) -> Response:
        """List the checkpoints of a session."""
        session = self._session(request)
        with session.used():
            moments = await session.executions.in_turn(lambda sandbox: sandbox.checkpoints())
        return JSONResponse(timeline.encode_checkpoints([moment.told() for moment in moments]))

    async def drop(self, request: Request) -> Response:
        """Remove a checkpoint."""
        session, id = self._session(request), request.path_params["id"]
        with session.used():
            await session.executions.in_turn(lambda sandbox: sandbox.forget(id))
        return Response(status_code=204)

    async def roll_back(self, request: Request) -> Response:
        """Roll a session back to a checkpoint, by default the latest. Return the checkpoint and the new position in the ledger."""
        body = await _body(request)
        id, name = timeline.decode_name(body, "id"), timeline.decode_name(body, "name")
        session = self._session(request)
        with session.used():
            moment, position = await session.executions.in_turn(lambda sandbox: sandbox.roll_back(id, name))
        told = timeline.encode_checkpoint(moment.told())
        return JSONResponse(told | extensions.encode_position(session.ledger.id, position))

    async def branch(self, request: Request) -> Response:
        """Create sessions that continue from the state of this one: all of them, or none."""
        identifiers, reseed = timeline.decode_branches(await _body(request))
        session = self._session(request)
        branches: list[HostedSession] = []

        async def act(sandbox: Sandbox) -> None:
            branches.extend(await self._sessions.branch(sandbox, identifiers, reseed=reseed))

        with session.used():
            try:
                await session.executions.in_turn(act)
            except asyncio.CancelledError:  # they are made anyway, and no caller would end them
                session.executions.later_in_turn(lambda _sandbox: self._sessions.take_back(branches))
                raise
        here = session.ledger.position
        _, record = session.ledger.seen_from(request.headers.get(extensions.SINCE_HEADER), here, here, otherwise=session.ledger.fetched)
        positions = {branch.identifier: format_position(branch.ledger.id, branch.ledger.position) for branch in branches}
        return JSONResponse(timeline.encode_branched(record, positions))

    def _session(self, request: Request) -> HostedSession:
        session = request.state.session = self._sessions.get(addressed(request, plain=False)[1])
        return session


async def _body(request: Request) -> object:
    return values.parse(await limited(request, _MAX_REQUEST, _MAX_REQUEST).body() or b"{}")
