"""Authentication of requests: an Azure token that is renewed in time, or a key."""

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
    """A cache of one Azure token. It is renewed early, by one call at a time. If renewal fails, the old token is used until it expires."""

    def __init__(
        self,
        credential: "TokenCredential | AsyncTokenCredential",
        *,
        scopes: Sequence[str] = (DEFAULT_SCOPE,),
        refresh_before: float = DEFAULT_REFRESH_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use a credential, which the caller closes.

        Args:
            credential: A sync or async credential of azure-identity.
            scopes: The scopes that tokens are requested for.
            refresh_before: Seconds before its expiry at which a token is renewed.
            clock: Returns the time in seconds since 1970.
        """
        self._credential = credential
        self._scopes = tuple(scopes)
        self._refresh_before = refresh_before
        self._clock = clock
        self._held: _Held | None = None
        self._renewing = asyncio.Lock()

    async def get_token(self) -> str:
        """Return a token that is valid now. Raise AuthenticationError if the credential has none."""
        if self._held is None or self._due(self._held):
            # Callers that arrive during a renewal wait here, then find its token: hence the second check.
            async with self._renewing:
                if self._held is None or self._due(self._held):
                    self._held = await self._renew(self._held)
        return self._held.token

    def clear_cache(self, refused: str | None = None) -> None:
        """Forget the token. With `refused`, a token that the service refused, keep one that has been renewed since."""
        if self._held is not None and refused in (None, self._held.token):
            self._held = None

    def _due(self, held: _Held) -> bool:
        return held.expires - self._clock() <= self._refresh_before

    async def _renew(self, held: _Held | None) -> _Held:
        try:
            token = await self._ask()
        # Credentials raise exceptions of their own libraries; all of them mean that there is no token.
        except Exception as error:
            if held is not None and held.expires > self._clock():
                return held
            # The cause is not chained: its text may hold details of the credential.
            raise AuthenticationError(
                f"no token for {', '.join(self._scopes)} ({type(error).__name__}): "
                "sign in (az login), or set ACASessions:SessionsHttpClient:ApiKey"
            ) from None
        return _Held(token.token, float(token.expires_on))

    async def _ask(self) -> "AccessToken":
        """Request a token. A sync credential blocks on the network, so it is called in a thread."""
        if inspect.iscoroutinefunction(self._credential.get_token):
            return await cast("AsyncTokenCredential", self._credential).get_token(*self._scopes)
        credential = cast("TokenCredential", self._credential)
        return await asyncio.to_thread(credential.get_token, *self._scopes)


class BearerAuth(httpx.Auth):
    """Authentication by a token on each request. If the service answers 401, the token is renewed once and the request sent again."""

    def __init__(self, tokens: AzureTokenProvider) -> None:
        self._tokens = tokens

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Yield the request with a token. If the response is 401, yield it again with a new token."""
        token = await self._tokens.get_token()
        request.headers["authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401:
            self._tokens.clear_cache(token)
            request.headers["authorization"] = f"Bearer {await self._tokens.get_token()}"
            yield request


class ApiKeyAuth(httpx.Auth):
    """Authentication by the key of `aca-sessions serve`."""

    def __init__(self, key: str) -> None:
        self._header = f"Bearer {key}"

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Yield the request with the key, as a Bearer token."""
        request.headers["authorization"] = self._header
        yield request
