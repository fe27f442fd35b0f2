"""Authentication of requests: an Azure token that is renewed before it expires, or the key of a server."""

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, cast

import httpx

from ..errors import AuthenticationError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

DEFAULT_SCOPE = "https://dynamicsessions.io/.default"
DEFAULT_REFRESH_SECONDS = 300.0


class AzureTokenProvider:
    """A cache of one Azure token, which is renewed some minutes before it expires.

    If several calls need a new token, one of them renews it and the others wait. If the renewal fails, the old token is used until it
    expires.
    """

    # azure-identity's own cache does not replace it. Credentials that ask a tool (`az`, PowerShell, azd) have none: each call starts `az`
    # again, and ten calls at the same time start it ten times. Where there is a cache, it renews 5 minutes early, whatever
    # `RefreshBeforeMinutes` is, and cannot drop a token that the service refused.

    def __init__(
        self,
        credential: "TokenCredential | AsyncTokenCredential",
        *,
        scopes: Sequence[str] = (DEFAULT_SCOPE,),
        refresh_before: float = DEFAULT_REFRESH_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Create a cache of a token that comes from a credential. The caller must close the credential.

        Args:
            credential: A sync or async credential of azure-identity.
            scopes: The scopes that tokens are requested for.
            refresh_before: How many seconds before its expiry a token is renewed.
            clock: Returns the time in seconds since 1970.
        """
        self._credential = credential
        self._scopes = tuple(scopes)
        self._refresh_before = refresh_before
        self._clock = clock
        self._cached: AccessToken | None = None
        self._renewing = asyncio.Lock()

    async def get_token(self) -> str:
        """Return a valid token. Renew the cached one first if it expires soon.

        Raise AuthenticationError if the credential gives no token and the cached one has expired.
        """
        if self._cached is None or self._expires_soon(self._cached):
            # Callers that arrive during a renewal wait here, then find its token: hence the second check.
            async with self._renewing:
                if self._cached is None or self._expires_soon(self._cached):
                    self._cached = await self._renew(self._cached)
        return self._cached.token

    def clear_cache(self, refused: str | None = None) -> None:
        """Drop the cached token, so that the next request gets a new one.

        `refused` is the token that the service refused. If the cached token is another one, keep it, because another call has renewed it
        already. If `refused` is None, drop any cached token.
        """
        if self._cached is not None and refused in (None, self._cached.token):
            self._cached = None

    def _expires_soon(self, cached: "AccessToken") -> bool:
        return cached.expires_on - self._clock() <= self._refresh_before

    async def _renew(self, cached: "AccessToken | None") -> "AccessToken":
        try:
            if inspect.iscoroutinefunction(self._credential.get_token):
                return await cast("AsyncTokenCredential", self._credential).get_token(*self._scopes)
            # A sync credential blocks on the network or on a process.
            return await asyncio.to_thread(cast("TokenCredential", self._credential).get_token, *self._scopes)
        # Credentials raise exceptions of their own libraries; each of them means that there is no token.
        except Exception as error:
            if cached is not None and cached.expires_on > self._clock():
                return cached
            # The cause is not chained: its text may hold details of the credential.
            raise AuthenticationError(
                f"cannot get a token for {', '.join(self._scopes)} ({type(error).__name__}): sign in (az login), or set "
                "ACASessions:SessionsHttpClient:ApiKey if the Endpoint is a server of `aca-sessions serve`"
            ) from None


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
