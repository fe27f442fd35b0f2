"""The checks before the MCP server over HTTP: a key, a known Host header, and no page of another origin."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ...hosting import KNOWS_KEY


class Guard:
    """A filter that passes requests on if they have the key, name a known host and do not come from a page of another host."""

    def __init__(self, app: ASGIApp, *, api_key: str, allowed_hosts: frozenset[str]) -> None:
        """Put the checks in front of an application.

        Args:
            app: The application.
            api_key: The key that requests must have.
            allowed_hosts: The hosts that `Host` and `Origin` may name. An empty set allows all.
        """
        self._app = app
        self._key = api_key.encode()
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401 or 403."""
        refused = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if refused is None:
            scope.setdefault("state", {})[KNOWS_KEY] = True
            await self._app(scope, receive, send)
            return
        status, message = refused
        headers = {"www-authenticate": "Bearer"} if status == 401 else {}
        await JSONResponse({"error": message}, status, headers=headers)(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        # A page could reach this server under a name of its own (DNS rebinding), and a browser adds the page's Origin to its requests.
        if not self._knows(f"//{headers.get('host', '')}"):
            return 403, "the Host header names no host of this server; start it with --allowed-host"
        if "origin" in headers and not self._knows(headers["origin"]):
            return 403, "the Origin header names a page that is none of this server's; start it with --allowed-host"
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("utf-8", "replace"), self._key):
            return 401, "a Bearer token with this server's key is needed"
        return None

    def _knows(self, address: str) -> bool:
        try:
            return not self._allowed_hosts or urlsplit(address).hostname in self._allowed_hosts
        except ValueError:
            return False
