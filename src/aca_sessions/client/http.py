"""Send requests to one endpoint. Error responses and exceptions of httpx are raised as this package's own exceptions."""

import asyncio
import logging
import random
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import IO, Any, Self, TypeVar
from urllib.parse import urlencode

import httpx

from ..contract import extensions, flat
from ..contract.records import API_VERSION, NETWORK_MISSING, UNBEGUN, decode_problem, retry_after
from ..errors import ACASessionsError, CertificateError, NotSupportedError, ServiceUnavailableError
from ..lifetime import OwnerProcess, stream_from
from ..network.given import GivenNetwork
from .arguments import checked_session_id

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds before a request is repeated
_BEFORE_SENDING = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
_REMEMBERED_URLS, _REMEMBERED_NETWORKS = 64, 10_000
_SENDS_OF_NETWORK = 3  # attempts for one request, if its session begins again each time
_NO_NETWORK = (
    "give a session a network of its own: use the embedded default or `aca-sessions serve`. In Azure, the session pool has one setting for "
    "all of its sessions, sessionNetworkConfiguration with the status EgressEnabled or EgressDisabled"
)
_CONNECTING = (httpx.ConnectError, httpx.ConnectTimeout)
_NO_HTTP = (httpx.RemoteProtocolError, httpx.ReadError)  # how a TLS server's end of a plain connection appears
MAY_SPEAK_TLS = "Does this endpoint speak https? Then begin ACASessions:SessionsHttpClient:Endpoint with https://"
_CONNECTS = 3  # attempts to connect to an endpoint that has not answered yet: its address is probably wrong
EMBEDDED = "http://embedded"  # the base URL of an embedded server
Decoded = TypeVar("Decoded")
Response = httpx.Response
Seen = Callable[[str, str], None]
DEFAULT_CONNECT_SECONDS, DEFAULT_REQUEST_SECONDS, DEFAULT_PATIENCE_SECONDS = 10.0, 60.0, 10.0


def shown_endpoint(url: str) -> str:
    """Return `at` and an endpoint's URL without user name, password, query and fragment, or `embedded` for an embedded server."""
    if url in ("", EMBEDDED):
        return "embedded"
    parsed = httpx.URL(url)
    return f"at {parsed.copy_with(userinfo=b'', query=None, fragment=None) if parsed.host else url}"


class SessionsHttpClient:
    """A client that sends requests to one endpoint in one api-version. Closing it closes the httpx client that it uses.

    Attributes:
        api_version: The api-version that every request names.
        on_session: A function that is called with a session and its guid, when a response names one.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        api_version: str = API_VERSION,
        connect_timeout: float = DEFAULT_CONNECT_SECONDS,
        request_timeout: float = DEFAULT_REQUEST_SECONDS,
        patience: float = DEFAULT_PATIENCE_SECONDS,
    ) -> None:
        """Create a client over an httpx client whose base URL is the endpoint. `close` closes the httpx client.

        Args:
            client: The httpx client.
            api_version: The api-version that every request names.
            connect_timeout: Seconds to wait for a connection.
            request_timeout: Seconds to wait for a response, if the request has no timeout of its own.
            patience: For how many seconds after its first attempt a request may be retried.
        """
        logging.getLogger("httpx").addFilter(_has_no_identifier)
        self._client = client
        self._base = str(client.base_url).rstrip("/") + "/"
        self._owner = OwnerProcess("the connection to this endpoint")
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._patience_seconds = patience
        self.api_version = api_version
        self._url = lru_cache(_REMEMBERED_URLS)(self._build_url)  # parsing one takes as long as encoding a request
        self._networks = GivenNetworks(self)
        self._offer: str | None = None
        self._has_answered = False
        self._offered: frozenset[str] | None = None  # the words of `_offer`, or None before the first answer
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
        content: AsyncIterable[bytes] | None = None,
        timeout: float | None = None,
        stream: bool = False,
    ) -> httpx.Response:
        """Send a request and return its response. Raise one of this package's exceptions for an error response.

        Retry the request if the endpoint cannot be reached or refuses it temporarily. Retry a GET also if no response arrived. If the
        endpoint responds that the session lacks the network that this client gave to it, send the network, then retry the request.

        Args:
            method: The HTTP method.
            path: The path below the endpoint.
            identifier: The identifier of the session, if the request is about one.
            query: Further query parameters.
            headers: Further headers.
            json: A body to send as JSON.
            file: The name and the content of a file to send as a form.
            content: A body to send in chunks. It is iterated once for each attempt.
            timeout: Seconds to wait for the response, by default the client's `request_timeout`.
            stream: Return the response before its body has arrived. The caller must close it: the method `stream` does.
        """
        self._owner.check()
        if self._client.is_closed:
            raise ServiceUnavailableError("cannot send the request: this client is closed. Open a new one", sent=False)
        network = self._networks.find(identifier) if identifier is not None and path != extensions.NETWORK_PATH else None
        if network is not None:
            headers = {**(headers or {}), extensions.NETWORK_HEADER: network.version}
        url = self._url(path, identifier) if query is None else self._build_url(path, identifier, query)
        limits = httpx.Timeout(timeout or self._request_timeout, connect=self._connect_timeout)
        files = {"file": file} if file else None
        request = self._client.build_request(method, url, headers=headers, json=json, files=files, content=content, timeout=limits)
        if stream:
            request.extensions["stream"] = True
        deadline = time.monotonic() + self._patience_seconds
        next_wait, connects, sends = _FIRST_WAIT, 0, 0
        # A GET is repeated if no answer came, or if the service or a gateway refused it for now. Other requests are repeated only if the
        # service did not begin on them.
        while True:
            # Random, so that clients which failed together do not come back together.
            wait = next_wait * random.uniform(0.5, 1.5)  # noqa: S311
            next_wait = min(next_wait * 2, _LONGEST_WAIT)
            try:
                response = await self._client.send(request, stream=stream)
            except _BEFORE_SENDING as error:
                if (refused := _find_tls_error(error, url)) is not None:
                    raise refused from error
                connects += 1
                # An endpoint that has answered before is probably being restarted.
                may_come_back = self._offered is not None and isinstance(error, _CONNECTING)
                if (connects >= _CONNECTS and not may_come_back) or time.monotonic() + wait > deadline:
                    what = f"{url.host} cannot be reached ({type(error).__name__})"
                    advice = "check ACASessions:SessionsHttpClient:Endpoint, and that its server runs"
                    # A protocol error quotes the header that cannot be sent, which may be the key.
                    cause = None if isinstance(error, httpx.LocalProtocolError) else error
                    raise ServiceUnavailableError(f"{what}: {advice}", sent=False) from cause
            except httpx.HTTPError as error:
                if method != "GET" or time.monotonic() + wait > deadline:
                    advice = "try again" if method == "GET" else "it may have acted on the request, so check that before you try again"
                    # Port 80, which is None here as it is for a socket file, speaks no TLS.
                    if isinstance(error, _NO_HTTP) and url.scheme == "http" and url.port is not None and not self._has_answered:
                        advice = f"{advice}. {MAY_SPEAK_TLS}"
                    raise ServiceUnavailableError(
                        f"{url.host} sent no complete answer ({type(error).__name__}): {advice}", sent=True
                    ) from error
            else:
                self._has_answered = True
                if stream and not response.is_success:
                    await response.aread()
                if network is not None and identifier is not None and _lacks_network(response) and sends < _SENDS_OF_NETWORK:
                    sends += 1
                    await self._networks.send(identifier, network, missing=request.headers[extensions.NETWORK_HEADER])
                    request.headers[extensions.NETWORK_HEADER] = network.version
                    continue
                if response.is_success or not _should_retry(method, response):
                    break
                sends = 0
                wished = retry_after(response.headers)
                wait = wait if wished is None else wished
                if time.monotonic() + wait > deadline:
                    break
            await asyncio.sleep(wait)
        offer = response.headers.get(extensions.OFFER_HEADER)
        # Not from an error page of a proxy, which knows nothing of the server behind it.
        if (offer != self._offer or self._offered is None) and (response.is_success or offer is not None):
            self._offer = offer
            self._offered = frozenset(word.strip() for word in (offer or "").split(",") if word.strip())
        # Where the server keeps the ledger, the client does not need to know which instance answered.
        if identifier is not None and "rich" not in (self._offered or ()) and (guid := response.headers.get(flat.GUID_HEADER)):
            self.on_session(identifier, guid)
        if not response.is_success:
            try:
                problem = response.json()
            except ValueError:
                problem = None
            raise decode_problem(response.status_code, problem, response.headers)
        return response

    @asynccontextmanager
    async def stream(self, method: str, path: str, **options: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a request as `request` does, and yield the chunks of its response while they arrive, for an `async with` block.

        Args:
            method: The HTTP method.
            path: The path below the endpoint.
            options: The other arguments of `request`.
        """
        response = await self.request(method, path, stream=True, **options)
        try:
            yield _read_chunks(response)
        finally:
            await response.aclose()

    def _build_url(self, path: str, identifier: str | None, query: Mapping[str, str] | None = None) -> httpx.URL:
        params = {"api-version": self.api_version, **(query or {})}
        if identifier is not None:
            params["identifier"] = checked_session_id(identifier)
        return httpx.URL(f"{self._base}{path}?{urlencode(params)}")  # httpx would parse a relative URL, or one with `params`, twice

    async def offers(self, extension: str) -> bool:
        """Return whether the endpoint offers an extension of Azure's API, which it lists in a header of its responses.

        If no response has arrived yet, request the endpoint's health first. Return False if that fails.
        """
        if self._offered is None:
            self._owner.check()
            try:
                await self.request("GET", extensions.HEALTH_PATH)
            except Exception:
                self._offered = self._offered or frozenset()
        return extension in (self._offered or frozenset())

    async def require(self, extension: str, what: str) -> None:
        """Raise NotSupportedError unless the endpoint offers an extension of Azure's API.

        `what` completes the error's message after "this endpoint cannot", for example "take checkpoints".
        """
        if not await self.offers(extension):
            raise NotSupportedError(f"this endpoint cannot {what}: use the embedded default or `aca-sessions serve`")

    @property
    def is_closed(self) -> bool:
        """Return whether this client is closed."""
        return self._client.is_closed

    async def close(self) -> None:
        """Close the connections. Do nothing in a forked process, because the connections belong to its parent."""
        if self._owner.is_current:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class GivenNetworks:
    """The networks that this client has given to sessions. Each request about such a session names its network.

    Attributes:
        known: The networks by the identifiers of their sessions.
        own: In each task, the network of the Session object that was used last. Its calls name this network even if the session has ended.
    """

    def __init__(self, http: "SessionsHttpClient") -> None:
        self.known: OrderedDict[str, GivenNetwork] = OrderedDict()
        self.own: ContextVar[tuple[str, GivenNetwork | None]] = ContextVar("own_network", default=("", None))
        self._http = http

    def find(self, identifier: str) -> GivenNetwork | None:
        """Return the network that was given to a session, or None."""
        session_id, own = self.own.get()
        return self.known.get(identifier) or (own if session_id == identifier else None)

    def remember(self, identifier: str, given: GivenNetwork) -> None:
        """Name a network in all requests about a session, until it is removed from `known`."""
        self.known[identifier] = given
        if len(self.known) > _REMEMBERED_NETWORKS:  # Session objects still name it
            self.known.popitem(last=False)

    async def give(self, identifier: str, given: GivenNetwork) -> GivenNetwork:
        """Give a network to a session, and return the object that keeps it.

        If that fails, the session keeps its earlier network. Raise NotSupportedError if the endpoint does not support this.
        """
        await self._http.require("network", _NO_NETWORK)
        async with given.sending:
            await self._put(identifier, given)
        known = self.find(identifier) or given
        if known is not given:
            async with known.sending:
                known.adopt(given)
        self.remember(identifier, known)
        return known

    async def prepare(self, identifier: str) -> None:
        """Send the session's network if it was not sent yet or has changed. First read its secrets, if that was more than a minute ago.

        Call this before a request that may begin the session or run code. Raise SecretError if a secret cannot be read.
        """
        network = self.find(identifier)
        if network is not None:
            await self._http.require("network", _NO_NETWORK)  # the request may reach another server than before
            if network.sent != network.version or not network.is_fresh:
                await self.send(identifier, network)

    async def send(self, identifier: str, network: GivenNetwork, *, missing: str | None = None) -> None:
        """Send a network to the session unless its current version was sent. `missing` is a version that the session lacks."""
        async with network.sending:
            if network.sent == missing:
                network.sent = None
            await self._put(identifier, network)

    async def _put(self, identifier: str, network: GivenNetwork) -> None:
        resolved, secrets = await network.resolve()
        if network.sent != network.version:
            version = network.version
            body = extensions.encode_network(version, resolved, secrets)
            await self._http.request("PUT", extensions.NETWORK_PATH, identifier=identifier, json=body)
            network.sent = version


async def _read_chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_bytes():  # a proxy may have compressed it
            yield chunk
    except httpx.HTTPError as error:
        raise ServiceUnavailableError(
            f"{response.url.host} broke the response off ({type(error).__name__}): try again, and see the log of the service", sent=True
        ) from error


class EmbeddedTransport(httpx.ASGITransport):
    """Sends requests to an ASGI application in this process. A response that is streamed is not collected in memory first."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the response to a request."""
        if "stream" not in request.extensions:
            return await super().handle_async_request(request)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port),
            "client": ("127.0.0.1", 123),
            "root_path": "",
        }
        sent = False

        async def receive() -> dict[str, object]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # a client that goes away cancels the application
            sent = True
            return {"type": "http.request", "body": await request.aread(), "more_body": False}

        async def respond(put: Callable[[Any], Awaitable[None]]) -> None:
            await self.app(scope, receive, put)

        messages = stream_from(respond)
        start = await anext(messages)
        return httpx.Response(start["status"], headers=start["headers"], stream=_EmbeddedBody(messages))


class _EmbeddedBody(httpx.AsyncByteStream):
    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for message in self._messages:
                if message["type"] == "http.response.body":
                    yield message.get("body", b"")
        except ACASessionsError:
            raise
        except Exception as error:  # as a connection that breaks
            raise httpx.ReadError("the application failed") from error

    async def aclose(self) -> None:
        await self._messages.aclose()  # type: ignore[attr-defined]


def _has_no_identifier(record: logging.LogRecord) -> bool:
    """Return whether httpx may log a record. Records with a session's identifier are dropped, because it gives access to the session."""
    return not (isinstance(record.args, tuple) and any("identifier=" in str(argument) for argument in record.args))


# OpenSSL's numbers of what is wrong with a certificate, in x509_vfy.h.
_EXPIRED, _NOT_YET_VALID, _OTHER_NAMES = 10, 9, (62, 64)


def _find_tls_error(error: BaseException, url: httpx.URL) -> ServiceUnavailableError | None:
    """Return the error to raise if a TLS handshake failed, or None if the connection failed for another reason.

    After such an error, the request is not retried: another attempt would get the same certificate.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    place = f"{url.host}:{url.port}" if url.port is not None else url.host
    if isinstance(cause, ssl.SSLCertVerificationError):
        return CertificateError(f"the certificate of {place} was refused: {_certificate_advice(cause, url.host)}")
    if cause is not None and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        advice = "if its server runs without --tls, begin ACASessions:SessionsHttpClient:Endpoint with http://"
        return ServiceUnavailableError(f"{place} does not answer with TLS: {advice}", sent=False)
    return None


def _certificate_advice(cause: ssl.SSLCertVerificationError, host: str) -> str:
    if cause.verify_code == _EXPIRED:
        return "it has expired. Renew it at the server"
    if cause.verify_code == _NOT_YET_VALID:
        return "it is not valid yet. Compare the clocks of this machine and of the server"
    if cause.verify_code in _OTHER_NAMES:
        return (
            f"it does not name {host}. Use a name that it has in ACASessions:SessionsHttpClient:Endpoint, or give the server a "
            "certificate with this one"
        )
    return (
        f"this machine does not trust it ({cause.verify_message}). If you trust the server, copy its certificate (for `aca-sessions serve "
        "--tls`, its cert.pem) to this machine, and start this program again with SSL_CERT_FILE=/path/to/cert.pem"
    )


def decode_response(response: httpx.Response, decode: Callable[[dict[str, object]], Decoded]) -> Decoded:
    """Parse a response as a JSON object, pass the object to `decode`, and return what `decode` returns.

    Raise ServiceUnavailableError if that fails, because a proxy may have responded in place of the service.
    """
    try:
        content = response.json()
        if isinstance(content, dict):
            return decode(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        pass  # not chained below: the error may quote what the guest wrote
    kind = response.headers.get("content-type", "no content type")
    raise ServiceUnavailableError(
        f"expected JSON of the sessions API, got status {response.status_code} with {kind!r:.60}: check that "
        "ACASessions:SessionsHttpClient:Endpoint leads to a session pool, and that no proxy answers for it",
        sent=True,
    )


def _lacks_network(response: httpx.Response) -> bool:
    """Return whether the endpoint did not begin, because the session lacks the network that was given to it."""
    return response.status_code == 428 and response.headers.get("x-ms-error-code") == NETWORK_MISSING


def _should_retry(method: str, response: httpx.Response) -> bool:
    """Return whether to send a request again after an error response.

    After status 429, or an error code in `UNBEGUN`, the server has not begun to process the request. After status 502, 503 or 504 from a
    gateway, the server may have begun, so only a GET is sent again.
    """
    if response.status_code == 429 or response.headers.get("x-ms-error-code") in UNBEGUN:
        return True
    return method == "GET" and response.status_code in (502, 503, 504)
