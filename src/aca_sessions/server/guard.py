"""What stands before the application where strangers can reach it: a key, and a Host header that is ours."""

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
    """Lets requests through that know the key and name a host of ours: a page in a browser could be made to send others."""

    def __init__(self, app: ASGIApp, hosting: Hosting, *, open_paths: frozenset[str], headers: dict[str, str], journal: Journal) -> None:
        """What is at open paths holds no data and needs no key. An empty set of hosts allows all. Every answer has the given headers."""
        self._app = app
        self._open_paths = open_paths
        self._headers = headers
        self._journal = journal
        self._key = (hosting.api_key or "").encode()
        self._keys_of_paths = {f"/{metrics_route.PATH}": hosting.metrics_key.encode()} if hosting.metrics_key else {}
        self._allowed_hosts = hosting.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers strangers itself."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
            return
        self._journal.refused(problem, "any")
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
    """Return the keys that a request brings: pools have a header of their own for them beside tokens."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [headers.get(mcp.KEY_HEADER, ""), token.strip() if scheme.lower() == "bearer" else ""]
    return [key.encode("utf-8", "replace") for key in given]


def _host_name(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
