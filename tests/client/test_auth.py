"""Test tokens: cached, renewed early by a single request, and kept while they are valid."""

import asyncio
from dataclasses import dataclass

import httpx
import pytest

from aca_sessions import AzureTokenProvider
from aca_sessions.client.auth import ApiKeyAuth, BearerAuth
from aca_sessions.errors import AuthenticationError


@dataclass
class Token:
    token: str
    expires_on: int


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Credential:
    """A credential like those of azure-identity: it may be slow, and it may fail."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asked, self.broken, self.scopes = clock, 0, False, ()

    async def get_token(self, *scopes: str) -> Token:
        self.asked += 1
        self.scopes = scopes
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("secret detail")
        return Token(f"token-{self.asked}", int(self.clock.now + 3600))


class SyncCredential(Credential):
    def get_token(self, *scopes: str) -> Token:  # type: ignore[override]
        self.asked += 1
        return Token("sync", int(self.clock.now + 3600))


def provider(kind: type = Credential) -> tuple[AzureTokenProvider, Credential, Clock]:
    clock = Clock()
    credential = kind(clock)
    return AzureTokenProvider(credential, refresh_before=300, clock=clock), credential, clock


async def test_a_token_is_requested_once() -> None:
    tokens, credential, _ = provider()
    assert [await tokens.get_token() for _ in range(3)] == ["token-1"] * 3
    assert credential.scopes == ("https://dynamicsessions.io/.default",)


async def test_many_callers_share_one_request() -> None:
    tokens, credential, _ = provider()
    await asyncio.gather(*(tokens.get_token() for _ in range(50)))
    assert credential.asked == 1


async def test_a_token_is_renewed_before_it_expires() -> None:
    tokens, _, clock = provider()
    await tokens.get_token()
    clock.now += 3299
    assert await tokens.get_token() == "token-1"
    clock.now += 1
    assert await tokens.get_token() == "token-2"


async def test_a_valid_token_is_kept_when_renewal_fails() -> None:
    tokens, credential, clock = provider()
    await tokens.get_token()
    clock.now += 3400
    credential.broken = True
    assert await tokens.get_token() == "token-1"
    clock.now += 300
    with pytest.raises(AuthenticationError) as raised:
        await tokens.get_token()
    assert "secret detail" not in str(raised.value)
    assert "az login" in str(raised.value)


async def test_a_sync_credential_works() -> None:
    tokens, _, _ = provider(SyncCredential)
    assert await tokens.get_token() == "sync"


async def test_a_refused_token_is_renewed_once() -> None:
    tokens, credential, _ = provider()
    seen = []

    def refuse_first(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401 if len(seen) == 1 else 200)

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse_first), auth=BearerAuth(tokens)) as client:
        assert (await client.get("http://pool.example")).status_code == 200
    assert seen == ["Bearer token-1", "Bearer token-2"]
    assert credential.asked == 2


async def test_a_token_that_was_renewed_is_kept_when_an_earlier_one_is_refused_late() -> None:
    tokens, credential, _ = provider()
    sent, both_sent, renewed = [], asyncio.Event(), asyncio.Event()

    async def refuse_first_token(request: httpx.Request) -> httpx.Response:
        if request.headers["authorization"] != "Bearer token-1":
            renewed.set()
            return httpx.Response(200)
        sent.append(request)
        if len(sent) == 2:
            both_sent.set()
            await renewed.wait()
        await both_sent.wait()
        return httpx.Response(401)

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse_first_token), auth=BearerAuth(tokens)) as client:
        answers = await asyncio.gather(*(client.get("http://pool.example") for _ in range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert credential.asked == 2


async def test_a_key_is_sent_as_a_bearer_token() -> None:
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: httpx.Response(200, text=request.headers["authorization"])), auth=ApiKeyAuth("key")
    ) as client:
        assert (await client.get("http://pool.example")).text == "Bearer key"
