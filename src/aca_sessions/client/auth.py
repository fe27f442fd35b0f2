"""Who we are, per request: an Azure token that is renewed in time, or a key."""

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import httpx

from ..errors import AuthenticationError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

DEFAULT_SCOPE = "https://dynamicsessions.io/.default"
DEFAULT_REFRESH_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class _Held:
    token: str
    expires: float


class AzureTokenProvider:
    """Answers a valid token: cached, renewed early by one flight at a time, and kept while it is valid if renewal fails."""

    def __init__(
        self,
        credential: "TokenCredential | AsyncTokenCredential",
        *,
        scopes: Sequence[str] = (DEFAULT_SCOPE,),
        refresh_before: float = DEFAULT_REFRESH_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Asks the credential for tokens; whoever made it closes it."""
        self._credential = credential
        self._scopes = tuple(scopes)
        self._refresh_before = refresh_before
        self._clock = clock
        self._held: _Held | None = None
        self._renewing = asyncio.Lock()

    async def get_token(self) -> str:
        """A token that is valid now; AuthenticationError where none can be had."""
        if self._held is None or self._due(self._held):
            async with self._renewing:
                if self._held is None or self._due(self._held):
                    self._held = await self._renew(self._held)
        return self._held.token

    def clear_cache(self) -> None:
        """Forgets the token, for one that the service refused."""
        self._held = None

    def _due(self, held: _Held) -> bool:
        return held.expires - self._clock() <= self._refresh_before

    async def _renew(self, held: _Held | None) -> _Held:
        try:
            token = await self._ask()
        except Exception as error:
            if held is not None and held.expires > self._clock():
                return held
            raise AuthenticationError(
                f"no token for {', '.join(self._scopes)} ({type(error).__name__}): "
                "sign in (az login), or set ACASessions:SessionsHttpClient:ApiKey"
            ) from None
        return _Held(token.token, float(token.expires_on))

    async def _ask(self) -> "AccessToken":
        """Sync credentials block on the network, so they are asked in a thread."""
        if inspect.iscoroutinefunction(self._credential.get_token):
            return await cast("AsyncTokenCredential", self._credential).get_token(*self._scopes)
        credential = cast("TokenCredential", self._credential)
        return await asyncio.to_thread(credential.get_token, *self._scopes)


class BearerAuth(httpx.Auth):
    """A token on each request; a refused one is renewed once."""

    def __init__(self, tokens: AzureTokenProvider) -> None:
        """Takes tokens from a provider."""
        self._tokens = tokens

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Yields the request, looks at the answer, and yields it again where only the token was wrong."""
        request.headers["authorization"] = f"Bearer {await self._tokens.get_token()}"
        response = yield request
        if response.status_code == 401:
            self._tokens.clear_cache()
            request.headers["authorization"] = f"Bearer {await self._tokens.get_token()}"
            yield request


class ApiKeyAuth(httpx.Auth):
    """The key of `aca-sessions serve`."""

    def __init__(self, key: str) -> None:
        """Sends the key as a Bearer token."""
        self._header = f"Bearer {key}"

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Yields the request with the key."""
        request.headers["authorization"] = self._header
        yield request
