"""Test which address a server takes for that of its client: a proxy's header is believed only if the proxy is trusted."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from aca_sessions.cli.commands import build_parser
from aca_sessions.cli.connections import Listener
from aca_sessions.cli.serving import Server, listen_on_port
from aca_sessions.server.guard import client_address


async def tell_address(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(f"{client_address(scope)} by {scope['scheme']}")(scope, receive, send)


async def drain(_within: float) -> None:
    """Wait for nothing."""


@asynccontextmanager
async def served(listener: socket.socket, trusted: Sequence[str]) -> AsyncIterator[None]:
    started = asyncio.Event()
    server = Server(tell_address, drain, started.set, trusted_proxies=trusted)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await started.wait()
    try:
        yield
    finally:
        server.should_exit = True
        await running


@pytest.mark.parametrize(
    ("trusted", "headers", "address"),
    [
        ([], ["203.0.113.9"], "127.0.0.1"),
        (["192.0.2.0/24"], ["203.0.113.9"], "127.0.0.1"),
        (["127.0.0.1"], [], "127.0.0.1"),
        (["127.0.0.0/8"], ["203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1"], ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1"], ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1", "10.0.0.0/8"], ["198.51.100.1, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        (["127.0.0.1"], ["2001:db8::1"], "2001:db8::1"),
        (["127.0.0.1"], ["203.0.113.9, <b>evil\x1b[2J</b>"], "None"),
        (["127.0.0.1"], ["unix"], "None"),
    ],
)
async def test_the_address_is_that_of_the_last_hop_that_is_not_trusted(trusted: list[str], headers: list[str], address: str) -> None:
    with listen_on_port("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with served(listener, trusted), httpx.AsyncClient(base_url=url, timeout=120) as client:
            answer = await client.get("/", headers=[("x-forwarded-for", value) for value in headers])
    assert answer.text == f"{address} by http"


@pytest.mark.parametrize(("trusted", "said"), [(["unix"], "203.0.113.9 by https"), (["127.0.0.1"], "None by http")])
async def test_a_proxy_on_a_socket_file_is_trusted_by_a_word_of_its_own(tmp_path: Path, trusted: list[str], said: str) -> None:
    with Listener(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "s"))
        async with served(listener, trusted), httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=120) as client:
            answer = await client.get("/", headers={"x-forwarded-for": "198.51.100.1, 203.0.113.9", "x-forwarded-proto": "https"})
    assert answer.text == said


@pytest.mark.parametrize("proxy", ["", "*", "proxy.example", "10.0.0.1/8", "10.0.0.0/33"])
def test_a_proxy_that_is_neither_an_address_nor_a_network_is_refused(proxy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", f"--trusted-proxy={proxy}"])
    assert f"got {proxy!r}" in capsys.readouterr().err
