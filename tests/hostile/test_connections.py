"""Attack the port of `aca-sessions serve`: clients without the key, and clients with the key that do not keep up."""

import asyncio
import contextlib
import resource
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from aca_sessions.cli.certificate import certificate
from aca_sessions.cli.connections import ConnectionLimits

from ..conftest import COMMAND, mostly_long
from ..ports import KEY, QUERY, TARGET, cell, serving

pytestmark = pytest.mark.slow
DESCRIPTORS = 400
UNREAD = (
    b"GET /playground/page.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300
)  # more than the kernel buffers for a client that does not read
UPLOAD = (
    "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 900000\r\n\r\n"
    '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
)
HALF_A_HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-a: "
SOON = ConnectionLimits(head=0.5, body=0.5, body_bytes=1000, response=0.5)


def limit_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))


@pytest.mark.parametrize("sent", mostly_long([b"", HALF_A_HEAD, UNREAD], HALF_A_HEAD), ids=["nothing", "half a head", "unread"])
@pytest.mark.parametrize("scheme", mostly_long(["http", "https", "http without a key"], "http"))
def test_connections_without_a_key_keep_no_caller_out(scheme: str, sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without a key that opens more connections than a server has descriptors keeps no caller out, not even of one with no key."""
    keyless = ["--no-api-key"] if "without" in scheme else []
    if not keyless:
        monkeypatch.setenv("ACA_SESSIONS_API_KEY", "the-key")
    monkeypatch.setenv("ACASessions__Sandbox__Preload", "")
    tls = ["--tls", "--tls-dir", str(tmp_path)] if scheme == "https" else []
    with contextlib.ExitStack() as held:
        command = [*COMMAND, "serve", "--port", "0", *tls, *keyless]
        process = held.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=limit_descriptors))
        held.callback(process.terminate)
        endpoint = process.stdout.readline().removeprefix("Endpoint: ").strip()

        def value_of(code: str, identifier: str) -> object:
            with httpx.Client(
                base_url=endpoint, headers=KEY, params=QUERY | {"identifier": identifier}, verify=False, timeout=60
            ) as client:
                return client.post("/executions", json=cell(code)).json()["result"]["executionResult"]

        value_of("x = 20; open('z', 'wb').truncate(64 << 20)", "a")
        is_unread = sent == UNREAD
        if keyless and is_unread:
            sent = f"GET /files/z/content{TARGET}\r\n".encode()  # one request is enough if clients without a key may request a file
        for _ in range(DESCRIPTORS // 2 if is_unread else DESCRIPTORS + 50):
            stranger = held.enter_context(socket.socket())
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            stranger.connect(("127.0.0.1", int(endpoint.rpartition(":")[2])))
            with contextlib.suppress(OSError):  # it was closed already
                stranger.send(sent)
                if is_unread and not tls:
                    stranger.recv(1)
                    time.sleep(0.03)  # its answers fill the kernel's buffers
        assert [value_of("x + 22", "a"), value_of("6 * 7", "new"), value_of("x + 22", "a")] == [42, 42, 42]


TOO_SLOW: dict[str, tuple[str, bytes]] = {
    "nothing": ("", b""),
    "no handshake of TLS": ("", b""),
    "a head in drops": ("GET / HTTP/1.1\r\nHost: localhost\r\nX-a: ", b"a"),
    "drops after an answer": ("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"),
    "a body without the key in drops": ("POST /executions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n", b"a"),
    "a body in drops": (f"POST /executions{TARGET}Content-Length: 9000000\r\n\r\n", b"a"),
    "a body of chunks in drops": (f"POST /executions{TARGET}Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "an upload in drops": (f"POST /files{TARGET}{UPLOAD}", b"a"),
}


@pytest.mark.parametrize("slow", mostly_long([*TOO_SLOW, "an answer that is not read"], "a body in drops", "an answer that is not read"))
@pytest.mark.long
async def test_a_client_that_makes_no_progress_is_disconnected(slow: str, tmp_path: Path) -> None:
    """A connection whose head or body comes too slowly, or whose client takes nothing of an answer, is closed, key or no key."""
    tls = certificate(tmp_path, "localhost") if "TLS" in slow else None
    async with serving(SOON, tls=tls) as (server, port), contextlib.AsyncExitStack() as held:
        await held.enter_async_context(asyncio.timeout(120))  # a connection that stays open must fail the test and not hang it
        if slow in TOO_SLOW:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            held.callback(writer.close)
            head, drop = TOO_SLOW[slow]
            writer.write(head.encode())
            await send_until_closed(reader, writer, drop)
        else:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY, timeout=120) as client:
                await client.post("/executions", json=cell("open('z', 'wb').truncate(64 << 20)"))
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
            held.callback(writer.transport.abort)
            writer.write(f"GET /files/z/content{TARGET}\r\n".encode())
            assert b" 200 " in await reader.readuntil(b"\r\n")
            while server.server_state.connections:
                await asyncio.sleep(0.05)


async def send_until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drop: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        while not reader.at_eof():
            writer.write(drop)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(1 << 16)


ENDLESS: dict[str, tuple[str, bytes]] = {
    "a header": ("GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * 65536),
    "headers": ("GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: a\r\n" * 8192),
    "an address": ("GET /", b"a" * 65536),
    "a body without the key": ("POST /executions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n", b"a" * 65536),
    "a body": (f"POST /executions{TARGET}Content-Length: 900000000\r\n\r\n", b"a" * 65536),
    "chunks": (f"POST /executions{TARGET}Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"a" * 65536 + b"\r\n"),
}


@pytest.mark.parametrize("endless", ENDLESS)
async def test_an_endless_request_takes_little_memory(endless: str) -> None:
    """A request whose head or body goes on and on is refused, and takes a bounded part of the server's memory, key or no key."""
    async with serving() as (_, port):
        before = resident_megabytes()
        answer = await asyncio.to_thread(send_on_and_on, port, *ENDLESS[endless])
        taken = resident_megabytes() - before
    assert answer.startswith(b"HTTP/1.1 4")
    assert taken < 150


def send_on_and_on(port: int, head: str, more: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            for _ in range((300 << 20) // len(more)):
                client.sendall(more)
        return client.recv(1 << 12)


async def test_unread_downloads_take_little_memory() -> None:
    """A download takes a few chunks of the server's memory, however large its file is and however slowly its client reads."""
    async with serving() as (server, port):
        held = contextlib.ExitStack()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY, timeout=120) as client:
            await client.post("/executions", json=cell("open('z', 'wb').truncate(200 << 20)"))
        before = resident_megabytes()
        for _ in range(6):
            idle = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            idle.send(f"GET /files/z/content{TARGET}\r\n".encode())
        while sum(connection.phase == "response" for connection in server.server_state.connections) < 6:
            await asyncio.sleep(0.05)
        taken = resident_megabytes() - before
        held.close()
    assert taken < 100


def resident_megabytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) >> 10


@pytest.mark.long
async def test_unread_answers_together_take_bounded_memory() -> None:
    """Answers that their clients do not read take a bounded part of the server's memory together: beyond, connections are closed."""
    most, unread = 20 << 20, []
    async with serving(ConnectionLimits(unread_bytes=most)) as (server, port), contextlib.AsyncExitStack() as held:
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY, timeout=60)
        await held.enter_async_context(client)
        await client.post("/executions", json=cell("for n in range(15_000): open(f'{n:0250}', 'w').close()"))
        for _ in range(10):
            idle = socket.socket()
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            idle.connect(("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=idle, limit=1 << 10)
            held.callback(writer.close)
            writer.write(f"GET /files{TARGET}\r\n".encode())
            assert b" 200 " in await reader.readuntil(b"\r\n")
            unread.append(sum(connection.transport.get_write_buffer_size() for connection in server.server_state.connections))
        answer = await client.post("/executions", json=cell("6 * 7"))
    assert answer.json()["result"]["executionResult"] == 42
    assert (max(unread) > most / 4, max(unread) <= most) == (True, True)
