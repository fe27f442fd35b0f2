"""The check of requests before they reach the application: Host and Origin must name this server, and the key must be right.

Requests that are refused are logged.
"""

import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..contract import mcp
from ..contract.records import ProblemError
from ..hosting import ACCEPTED_KEY, METRICS_PATH, Hosting, log_event

Key = TypeVar("Key")
Value = TypeVar("Value")


class Guard:
    """An ASGI middleware that passes on only those requests that name an allowed host and have the key.

    Host is checked because a page in a browser can point its own host name at this server's address (DNS rebinding); the browser then sends
    that name as Host. Origin is checked because a page can also use this server's real name; the browser then sends the page's own host as
    Origin. starlette's TrustedHostMiddleware does not check Origin, and responds with 400 in plain text.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosting: Hosting,
        *,
        refuse: Callable[[ProblemError, Scope], Response],
        open_paths: frozenset[str] = frozenset(),
        probe_paths: frozenset[str] = frozenset(),
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            hosting: The keys and the allowed hosts. If it has no key, requests need none; if it has no hosts, all are allowed.
            refuse: Returns the response to a request that is refused.
            open_paths: Paths that hold no data and need no key. Host and Origin are checked all the same.
            probe_paths: Paths of health probes. They are not checked, because load balancers use addresses that no list of hosts has.
        """
        self._app = app
        self._refuse = refuse
        self._open_paths = open_paths
        self._probe_paths = probe_paths
        self._keys = hosting.accepted_keys
        self._metrics_key = hosting.metrics_key
        self._allowed_hosts = frozenset(name.lower() for name in hosting.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on to the application, or send the response that refuses it. Only HTTP requests are checked."""
        problem = self._check(scope) if scope["type"] == "http" else None
        app = self._app if problem is None else self._refuse(problem, scope)
        await app(scope, receive, send)

    def _check(self, scope: Scope) -> ProblemError | None:
        headers, path = Headers(scope=scope), scope["path"]
        if path in self._probe_paths:
            return None
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_allowed_host(f"//{host}"):
            said = f"the Host header must name a host of this server, got {host!r:.80}: start the server with --allowed-host to accept it"
            return ProblemError(403, "HostNotAllowed", said)
        if origin is not None and not self._is_allowed_host(origin):
            said = (
                f"the Origin header must name a host of this server, got {origin!r:.80}: start the server with --allowed-host to accept it"
            )
            return ProblemError(403, "OriginNotAllowed", said)
        if path in self._open_paths or self._keys is None:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [headers.get(mcp.KEY_HEADER, ""), token.strip() if scheme.lower() == "bearer" else ""]
        accepted = [*self._keys(), *([self._metrics_key] if self._metrics_key and path == f"/{METRICS_PATH}" else [])]
        # Every pair is compared, so that the time shows neither which one matches nor how many bytes do.
        pairs = [(key, hmac.compare_digest(one.encode("utf-8", "replace"), key.encode())) for one in given for key in accepted]
        known = [key for key, is_same in pairs if is_same]
        if not known:
            found = "a wrong key" if any(given) else "no key"
            said = f"the request has {found}: send this server's key in the header Authorization as 'Bearer KEY', or in {mcp.KEY_HEADER}"
            return ProblemError(401, "Unauthorized", said)
        scope.setdefault("state", {})[ACCEPTED_KEY] = known[0]
        return None

    def _is_allowed_host(self, address: str) -> bool:
        try:
            return not self._allowed_hosts or urlsplit(address).hostname in self._allowed_hosts
        except ValueError:  # brackets that enclose no IPv6 address
            return False


class Throttle:
    """A limit on how many lines may be logged in a period of `seconds`, because strangers must not be able to fill the disk."""

    def __init__(self, max_lines: int, seconds: float) -> None:
        self._max_lines = max_lines
        self._seconds = seconds
        self._ends = self._count = 0.0
        self.left_out = 0  # lines since the latest one that was admitted

    def admit(self) -> int | None:
        """Count a line. Return None if it must not be logged, otherwise how many lines were left out since the last one that was logged."""
        now = time.monotonic()
        if now >= self._ends:
            self._ends, self._count = now + self._seconds, 0
        self._count += 1
        if self._count > self._max_lines:
            self.left_out += 1
            return None
        left_out, self.left_out = self.left_out, 0
        return left_out


_LOGGED = (401, 403, 429)
_LOGGED_MOST, _LOGGED_SECONDS = 10, 60.0  # of each status


class RefusalLog:
    """A log of requests that were refused with status 401, 403 or 429. It gets at most 10 lines a minute for each status."""

    def __init__(self) -> None:
        self._throttles = {status: Throttle(_LOGGED_MOST, _LOGGED_SECONDS) for status in _LOGGED}

    def write(self, problem: ProblemError, route: str, client: str | None) -> None:
        """Log a refused request, and how many requests were refused with the same status but not logged before it.

        Do nothing if the status is not 401, 403 or 429.

        Args:
            problem: The error that was sent.
            route: The method and the pattern of the path.
            client: The address of the client, if it has one.
        """
        throttle = self._throttles.get(problem.status)
        if throttle is None or (left_out := throttle.admit()) is None:
            return
        reason = problem.message.partition(", got ")[0]  # the rest quotes what the client sent
        more = {"left_out_before": left_out} if left_out else {}
        log_event("refused", status=problem.status, code=problem.code, route=route, client=client, reason=reason, **more)

    def close(self) -> None:
        """Log for each status how many refused requests were not logged since its latest line."""
        for status, throttle in self._throttles.items():
            if throttle.left_out:
                log_event("refused", status=status, left_out_before=throttle.left_out)
                throttle.left_out = 0


def client_address(scope: Scope) -> str | None:
    """Return the IP address of a request's client.

    Return None if the address is other text, which a proxy may have copied from a header of the client.
    """
    address, *_ = scope.get("client") or [""]
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


def store_bounded(memory: "OrderedDict[Key, Value]", key: Key, value: Value, *, most: int) -> None:
    """Store a value by its key. If there are more than `most`, remove those that were stored first."""
    memory[key] = value
    while len(memory) > most:
        memory.popitem(last=False)
