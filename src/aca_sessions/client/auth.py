"""Authentication of requests: by an Azure token, or by the key of a server."""

from collections.abc import AsyncGenerator

import httpx

from ..network.tokens import AzureTokenProvider


class BearerAuth(httpx.Auth):
    """Authentication by an Azure token. If the service answers 401, the token is renewed and the request is sent once more."""

    def __init__(self, tokens: AzureTokenProvider) -> None:
        self._tokens = tokens

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Yield the request with a token. If the service responds with 401, yield the request again with a new token."""
        token = await self._tokens.get_token()
        request.headers["authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401:
            self._tokens.clear_cache(token)
            request.headers["authorization"] = f"Bearer {await self._tokens.get_token()}"
            yield request


class ApiKeyAuth(httpx.Auth):
    """Authentication by the key of `aca-sessions serve`, which is sent as a Bearer token."""

    def __init__(self, key: str) -> None:
        self._header = f"Bearer {key}"

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Yield the request with the key in its `Authorization` header."""
        request.headers["authorization"] = self._header
        yield request
