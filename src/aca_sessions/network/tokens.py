"""Get Azure tokens, and renew them before they expire."""

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from ..errors import ACASessionsError, AuthenticationError, imports_of
from .calls import SharedCalls, call_in_thread

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

DEFAULT_SCOPE = "https://dynamicsessions.io/.default"
DEFAULT_REFRESH_SECONDS = 300.0
_REMEDY = "sign in (az login), or set ACASessions:SessionsHttpClient:ApiKey if the Endpoint is a server of `aca-sessions serve`"


class AzureTokenProvider:
    """A cache of one Azure token, which is renewed some minutes before it expires.

    If several calls need a new token, one of them renews it and the others wait. If the renewal fails, the old token is used until it
    expires.
    """

    # azure-identity's own cache does not replace it. Credentials that ask a tool (`az`, PowerShell, azd) have none: each call starts `az`
    # again, and ten calls at the same time start it ten times. The caches of the others renew 5 minutes early, whatever
    # `RefreshBeforeMinutes` is, and cannot drop a token that the service refused.

    def __init__(
        self,
        credential: "TokenCredential | AsyncTokenCredential",
        *,
        scopes: Sequence[str] = (DEFAULT_SCOPE,),
        refresh_before: float = DEFAULT_REFRESH_SECONDS,
        clock: Callable[[], float] = time.time,
        remedy: str = _REMEDY,
    ) -> None:
        """Create a cache of a token that comes from a credential. The caller must close the credential.

        Args:
            credential: A sync or async credential of azure-identity.
            scopes: The scopes that tokens are requested for.
            refresh_before: How many seconds before its expiry a token is renewed.
            clock: Returns the time in seconds since 1970.
            remedy: The part of the error that names what to do if the credential returns no token.
        """
        self._credential = credential
        self._scopes = tuple(scopes)
        self._refresh_before = refresh_before
        self._clock = clock
        self._remedy = remedy
        self._cached: AccessToken | None = None
        self._renewals = SharedCalls()

    async def get_token(self) -> str:
        """Return a valid token. Renew the cached one first if it expires soon.

        Raise AuthenticationError if the credential returns no token and the cached one has expired.
        """
        cached = self._cached
        if cached is None or self._expires_soon(cached):
            cached = await self._renewals.call("token", self._renew)
        return cached.token

    def clear_cache(self, refused: str | None = None) -> None:
        """Drop the cached token, so that the next request gets a new one.

        `refused` is the token that the service refused. If the cached token is another one, keep it, because another call has renewed it
        already. If `refused` is None, drop any cached token.
        """
        if self._cached is not None and refused in (None, self._cached.token):
            self._cached = None

    def _expires_soon(self, cached: "AccessToken") -> bool:
        return cached.expires_on - self._clock() <= self._refresh_before

    async def _renew(self) -> "AccessToken":
        cached = self._cached
        try:
            if inspect.iscoroutinefunction(self._credential.get_token):
                self._cached = await cast("AsyncTokenCredential", self._credential).get_token(*self._scopes)
            else:  # a sync credential blocks on the network or on a process
                self._cached = await call_in_thread(partial(cast("TokenCredential", self._credential).get_token, *self._scopes))
            return self._cached
        except ACASessionsError:  # a missing library
            raise
        # Credentials raise exceptions of their own libraries. Each of them means that no token was returned.
        except Exception as error:
            problem = type(error).__name__
        if cached is not None and cached.expires_on > self._clock():
            return cached
        # Raised here, without the error as its cause or context: its text may contain details of the credential.
        raise AuthenticationError(f"cannot get a token for {', '.join(self._scopes)} ({problem}): {self._remedy}")


class DefaultCredential:
    """The DefaultAzureCredential of azure-identity, opened anew for each token.

    So it keeps nothing open while a token is valid, and any event loop can use it.
    """

    async def get_token(self, *scopes: str) -> "AccessToken":
        """Return a new token. Raise MissingExtraError if azure-identity is not installed."""
        with imports_of("azure"):
            import aiohttp  # noqa: F401 - azure.identity.aio sends its requests by it
            from azure.identity.aio import DefaultAzureCredential

        async with DefaultAzureCredential() as credential:
            return await credential.get_token(*scopes)
