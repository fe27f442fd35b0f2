"""Test what happens to requests to hosts whose rules have to look inside: by real clients, and a TLS server of this machine."""

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from aca_sessions.network.rules import Network, NetworkLimits
from aca_sessions.network.secrets import Secret, SecretStore
from aca_sessions.sandbox.proxy.addresses import Dialer
from aca_sessions.sandbox.proxy.authority import Authority
from aca_sessions.sandbox.proxy.proxy import Proxy
from aca_sessions.sandbox.proxy.session_network import NetworkRecord, SessionNetwork

from .upstream import Upstream, _make_certificates, upstream

HOST = "api.site.test"
KEY = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
HERE = "127.0.0.1/32"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    with upstream(tmp_path, monkeypatch) as server:
        yield server


@dataclass
class Proxied:
    """A proxy that listens on this machine, as it does in a session's network namespace."""

    url: str
    port: int
    target: int
    trusted: Path
    network: SessionNetwork
    records: list[NetworkRecord] = field(default_factory=list)
    open: Collection[object] = ()  # the connections of the session
    connections: int = 0  # to the server of `in_front_of`

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.trusted))
        context.set_alpn_protocols(["http/1.1"])
        return context

    def client(self, **options: Any) -> httpx.AsyncClient:
        verify = ssl.create_default_context(cafile=str(self.trusted))
        return httpx.AsyncClient(proxy=self.url, verify=verify, base_url=f"https://{HOST}:{self.target}", timeout=60, **options)

    async def tunnel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a tunnel to the host, before TLS."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"CONNECT {HOST}:{self.target} HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection with TLS to the proxy in the place of the host."""
        reader, writer = await self.tunnel()
        await writer.start_tls(self.context, server_hostname=HOST)
        return reader, writer

    async def send(self, data: bytes) -> bytes:
        """Send bytes over TLS, and return all that comes back until the connection is closed."""
        reader, writer = await self.connect()
        writer.write(data.replace(b"HOST", f"{HOST}:{self.target}".encode()))
        try:
            return await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.transport.abort()


@asynccontextmanager
async def proxied(
    authority: Authority,
    target: int,
    tmp_path: Path,
    *rules: dict[str, Any],
    secrets: dict[str, Any] | None = None,
    limits: NetworkLimits | None = None,
) -> AsyncIterator[Proxied]:
    """Run a proxy whose rules have the host of the tests at this port."""
    (tmp_path / "own.pem").write_text(authority.pem)
    hosts = [{"Host": f"{HOST}:{target}", "Addresses": [HERE], **rule} for rule in rules]
    network = SessionNetwork(Network.rules(hosts, secrets=secrets, limits=limits or NetworkLimits()), secrets=SecretStore(secrets or {}))

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    made = Proxied(f"http://127.0.0.1:{port}", port, target, tmp_path / "own.pem", network)
    network.record = made.records.append
    serving = await Proxy(network, Dialer(resolve=resolve), lambda: authority).serve(listener)
    made.open = serving._open
    try:
        yield made
    finally:
        await serving.close()


@asynccontextmanager
async def in_front_of(handler: Handler, authority: Authority, folder: Path, *rules: dict[str, Any]) -> AsyncIterator[Proxied]:
    """Run a TLS server with a handler for its connections, and a proxy whose rules have it."""
    trusted, certificate = _make_certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    proxy: Proxied | None = None

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if proxy is not None:
            proxy.connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handler(reader, writer)
        finally:
            writer.transport.abort()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(trusted))
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server, proxied(authority, port, folder, *rules, secrets={"github": KEY}) as proxy:
            yield proxy


SECRET = {"Headers": {"Authorization": "Bearer ${secret:github}"}}


async def _by_httpx(proxy: Proxied, url: str) -> str:
    async with proxy.client() as client:
        return (await client.get(url, headers={"Authorization": "mine"})).text


async def _by_http2(proxy: Proxied, url: str) -> str:
    async with proxy.client(http2=True) as client:
        response = await client.get(url, headers={"Authorization": "mine"})
        assert response.http_version == "HTTP/2"
        return response.text


async def _by_requests(proxy: Proxied, url: str) -> str:
    requests = pytest.importorskip("requests")
    options = {"proxies": {"https": proxy.url}, "verify": str(proxy.trusted), "headers": {"authorization": "mine"}, "timeout": 60}
    response = await asyncio.to_thread(requests.get, url, **options)
    return str(response.text)


async def _by_aiohttp(proxy: Proxied, url: str) -> str:
    aiohttp = pytest.importorskip("aiohttp")
    options = {"proxy": proxy.url, "ssl": proxy.context, "headers": {"Authorization": "mine"}}
    async with aiohttp.ClientSession() as client, client.get(url, **options) as response:
        return str(await response.text())


async def _by_urllib(proxy: Proxied, url: str) -> str:
    handlers = urllib.request.ProxyHandler({"https": proxy.url}), urllib.request.HTTPSHandler(context=proxy.context)
    request = urllib.request.Request(url, headers={"Authorization": "mine"})
    return str(await asyncio.to_thread(lambda: urllib.request.build_opener(*handlers).open(request, timeout=60).read().decode()))


async def _by_curl(proxy: Proxied, url: str) -> str:
    command = ["curl", "-sS", "--proxy", proxy.url, "--cacert", str(proxy.trusted), "-H", "Authorization: mine", url]
    return await asyncio.to_thread(lambda: subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.parametrize("client", [_by_httpx, _by_http2, _by_requests, _by_aiohttp, _by_urllib, _by_curl])
async def test_the_host_adds_a_header_that_the_client_never_sees(
    client: Callable[[Proxied, str], Awaitable[str]], site: Upstream, authority: Authority, tmp_path: Path
) -> None:
    async with proxied(authority, site.port, tmp_path, SECRET, secrets={"github": KEY}) as proxy:
        seen = await client(proxy, f"https://{HOST}:{site.port}/echo")
    [received] = site.requests
    assert received.header("authorization") == [f"Bearer {KEY}"]
    assert received.header("accept-encoding") == ["identity"]
    assert received.header("host") == [f"{HOST}:{site.port}"]
    assert f"Bearer {'*' * len(KEY)}" in seen
    assert KEY not in seen
    assert "mine" not in seen


async def test_a_request_that_no_rule_allows_gets_a_readable_refusal(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    rules = {"Methods": ["GET"], "Paths": ["/repos/**"]}, {"Methods": ["PUT"], "Paths": ["/files/*"]}
    async with proxied(authority, site.port, tmp_path, *rules) as proxy, proxy.client() as client:
        for method, path in (("POST", "/repos/x"), ("GET", "/user"), ("PUT", "/files/a/b"), ("DELETE", "/files/a")):
            response = await client.request(method, path, content=b"x" * 100_000)
            assert response.status_code == 403
            assert response.text.startswith("blocked by this session's network rules: ")
            assert response.text.endswith(f"{path}; allowed: GET /repos/**, PUT /files/*\n")
        assert (await client.put("/files/a", content=b"x")).text == "PUT /files/a"
        assert (await client.get("/repos/a/b?q=1")).text == "GET /repos/a/b?q=1"
        assert (await client.request("TRACE", "/repos/a")).status_code == 403
    assert [one.target for one in site.requests] == ["/files/a", "/repos/a/b?q=1"]
    allowed = [(one.method, one.pattern, one.status, one.sent, one.received) for one in proxy.records if one.decision == "allowed"]
    assert allowed == [("PUT", "/files/*", 200, 1, 12), ("GET", "/repos/**", 200, 0, 18)]
    assert [one.reason for one in proxy.records if one.decision == "refused"] == ["rule"] * 5


async def test_secrets_are_not_sent_without_tls(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    async with proxied(authority, site.port, tmp_path, SECRET, secrets={"github": KEY}) as proxy:
        async with httpx.AsyncClient(proxy=proxy.url) as client:
            absolute = await client.get(f"http://{HOST}:{site.port}/echo")
        assert absolute.status_code == 403
        assert "use https://" in absolute.text
        reader, writer = await proxy.tunnel()
        writer.write(f"GET /echo HTTP/1.1\r\nHost: {HOST}:{site.port}\r\nConnection: close\r\n\r\n".encode())
        assert b"HTTP/1.1 403 " in await reader.read()
        writer.close()
    assert site.requests == []


async def test_hosts_without_tls_are_inspected(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with upstream(tmp_path, monkeypatch, tls=False) as site:
        async with proxied(authority, site.port, tmp_path, {"Methods": ["GET", "POST"], "Paths": ["/a"]}) as proxy:
            async with httpx.AsyncClient(proxy=proxy.url) as client:
                assert (await client.post(f"http://{HOST}:{site.port}/a", content=b"abc")).text == "POST /a"
                assert (await client.get(f"http://{HOST}:{site.port}/b")).status_code == 403
            reader, writer = await proxy.tunnel()
            writer.write(f"GET /a HTTP/1.0\r\nHost: {HOST}:{site.port}\r\n\r\n".encode())
            assert (await reader.read()).endswith(b"\r\n\r\nGET /a")
            writer.close()
        assert [one.body for one in site.requests] == [b"abc", b""]


MALFORMED = {
    "another host": b"GET / HTTP/1.1\r\nHost: other.site.test\r\n\r\n",
    "another port": b"GET / HTTP/1.1\r\nHost: api.site.test:1\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n",
    "a whole URL": b"GET https://other.site.test/ HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "the whole server": b"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "a tunnel in the tunnel": b"CONNECT other.site.test:443 HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "a fragment": b"GET /#/../x HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a length and chunks": b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "other encodings": b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks of an old version": b"POST / HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: HOST\r\nX: a\r\n b\r\n\r\n",
    "a bare line feed": b"GET / HTTP/1.1\r\nHost: HOST\r\nX: a\nY: b\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost: HOST\r\nX : a\r\n\r\n",
    "an underscore": b"GET / HTTP/1.1\r\nHost: HOST\r\nContent_Length: 3\r\n\r\n",
    "an unknown version": b"GET / HTTP/2.0\r\nHost: HOST\r\n\r\n",
    "no request": b"\x00\x01\x02\r\n\r\n",
    "an endless head": b"GET / HTTP/1.1\r\nHost: HOST\r\n" + b"X: y\r\n" * 12_000 + b"\r\n",
}


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_malformed_request_to_an_inspected_host_is_refused(
    malformed: str, site: Upstream, authority: Authority, tmp_path: Path
) -> None:
    async with proxied(authority, site.port, tmp_path, SECRET, secrets={"github": KEY}) as proxy:
        got = await proxy.send(MALFORMED[malformed])
        assert got.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert got.endswith(b"\n")
        assert [(one.decision, one.reason, one.status) for one in proxy.records] == [("refused", "malformed", 400)]
    assert site.requests == []


@pytest.mark.parametrize("chunks", [b"zz\r\nabc\r\n0\r\n\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"-1\r\n\r\n", b"3;a\nb\r\nabc\r\n0\r\n\r\n"])
async def test_a_body_with_broken_chunks_is_refused(chunks: bytes, site: Upstream, authority: Authority, tmp_path: Path) -> None:
    async with proxied(authority, site.port, tmp_path, {"Methods": ["POST"]}) as proxy:
        got = await proxy.send(b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        assert got.startswith(b"HTTP/1.1 400 ")
    assert site.requests == []


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"Content-Length: 9\r\n\r\nabc"])
async def test_a_request_that_is_cut_never_arrives_whole(framing: bytes, site: Upstream, authority: Authority, tmp_path: Path) -> None:
    async with proxied(authority, site.port, tmp_path, {"Methods": ["POST"]}) as proxy:
        _, writer = await proxy.connect()
        writer.write(f"POST /x HTTP/1.1\r\nHost: {HOST}:{site.port}\r\n".encode() + framing)
        await wait_until(lambda: bool(site.names))  # it is on its way
        writer.transport.abort()
        await wait_until(lambda: bool(proxy.records))
    assert all(len(one.body) < 9 for one in site.requests)


async def test_a_second_request_before_the_first_response_is_not_sent_on(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    async with proxied(authority, site.port, tmp_path, {"Methods": ["GET", "POST"]}) as proxy:
        got = await proxy.send(b"GET /one HTTP/1.1\r\nHost: HOST\r\n\r\nGET /two HTTP/1.1\r\nHost: HOST\r\n\r\n")
        assert b"connection: close" in got.lower()
        assert got.endswith(b"GET /one")
        got = await proxy.send(b"POST /three HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\nabGET /four HTTP/1.1\r\nHost: HOST\r\n\r\n")
        assert got.endswith(b"POST /three")
    assert [(one.target, one.body) for one in site.requests] == [("/one", b""), ("/three", b"ab")]


async def test_what_concerns_the_connection_is_not_sent_on(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    rule = {"Headers": {"X-Api-Key": "${secret:key}"}}
    headers = b"Connection: close, X-Gone\r\nX-Gone: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\nTrailer: X\r\nUpgrade: h2c\r\n"
    guessed = b"Proxy-Authorization: x\r\nx_api_key: mine\r\nX-API-Key: mine\r\nAccept-Encoding: gzip\r\nX-Kept: 1\r\n"
    async with proxied(authority, site.port, tmp_path, rule, secrets={"key": KEY}) as proxy:
        assert b" 200 " in await proxy.send(b"GET /x HTTP/1.1\r\nHost: HOST\r\n" + headers + guessed + b"\r\n")
    [received] = site.requests
    assert {name.lower(): value for name, value in received.headers} == {
        "host": f"{HOST}:{site.port}",
        "x-kept": "1",
        "x-api-key": KEY,
        "accept-encoding": "identity",
    }


async def test_bodies_are_streamed_in_both_directions(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    async with proxied(authority, site.port, tmp_path, {"Methods": ["GET", "POST", "HEAD"]}) as proxy, proxy.client() as client:

        async def parts() -> AsyncIterator[bytes]:
            for number in range(50):
                yield b"%d," % number * 1000

        assert (await client.post("/up", content=parts())).text == "POST /up"
        assert site.requests[-1].body == b"".join([part async for part in parts()])
        assert site.requests[-1].header("transfer-encoding") == ["chunked"]
        sized = await client.post("/sized", content=b"abc")
        assert site.requests[-1].header("content-length") == ["3"]
        assert sized.headers["content-length"] == "11"
        assert (await client.post("/empty", content=b"")).status_code == 200
        assert site.requests[-1].header("content-length") == ["0"]
        assert len((await client.get("/big?size=3000000")).content) == 3_000_000
        assert len((await client.get("/chunked?size=3000000")).content) == 3_000_000
        head = await client.head("/big?size=3000000")
        assert (head.headers["content-length"], head.content) == ("3000000", b"")
        assert (await client.get("/last")).text == "GET /last"


async def test_a_client_that_waits_before_its_body_is_told_to_go_on(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    async with proxied(authority, site.port, tmp_path, {"Methods": ["POST"]}) as proxy:
        reader, writer = await proxy.connect()
        head = f"POST /x HTTP/1.1\r\nHost: {HOST}:{site.port}\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"abc")
        assert (await reader.read()).endswith(b"POST /x")
        writer.close()
    assert site.requests[0].header("expect") == []
    assert site.requests[0].body == b"abc"


async def test_an_early_response_reaches_a_client_that_still_sends(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull")
        await writer.drain()
        await asyncio.sleep(60)  # without reading the body

    async with in_front_of(refuses, authority, tmp_path, {"Methods": ["PUT"]}) as proxy:
        reader, writer = await proxy.connect()
        writer.write(f"PUT /x HTTP/1.1\r\nHost: {HOST}:{proxy.target}\r\nContent-Length: 1000000000\r\n\r\n".encode() + b"x" * 1000)
        assert b" 413 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        assert await reader.readexactly(4) == b"full"
        writer.transport.abort()


async def test_a_response_goes_on_while_its_request_does(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")
        for _ in range(10):
            writer.write(await reader.readexactly(5))
            await writer.drain()

    async with in_front_of(echoes, authority, tmp_path, {"Methods": ["POST"]}) as proxy:
        reader, writer = await proxy.connect()
        writer.write(f"POST /x HTTP/1.1\r\nHost: {HOST}:{proxy.target}\r\nContent-Length: 50\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        for number in range(10):
            writer.write(b"%05d" % number)
            assert await asyncio.wait_for(reader.readexactly(5), 60) == b"%05d" % number
        writer.transport.abort()


async def test_connections_to_a_host_are_used_again(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with in_front_of(answers, authority, tmp_path, {"Methods": ["GET"]}) as proxy:
        for http2 in (False, True):
            async with proxy.client(http2=http2) as client:
                for _ in range(5):
                    assert (await client.get("/")).text == "ok"
        assert proxy.connections == 1


@pytest.mark.parametrize(("method", "statuses", "asked"), [("GET", [200, 200], 3), ("POST", [200, 502], 2), ("DELETE", [200, 502], 2)])
async def test_only_harmless_requests_are_repeated(
    method: str, statuses: list[int], asked: int, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[bytes] = []

    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        requests.append(await reader.readuntil(b"\r\n\r\n"))  # and closes the connection, perhaps after it has done the work

    async with in_front_of(answers_once, authority, tmp_path, {"Methods": ["GET", "POST", "DELETE"]}) as proxy, proxy.client() as client:
        got = [await client.request(method, "/") for _ in range(2)]
        assert [one.status_code for one in got] == statuses
        assert len(requests) == asked
        assert got[1].text in ("ok", f"{HOST} closed the connection without a response\n")


async def test_a_host_that_cannot_be_reached_gives_the_reason(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    async with proxied(authority, closed, tmp_path, {"Methods": ["GET"]}) as proxy, proxy.client() as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (502, f"{HOST} port {closed} cannot be connected: Connect call failed\n") or (
            response.status_code == 502 and "cannot be connected" in response.text
        )
    os.environ["SSL_CERT_FILE"] = str(tmp_path / "own.pem")  # which did not sign the server's certificate; `site` puts it back
    async with proxied(authority, site.port, tmp_path, SECRET, secrets={"github": KEY}) as proxy, proxy.client() as client:
        response = await client.get("/")
        assert response.status_code == 502
        assert response.text.startswith(f"the certificate of {HOST} was not accepted: ")
    assert site.requests == []


async def test_a_private_address_that_no_rule_names_is_refused(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    rule = {**SECRET, "Addresses": ["10.0.0.0/8"]}
    async with proxied(authority, site.port, tmp_path, rule, secrets={"github": KEY}) as proxy, proxy.client() as client:
        response = await client.get("/")
        assert response.status_code == 403
        assert "public addresses only" in response.text
        assert [one.reason for one in proxy.records] == ["address"]


async def test_a_secret_that_cannot_be_read_is_named(
    site: Upstream, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    secrets = {"github": Secret.environment("NOT_SET")}
    async with proxied(authority, site.port, tmp_path, SECRET, secrets=secrets) as proxy, proxy.client() as client:
        response = await client.get("/")
        assert response.status_code == 502
        assert "'github'" in response.text
        assert "NOT_SET" in response.text
    assert site.requests == []


BROKEN = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a head without an end": b"HTTP/1.1 200 OK\r\nX: ",
    "a malformed header": b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 30_000,
    "a secret in the status line": f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
    "a secret in a header": f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_response_is_a_bad_gateway(
    broken: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(BROKEN[broken])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with in_front_of(breaks, authority, tmp_path, SECRET) as proxy, proxy.client() as client:
        for _ in range(2):
            response = await client.get("/")
            assert (response.status_code, KEY in response.text) == (502, False)


@pytest.mark.parametrize("http2", [False, True])
async def test_a_response_that_is_cut_is_not_taken_for_a_whole_one(
    http2: bool, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cuts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunked = b"chunked" in await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\n" + (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" if chunked else b"Content-Length: 9\r\n\r\nhello")
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with in_front_of(cuts, authority, tmp_path, {"Methods": ["GET"]}) as proxy, proxy.client(http2=http2) as client:
        for path in ("/sized", "/chunked"):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(path)


async def test_limits_end_requests(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    rule = {"Methods": ["GET", "PUT"], "Megabytes": 2, "Requests": 3}
    async with proxied(authority, site.port, tmp_path, rule) as proxy, proxy.client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/big?size=5000000")
        response = await client.get("/")
        assert response.status_code == 429
        assert "allows 2 MB" in response.text
        assert 2 << 20 < proxy.records[0].received < 4 << 20
    async with proxied(authority, site.port, tmp_path, rule) as proxy, proxy.client() as client:
        response = await client.put("/", content=b"x" * 5_000_000)
        assert response.status_code == 429
        assert proxy.records[0].reason == "limit"
    async with proxied(authority, site.port, tmp_path, {"Requests": 3}) as proxy, proxy.client() as client:
        assert [(await client.get("/")).status_code for _ in range(4)] == [200, 200, 200, 429]
    async with proxied(authority, site.port, tmp_path, {"Methods": ["GET"], "Connections": 1}) as proxy, proxy.client() as client:
        async with client.stream("GET", "/endless"):
            assert (await client.get("/")).status_code == 429
        await wait_until(lambda: len(proxy.records) == 2)
        assert (await client.get("/")).status_code == 200


async def test_a_session_has_a_limited_number_of_connections(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    limits = NetworkLimits(connections=2)
    async with proxied(authority, site.port, tmp_path, {"Methods": ["GET"]}, limits=limits) as proxy:
        writers = [(await proxy.tunnel())[1] for _ in range(2)]
        reader, refused = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await reader.read() == b""
        writers[0].transport.abort()
        await wait_until(lambda: len(proxy.open) == 1)
        writers.append((await proxy.tunnel())[1])
        for writer in (*writers, refused):
            writer.transport.abort()


async def wait_until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("http2", [False, True])
async def test_a_client_that_does_not_read_stops_the_host(
    http2: bool, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b"x" * (1 << 20))
            await writer.drain()
            sent += 1

    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(in_front_of(pours, authority, tmp_path, SECRET))
        client = await stack.enter_async_context(proxy.client(http2=http2))
        response = await stack.enter_async_context(client.stream("GET", "/"))
        before = -1
        while before != sent:  # until nothing moves
            before = sent
            await asyncio.sleep(0.5)
        assert sent < 40  # MB, most of them in the buffers of the kernel
        async for _ in response.aiter_raw():
            if sent > before + 20:
                break


async def test_web_sockets_pass_and_secrets_in_them_are_masked(
    site: Upstream, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    websockets = pytest.importorskip("websockets")
    received: list[Any] = []

    async def echo(connection: Any) -> None:
        received.append(connection.request.headers)
        await connection.send(f"the key is {connection.request.headers['Authorization']}")
        async for message in connection:
            await connection.send(message)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    async with websockets.serve(echo, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        async with proxied(authority, port, tmp_path, SECRET, secrets={"github": KEY}) as proxy:
            async with websockets.connect(f"wss://{HOST}:{port}/live", ssl=proxy.context, proxy=proxy.url) as client:
                assert await client.recv() == f"the key is Bearer {'*' * len(KEY)}"
                for size in (1, 1000, 500_000):
                    await client.send("y" * size)
                    assert len(await client.recv()) == size
            await wait_until(lambda: bool(proxy.records))
            [record] = proxy.records
            assert (record.status, record.method) == (101, "GET")
            assert record.sent > 500_000
            assert record.received > 500_000
    assert "Sec-WebSocket-Extensions" not in received[0]


async def test_sni_must_be_the_host_of_the_tunnel(site: Upstream, authority: Authority, tmp_path: Path) -> None:
    async with proxied(authority, site.port, tmp_path, {"Methods": ["GET"]}) as proxy:
        _, writer = await proxy.tunnel()
        with pytest.raises(OSError, match=r"UNRECOGNIZED_NAME|unrecognized"):
            await writer.start_tls(proxy.context, server_hostname="other.site.test")
        writer.transport.abort()
        await wait_until(lambda: bool(proxy.records))
        assert [(one.decision, one.reason) for one in proxy.records] == [("refused", "tls")]


@pytest.mark.parametrize("http2", [False, True])
async def test_a_connection_cancelled_at_any_step_leaves_nothing(
    http2: bool, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_now = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 100_000)
            await reader.read()
            await reader.read()
        finally:
            open_now -= 1

    async with in_front_of(slow, authority, tmp_path, {"Methods": ["POST"]}) as first:
        tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        for turns in [*range(0, 60, 3), 100, 200]:
            async with proxied(authority, first.target, tmp_path, {"Methods": ["POST"]}) as proxy, proxy.client(http2=http2) as client:
                asking = asyncio.create_task(client.post("/", content=b"y" * 500_000))
                while not proxy.open:  # asyncio leaks what a server accepts in the moment in which it is closed
                    await asyncio.sleep(0)
                for _ in range(turns):
                    await asyncio.sleep(0)
                if turns >= 100:
                    await asyncio.sleep(turns / 1000)
                if turns % 2:  # else the proxy is closed with whatever it is doing
                    asking.cancel()
                    await asyncio.wait({asking})
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await wait_until(lambda: open_now == 0 and len(asyncio.all_tasks()) <= tasks)
        gc.collect()
        await wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


async def test_a_secret_of_another_request_is_masked_in_a_response_that_began_before(authority: Authority, tmp_path: Path) -> None:
    listeners: list[asyncio.StreamWriter] = []

    async def broadcast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /listen"):
            listeners.append(writer)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n.\r\n")
            await reader.read()
        for listener in listeners:
            listener.write(b"%x\r\n%b\r\n" % (len(head), head))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    rules = {"Paths": ["/listen"]}, {"Paths": ["/say"], **SECRET}
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(in_front_of(broadcast, authority, tmp_path, *rules))
        client = await stack.enter_async_context(proxy.client())
        response = await stack.enter_async_context(client.stream("GET", "/listen"))
        parts = response.aiter_raw()
        assert await anext(parts) == b"."
        await client.get("/say")
        heard = await anext(parts)
        assert b"Bearer **********" in heard
        assert KEY.encode() not in heard


async def test_a_secret_is_masked_although_it_is_replaced_before_the_response(authority: Authority, tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        proxy.network.replace(proxy.network.network, SecretStore({"github": "another one"}))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))
        await writer.drain()

    async with in_front_of(echo, authority, tmp_path, SECRET) as proxy, proxy.client() as client:
        text = (await client.get("/")).text
        assert "********" in text
        assert KEY not in text


@pytest.mark.parametrize("rule", [{}, SECRET], ids=["tunnel", "inspected"])
async def test_connections_to_a_host_end_when_its_rules_are_replaced_by_others(
    rule: dict[str, Any], authority: Authority, tmp_path: Path
) -> None:
    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"more")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with in_front_of(pours, authority, tmp_path, rule) as proxy:
        reader, writer = await proxy.tunnel()
        trusted = proxy.context if rule else ssl._create_unverified_context()
        await writer.start_tls(trusted, server_hostname=HOST)
        writer.write(f"GET / HTTP/1.1\r\nHost: {HOST}:{proxy.target}\r\n\r\n".encode())
        await reader.readuntil(b"more")
        proxy.network.replace(Network.rules([*proxy.network.network.hosts, {"Host": "other.test"}], secrets={"github": KEY}))
        assert proxy.open
        await reader.readuntil(b"more")
        proxy.network.replace(Network.rules([{"Host": "other.test"}]))
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 60)
        await wait_until(lambda: not proxy.open)
        writer.transport.abort()


async def test_requests_of_one_connection_have_a_limited_number_of_connections_to_hosts(authority: Authority, tmp_path: Path) -> None:
    limits, held = NetworkLimits(connections=3), asyncio.Event()
    statuses: list[int] = []

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /first"):
            await held.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with in_front_of(waits, authority, tmp_path, {"Methods": ["GET"]}) as proxy, proxy.client(http2=True) as client:
        proxy.network.network = Network.rules(proxy.network.network.hosts, limits=limits)
        await client.get("/first")  # so that the client knows the protocol, and uses one connection

        async def get() -> None:
            statuses.append((await client.get("/")).status_code)

        asking = [asyncio.create_task(get()) for _ in range(20)]
        await wait_until(lambda: len(statuses) == 17)
        assert {*statuses} == {429}
        held.set()
        await asyncio.gather(*asking)
        assert sorted(statuses) == [200] * 3 + [429] * 17
        assert proxy.connections == 4


async def test_a_body_of_many_small_chunks_leaves_others_their_turn(authority: Authority, tmp_path: Path) -> None:
    count, chunks, turns = 20_000, b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n", 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += await reader.read(1 << 16)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        await writer.drain()
        await reader.read()

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with in_front_of(echo, authority, tmp_path, {"Methods": ["POST"]}) as proxy:
        taking = asyncio.create_task(take_turns())
        head = b"POST / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        received = await proxy.send(head + chunks)
        taking.cancel()
    assert received.count(b"a\r\n") >= count
    assert turns > 2 * count / 64
