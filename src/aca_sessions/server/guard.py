"""A check in front of the application, if strangers can reach it: a key, and a Host header that names this server."""

import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..contract import mcp
from ..contract.records import ProblemError, encode_problem
from ..hosting import KNOWS_KEY, Hosting
from . import metrics_route
from .journal import Journal


class Guard:
    """An ASGI middleware that passes on only requests with the key that name an allowed host.

    The check of the host prevents that a page in a browser sends requests here under a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosting: Hosting, *, open_paths: frozenset[str], headers: dict[str, str], journal: Journal) -> None:
        """Wrap an application.

        Args:
            app: The application.
            hosting: The keys, and the allowed hosts. If there are no hosts, all are allowed.
            open_paths: Paths that hold no data and need no key.
            headers: Headers that every response gets.
            journal: Counts and logs refused requests.
        """
        self._app = app
        self._open_paths = open_paths
        self._headers = headers
        self._journal = journal
        self._key = (hosting.api_key or "").encode()
        self._keys_of_paths = {f"/{metrics_route.PATH}": hosting.metrics_key.encode()} if hosting.metrics_key else {}
        self._allowed_hosts = hosting.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a problem."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
            return
        self._journal.refused(problem, "any", stranger=True)
        response = JSONResponse(encode_problem(problem), problem.status, headers=self._headers | {"x-ms-error-code": problem.code})
        await response(scope, receive, send)

    def _problem(self, scope: Scope) -> ProblemError | None:
        headers = Headers(scope=scope)
        if self._allowed_hosts and _host_name(headers.get("host", "")) not in self._allowed_hosts:
            return ProblemError(403, "HostNotAllowed", "the Host header names no host of this server; start it with --allowed-host")
        if self._allowed_hosts and "origin" in headers and _host_name(headers["origin"].partition("://")[2]) not in self._allowed_hosts:
            return ProblemError(403, "OriginNotAllowed", "the Origin header names a page that is none of this server's")
        if scope["path"] in self._open_paths or not self._key:
            return None
        accepted = (self._key, self._keys_of_paths.get(scope["path"], self._key))
        if not any(hmac.compare_digest(given, key) for given in _keys(headers) for key in accepted):
            return ProblemError(401, "Unauthorized", f"this server's key is needed, as a Bearer token or in the header {mcp.KEY_HEADER}")
        scope.setdefault("state", {})[KNOWS_KEY] = True
        return None


def _keys(headers: Headers) -> list[bytes]:
    """Return the keys of a request: a Bearer token, and the header that pools have for their keys."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [headers.get(mcp.KEY_HEADER, ""), token.strip() if scheme.lower() == "bearer" else ""]
    return [key.encode("utf-8", "replace") for key in given]


def _host_name(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
