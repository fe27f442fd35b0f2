"""Attack the rules of a network: what no rule allows arrives nowhere, whatever form it has, and the session goes on."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aca_sessions import CodeExecutionResult, Network, NetworkLimits, Policy, Session, Settings, open_pool

from ..conftest import mostly_long
from ..network.upstream import Upstream, upstream

pytestmark = pytest.mark.slow
HERE = "127.0.0.1/32"
SITE = "api.site.test"
KEY = "Bearer of-the-rules"
# Functions for attacks in a session: a TLS connection through the proxy, over which raw bytes go.
TOOLS = """
import socket, ssl
def connect(target=TARGET):
    s = socket.create_connection(('127.0.0.1', 3128)); s.settimeout(30)
    s.sendall(b'CONNECT %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n' % (target, target))
    reply = b''
    while b'\\r\\n\\r\\n' not in reply:
        part = s.recv(4096)
        if not part: break
        reply += part
    return s, reply
def tls(name=SITE, target=TARGET, alpn=('http/1.1',)):
    s, reply = connect(target)
    assert b' 200 ' in reply.split(b'\\r\\n')[0], reply
    context = ssl.create_default_context(); context.set_alpn_protocols(alpn)
    return context.wrap_socket(s, server_hostname=name)
def read(s):
    data = b''
    try:
        while part := s.recv(65536): data += part
    except OSError: pass
    return data.decode('latin-1')
def send(data, **options):
    with tls(**options) as s:
        s.sendall(data)
        s.settimeout(5)
        return read(s)
"""
HEAD = b"Host: TARGET\r\nConnection: close\r\n"
OUTSIDE = {
    "another method": b"POST /open/x HTTP/1.1\r\n" + HEAD + b"Content-Length: 0\r\n\r\n",
    "a method in lower case": b"get /open/x HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a method that nothing knows": b"GETS /open/x HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a method in a header": b"GET /open/x HTTP/1.1\r\n" + HEAD + b"X-HTTP-Method-Override: DELETE\r\n\r\n",
    "a path in a header": b"GET /open/x HTTP/1.1\r\n" + HEAD + b"X-Original-URL: /closed\r\n\r\n",
    "another path": b"GET /closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a path in upper case": b"GET /OPEN/x HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a path beside the pattern": b"GET /openx HTTP/1.1\r\n" + HEAD + b"\r\n",
    "dots": b"GET /open/../closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "one dot": b"GET /open/./x HTTP/1.1\r\n" + HEAD + b"\r\n",
    "encoded dots": b"GET /open/%2e%2e/closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "encoded twice": b"GET /open/%252e%252e/closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "an encoded slash": b"GET /open/..%2fclosed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a backslash": b"GET /open/..\\closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "an encoded backslash": b"GET /open/..%5cclosed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "dots with a parameter": b"GET /open/..;/closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "overlong dots": b"GET /open/%c0%ae%c0%ae/closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "wide dots": b"GET /open/%ef%bc%8e%ef%bc%8e/closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "an encoded NUL": b"GET /open/x%00/../closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "an encoded line end": b"GET /open/x%0d%0aX:y HTTP/1.1\r\n" + HEAD + b"\r\n",
    "two slashes": b"GET //closed HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a fragment": b"GET /closed#/open/x HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a query in the pattern's place": b"GET /closed?/open/x HTTP/1.1\r\n" + HEAD + b"\r\n",
    "an echo by TRACE": b"TRACE /open/x HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a tunnel in the tunnel": b"CONNECT other.site.test:443 HTTP/1.1\r\n" + HEAD + b"\r\n",
    "the server as a whole": b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n",
    "another protocol": b"GET /closed HTTP/1.1\r\nHost: TARGET\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "HTTP/2 by an upgrade": (
        b"GET /closed HTTP/1.1\r\nHost: TARGET\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    ),
}
AMBIGUOUS = {
    "two lengths": b"POST /any HTTP/1.1\r\n" + HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length and chunks": b"POST /any HTTP/1.1\r\n" + HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks under another name": b"POST /any HTTP/1.1\r\n" + HEAD + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"POST /any HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "codings in a row": b"POST /any HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"POST /any HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"POST /any HTTP/1.1\r\n" + HEAD + b"Content-Length : 1\r\n\r\na",
    "a negative length": b"POST /any HTTP/1.1\r\n" + HEAD + b"Content-Length: -1\r\n\r\na",
    "a length with a sign": b"POST /any HTTP/1.1\r\n" + HEAD + b"Content-Length: +1\r\n\r\na",
    "a folded header": b"GET /any HTTP/1.1\r\n" + HEAD + b"X: a\r\n b\r\n\r\n",
    "a line end alone": b"GET /any HTTP/1.1\r\n" + HEAD + b"X: a\nContent-Length: 5\r\n\r\n",
    "a carriage return alone": b"GET /any HTTP/1.1\r\n" + HEAD + b"X: a\rY: b\r\n\r\n",
    "a NUL": b"GET /any HTTP/1.1\r\n" + HEAD + b"X: a\0b\r\n\r\n",
    "no host": b"GET /any HTTP/1.1\r\nConnection: close\r\n\r\n",
    "two hosts": b"GET /any HTTP/1.1\r\n" + HEAD + b"Host: other.site.test\r\n\r\n",
    "another host": b"GET /any HTTP/1.1\r\nHost: other.site.test\r\nConnection: close\r\n\r\n",
    "an absolute target": b"GET https://other.site.test/any HTTP/1.1\r\n" + HEAD + b"\r\n",
    "its own absolute target": b"GET https://api.site.test/any HTTP/1.1\r\n" + HEAD + b"\r\n",
    "another version": b"GET /any HTTP/2.0\r\n" + HEAD + b"\r\n",
    "no version": b"GET /any\r\n\r\n",
    "a header without a name": b"GET /any HTTP/1.1\r\n" + HEAD + b": x\r\n\r\n",
    "a chunk of a wrong size": b"POST /any HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nab\r\n0\r\n\r\n",
    "a chunk of a huge size": b"POST /any HTTP/1.1\r\n"
    + HEAD
    + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\nab\r\n0\r\n\r\n",
    "a head without end": b"GET /any HTTP/1.1\r\n" + HEAD + b"X: " + b"x" * 100_000,
}
TARGETS = {
    "an address": b"127.0.0.1:443", "an address of IPv6": b"[::1]:443", "a mapped address": b"[::ffff:127.0.0.1]:443",
    "a number": b"2130706433:443", "a number in hex": b"0x7f000001:443", "octal parts": b"0177.0.0.1:443", "short": b"127.1:443",
    "the metadata service": b"169.254.169.254:80", "mapped metadata": b"[::ffff:169.254.169.254]:80", "by NAT64": b"[64:ff9b::7f00:1]:443",
    "an address with a zone": b"[fe80::1%25lo]:443", "a name without a rule": b"unknown.test:443", "another port": b"api.site.test:22",
    "a name with a user": b"api.site.test@unknown.test:443", "a name with a NUL": b"api.site.test\0.unknown.test:443",
    "a name beside a rule": b"xapi.site.test:443", "a name below a rule": b"a.api.site.test:443", "no name": b":443",
    "no port": b"api.site.test",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with pytest.MonkeyPatch.context() as patch, upstream(tmp_path_factory.mktemp("site"), patch) as server:
        yield server


@contextlib.asynccontextmanager
async def opened(site: Upstream, folder: Path, *rules: dict[str, object], connections: int = 64) -> AsyncIterator[Session]:
    """Open a session with rules, in which the tools for attacks are defined."""
    settings = Settings(Audit={"File": str(folder / "audit.jsonl")})
    network = Network.rules([{"Addresses": [HERE]} | rule for rule in rules], limits=NetworkLimits(connections=connections))
    async with open_pool(settings, policy=Policy(network=network, preload=(), spares=0)) as pool, pool.session() as session:
        site.requests.clear()
        site.names.clear()
        ready = await session.run(f"SITE = {SITE!r}; TARGET = b'{SITE}:{site.port}'\n{TOOLS}")
        assert ready.success, str(ready)
        yield session
        assert (await session.run("6 * 7")).value == 42


def rule(site: Upstream, name: str = SITE, **more: object) -> dict[str, object]:
    return {"Host": f"{name}:{site.port}", "Headers": {"Authorization": KEY}} | more


def audited(folder: Path) -> list[dict[str, object]]:
    return [entry for line in (folder / "audit.jsonl").read_text().splitlines() if (entry := json.loads(line))["event"] == "network"]


async def attack(session: Session, code: str) -> str:
    result: CodeExecutionResult = await session.run(code, timeout=100)
    return str(result.value) if result.success else f"{result.error}"


def raw(site: Upstream, data: bytes) -> str:
    return repr(data.replace(b"TARGET", f"{SITE}:{site.port}".encode()))


@pytest.mark.parametrize("attempt", mostly_long([*OUTSIDE], every=6))
async def test_a_request_that_no_rule_allows_is_not_sent(site: Upstream, tmp_path: Path, attempt: str) -> None:
    """What no rule allows by its method or path is not sent, in whatever case, encoding or form it is asked for, and is audited."""
    async with opened(site, tmp_path, rule(site, Methods=["GET"], Paths=["/open/**"])) as session:
        said = await attack(session, f"send({raw(site, OUTSIDE[attempt])})")
        assert said.startswith(("HTTP/1.1 403", "HTTP/1.1 400")), said
        assert not site.requests
        assert (
            "open/x HTTP" in await attack(session, f"send({raw(site, b'GET /open/x HTTP/1.1' + bytes([13, 10]) + HEAD + bytes([13, 10]))})")
            or site.requests
        )
    refused = [entry for entry in audited(tmp_path) if entry["decision"] == "refused"]
    assert refused
    assert "closed" not in json.dumps(refused)


@pytest.mark.parametrize("attempt", mostly_long([*AMBIGUOUS], every=6))
async def test_an_inspected_request_that_servers_may_read_differently_is_not_sent(site: Upstream, tmp_path: Path, attempt: str) -> None:
    """A request that two servers could read in different ways is not sent to an inspected host; what is sent was written anew."""
    async with opened(site, tmp_path, rule(site)) as session:
        said = await attack(session, f"send({raw(site, AMBIGUOUS[attempt])})")
        assert not said.startswith("HTTP/1.1 2"), said
        assert not [request for request in site.requests if request.body or attempt.startswith(("a chunk",)) is False]


async def test_a_second_request_in_a_body_is_not_a_request(site: Upstream, tmp_path: Path) -> None:
    """A body that looks like a request arrives as a body, and a request behind another one on a connection is checked like the first."""
    inner = b"GET /closed HTTP/1.1\r\nHost: other.site.test\r\n\r\n"
    async with opened(site, tmp_path, rule(site, Paths=["/open/**"])) as session:
        body = b"POST /open/a HTTP/1.1\r\nHost: TARGET\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
        await attack(session, f"send({raw(site, body + inner)})")
        chunked = (
            b"POST /open/b HTTP/1.1\r\nHost: TARGET\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n"
        )
        await attack(session, f"send({raw(site, chunked + inner)})")
        kept = "import requests; s = requests.Session()\n"
        kept += f"[s.get('https://{SITE}:{site.port}' + path).status_code for path in ('/open/c', '/closed')]"
        assert await attack(session, kept) == "[200, 403]"
    assert [(request.target, request.body) for request in site.requests] == [("/open/a", inner), ("/open/b", inner), ("/open/c", b"")]


@pytest.mark.parametrize("target", mostly_long([*TARGETS], every=6))
async def test_a_tunnel_leads_to_no_host_without_a_rule(site: Upstream, tmp_path: Path, target: str) -> None:
    """A CONNECT to an address, also a mapped or numeric one, or to a name without a rule is refused."""
    async with opened(site, tmp_path, rule(site)) as session:
        said = await attack(session, f"connect({TARGETS[target]!r})[1].decode()")
        assert said.startswith(("HTTP/1.1 403", "HTTP/1.1 400", "HTTP/1.1 502")), said
        assert not site.requests
        assert not site.names


async def test_a_name_in_tls_that_differs_from_the_target_is_refused(site: Upstream, tmp_path: Path) -> None:
    """The name that a session's TLS asks for must be the host of its tunnel, and so must be the Host of each request."""
    async with opened(site, tmp_path, rule(site), rule(site, "other.site.test")) as session:
        assert "SSLError" in await attack(session, "tls('other.site.test')") or "CertificateError" in await attack(
            session, "tls('other.site.test')"
        )
        assert "ssl" in (await attack(session, "tls('unknown.test')")).lower()
        assert not site.requests


async def test_a_redirect_carries_nothing_to_another_host(site: Upstream, tmp_path: Path) -> None:
    """A redirect to another host, another port or plain http carries no header of a rule there."""
    async with opened(site, tmp_path, rule(site), {"Host": f"other.site.test:{site.port}", "Methods": ["GET"]}) as session:
        to = f"https://other.site.test:{site.port}/echo"
        said = await attack(session, f"import requests; requests.get('https://{SITE}:{site.port}/redirect?to={to}').text")
        assert KEY not in said
        assert [request.header("authorization") for request in site.requests] == [[KEY], []]
        for plain in (f"http://{SITE}:{site.port}/x", f"http://{SITE}/x"):
            await attack(session, f"requests.get('https://{SITE}:{site.port}/redirect?to={plain}').text")
        assert all(request.target.startswith("/redirect") for request in site.requests[2:])


async def test_a_name_that_leads_elsewhere_later_reaches_no_private_address(
    site: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads to a public address when it is checked, and to a private one later, reaches no private address."""
    answers, real = iter(["192.88.98.1", "127.0.0.1"] * 20), socket.getaddrinfo

    def look_up(host: object, port: object, *arguments: object, **options: object) -> object:
        return real(next(answers) if host == "moves.test" else host, port, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    moves = {"Host": f"moves.test:{site.port}", "Addresses": [], "Headers": {"Authorization": KEY}}
    async with opened(site, tmp_path, moves) as session:
        code = "import requests\nfor _ in range(4):\n    try: print(requests.get('https://moves.test:%d/', timeout=3).status_code)\n"
        code += "    except OSError as e: print(type(e).__name__)"
        await session.run(code % site.port, timeout=100)
    assert not site.requests
    assert not site.names


@pytest.mark.long
async def test_an_endless_response_ends_at_the_limit_and_an_interrupt_ends_it(site: Upstream, tmp_path: Path) -> None:
    """An endless response ends at the limit of bytes of its rule, an interrupt ends it before, and the session goes on."""
    async with opened(site, tmp_path, rule(site, Megabytes=20)) as session:
        endless = f"import requests; size = 0; r = requests.get('https://{SITE}:{site.port}/endless', stream=True)\n"
        endless += "for part in r.iter_content(1 << 16): size += len(part)"
        result = await session.run(endless, timeout=100)
        assert not result.success
        size = (await session.run("size")).value
        assert isinstance(size, int)
        assert 10 << 20 < size <= 20 << 20
        assert "429" in await attack(session, f"requests.get('https://{SITE}:{site.port}/').status_code")
    async with opened(site, tmp_path, rule(site)) as session:
        result = await session.run(endless, timeout=2)
        assert str(result.state).startswith("kept")


@pytest.mark.long
async def test_a_session_that_floods_its_proxy_goes_on(site: Upstream, tmp_path: Path) -> None:
    """Garbage, half requests and too many connections are ended and cost others nothing, and the session goes on."""
    async with opened(site, tmp_path, rule(site), connections=8) as session:
        flood = "import os\nheld = []\nfor n in range(200):\n    s = socket.socket(); s.setblocking(False)\n"
        flood += "    s.connect_ex(('127.0.0.1', 3128)); held.append(s)\n"
        flood += "for s in held:\n    try: s.send(os.urandom(3000))\n    except OSError: pass\n[s.close() for s in held]; 1"
        for _ in range(3):
            assert await attack(session, flood) == "1"
        for data in (b"\x16\x03\x01\xff\xff" + b"\0" * 100, b"\x80" * 5000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 100):
            await attack(session, f"s, _ = connect()\ns.sendall({data!r}); s.settimeout(5); read(s)")
        async with asyncio.timeout(60):
            while "200" not in await attack(session, f"import requests; requests.get('https://{SITE}:{site.port}/').status_code"):
                await asyncio.sleep(0.2)


async def test_the_limit_of_requests_is_one_for_all_connections(site: Upstream, tmp_path: Path) -> None:
    """The number of requests that a rule allows is counted over all connections and protocols of a session."""
    async with opened(site, tmp_path, rule(site, Requests=5)) as session:
        code = "import requests, concurrent.futures\nwith concurrent.futures.ThreadPoolExecutor(10) as pool:\n"
        code += f"    codes = [*pool.map(lambda n: requests.get('https://{SITE}:{site.port}/{{n}}').status_code, range(20))]\n"
        code += "(codes.count(200), codes.count(429))"
        assert await attack(session, code) == "(5, 15)"
    assert len(site.requests) == 5
