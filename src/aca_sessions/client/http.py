"""One request to the service: statuses become errors, and nothing of httpx gets past here."""

import logging
from collections.abc import Mapping
from typing import Self

import httpx

from ..contract import extensions
from ..contract.records import API_VERSION, decode_problem
from ..errors import NotSupportedError, ServiceUnavailableError

_BEFORE_SENDING = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class SessionsHttpClient:
    """Speaks to one endpoint in one api-version. Closing it closes the client that it was given."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        api_version: str = API_VERSION,
        connect_timeout: float = 10.0,
        request_timeout: float = 60.0,
    ) -> None:
        """Takes over an httpx client whose base URL is the endpoint."""
        logging.getLogger("httpx").addFilter(_without_identifiers)
        self._client = client
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._api_version = api_version
        self._offered: frozenset[str] | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        identifier: str | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        file: tuple[str, bytes] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        """The answer to one request; an exception of ours for everything that is not a success."""
        params = {"api-version": self._api_version, **(query or {})}
        if identifier is not None:
            params["identifier"] = identifier
        limits = httpx.Timeout(timeout or self._request_timeout, connect=self._connect_timeout)
        files = {"file": file} if file else None
        try:
            response = await self._client.request(method, path, params=params, headers=headers, json=json, files=files, timeout=limits)
        except _BEFORE_SENDING as error:
            reason = f"the endpoint cannot be reached ({type(error).__name__}): is it right, and does it run?"
            raise ServiceUnavailableError(reason, sent=False) from None
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(f"no answer came from the endpoint ({type(error).__name__})", sent=True) from None
        self._offered = _offered(response)
        if not response.is_success:
            raise decode_problem(response.status_code, _json(response), response.headers)
        return response

    async def json(
        self, method: str, path: str, *, identifier: str | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, object]:
        """The JSON object that answers a request without a body."""
        return json_object(await self.request(method, path, identifier=identifier, query=query))

    async def offers(self, extension: str) -> bool:
        """Whether the endpoint has an extension of ours."""
        if self._offered is None:
            try:
                await self.request("GET", extensions.HEALTH_PATH)
            except Exception:
                self._offered = self._offered or frozenset()
        return extension in (self._offered or frozenset())

    async def require(self, extension: str, what: str) -> None:
        """NotSupportedError where the endpoint does not have an extension."""
        if not await self.offers(extension):
            raise NotSupportedError(f"this endpoint cannot {what}: the embedded default and `aca-sessions serve` can")

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _without_identifiers(record: logging.LogRecord) -> bool:
    """httpx logs every URL, and ours hold identifiers: whoever reads one owns the session."""
    return not (isinstance(record.args, tuple) and any("identifier=" in str(argument) for argument in record.args))


def json_object(response: httpx.Response) -> dict[str, object]:
    """The JSON object in an answer; a proxy may have put anything else there."""
    content = _json(response)
    if not isinstance(content, dict):
        raise ServiceUnavailableError("the answer is not the API's; does the endpoint lead to a session pool?", sent=True)
    return content


def _json(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None


def _offered(response: httpx.Response) -> frozenset[str]:
    header = response.headers.get(extensions.OFFER_HEADER, "")
    return frozenset(word.strip() for word in header.split(",") if word.strip())
