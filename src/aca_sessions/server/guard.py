"""The check of requests before they reach the application: Host and Origin must name this server, and a key must be sent."""

import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..contract import mcp
from ..contract.records import ProblemError
from ..hosting import KNOWS_KEY, METRICS_PATH, Hosting


class Guard:
    """An ASGI middleware that passes on only those requests that name an allowed host and have the key.

    Host is checked because a page in a browser can point its own host name at this server's address (DNS rebinding); the browser then sends
    that name as Host. Origin is checked because a page can also use this server's real name; the browser then sends the page's own host as
    Origin. starlette's TrustedHostMiddleware does not check Origin, and responds with 400 in plain text.
    """

    def __init__(
        self, app: ASGIApp, hosting: Hosting, *, refuse: Callable[[ProblemError], Response], open_paths: frozenset[str] = frozenset()
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            hosting: The keys and the allowed hosts. If it has no key, requests need none; if it has no hosts, all are allowed.
            refuse: Returns the response to a request that is refused.
            open_paths: Paths that hold no data and need no key. Host and Origin are checked all the same.
        """
        self._app = app
        self._refuse = refuse
        self._open_paths = open_paths
        self._key = (hosting.api_key or "").encode()
        self._metrics_key = (hosting.metrics_key or "").encode()
        self._allowed_hosts = frozenset(name.lower() for name in hosting.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on to the application, or send the response that refuses it. Only HTTP requests are checked."""
        problem = self._check(scope) if scope["type"] == "http" else None
        app = self._app if problem is None else self._refuse(problem)
        await app(scope, receive, send)

    def _check(self, scope: Scope) -> ProblemError | None:
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._allows(f"//{host}"):
            said = f"the Host header must name a host of this server, got {host!r:.80}: start the server with --allowed-host to accept it"
            return ProblemError(403, "HostNotAllowed", said)
        if origin is not None and not self._allows(origin):
            said = (
                f"the Origin header must name a host of this server, got {origin!r:.80}: start the server with --allowed-host to accept it"
            )
            return ProblemError(403, "OriginNotAllowed", said)
        if path in self._open_paths or not self._key:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [headers.get(mcp.KEY_HEADER, ""), token.strip() if scheme.lower() == "bearer" else ""]
        accepted = [self._key, self._metrics_key] if self._metrics_key and path == f"/{METRICS_PATH}" else [self._key]
        # Every pair is compared, so that the time shows neither which one matches nor how many bytes do.
        if not sum(hmac.compare_digest(one.encode("utf-8", "replace"), key) for one in given for key in accepted):
            said = f"the request must have this server's key: send it in the header Authorization as 'Bearer KEY', or in {mcp.KEY_HEADER}"
            return ProblemError(401, "Unauthorized", said)
        scope.setdefault("state", {})[KNOWS_KEY] = True
        return None

    def _allows(self, address: str) -> bool:
        try:
            return not self._allowed_hosts or urlsplit(address).hostname in self._allowed_hosts
        except ValueError:  # brackets that enclose no IPv6 address
            return False
