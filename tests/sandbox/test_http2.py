"""Test the guest's side of HTTP/2 with real clients, and with frames that no client sends."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, PriorityFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from aca_sessions.network.rules import Network
from aca_sessions.network.secrets import SecretStore
from aca_sessions.sandbox.proxy import http2
from aca_sessions.sandbox.proxy.addresses import Dialer
from aca_sessions.sandbox.proxy.forwarding import Forwarding
from aca_sessions.sandbox.proxy.forwarding import Inspection as RealInspection
from aca_sessions.sandbox.proxy.messages import Request, Response, text_response
from aca_sessions.sandbox.proxy.session_network import MalformedError, NetworkRecord, SessionNetwork
from aca_sessions.sandbox.proxy.streams import Stream, TlsStream

from ..network.upstream import _make_certificates, upstream

GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]
MB = 1 << 20


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def echo(request: Request) -> Response:
    """Respond with what was received."""
    got = b"".join([part async for part in request.body]) if request.body else b""
    return Response(200, [*request.headers, (b"x-request", f"{request.method} {request.target}".encode())], chunks(got))


@dataclass
class Inspection:
    """Answers requests by a function, in the place of the host's."""

    answer: Callable[[Request], Awaitable[Response]] = echo
    authority: str = "localhost"
    host: str = "localhost"
    port: int = 443
    is_tls: bool = True
    requests: list[Request] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0

    @asynccontextmanager
    async def handle(self, request: Request) -> AsyncIterator[Response]:
        self.requests.append(request)
        self.running += 1
        try:
            yield await self.answer(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def refuse(self, error: MalformedError, method: str | None) -> Response:
        self.refused.append(str(error))
        return text_response(error.status, str(error))


@asynccontextmanager
async def serving(inspection: Inspection | RealInspection, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve an inspection at a port. Every connection must have ended without an exception, and without a request that still runs."""
    tasks: list[asyncio.Task[None]] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        stream = TlsStream((reader, writer), tls) if tls else Stream(reader, writer)
        if isinstance(stream, TlsStream):
            await stream.handshake()
        await http2.serve(stream, inspection)  # type: ignore[arg-type]
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert not isinstance(inspection, Inspection) or inspection.running == 0


class Client:
    """A client that sends what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        free = H2Configuration(header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False)
        self.h2 = H2Connection(free)
        self.h2.initiate_connection()
        self.events: list[Event] = []
        self.encoder = Encoder()

    def request(self, headers: list[tuple[bytes, bytes]] = GET, *, end: bool = True) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers, end_stream=end)
        self.flush()
        return stream

    def send(self, *frames: Frame) -> None:
        self.flush()
        self.writer.write(b"".join(frame.serialize() for frame in frames))

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def until(self, found: Callable[[Event], bool], *, acknowledge: bool = True) -> Event:
        """Read until an event is there, and return it."""
        looked_at = 0
        async with asyncio.timeout(20):
            while True:
                for event in self.events[looked_at:]:
                    if found(event):
                        return event
                looked_at = len(self.events)
                data = await self.reader.read(1 << 16)
                assert data, f"closed, after {self.events[-3:]}"
                for event in self.h2.receive_data(data):
                    self.events.append(event)
                    if acknowledge and isinstance(event, DataReceived):
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.flush()

    async def response(self, stream: int) -> tuple[int, dict[bytes, bytes], bytes]:
        """Return the status, headers and body of the response to a request."""
        await self.until(lambda event: isinstance(event, StreamEnded) and event.stream_id == stream)
        mine = [event for event in self.events if getattr(event, "stream_id", None) == stream]
        (head,) = (dict(event.headers) for event in mine if isinstance(event, ResponseReceived))
        return int(head[b":status"]), head, b"".join(event.data for event in mine if isinstance(event, DataReceived))

    async def reset(self, stream: int) -> ErrorCodes:
        found = await self.until(lambda event: isinstance(event, StreamReset) and event.stream_id == stream)
        return found.error_code  # type: ignore[attr-defined]

    async def goaway(self) -> ErrorCodes:
        """Read until the other side ends the connection, and return why it does."""
        found = await self.until(lambda event: isinstance(event, ConnectionTerminated))
        return found.error_code  # type: ignore[attr-defined]

    async def closed(self) -> None:
        """Wait until the other side has closed the connection. What it wrote last may be lost, because it did not read everything."""
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                while await self.reader.read(1 << 16):
                    pass

    def block(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        return self.encoder.encode(headers)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Client(reader, writer)
    client.flush()
    try:
        yield client
    finally:
        writer.transport.abort()


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """Return the context of a TLS server that speaks HTTP/2 only. `authority.pem` has what its clients need."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_make_certificates(tmp_path)[1])
    context.set_alpn_protocols(["h2"])
    return context


async def test_httpx_gets_and_sends_over_http2(tls: ssl.SSLContext, tmp_path: Path) -> None:
    inspection = Inspection()
    async with serving(inspection, tls) as port:
        inspection.port, inspection.authority = port, f"localhost:{port}"
        trust = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        async with httpx.AsyncClient(http2=True, verify=trust, base_url=f"https://localhost:{port}", timeout=60) as client:
            got = await client.get("/a?b=1", headers={"x-sent": "yes", "te": "trailers"})
            assert (got.http_version, got.status_code, got.headers["x-request"]) == ("HTTP/2", 200, "GET /a?b=1")
            assert got.headers["x-sent"] == "yes"
            assert not {"te", "host"} & set(got.headers)
            big = random.Random(1).randbytes(3 * MB)
            assert (await client.post("/", content=big)).content == big
            assert (await client.post("/", content=chunks(b"of ", b"no length"))).content == b"of no length"
            many = await asyncio.gather(*(client.post(f"/{number}", content=str(number) * 1000) for number in range(50)))
            assert [one.text for one in many] == [str(number) * 1000 for number in range(50)]
    assert [request.length for request in inspection.requests[:3]] == [None, 3 * MB, None]


async def test_curl_gets_and_sends_over_http2(tls: ssl.SSLContext, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(random.Random(2).randbytes(3 * MB))
    inspection = Inspection()
    async with serving(inspection, tls) as port:
        inspection.port, inspection.authority = port, f"localhost:{port}"
        command = ("curl", "-sS", "--http2", "--cacert", "authority.pem", "-w", "%{http_version} %{http_code}", "-o", "back")
        run = await asyncio.create_subprocess_exec(
            *command, "-T", "big", f"https://localhost:{port}/", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await run.communicate()
    assert out.decode() in ("2 200", "2.0 200")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()


async def test_rules_decide_about_requests_over_http2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[NetworkRecord] = []
    with upstream(tmp_path, monkeypatch) as host:
        name = f"localhost:{host.port}"
        rule = {"Host": name, "Methods": ["GET", "POST"], "Headers": {"Authorization": "Bearer ${secret:key}"}}
        network = Network.rules([rule], secrets={"key": "not-for-the-guest"})
        forwarding = Forwarding(SessionNetwork(network, secrets=SecretStore(network.secrets), record=records.append), Dialer())

        def asked(method: bytes, path: bytes) -> list[tuple[bytes, bytes]]:
            return [(b":method", method), (b":scheme", b"https"), (b":authority", name.encode()), (b":path", path)]

        async with serving(forwarding.inspection("localhost", host.port, is_tls=True)) as port, connected(port) as client:
            status, headers, body = await client.response(client.request([*asked(b"GET", b"/echo"), (b"authorization", b"mine")]))
            assert (status, headers[b"x-echo"], b"not-for" in body) == (200, b"Bearer " + b"*" * 17, False)
            stream = client.request([*asked(b"POST", b"/"), (b"content-length", b"40000")], end=False)
            client.h2.send_data(stream, b"x" * 10_000)
            for end in (False, False, True):
                client.h2.send_data(stream, b"x" * 10_000, end_stream=end)
            client.flush()
            assert (await client.response(stream))[::2] == (200, b"POST /")
            stream = client.request(asked(b"DELETE", b"/a"), end=False)  # whose body is not sent
            status, _, body = await client.response(stream)
            assert status == 403
            assert body.startswith(f"blocked by this session's network rules: DELETE {name}/a; allowed: GET|POST".encode())
            assert await client.reset(stream) == ErrorCodes.NO_ERROR
            assert (await client.response(client.request(asked(b"GET", b"https://other.test/"))))[0] == 400
        await forwarding.close()
    assert [one.header("authorization") for one in host.requests] == [["Bearer not-for-the-guest"]] * 2
    assert [len(one.body) for one in host.requests] == [0, 40_000]
    assert {(one.method, one.decision, one.status, one.sent) for one in records} == {
        ("GET", "allowed", 200, 0),
        ("POST", "allowed", 200, 40_000),
        ("DELETE", "refused", 403, 0),
        (None, "refused", 400, 0),
    }


async def test_responses_without_a_body_end_with_their_headers() -> None:
    statuses = iter((200, 204, 304, 200))

    async def answer(request: Request) -> Response:
        return Response(next(statuses), [(b"content-length", b"5")] if request.method == "HEAD" else [], chunks())

    async with serving(Inspection(answer)) as port, connected(port) as client:
        head = await client.response(client.request([(b":method", b"HEAD"), *GET[1:]]))
        assert (head[0], head[1][b"content-length"], head[2]) == (200, b"5", b"")
        assert [(await client.response(client.request()))[::2] for _ in range(3)] == [(204, b""), (304, b""), (200, b"")]


REFUSED = {
    "CONNECT": [(b":method", b"CONNECT"), (b":authority", b"localhost")],
    "extended CONNECT": [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]],
    "lower-case method": [(b":method", b"get"), *GET[1:]],
    "two methods in one": [(b":method", b"GET /x HTTP/1.1\r\nHost: other"), *GET[1:]],
    "no method": GET[1:],
    "no authority": [*GET[:2], GET[3]],
    "a host in the place of the authority": [*GET[:2], GET[3], (b"host", b"localhost")],
    "no path": GET[:3],
    "no scheme": [GET[0], *GET[2:]],
    "another scheme": [GET[0], (b":scheme", b"http"), *GET[2:]],
    "two paths": [*GET, (b":path", b"/b")],
    "two authorities": [*GET, (b":authority", b"localhost")],
    "an unknown pseudo-header": [*GET, (b":x", b"y")],
    "a pseudo-header after others": [*GET[:3], (b"x", b"y"), GET[3]],
    "a status": [*GET, (b":status", b"200")],
    "another authority": [*GET[:2], (b":authority", b"other.test"), GET[3]],
    "another port": [*GET[:2], (b":authority", b"localhost:444"), GET[3]],
    "a user in the authority": [*GET[:2], (b":authority", b"user@localhost"), GET[3]],
    "another host": [*GET, (b"host", b"other.test")],
    "another host with the same authority": [*GET[:2], (b":authority", b"other.test"), GET[3], (b"host", b"other.test")],
    "two hosts": [*GET, (b"host", b"localhost"), (b"host", b"other.test")],
    "a URL as path": [*GET[:3], (b":path", b"https://other.test/")],
    "a path without slash": [*GET[:3], (b":path", b"x")],
    "an empty path": [*GET[:3], (b":path", b"")],
    "a star as path": [(b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")],
    "a space in the path": [*GET[:3], (b":path", b"/a HTTP/1.1")],
    "a line break in the path": [*GET[:3], (b":path", b"/a\r\nx: y")],
    "a fragment in the path": [*GET[:3], (b":path", b"/a#b")],
    "bytes that are not ASCII in the path": [*GET[:3], (b":path", b"/\xe2\x80\xa5")],
    "a long path": [*GET[:3], (b":path", b"/" + b"a" * 8192)],
    "a line break in a value": [*GET, (b"x", b"y\r\nhost: other.test")],
    "a line feed in a value": [*GET, (b"x", b"y\nz: 1")],
    "NUL in a value": [*GET, (b"x", b"y\0")],
    "a space before a value": [*GET, (b"x", b" y")],
    "a tab after a value": [*GET, (b"x", b"y\t")],
    "an upper-case name": [*GET, (b"X-Name", b"y")],
    "a name with a space": [*GET, (b"x y", b"z")],
    "a name with a colon": [*GET, (b"x:y", b"z")],
    "a name with a line break": [*GET, (b"x\r\nhost", b"z")],
    "an empty name": [*GET, (b"", b"z")],
    "connection": [*GET, (b"connection", b"close")],
    "keep-alive": [*GET, (b"keep-alive", b"1")],
    "upgrade": [*GET, (b"upgrade", b"websocket")],
    "te": [*GET, (b"te", b"gzip")],
    "transfer-encoding": [*POST, (b"transfer-encoding", b"chunked")],
    "transfer_encoding": [*POST, (b"transfer_encoding", b"chunked")],
    "content_length": [*POST, (b"content_length", b"5")],
    "a length without a body": [*GET, (b"content-length", b"5")],
    "two lengths": [*POST, (b"content-length", b"0"), (b"content-length", b"0")],
    "two lengths that differ": [*POST, (b"content-length", b"0"), (b"content-length", b"1")],
    "a negative length": [*POST, (b"content-length", b"-1")],
    "a length with a sign": [*POST, (b"content-length", b"+0")],
    "no length": [*POST, (b"content-length", b"")],
    "a list of lengths": [*POST, (b"content-length", b"0, 0")],
    "a length in other digits": [*POST, (b"content-length", "\u0665".encode())],
    "more headers than allowed": [*GET, *((b"x-%d" % number, b"y" * 1000) for number in range(70))],
}


@pytest.mark.parametrize("headers", [pytest.param(headers, id=name) for name, headers in REFUSED.items()])
async def test_a_request_that_servers_could_read_in_two_ways_is_refused(
    headers: list[tuple[bytes, bytes]],
) -> None:
    inspection = Inspection()
    async with serving(inspection) as port:
        async with connected(port) as client:
            frame = HeadersFrame(1, client.block(headers), flags=["END_STREAM", "END_HEADERS"])
            rest = [frame] if len(frame.data) < 16_384 else _split(frame)
            client.h2.send_headers(1, GET, end_stream=True)  # so that the client knows the stream
            client.h2.clear_outbound_data_buffer()
            client.writer.write(_PREFACE + b"".join(one.serialize() for one in rest))
            ended = await client.until(lambda event: isinstance(event, StreamEnded | ConnectionTerminated))
            if isinstance(ended, StreamEnded):
                status, _, body = await client.response(1)
                assert status == 400
                assert body.endswith(b"\n")
            else:
                assert ended.error_code is not ErrorCodes.INTERNAL_ERROR  # type: ignore[attr-defined]
        async with connected(port) as client:  # the next connection is served
            assert (await client.response(client.request()))[0] == 200
    assert [request.target for request in inspection.requests] == ["/"]
    assert len(inspection.refused) == 1


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()


def _split(frame: HeadersFrame) -> list[Frame]:
    from hyperframe.frame import ContinuationFrame

    parts = [frame.data[start : start + 16_000] for start in range(0, len(frame.data), 16_000)]
    rest = [ContinuationFrame(frame.stream_id, part) for part in parts[1:]]
    rest[-1].flags.add("END_HEADERS")
    return [HeadersFrame(frame.stream_id, parts[0], flags=["END_STREAM"]), *rest]


@pytest.mark.parametrize("path", ["/a?b=%2F&c='", "//other.test/", "/a/../b", "/?"])
async def test_a_path_is_passed_on_as_it_is(path: str) -> None:
    async with serving(inspection := Inspection()) as port, connected(port) as client:
        assert (await client.response(client.request([*GET[:3], (b":path", path.encode())])))[0] == 200
    assert [request.target for request in inspection.requests] == [path]


async def test_headers_about_the_connection_the_framing_and_the_host_are_left_out() -> None:
    sent = [(b"host", b"localhost"), (b"te", b"trailers"), (b"trailer", b"x"), (b"proxy-authorization", b"x")]
    async with serving(inspection := Inspection()) as port, connected(port) as client:
        stream = client.request([*POST, *sent, (b"content-length", b"1"), (b"cookie", b"a=b"), (b"cookie", b"c=d")], end=False)
        client.h2.send_data(stream, b"x", end_stream=True)
        client.flush()
        assert (await client.response(stream))[2] == b"x"
    assert (inspection.requests[0].headers, inspection.requests[0].length) == ([(b"cookie", b"a=b; c=d")], 1)


def _data(data: bytes, *, end: bool = False) -> DataFrame:
    return DataFrame(1, data, flags=["END_STREAM"] if end else [])


@pytest.mark.parametrize(
    ("length", "sent"),
    [
        (b"5", [_data(b"1234", end=True)]),
        (b"5", [_data(b"123456", end=True)]),
        (b"5", [_data(b"12345"), _data(b"6")]),
        (b"0", [_data(b"1", end=True)]),
        (b"5", [_data(b"1234"), "trailers"]),
        (b"5", [_data(b"1234"), "trailers with another length"]),
    ],
)
async def test_a_body_that_contradicts_its_length_is_not_taken_for_a_whole_one(length: bytes, sent: list[Frame | str]) -> None:
    completed = []

    async def answer(request: Request) -> Response:
        assert request.body
        completed.append([part async for part in request.body])
        return Response(200, [], chunks())

    async with serving(Inspection(answer)) as port, connected(port) as client:
        client.request([*POST, (b"content-length", length)], end=False)
        for part in sent:
            trailers = [(b"content-length", b"4")] if part == "trailers with another length" else [(b"x", b"y")]
            frame = HeadersFrame(1, client.h2.encoder.encode(trailers), flags=["END_STREAM", "END_HEADERS"])
            client.send(part if isinstance(part, Frame) else frame)
        ended = await client.until(lambda event: isinstance(event, StreamReset | ConnectionTerminated))
        assert ended.error_code == ErrorCodes.PROTOCOL_ERROR  # type: ignore[attr-defined]
    assert completed == []


async def test_trailers_are_dropped() -> None:
    async with serving(inspection := Inspection()) as port, connected(port) as client:
        stream = client.request(POST, end=False)
        client.h2.send_data(stream, b"body")
        client.h2.send_headers(stream, [(b"x-trailer", b"y")], end_stream=True)
        client.flush()
        status, headers, body = await client.response(stream)
    assert (status, body) == (200, b"body")
    assert b"x-trailer" not in headers
    assert inspection.requests[0].headers == []


async def test_a_request_that_the_client_resets_is_cancelled() -> None:
    started = asyncio.Event()

    async def answer(request: Request) -> Response:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    inspection = Inspection(answer)
    async with serving(inspection) as port, connected(port) as client:
        stream = client.request()
        await asyncio.wait_for(started.wait(), 20)
        client.h2.reset_stream(stream, ErrorCodes.CANCEL)
        client.flush()
        async with asyncio.timeout(20):
            while not inspection.cancelled:
                await asyncio.sleep(0.01)
        inspection.answer = echo
        assert (await client.response(client.request()))[0] == 200


async def test_a_client_may_send_no_more_than_the_window_until_the_body_is_read() -> None:
    go_on = asyncio.Event()

    async def answer(request: Request) -> Response:
        await go_on.wait()
        return await echo(request)

    async with serving(Inspection(answer)) as port, connected(port) as client:
        await client.until(lambda event: isinstance(event, SettingsAcknowledged))
        stream = client.request(POST, end=False)
        await client.until(lambda event: isinstance(event, WindowUpdated) and event.stream_id == 0)  # to the connection's window
        window = client.h2.local_flow_control_window(stream)
        assert window == http2._STREAM_WINDOW
        for _ in range(window // 16_384):
            client.h2.send_data(stream, b"x" * 16_384)
        client.flush()
        client.h2.ping(b"12345678")
        client.flush()
        await client.until(lambda event: type(event).__name__ == "PingAckReceived")  # everything was read
        assert client.h2.local_flow_control_window(stream) == 0
        go_on.set()
        await client.until(lambda event: isinstance(event, WindowUpdated) and event.stream_id == stream)
        client.h2.send_data(stream, b"y", end_stream=True)
        client.flush()
        assert (await client.response(stream))[2] == b"x" * window + b"y"


async def test_a_body_that_nothing_reads_does_not_stop_other_requests() -> None:
    async def answer(request: Request) -> Response:
        return Response(403, [], chunks(b"no")) if request.target == "/refused" else await echo(request)

    async with serving(Inspection(answer)) as port, connected(port) as client:
        for _ in range(20):  # more than the connection's window in all
            stream = client.request([*POST[:3], (b":path", b"/refused")], end=False)
            for _ in range(6):
                client.h2.send_data(stream, b"x" * 10_000, pad_length=100)
            client.flush()
            assert (await client.response(stream))[::2] == (403, b"no")
            assert await client.reset(stream) == ErrorCodes.NO_ERROR
        stream = client.request(POST, end=False)
        client.h2.send_data(stream, b"y" * 10_000, end_stream=True)
        client.flush()
        assert (await client.response(stream))[2] == b"y" * 10_000


async def test_a_response_is_read_only_as_fast_as_the_client_takes_it() -> None:
    made = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(200):
            made += 1
            yield b"z" * 10_000

    async def answer(request: Request) -> Response:
        return Response(200, [], body())

    async with serving(Inspection(answer)) as port, connected(port) as client:
        stream = client.request()
        got = 0
        while got < 65_535:
            event = await client.until(lambda event: isinstance(event, DataReceived), acknowledge=False)
            client.events.remove(event)
            got += len(event.data)  # type: ignore[attr-defined]
        client.h2.ping(b"12345678")
        client.flush()
        await client.until(lambda event: type(event).__name__ == "PingAckReceived", acknowledge=False)
        assert made == 7
        client.h2.increment_flow_control_window(10 * MB)
        client.h2.increment_flow_control_window(10 * MB, stream)
        client.flush()
        await client.until(lambda event: isinstance(event, StreamEnded))
        assert got + sum(len(event.data) for event in client.events if isinstance(event, DataReceived)) == 2_000_000


async def test_a_response_that_fails_in_the_middle_is_reset_and_the_connection_goes_on() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("the host went away")

    async def answer(request: Request) -> Response:
        return Response(200, [], body()) if request.target == "/" else await echo(request)

    async with serving(Inspection(answer)) as port, connected(port) as client:
        assert await client.reset(client.request()) == ErrorCodes.INTERNAL_ERROR
        assert (await client.response(client.request([*GET[:3], (b":path", b"/next")])))[0] == 200


FLOODS: dict[str, Callable[[int], list[Frame]]] = {
    "pings": lambda _: [PingFrame(0, b"12345678")],
    "settings": lambda _: [SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 1000})],
    "priorities": lambda number: [PriorityFrame(2 * number + 1, depends_on=0, stream_weight=1)],
    "window updates": lambda _: [WindowUpdateFrame(0, window_increment=1)],
    "empty data": lambda number: [HeadersFrame(1, Encoder().encode(POST), flags=["END_HEADERS"])] if not number else [DataFrame(1, b"")],
    "padding": lambda number: (
        [HeadersFrame(1, Encoder().encode(POST), flags=["END_HEADERS"])]
        if not number
        else [DataFrame(1, b"", flags=["PADDED"], pad_length=9)]
    ),
    "resets": lambda number: [
        HeadersFrame(2 * number + 1, Encoder().encode(GET), flags=["END_HEADERS", "END_STREAM"]),
        RstStreamFrame(2 * number + 1, error_code=8),
    ],
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_frames_without_requests_ends_the_connection(kind: str) -> None:
    inspection = Inspection()
    async with serving(inspection) as port, connected(port) as client:
        for number in range(3000):
            client.send(*FLOODS[kind](number))
        await client.closed()
    assert "too many frames without a request or a body" in inspection.refused[0]
    assert len(inspection.requests) <= 210


async def test_headers_that_unpack_to_much_more_than_was_sent_end_the_connection() -> None:
    value = b"v" * 3900
    async with serving(inspection := Inspection()) as port, connected(port) as client:
        encoder = Encoder()
        client.send(HeadersFrame(1, encoder.encode([*GET, (b"x", value)]), flags=["END_HEADERS", "END_STREAM"]))
        bomb = encoder.encode([*GET, *[(b"x", value)] * 15])  # 60 KB in 20 bytes
        assert len(bomb) < 30
        for number in range(1, 300):
            stream = 2 * number + 1
            client.send(HeadersFrame(stream, bomb, flags=["END_HEADERS", "END_STREAM"]), RstStreamFrame(stream, error_code=8))
        await client.closed()
    assert "too many frames" in inspection.refused[0]
    assert len(inspection.requests) < 100


async def test_64_requests_run_at_a_time() -> None:
    go_on = asyncio.Event()

    async def answer(request: Request) -> Response:
        await go_on.wait()
        return Response(200, [], chunks(b"done"))

    inspection = Inspection(answer)
    async with serving(inspection) as port, connected(port) as client:
        await client.until(lambda event: isinstance(event, SettingsAcknowledged))
        streams = [client.request() for _ in range(64)]
        async with asyncio.timeout(20):
            while inspection.running < 64:
                await asyncio.sleep(0.01)
        go_on.set()
        assert [(await client.response(stream))[2] for stream in streams] == [b"done"] * 64
        go_on.clear()
        block = client.block(GET)
        client.send(*(HeadersFrame(number, block, flags=["END_HEADERS", "END_STREAM"]) for number in range(129, 131 + 2 * 64, 2)))
        await client.closed()
    assert 64 <= len(inspection.requests) <= 128


async def test_a_client_that_says_goodbye_gets_what_it_asked_for() -> None:
    go_on = asyncio.Event()

    async def answer(request: Request) -> Response:
        await go_on.wait()
        return await echo(request)

    async with serving(Inspection(answer)) as port, connected(port) as client:
        stream = client.request()
        client.writer.write(bytes.fromhex("000008 07 00 00000000 00000000 00000000"))  # GOAWAY, as Node.js sends it in `session.close()`
        await client.writer.drain()
        go_on.set()
        assert (await client.response(stream))[0] == 200


async def test_a_closed_connection_cancels_its_requests() -> None:
    started = asyncio.Event()

    async def answer(request: Request) -> Response:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    inspection = Inspection(answer)
    async with serving(inspection) as port, connected(port) as client:
        client.request()
        await asyncio.wait_for(started.wait(), 20)
    assert inspection.cancelled == 1


async def test_a_connection_without_traffic_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "_IDLE_SECONDS", 0.1)
    async with serving(Inspection()) as port, connected(port) as client:
        assert await client.goaway() == ErrorCodes.NO_ERROR


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 100, id="HTTP/1.1"),
        pytest.param(_PREFACE + bytes.fromhex("010001 00 00 00000001"), id="a long frame"),
        pytest.param(_PREFACE + bytes.fromhex("000001 00 00 00000000 00"), id="data without a stream"),
        pytest.param(_PREFACE + bytes.fromhex("000004 05 04 00000001 00000002"), id="a push"),
        pytest.param(_PREFACE + bytes.fromhex("000001 01 05 00000002 82"), id="a stream of the server"),
        pytest.param(_PREFACE + bytes.fromhex("000001 01 00 00000001 82 000000 06 00 00000000"), id="a frame between headers"),
        pytest.param(_PREFACE + bytes.fromhex("000004 01 05 00000001 ffffffff"), id="headers that cannot be decoded"),
    ],
)
async def test_a_connection_that_breaks_the_protocol_is_closed(sent: bytes) -> None:
    async with serving(inspection := Inspection()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(sent)
            assert b"\x07\x00\x00\x00\x00\x00" in await asyncio.wait_for(reader.read(), 20)  # GOAWAY
        finally:
            writer.transport.abort()
    assert inspection.requests == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
async def test_frames_at_random_only_end_the_connection(seed: int) -> None:
    chance = random.Random(seed)
    async with serving(Inspection()) as port:
        for _ in range(150):
            async with connected(port) as client:
                sent = bytearray()
                for number in range(chance.randrange(1, 12)):
                    stream, kind = chance.choice((0, 1, 3, 5, 2 * number + 1)), chance.randrange(12)
                    body = client.block(chance.choice((GET, POST, [*GET, (b"content-length", b"3")])))
                    if kind not in (1, 9) or not chance.randrange(3):
                        body = chance.randbytes(chance.choice((0, 1, 4, 5, 6, 8, 100)))
                    sent += (
                        len(body).to_bytes(3, "big") + bytes((kind, chance.choice((0, 1, 4, 5, 8, 0x20, 0xFF)))) + stream.to_bytes(4, "big")
                    )
                    sent += body
                if not chance.randrange(4):
                    sent[chance.randrange(len(sent))] ^= 1 << chance.randrange(8)
                client.writer.write(_PREFACE + bytes(sent))
                client.writer.write_eof()
                with suppress(ConnectionError):
                    await asyncio.wait_for(client.reader.read(), 20)
        async with connected(port) as client:
            assert (await client.response(client.request()))[0] == 200
