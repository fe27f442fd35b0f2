"""Test programs that do not know of the proxy: they look up a host's name, and connect to the address that they get."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from aca_sessions import Network, Policy
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.proxy.addresses import Dialer
from aca_sessions.sandbox.proxy.authority import Authority
from aca_sessions.sandbox.proxy.names import answer_query
from aca_sessions.sandbox.proxy.proxy import Proxy
from aca_sessions.sandbox.proxy.session_network import NetworkRecord, SessionNetwork
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session.interpreter import Interpreter

from ..sandbox.test_certificates import SHELL, fork_server, run_in, session_of
from ..sandbox.test_client_hello import named, with_extensions
from .upstream import Upstream, upstream

__all__ = ["fork_server"]  # a fixture
slow = pytest.mark.slow
PUBLIC = "93.184.215.14"
NETWORK = Network.allow("target.test", "*.wild.test", "ports.test:8443")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the head of the request, and with the length of its body."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:  # a test shakes hands only
        writer.close()
        return
    lines = dict(line.lower().split(": ", 1) for line in head.decode().splitlines()[1:-1])
    size = len(await reader.readexactly(int(lines.get("content-length", 0))))
    body = f"{head.split()[0].decode()} {head.split()[1].decode()} {lines['host']} {size}".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    writer.close()


class Reached:
    """A session with a network of plain rules, and what its proxy recorded. The hosts lead to two servers, of which one has TLS."""

    def __init__(self, session: Interpreter, records: list[NetworkRecord]) -> None:
        self.session = session
        self.records = records

    async def run(self, code: str) -> object:
        result = await run_in(self.session, code)
        return result.value if result.error is None else f"{result.error.name}: {result.error.message}"


@pytest.fixture
async def reached(fork_server: ForkServer) -> AsyncIterator[Reached]:
    authority, records = Authority.create(), list[NetworkRecord]()
    context = authority.context_for("target.test")
    context.set_alpn_protocols(["http/1.1"])
    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    secure = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context, ssl_shutdown_timeout=0.1)

    async def resolve(_host: str, _port: int) -> list[str]:
        return [PUBLIC]

    async def connect(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert address == PUBLIC
        server = {80: plain, 443: secure}[port]
        return await asyncio.open_connection(*server.sockets[0].getsockname())

    proxy = Proxy(SessionNetwork(NETWORK, record=records.append), Dialer(resolve=resolve, connect=connect))
    async with plain, secure, session_of(fork_server, proxy, authority.pem) as session:
        yield Reached(session, records)


CLIENTS = {
    "aiohttp": (
        "import aiohttp\nasync with aiohttp.ClientSession() as client:\n"
        "    text = await (await client.{method}('{url}', data={data!r})).text()\ntext"
    ),
    "urllib": (
        "import urllib.request as u\nopen_ = u.build_opener(u.ProxyHandler({{}})).open\n"
        "open_(u.Request('{url}', data={data!r}, method='{method}'.upper())).read().decode()"
    ),
    "httpx": "import httpx; httpx.Client(trust_env=False, verify=__import__('ssl').create_default_context()).{method}('{url}').text",
    "curl": SHELL.format("curl -sS --noproxy '*' {url}").replace('"', "'''"),
}


@slow
async def test_programs_that_ignore_the_proxy_variables_reach_hosts(reached: Reached) -> None:
    for scheme in ("https", "http"):
        for name, code in CLIENTS.items():
            got = await reached.run(code.format(method="get", url=f"{scheme}://target.test/a?b={name}", data=None))
            assert got == f"GET /a?b={name} target.test 0"
        large = CLIENTS["aiohttp"].format(method="post", url=f"{scheme}://target.test/", data=b"").replace("b''", "b'x' * 5_000_000")
        assert await reached.run(large) == "POST / target.test 5000000"
    while len(reached.records) < 2 * len(CLIENTS) + 2:  # each comes when its connection has ended
        await asyncio.sleep(0.01)
    recorded = {(record.host, record.port, record.decision) for record in reached.records}
    assert recorded == {("target.test", 443, "allowed"), ("target.test", 80, "allowed")}


TLS = (
    "import socket, ssl; context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE\n"
    "context.wrap_socket(socket.create_connection(('127.0.0.1', 443)), server_hostname={!r}).version()"
)
RAW = "import socket; s = socket.create_connection(('127.0.0.1', {})); s.sendall({!r}); s.recv(1 << 16).decode('latin-1')"


@slow
async def test_connections_to_other_hosts_are_refused(reached: Reached) -> None:
    assert await reached.run(TLS.format("target.test")) == "TLSv1.3"
    for name in ("other.test", "ports.test", "xtarget.test", "10.0.0.1.wild.test.evil", None):
        assert "ACCESS_DENIED" in str(await reached.run(TLS.format(name))), name
        assert reached.records[-1].decision == "refused"
    assert await reached.run(RAW.format(443, b"GET / HTTP/1.1\r\nHost: target.test\r\n\r\n")) == "\x15\x03\x03\0\x02\x021"
    for request, status in {
        b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n": 403,
        b"GET / HTTP/1.1\r\nHost: target.test\r\nHost: other.test\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: target.test\r\nhost: target.test\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: target.test\r\nHost : other.test\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: target.test@other.test\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: target.test/?\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: target.test:443\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nHost: ports.test:8443\r\n\r\n": 400,
        b"GET http://target.test/ HTTP/1.1\r\nHost: target.test\r\n\r\n": 400,
        b"CONNECT target.test:443 HTTP/1.1\r\nHost: target.test\r\n\r\n": 400,
        b"GET //other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n": 403,
    }.items():
        assert str(await reached.run(RAW.format(80, request))).startswith(f"HTTP/1.1 {status} "), request
    assert str(await reached.run(RAW.format(80, b"GET //x HTTP/1.1\r\nHost: target.test\r\n\r\n"))).endswith("GET //x target.test 0")


LOOK_UP = "import socket; [address[4][0] for address in socket.getaddrinfo({!r}, 443, {}, socket.SOCK_STREAM)]"


@slow
async def test_only_the_names_of_hosts_with_a_rule_can_be_looked_up(reached: Reached) -> None:
    for name in ("target.test", "TARGET.test", "a.b.wild.test"):
        assert await reached.run(f"{LOOK_UP.format(name, 'socket.AF_UNSPEC')}[0]") == "127.0.0.1"
    for name in ("other.test", "wild.test", "ports.test", "target.test.other", "localhost.localdomain", "metadata.google.internal"):
        assert "gaierror" in str(await reached.run(LOOK_UP.format(name, "socket.AF_UNSPEC")))
    assert "gaierror" in str(await reached.run(LOOK_UP.format("target.test", "socket.AF_INET6")))
    assert await reached.run("socket.gethostbyname('localhost')") == "127.0.0.1"


@slow
async def test_a_session_cannot_take_the_sockets_of_its_proxy(reached: Reached) -> None:
    """A session cannot listen in the place of its proxy."""
    bind = "import socket; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.{}, 1); s.bind(('{}', {})); s.listen()"
    for port in (3128, 443, 80):
        for address in ("127.0.0.1", "0.0.0.0"):
            for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
                failed = str(await reached.run(bind.format(option, address, port)))
                assert failed.startswith(("OSError: [Errno 98]", "PermissionError: [Errno 13]"))
    for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
        code = f"s = socket.socket(type=socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.{option}, 1); s.bind(('127.0.0.1', 53))"
        assert str(await reached.run(code)).startswith("PermissionError: [Errno 13]")


@slow
async def test_a_flood_of_queries_is_endured(reached: Reached) -> None:
    query = query_of("target.test")
    code = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('127.0.0.1', 53)); s.settimeout(60)\n"
    code += "for n in range(3000): s.send({!r})"
    await reached.run(code.format(b"garbage"))
    await reached.run(code.format(query))
    ask = f"s.settimeout(0.5)\nwhile True:\n  try: s.send({query!r}); got = s.recv(512); break\n  except TimeoutError: pass\nlen(got)"
    assert await reached.run(ask) == len(query) + 16
    assert await reached.run(f"{LOOK_UP.format('target.test', 'socket.AF_INET')}[0]") == "127.0.0.1"


def query_of(
    name: str, kind: int = 1, *, flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0), rest: bytes = b""
) -> bytes:
    labels = b"".join(bytes([len(label)]) + label for label in name.encode("latin-1").split(b".") if label)
    return struct.pack("!HHHHHH", 7, flags, *counts) + labels + b"\0" + struct.pack("!HH", kind, 1) + rest


def has_rule(name: str) -> bool:
    return name == "target.test"


def test_an_address_is_answered_with_the_loopback() -> None:
    response = answer_query(query_of("Target.TEST"), has_rule)
    assert response is not None
    number, flags, *counts = struct.unpack_from("!HHHHHH", response)
    assert (number, flags & 0x800F, counts) == (7, 0x8000, [1, 1, 0, 0])
    assert response[12:].startswith(query_of("Target.TEST")[12:]), "the question is repeated as it was written"
    assert response.endswith(socket.inet_aton("127.0.0.1"))
    edns = query_of("target.test", counts=(1, 0, 0, 1), rest=b"\0\0\x29\x04\xd0\0\0\0\0\0\0")
    assert answer_query(edns, has_rule) == answer_query(query_of("target.test"), has_rule)


@pytest.mark.parametrize("kind", [28, 16, 65, 255, 2, 12])
def test_other_records_do_not_exist(kind: int) -> None:
    response = answer_query(query_of("target.test", kind), has_rule)
    assert response is not None
    assert struct.unpack_from("!HHHHHH", response)[1:] == (0x8580, 1, 0, 0, 0)
    missing = answer_query(query_of("other.test", kind), has_rule)
    assert missing is not None
    assert struct.unpack_from("!HHHHHH", missing)[1:] == (0x8583, 1, 0, 0, 0)


QUERY = query_of("target.test")
DROPPED = {
    "nothing": b"",
    "a part of a header": QUERY[:11],
    "no name": QUERY[:12],
    "a part of a name": QUERY[:20],
    "a name without an end": QUERY[:24],
    "no type": QUERY[:-4],
    "a part of a class": QUERY[:-1],
    "a response": query_of("target.test", flags=0x8100),
    "another operation": query_of("target.test", flags=0x2900),
    "two questions": query_of("target.test", counts=(2, 0, 0, 0)),
    "no question": query_of("target.test", counts=(0, 0, 0, 0)),
    "an answer": query_of("target.test", counts=(1, 1, 0, 0)),
    "an authority": query_of("target.test", counts=(1, 0, 1, 0)),
    "a pointer": QUERY[:12] + b"\xc0\x0c" + QUERY[-4:],
    "a pointer to itself": QUERY[:12] + b"\x01a\xc0\x0c" + QUERY[-4:],
    "a long name": query_of(".".join(["x" * 63] * 4)),
    "a long label": QUERY[:12] + b"\x40" + b"x" * 64 + b"\0" + QUERY[-4:],
    "a name that is not ASCII": query_of("t\xe4rget.test"),
    "a dot in a label": QUERY[:12] + b"\x0btarget.test\0" + QUERY[-4:],
}


@pytest.mark.parametrize("dropped", DROPPED)
def test_a_malformed_query_is_dropped(dropped: str) -> None:
    assert answer_query(DROPPED[dropped], lambda _: True) is None


REFUSED = (
    "import urllib.request as u, urllib.error\nopen_ = u.build_opener(u.ProxyHandler({})).open\n"
    "try: open_('https://api.site.test/other')\nexcept urllib.error.HTTPError as error: print(error.code, error.read().decode())"
)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    with upstream(tmp_path, monkeypatch) as server:
        yield server


@slow
async def test_direct_connections_to_inspected_hosts_are_inspected(target: Upstream, capfd: pytest.CaptureFixture[str]) -> None:
    rule = {"Host": "api.site.test", "Paths": ["/allowed/**"], "Headers": {"X-Key": "of the host"}, "Addresses": ["127.0.0.0/8"]}

    async def connect(address: str, _port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(address, target.port)

    policy = Policy(network=Network.rules([rule]), preload=(), spares=0)
    async with Sandboxes(policy, Dialer(connect=connect)) as sandboxes, AsyncExitStack() as at_the_end:
        sandbox = await sandboxes.open()
        at_the_end.push_async_callback(sandbox.close)
        reached = Reached(await sandbox.interpreter(), [])
        for name, code in CLIENTS.items():
            url = f"https://api.site.test/allowed/{name}"
            assert await reached.run(code.format(method="get", url=url, data=None)) == f"GET /allowed/{name}"
            assert target.requests[-1].header("x-key") == ["of the host"]
        refused = await run_in(reached.session, REFUSED)
        assert refused.stdout.startswith("403 blocked by this session's network rules: GET api.site.test/other; allowed: ")
        assert "UNRECOGNIZED_NAME" in str(await reached.run(TUNNEL.format("other.site.test")))
        odd = with_extensions(named("ä.test".encode()))  # Python would print this name to standard error of the host
        assert await reached.run(RAW.format(443, odd)) == "\x15\x03\x03\0\x02\x021"
        await reached.run(f"s = socket.create_connection(('127.0.0.1', 3128)); s.sendall({CONNECT!r}); s.recv(100)")
        assert await reached.run(f"s.sendall({odd!r}); s.recv(100).decode()") == "\x15\x03\x03\0\x02\x021"
    assert capfd.readouterr().err == ""


CONNECT = b"CONNECT api.site.test:443 HTTP/1.1\r\n\r\n"
TUNNEL = (
    f"import socket, ssl; s = socket.create_connection(('127.0.0.1', 3128)); s.sendall({CONNECT!r}); s.recv(100)\n"
    "ssl.create_default_context().wrap_socket(s, server_hostname={!r})"
)
