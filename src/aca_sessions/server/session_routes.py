"""The routes of sessions: get, list, end; and what the server reports of itself."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import extensions, flat, management
from ..contract.records import ProblemError
from ..hosting import Hosting
from ..models import SessionInfo
from .requests import addressed, check_has_sessions, skip_of, version_of
from .sessions import Sessions
from .table import Routes


class SessionRoutes:
    """The handlers of sessions, for those of one server. A request about a session does not prolong it."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting

    def table(self) -> Routes:
        """Return the routes: Azure's, the health check, and the isolation report if extensions are offered."""
        return [
            (extensions.HEALTH_PATH, "GET", self.health),
            *([] if self._hosting.plain else [(extensions.ISOLATION_PATH, "GET", self.isolation)]),
            ("session", "GET", self.session),
            ("session", "DELETE", self.delete_session),
            ("listSessions", "GET", self.list_sessions),
            ("metadata", "GET", self.metadata),
            (".management/getSession", "POST", self.managed_session),
            (".management/listSessions", "POST", self.managed_sessions),
            (".management/stopSession", "POST", self.stop_session),
        ]

    async def health(self, _request: Request) -> Response:
        """Return whether the server can give sessions, and how full it is. The status is 503 if it cannot."""
        status = "draining" if self._sessions.draining else "healthy" if self._sessions.healthy else "unhealthy"
        body = extensions.encode_health(len(self._sessions), self._sessions.most, status=status)
        return JSONResponse(body, 200 if status == "healthy" else 503)

    async def isolation(self, _request: Request) -> Response:
        """Return what separates sessions from this host. It is found by trying, once."""
        return JSONResponse(await self._isolation())

    async def session(self, request: Request) -> Response:
        """Return what is known of a session. The request does not prolong it."""
        session = self._sessions.find(self._addressed(request))
        return JSONResponse(flat.encode_session(self._sessions.info(session)), headers={"x-ms-session-etag": session.etag})

    async def delete_session(self, request: Request) -> Response:
        """End a session. A pool names as the cause if it was idle for too long, so that callers who come back read that it expired."""
        expired = not self._hosting.plain and request.headers.get(extensions.CAUSE_HEADER) == "expired"
        await self._sessions.delete(self._addressed(request), "expired" if expired else "terminated")
        return Response(status_code=204)

    async def list_sessions(self, request: Request) -> Response:
        """List the sessions of this server, page by page."""
        check_has_sessions(request)
        rich = not self._hosting.plain and request.headers.get(extensions.RICH_REQUEST_HEADER) == "1"
        told = [flat.encode_session(info) | (_live(info) if rich else {}) for info in self._sessions.infos(skip_of(request))]
        return JSONResponse({"sessions": told})

    async def metadata(self, request: Request) -> Response:
        """Return the Python and the packages of sessions."""
        check_has_sessions(request)
        body = flat.encode_metadata(*await self._sessions.environment())
        ours = {} if self._hosting.plain else {extensions.RICH_MEMBER: {"isolation": await self._isolation()}}
        return JSONResponse(body | ours)

    async def managed_session(self, request: Request) -> Response:
        """Return the same as `session`, in the format of Azure's management API."""
        session = self._sessions.find(addressed(request, plain=self._hosting.plain)[1])
        return JSONResponse(management.encode_session(self._sessions.info(session)))

    async def managed_sessions(self, request: Request) -> Response:
        """Return the same as `listSessions`, in the format of Azure's management API."""
        version_of(request)
        skip = skip_of(request)
        infos, total = self._sessions.infos(skip), len(self._sessions)
        return JSONResponse(management.encode_sessions(infos, total, skip, str(request.url.replace(query=""))))

    async def stop_session(self, request: Request) -> Response:
        """Raise ProblemError (400): only sessions of containers are stopped this way. Those of interpreters are deleted."""
        addressed(request, plain=self._hosting.plain)
        raise ProblemError(400, "SessionRequestNotSupported", "a code interpreter's session is ended by DELETE session")

    async def _isolation(self) -> dict[str, object]:
        report = await self._sessions.isolation()
        parts, missing = ({one.name: one.how for one in report.findings if one.enforced is enforced} for enforced in (True, False))
        return extensions.encode_isolation(report.level, parts, missing)

    def _addressed(self, request: Request) -> str:
        check_has_sessions(request)
        return addressed(request, plain=self._hosting.plain)[1]


def _live(info: SessionInfo) -> dict[str, object]:
    return {extensions.RICH_MEMBER: extensions.encode_live(info, (datetime.now(UTC) - info.last_used).total_seconds())}
