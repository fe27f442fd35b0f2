"""The server over HTTP: several clients, a key, and no strange page."""

from collections.abc import Iterator

import httpx
import pytest

from .clients import http_client_session, http_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str]]:
    with http_server() as running:
        yield running


async def test_two_clients_do_not_meet(server) -> None:
    async with http_client_session(server) as one, http_client_session(server) as other:
        await one.call_tool("run_python_code", {"code": "x = 'mine'"})
        result = await other.call_tool("run_python_code", {"code": "'x' in globals()"})
    assert result.structuredContent["results"] == ["False"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic KEY"}, 401),
        ({"Authorization": "Bearer KEY", "Host": "evil.example"}, 403),
        ({"Authorization": "Bearer KEY", "Origin": "https://evil.example"}, 403),
        ({"Authorization": "Bearer KEY", "Origin": "null"}, 403),
        ({"Authorization": "Bearer KEY", "Origin": "http://localhost:3000"}, 200),
    ],
)
async def test_strangers_are_refused(server, headers: dict[str, str], status: int) -> None:
    address, key = server
    sent = {name: value.replace("KEY", key) for name, value in headers.items()} | {"Accept": "application/json, text/event-stream"}
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    async with httpx.AsyncClient() as http:
        answer = await http.post(address, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}, headers=sent)
    assert answer.status_code == status
