"""The ASGI application: it routes requests to handlers, at the root and below Azure's base path."""

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from ..contract import extensions
from ..contract.versions import VERSIONS
from ..hosting import Hosting
from ..owner import Owner
from .cell_routes import CellRoutes
from .file_routes import FileRoutes
from .guard import Guard
from .live_routes import LiveRoutes
from .mcp_route import McpRoute
from .metrics_route import MetricsRoute
from .package_routes import PackageRoutes
from .page_routes import page_routes
from .session_routes import SessionRoutes
from .sessions import Sessions
from .table import answering, problem_answer
from .timeline_routes import TimelineRoutes

SUPPORTED = {"api-supported-versions": ", ".join(VERSIONS)}
_AZURE_BASE = "/subscriptions/{subscription}/resourceGroups/{group}/sessionPools/{pool}"


class Service:
    """The ASGI application of one server. It serves the given sessions, which their owner must close.

    The contract knows which api-version a request speaks.
    """

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._owner = Owner("the server")
        self._headers = SUPPORTED if hosting.plain else SUPPORTED | extensions.OFFER
        rooms = (CellRoutes, SessionRoutes, LiveRoutes, TimelineRoutes, FileRoutes, PackageRoutes, McpRoute, MetricsRoute)
        routes = [answering(route, self._headers, sessions.journal) for room in rooms for route in room(sessions, hosting).table()]
        page = [answering(route, self._headers, sessions.journal) for route in (page_routes() if hosting.page else [])]
        problems: Any = {HTTPException: self._answer_http_problem}
        app = Starlette(routes=[*routes, Mount(_AZURE_BASE, routes=routes), *page], exception_handlers=problems)
        guarded = hosting.api_key or hosting.allowed_hosts
        # The health check and the page hold no data, so they need no key.
        open_paths = frozenset({f"/{extensions.HEALTH_PATH}", *(route.path for route in page)})
        guard = Guard(app, hosting, open_paths=open_paths, headers=self._headers, journal=sessions.journal)
        self._app: ASGIApp = guard if guarded else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI request. Raise ForkedProcessError in a forked process."""
        self._owner.check()
        await self._app(scope, receive, send)

    def take_no_more(self) -> None:
        """Refuse new sessions from now on. Existing sessions are still served."""
        self._sessions.draining = True

    @property
    def has_sessions(self) -> bool:
        """Return whether there are any sessions."""
        return len(self._sessions) > 0

    async def drain(self, within: float) -> None:
        """Let running cells finish for at most `within` seconds, then end all sessions. Cells that still run get results that report it."""
        self.take_no_more()
        await self._sessions.finish(within)
        await self._sessions.close()

    async def _answer_http_problem(self, _request: Request, error: HTTPException) -> Response:
        response = problem_answer(error)
        response.headers.update(self._headers)
        return response
