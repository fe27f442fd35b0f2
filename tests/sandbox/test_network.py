"""Test what a session reaches: nothing, the domains of its policy, or everything that the host reaches."""

import asyncio
import http.server
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aca_sessions import Policy, open_interpreter, open_pool
from aca_sessions.errors import ConfigurationError
from aca_sessions.hints import Remedies, hint
from aca_sessions.models import Access, CodeExecutionResult
from aca_sessions.network.rules import Network
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.proxy.addresses import Dialer, Streams, is_public
from aca_sessions.sandbox.proxy.proxy import ProxyConnections, _carry, _parse
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session.interpreter import Interpreter

from ..conftest import mostly_long
from ..wheels import index_of, make_wheel

pytestmark = pytest.mark.slow
PUBLIC = "93.184.215.14"
NAMES = {
    "target.test": PUBLIC,
    "sub.wild.test": PUBLIC,
    "private.test": "10.0.0.5",
    "metadata.test": "169.254.169.254",
    "mapped.test": "::ffff:127.0.0.1",
    "translated.test": "64:ff9b::7f00:1",
    "self.test": "127.0.0.1",
}
LIGHT = Policy(network=Network.allow("target.test"), preload=(), spares=0)
GET = "import urllib.request as u; u.urlopen('{url}', timeout=60).read().decode()"


class _Target(http.server.BaseHTTPRequestHandler):
    """Answer with the request that it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{self.command} {self.path} {self.headers['host']} {self.headers.get('proxy-authorization')}".encode()
        body += self.rfile.read(int(self.headers.get("content-length", 0)))[-10:]
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Target)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", autouse=True)
def _fork_server_for_domains(kept_fork_server: ForkServer) -> Iterator[None]:
    """Keep the fork server of sessions behind a proxy for the tests of this file."""
    server = ForkServer.shared(LIGHT)
    yield
    server.release()


@asynccontextmanager
async def reaching(target: int, *domains: str) -> AsyncIterator[Interpreter]:
    """Open a session behind a proxy whose names are defined here, and whose public address leads to the target."""
    network = Network.allow(*domains)
    dialled: list[tuple[str, int]] = []

    async def resolve(host: str, port: int) -> list[str]:
        if host not in NAMES:
            raise OSError("no such name")
        return [NAMES[host]]

    async def connect(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        dialled.append((address, port))
        assert address == PUBLIC
        return await asyncio.open_connection("127.0.0.1", target)

    dialer = Dialer(resolve=resolve, connect=connect)
    async with Sandboxes(replace(LIGHT, network=network), dialer) as sandboxes:
        sandbox = await sandboxes.open()
        try:
            yield await sandbox.interpreter()
        finally:
            await sandbox.close()


async def run_in(interpreter: Interpreter, code: str) -> CodeExecutionResult:
    return await interpreter.run("e", code, 120.0)


async def test_an_allowed_domain_is_reached(target: int, nothing_left: None) -> None:
    async with reaching(target, "target.test", "*.wild.test") as session:
        assert (await run_in(session, GET.format(url="http://target.test/a?b=1"))).value == "GET /a?b=1 target.test None"
        assert (await run_in(session, GET.format(url="http://sub.wild.test"))).value == "GET / sub.wild.test None"
        posted = "u.urlopen('http://target.test/', data=b'x' * 1_000_000).read().decode()"
        assert (await run_in(session, posted)).value == "POST / target.test Nonexxxxxxxxxx"


async def test_an_allowed_domain_with_an_address_that_is_not_public_ends_with_this_reason(target: int) -> None:
    access, remedies = Access(network=("private.test",)), Remedies("")
    async with reaching(target, "private.test") as session:
        for url in ("http://private.test/", "https://private.test/"):
            result = await run_in(session, f"import urllib.request\nurllib.request.urlopen({url!r})")
            assert hint(result, access, remedies).startswith("sessions reach only public addresses, and at least one address")
        other = await run_in(session, "urllib.request.urlopen('https://other.test/')")
        assert hint(other, access, remedies) == "this session reaches only these domains, by HTTP and HTTPS: private.test"


async def test_a_tunnel_leads_only_to_its_target(target: int) -> None:
    async with reaching(target, "target.test") as session:
        tunnel = (
            "import http.client; c = http.client.HTTPConnection('127.0.0.1', 3128); c.set_tunnel('target.test', 443)\n"
            "c.request('GET', '/'); c.getresponse().read().decode()"
        )
        assert (await run_in(session, tunnel)).value == "GET / target.test:443 None"


async def test_a_proxied_connection_cancelled_at_any_step_is_closed() -> None:
    async def closes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(closes, "127.0.0.1", 0) as target:
        for turns in range(30):
            there = await asyncio.open_connection(*target.sockets[0].getsockname())
            near, far = socket.socketpair()
            here = await asyncio.open_connection(sock=near)
            carrying = asyncio.create_task(_carry(_parse(TUNNEL), here, there))
            for _ in range(turns):
                await asyncio.sleep(0)
            carrying.cancel()
            await asyncio.wait({carrying})
            if turns:  # it had begun
                assert there[1].is_closing()
            for writer in (here[1], there[1]):
                writer.transport.abort()
            far.close()


TUNNEL = b"CONNECT target.test:443 HTTP/1.1\r\n\r\n"


@dataclass
class Conversation:
    """A conversation that the proxy carries, with both of its ends in hand."""

    client: Streams
    target: Streams
    carrying: "asyncio.Task[None]"
    skipped: float = 0.0

    async def sends(self, source: Streams, receiver: Streams, data: bytes = b"some") -> None:
        source[1].write(data)
        assert await receiver[0].readexactly(len(data)) == data

    async def skip(self, seconds: float) -> None:
        """Let the loop's clock jump ahead, and what is due then happen."""
        self.skipped += seconds
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def conversation(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Conversation]:
    (near, client), (target, far) = socket.socketpair(), socket.socketpair()
    ends = [await asyncio.open_connection(sock=end) for end in (near, client, target, far)]
    conversation = Conversation(ends[1], ends[2], asyncio.create_task(_carry(_parse(TUNNEL), ends[0], ends[3])))
    await ends[1][0].readuntil(b"\r\n\r\n")
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + conversation.skipped)
    yield conversation
    conversation.carrying.cancel()
    await asyncio.wait({conversation.carrying})
    for _, writer in ends:
        writer.transport.abort()


async def test_a_long_upload_is_not_cut_because_its_target_is_silent(conversation: Conversation) -> None:
    client, target = conversation.client, conversation.target
    for _ in range(3):
        await conversation.sends(client, target)
        await conversation.skip(200)
    await conversation.sends(target, client, b"received")


async def test_a_client_that_was_silent_during_a_long_download_can_send(conversation: Conversation) -> None:
    client, target = conversation.client, conversation.target
    for _ in range(3):
        await conversation.sends(target, client)
        await conversation.skip(200)
    await conversation.sends(client, target, b"more, please")


async def test_a_conversation_is_cut_when_both_ends_are_silent(conversation: Conversation) -> None:
    await conversation.sends(conversation.client, conversation.target)
    await conversation.sends(conversation.target, conversation.client)
    await conversation.skip(301)
    await asyncio.wait_for(conversation.carrying, 120)
    assert await conversation.target[0].read() == b""


async def test_a_client_that_has_nothing_more_to_send_gets_the_rest(conversation: Conversation) -> None:
    client, target = conversation.client, conversation.target
    client[1].write_eof()
    assert await target[0].read() == b""
    for _ in range(3):
        await conversation.sends(target, client)
        await conversation.skip(200)
    target[1].write_eof()
    assert await client[0].read() == b""
    await conversation.carrying


async def test_a_connection_accepted_while_its_session_ends_is_closed() -> None:
    answered: list[asyncio.StreamWriter] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered.append(writer)

    serving, listener = ProxyConnections(), socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    await serving.start(listener, answer)
    (_, one), (_, other) = await asyncio.open_connection(*address), await asyncio.open_connection(*address)
    serving._accept(answer, asyncio.StreamReader(), one)
    await serving.close()
    serving._accept(answer, asyncio.StreamReader(), other)
    assert one.is_closing()
    assert other.is_closing()
    assert one not in answered


@pytest.mark.parametrize(
    "url",
    mostly_long(
        [
            "http://other.test/",
            "https://other.test/",
            "http://xtarget.test/",
            "http://target.test.evil.test/",
            "http://target.test:22/",
            "http://user@target.test/",
            "http://wild.test/",
            "http://private.test/",
            "http://metadata.test/",
            "http://mapped.test/",
            "http://translated.test/",
            "http://self.test/",
            "http://127.0.0.2/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]/",
            "ftp://target.test/",
        ],
        every=3,
    ),
)
async def test_everything_else_is_refused(target: int, url: str) -> None:
    names = ("target.test", "*.wild.test", *(name for name in NAMES if name not in ("target.test", "sub.wild.test")))
    async with reaching(target, *names) as session:
        result = await run_in(session, GET.format(url=url))
        assert not result.success
        assert "URLError" in str(result.error) or "HTTPError" in str(result.error) or "RemoteDisconnected" in str(result.error)


RAW = "import socket; s = socket.create_connection(('127.0.0.1', 3128)); s.sendall({data!r}); s.settimeout(60)\n"
READ = "data = b''\nwhile part := s.recv(1 << 16): data += part\ndata.decode()"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: target.test\r\n\r\n", "403"),
        (b"CONNECT target.test HTTP/1.1\r\n\r\n", "403"),
        (b"CONNECT target.test:99999999 HTTP/1.1\r\n\r\n", "403"),
        (b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n", "403"),
        (b"\x00\xff\r\n\r\n", "403"),
        (b"POST http://target.test/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        (b"POST http://target.test/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"),
        (b"POST http://target.test/ HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nabcde", "400"),
        (b"GET http://target.test/ HTTP/1.1\r\nX: y\nHost: private.test\r\n\r\n", "400"),
        (b"GET http://target.test/ HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "502"),
    ],
)
async def test_a_malformed_proxy_request_is_refused(target: int, data: bytes, answer: str) -> None:
    async with reaching(target, "target.test") as session:
        result = await run_in(session, RAW.format(data=data) + READ)
        assert f"HTTP/1.1 {answer}" in str(result.value) or "ConnectionReset" in str(result.error) or "BrokenPipe" in str(result.error)


async def test_a_second_request_on_a_connection_is_not_forwarded(target: int) -> None:
    two = b"GET http://target.test/1 HTTP/1.1\r\nProxy-Authorization: x\r\n\r\nGET http://private.test/2 HTTP/1.1\r\n\r\n"
    async with reaching(target, "target.test") as session:
        said = str((await run_in(session, RAW.format(data=two) + READ)).value)
        assert "GET /1 target.test None" in said
        assert "/2" not in said


async def test_there_is_no_way_around_the_proxy(target: int) -> None:
    async with reaching(target, "target.test") as session:
        for attempt, number in (("('192.0.2.1', 80)", 101), (f"('127.0.0.1', {target})", 111)):
            result = await run_in(session, f"import socket; socket.create_connection({attempt}, 2)")
            assert f"Errno {number}" in str(result.error)
        assert "gaierror" in str((await run_in(session, "socket.getaddrinfo('other.test', 80)")).error)
        assert "Errno 98" in str((await run_in(session, "socket.create_server(('127.0.0.1', 3128))")).error)


async def test_a_session_has_a_bounded_number_of_connections(target: int) -> None:
    async with reaching(target, "target.test") as session:
        await run_in(session, "import socket, time; held = [socket.create_connection(('127.0.0.1', 3128)) for _ in range(80)]")
        counted = "def alive(s):\n    s.setblocking(False)\n    try: return s.recv(1) != b''\n    except BlockingIOError: return True\n"
        counted += "    except ConnectionError: return False\n"
        counted += "while sum(map(alive, held)) > 64: time.sleep(0.01)\ntime.sleep(0.2)\nsum(map(alive, held))"
        assert (await run_in(session, counted)).value == 64


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *(
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:8.8.8.8",
            "2002:7f00:1::",
            "64:ff9b::808:808",
            "64:ff9b:1::808:808",
            "::8.8.8.8",
            "fec0::1",
            "fe80::1%lo",
            "fd00:ec2::254",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2606:4700::5efe:a9fe:a9fe",
            "5f00::1",
            "3fff::1",
        ),
        *("168.63.129.16", "192.0.0.192", "192.0.0.8", "192.0.0.10", "100.100.100.200", "161.26.0.10", "166.9.14.5", "192.88.99.1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("domain", ["", "exa mple.org", "http://example.org", "example.org:0", "*.*.org", "example.org/path"])
def test_an_invalid_domain_is_refused(domain: str) -> None:
    with pytest.raises(ConfigurationError, match="Sandbox:Network"):
        Network.allow(domain)


async def test_the_host_network_must_be_chosen_explicitly(target: int) -> None:
    async with open_pool(policy=Policy(network=Network.host(), preload=(), spares=0)) as pool, pool.session() as session:
        assert (await session.run(GET.format(url=f"http://127.0.0.1:{target}/"))).value == f"GET / 127.0.0.1:{target} None"
        assert "Errno 97" in str((await session.run("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)")).error)
    async with open_pool() as pool, pool.session() as session:
        assert "Errno 111" in str((await session.run(GET.format(url=f"http://127.0.0.1:{target}/"))).error)


@pytest.mark.long
async def test_a_session_that_reaches_an_index_may_use_it_directly(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "tiny-package", files={"tiny_package.py": "answer = 42"})
    with index_of(tmp_path / "wheels") as address:
        async with open_interpreter(policy=Policy(network=Network.host(), preload=(), spares=0)) as interpreter:
            await interpreter.execute("s", f"import os; os.environ['PIP_INDEX_URL'] = '{address}'")
            assert (await interpreter._execute_snippet("s", "check_index", "https://nowhere.invalid/")).stdout == "true\n"
            assert (await interpreter._execute_snippet("s", "install", "tiny-package==1.0")).success
            assert (await interpreter.execute("s", "import tiny_package; tiny_package.answer")).value == 42
            failed = await interpreter._execute_snippet("s", "install", "no-such-package")
            assert not failed.success
            assert "No matching distribution" in failed.stdout
            await interpreter.reset("s")
            assert (await interpreter.execute("s", "import tiny_package; tiny_package.answer")).value == 42
