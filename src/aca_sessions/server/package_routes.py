"""The routes of packages: list, install and uninstall those of a session. A call that fails returns a failed result."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import extensions, values
from ..hosting import Hosting
from .requests import addressed
from .sessions import HostedSession, Sessions
from .table import Routes, note
from .uploads import limited

_MOST = 1 << 16


class PackageRoutes:
    """The handlers of packages, for the sessions of one server. The sandbox knows where packages come from."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting

    def table(self) -> Routes:
        """Return the routes, all of them extensions. A plain server has none."""
        path = extensions.PACKAGES_PATH
        ours: Routes = [(path, "GET", self.packages), (path, "POST", self.install), (path, "DELETE", self.uninstall)]
        return [] if self._hosting.plain else ours

    async def packages(self, request: Request) -> Response:
        """Return the packages that a session has installed."""
        sandbox = await self._session(request).sandbox()
        return JSONResponse(extensions.encode_packages(sandbox.packages.installed))

    async def install(self, request: Request) -> Response:
        """Install the packages of some requirements, except those that are present."""
        requirements, timeout = extensions.decode_installation(values.parse(await limited(request, _MOST, _MOST).body()))
        session = self._session(request)
        with session.used():
            sandbox = await session.sandbox()
            session.has_state = True
            result = await sandbox.packages.install(requirements, timeout=timeout)
        note(request, "install", requirements=len(requirements), success=result.success)
        return JSONResponse(extensions.encode_outcome(result))

    async def uninstall(self, request: Request) -> Response:
        """Remove packages that were installed in a session."""
        names = request.query_params.get("names", "").split(",")
        session = self._session(request)
        with session.used():
            sandbox = await session.sandbox()
            result = await sandbox.packages.uninstall(names)
        note(request, "uninstall", requirements=len(names), success=result.success)
        return JSONResponse(extensions.encode_outcome(result))

    def _session(self, request: Request) -> HostedSession:
        _, identifier = addressed(request, plain=False)
        session = self._sessions.get(identifier)
        request.state.session = session
        return session
