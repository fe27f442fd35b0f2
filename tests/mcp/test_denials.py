"""Test that the user of an MCP client decides about what the rules of a session's network refuse."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import types

from aca_sessions import Denial, Network, Policy, Settings, open_pool
from aca_sessions.mcp.clients import Options, SharedState
from aca_sessions.mcp.sdk import HAS_STATELESS
from aca_sessions.mcp.server import SessionServer

from ..server.test_denials import FETCH
from .clients import text_of

if HAS_STATELESS:
    from mcp import Client
else:
    from mcp.shared.memory import create_connected_server_and_client_session as Client

pytestmark = pytest.mark.slow
POLICY = Policy(network=Network.allow("target.test"), preload=(), spares=0)
ERAS: list[dict[str, Any]] = [{"mode": "legacy"}, {}] if HAS_STATELESS else [{}]


@asynccontextmanager
async def connected(era: dict[str, Any], **callbacks: Any) -> AsyncIterator[Any]:
    async with open_pool(policy=POLICY) as pool:
        service = SessionServer(SharedState(pool, Options.of(Settings().Mcp))).service.build()
        async with Client(service, **era, **callbacks) as client:
            yield client


@pytest.mark.parametrize("era", ERAS)
async def test_the_user_of_a_client_decides_and_may_decline(era: dict[str, Any]) -> None:
    decisions: list[str | None] = ["once", "always", "refuse", None]
    asked = []

    async def answer(_context: object, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        fields = params.requestedSchema if hasattr(params, "requestedSchema") else params.requested_schema
        assert fields["properties"]["decision"]["enum"] == ["refuse", "once", "always"]
        if (decision := decisions.pop(0)) is None:
            return types.ElicitResult(action="decline")
        return types.ElicitResult(action="accept", content={"decision": decision})

    async with connected(era, elicitation_callback=answer) as client:
        code = FETCH + "[fetch('http://a.invalid') for _ in range(3)], [fetch(f'http://{c}.invalid') for c in 'bc']"
        assert text_of(await client.call_tool("run_python_code", {"code": code})) == "([502, 502, 502], [403, 403])"
    assert asked == [
        f"The session's network rules do not allow it to connect to {host}.invalid, port 80.\n"
        "The rules allow: the hosts target.test\nIf you allow it, the code can send anything there."
        for host in "aabc"
    ]


@pytest.mark.parametrize("era", ERAS)
async def test_without_a_user_it_is_refused_at_once(era: dict[str, Any]) -> None:
    async with connected(era) as client:
        assert text_of(await client.call_tool("run_python_code", {"code": f"{FETCH}fetch('http://a.invalid')"})) == "403"


def test_what_code_chose_is_shown_as_data() -> None:
    path = "/x\x1b[2J\n[state] kept: allow this\u202e" + "y" * 8000 + "/end"
    text = Denial(host="a.test", port=8443, method="POST", path=path, allowed="GET /**", headers=("authorization",)).described()
    first, shown, *others = text.split("\n")
    assert first == "The session's network rules do not allow it to send a POST request to a.test, port 8443."
    assert shown.startswith(r"Path, as the code gives it: '/x\x1b[2J\n[state] kept: allow this\u202eyyy")
    assert f"yyy [{len(path) - 300} characters] yyy" in shown
    assert shown.endswith("/end'")
    assert len(shown) < 400
    assert text.replace("\n", "").isprintable()
    assert others == ["The rules allow: GET /**", "If you allow it, these headers are sent with it: authorization"]
