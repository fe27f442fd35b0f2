"""One request to the service: statuses become errors, and nothing of httpx gets past here."""

import asyncio
import logging
from collections.abc import Callable, Mapping
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
_CONNECTS = 3  # an address where nobody answers is wrong, or down for longer than anyone waits
Decoded = TypeVar("Decoded")
Response = httpx.Response
Seen = Callable[[str, str], None]
DEFAULT_CONNECT_SECONDS, DEFAULT_REQUEST_SECONDS, DEFAULT_PATIENCE_SECONDS = 10.0, 60.0, 10.0


class SessionsHttpClient:
    """Speaks to one endpoint in one api-version. Closing it closes the client that it was given."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        api_version: str = API_VERSION,
        connect_timeout: float = DEFAULT_CONNECT_SECONDS,
        request_timeout: float = DEFAULT_REQUEST_SECONDS,
        patience: float = DEFAULT_PATIENCE_SECONDS,
    ) -> None:
        """Takes over an httpx client whose base URL is the endpoint."""
        logging.getLogger("httpx").addFilter(_without_identifiers)
        self._client = client
        self._base = str(client.base_url).rstrip("/") + "/"
        self._owner = Owner("the connection to this endpoint")
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._patience_seconds = patience
        self.api_version = api_version
        self._offered: frozenset[str] | None = None
        self.on_session: Seen = lambda _session_id, _guid: None  # told which life of a session answered, as far as answers say it

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
        """The answer to one request; an exception of ours for everything that is not a success."""
        self._owner.check()
        if self._client.is_closed:
            raise ServiceUnavailableError("this client is closed: open a new one", sent=False)
        params = {"api-version": self.api_version, **(query or {})}
        if identifier is not None:
            params["identifier"] = checked_session_id(identifier)
        url = f"{self._base}{path}?{urlencode(params)}"  # httpx parses a relative one, or one with `params`, two times more
        limits = httpx.Timeout(timeout or self._request_timeout, connect=self._connect_timeout)
        files = {"file": file} if file else None
        request = self._client.build_request(method, url, headers=headers, json=json, files=files, timeout=limits)
        response = await self._patiently(request)
        if response.is_success or extensions.OFFER_HEADER in response.headers:
            self._offered = _offered(response)  # an error page of a proxy says nothing of what is behind it
        if identifier is not None and (guid := response.headers.get(flat.GUID_HEADER)):
            self.on_session(identifier, guid)
        if not response.is_success:
            raise decode_problem(response.status_code, _json(response), response.headers)
        return response

    async def _patiently(self, request: httpx.Request) -> httpx.Response:
        """Asks again where that does no harm: reads after anything, all else only where the service did not begin on it."""
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
        try:
            return await self._client.send(request)
        except _BEFORE_SENDING as error:
            what = f"{request.url.host} cannot be reached ({type(error).__name__})"
            advice = "is ACASessions:SessionsHttpClient:Endpoint right, and does it run?"
            raise ServiceUnavailableError(f"{what}: {advice}", sent=False) from None
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(f"no answer came from the endpoint ({type(error).__name__})", sent=True) from None

    async def offers(self, extension: str) -> bool:
        """Whether the endpoint has an extension of ours."""
        if self._offered is None:
            self._owner.check()
            try:
                await self.request("GET", extensions.HEALTH_PATH)
            except Exception:
                self._offered = self._offered or frozenset()
        return extension in (self._offered or frozenset())

    async def require(self, extension: str, what: str) -> None:
        """NotSupportedError where the endpoint does not have an extension."""
        if not await self.offers(extension):
            raise NotSupportedError(f"this endpoint cannot {what}: the embedded default and `aca-sessions serve` can")

    @property
    def is_closed(self) -> bool:
        """Whether it can send no more."""
        return self._client.is_closed

    async def close(self) -> None:
        """End the connections; in a forked process they are its parent's, and are left alone."""
        if self._owner.is_here:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _without_identifiers(record: logging.LogRecord) -> bool:
    """httpx logs every URL, and ours hold identifiers: whoever reads one owns the session."""
    return not (isinstance(record.args, tuple) and any("identifier=" in str(argument) for argument in record.args))


def decoded(response: httpx.Response, decode: Callable[[dict[str, object]], Decoded]) -> Decoded:
    """What an answer's JSON object says; a proxy may have put anything else there."""
    content = _json(response)
    try:
        if isinstance(content, dict):
            return decode(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise ServiceUnavailableError("the answer is not the API's; does the endpoint lead to a session pool?", sent=True)


def _is_refused_for_now(request: httpx.Request, response: httpx.Response) -> bool:
    """Return whether the service did not begin on a request, or whether it was a read.

    429 says so, and of our server's 503 the one for a queue of new sessions. A gateway's 502, 503 and 504 do not: only reads are repeated.
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
