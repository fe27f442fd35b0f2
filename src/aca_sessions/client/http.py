"""One request to the service. Statuses become the package's errors, and no exception of httpx leaves this module."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import IO, Self, TypeVar
from urllib.parse import urlencode

import httpx

from ..contract import extensions, flat
from ..contract.records import API_VERSION, TOO_MANY_STARTING, decode_problem, retry_after
from ..errors import NotSupportedError, ServiceUnavailableError
from ..owner import Owner
from .arguments import checked_session_id
from .patience import Patience

_BEFORE_SENDING = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
_REMEMBERED_URLS = 64
_CONNECTS = 3  # attempts to connect: an address that does not answer is wrong, or down for longer than a caller waits
Decoded = TypeVar("Decoded")
Response = httpx.Response
Seen = Callable[[str, str], None]
DEFAULT_CONNECT_SECONDS, DEFAULT_REQUEST_SECONDS, DEFAULT_PATIENCE_SECONDS = 10.0, 60.0, 10.0


class SessionsHttpClient:
    """A client of one endpoint in one api-version. Closing it closes the httpx client that it was given."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        api_version: str = API_VERSION,
        connect_timeout: float = DEFAULT_CONNECT_SECONDS,
        request_timeout: float = DEFAULT_REQUEST_SECONDS,
        patience: float = DEFAULT_PATIENCE_SECONDS,
    ) -> None:
        """Take over an httpx client whose base URL is the endpoint.

        Args:
            client: The httpx client.
            api_version: The api-version that every request names.
            connect_timeout: Seconds to connect.
            request_timeout: Seconds for a request that sets no time limit of its own.
            patience: Seconds in all that may be spent waiting before a request is repeated.
        """
        logging.getLogger("httpx").addFilter(_without_identifiers)
        self._client = client
        self._base = str(client.base_url).rstrip("/") + "/"
        self._owner = Owner("the connection to this endpoint")
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._patience_seconds = patience
        self.api_version = api_version
        self._url = lru_cache(_REMEMBERED_URLS)(self._build_url)  # parsing one takes as long as encoding a request
        self._offered: frozenset[str] | None = None
        self.on_session: Seen = lambda _session_id, _guid: None  # called with a session and its guid when an answer names one

    async def request(
        self,
        method: str,
        path: str,
        *,
        identifier: str | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        file: tuple[str, bytes | IO[bytes]] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        """Send a request and return its response. Raise the package's own exception for every response that is not a success.

        Args:
            method: The HTTP method.
            path: The path below the endpoint.
            identifier: The session, if the request is about one.
            query: Further query parameters.
            headers: Further headers.
            json: A body to send as JSON.
            file: The name and the content of a file to send as a form.
            timeout: Seconds, in place of the client's own time limit.
        """
        self._owner.check()
        if self._client.is_closed:
            raise ServiceUnavailableError("this client is closed: open a new one", sent=False)
        url = self._url(path, identifier) if query is None else self._build_url(path, identifier, query)
        limits = httpx.Timeout(timeout or self._request_timeout, connect=self._connect_timeout)
        files = {"file": file} if file else None
        request = self._client.build_request(method, url, headers=headers, json=json, files=files, timeout=limits)
        response = await self._patiently(request)
        if response.is_success or extensions.OFFER_HEADER in response.headers:
            self._offered = _offered(response)  # not from an error page of a proxy, which knows nothing of the server behind it
        if identifier is not None and (guid := response.headers.get(flat.GUID_HEADER)):
            self.on_session(identifier, guid)
        if not response.is_success:
            raise decode_problem(response.status_code, _json(response), response.headers)
        return response

    def _build_url(self, path: str, identifier: str | None, query: Mapping[str, str] | None = None) -> httpx.URL:
        params = {"api-version": self.api_version, **(query or {})}
        if identifier is not None:
            params["identifier"] = checked_session_id(identifier)
        return httpx.URL(f"{self._base}{path}?{urlencode(params)}")  # httpx would parse a relative URL, or one with `params`, twice

    async def _patiently(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and repeat it while that does no harm.

        A GET is repeated if no answer came, or if the service or a gateway refused it for now. Other requests are repeated only if the
        service did not begin on them.
        """
        patience, connects = Patience(self._patience_seconds), 0
        while True:
            try:
                response = await self._send(request)
            except ServiceUnavailableError as error:
                connects += not error.sent
                may = connects < _CONNECTS and (request.method == "GET" or not error.sent)
                if not may or (wait := patience.wait(None)) is None:
                    raise
            else:
                if not _is_refused_for_now(request, response) or (wait := patience.wait(retry_after(response.headers))) is None:
                    return response
            await asyncio.sleep(wait)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send a request once.

        Raise ServiceUnavailableError, whose `sent` is false only if the request surely did not leave this machine.
        """
        try:
            return await self._client.send(request)
        except _BEFORE_SENDING as error:
            what = f"{request.url.host} cannot be reached ({type(error).__name__})"
            advice = "is ACASessions:SessionsHttpClient:Endpoint right, and does it run?"
            raise ServiceUnavailableError(f"{what}: {advice}", sent=False) from None
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(f"no answer came from the endpoint ({type(error).__name__})", sent=True) from None

    async def offers(self, extension: str) -> bool:
        """Return whether the endpoint has an extension. Ask it for its health first if no answer has listed the extensions yet."""
        if self._offered is None:
            self._owner.check()
            try:
                await self.request("GET", extensions.HEALTH_PATH)
            except Exception:
                self._offered = self._offered or frozenset()
        return extension in (self._offered or frozenset())

    async def require(self, extension: str, what: str) -> None:
        """Raise NotSupportedError if the endpoint does not have an extension. `what` completes "this endpoint cannot"."""
        if not await self.offers(extension):
            raise NotSupportedError(f"this endpoint cannot {what}: the embedded default and `aca-sessions serve` can")

    @property
    def is_closed(self) -> bool:
        """Return whether it is closed."""
        return self._client.is_closed

    async def close(self) -> None:
        """Close the connections. In a forked process do nothing: they belong to its parent."""
        if self._owner.is_here:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _without_identifiers(record: logging.LogRecord) -> bool:
    """Drop log records with an identifier: httpx logs every URL, and a session's identifier gives access to the session."""
    return not (isinstance(record.args, tuple) and any("identifier=" in str(argument) for argument in record.args))


def decoded(response: httpx.Response, decode: Callable[[dict[str, object]], Decoded]) -> Decoded:
    """Return what `decode` makes of a response's JSON object. Raise ServiceUnavailableError if it is none: a proxy may have answered."""
    content = _json(response)
    try:
        if isinstance(content, dict):
            return decode(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise ServiceUnavailableError("the answer is not the API's; does the endpoint lead to a session pool?", sent=True)


def _is_refused_for_now(request: httpx.Request, response: httpx.Response) -> bool:
    """Return whether the request may be repeated: the service did not begin on it, or it was a read.

    429 means that the service did not begin. So does our server's 503 for a full queue of new sessions. A gateway's 502, 503 and 504 leave
    that open, so only reads are repeated after them.
    """
    if response.status_code == 429 or response.headers.get("x-ms-error-code") == TOO_MANY_STARTING:
        return True
    return request.method == "GET" and response.status_code in (502, 503, 504)


def _json(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None


def _offered(response: httpx.Response) -> frozenset[str]:
    header = response.headers.get(extensions.OFFER_HEADER, "")
    return frozenset(word.strip() for word in header.split(",") if word.strip())
