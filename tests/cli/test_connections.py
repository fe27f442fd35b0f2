"""Test the limits for slow clients, and requests that they must not affect."""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from aca_sessions.cli.certificate import certificate
from aca_sessions.cli.connections import CONNECTION_LIMITS, ConnectionLimits, Connections, Listener

from ..ports import KEY, QUERY, TARGET, cell, serving

pytestmark = pytest.mark.slow
SOON = ConnectionLimits(head=1.0, body=1.0, body_bytes=10, response=1.0)


@pytest.mark.long
async def test_a_cell_that_runs_longer_than_a_head_may_take_is_answered() -> None:
    async with serving(SOON) as (_, port), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY) as client:
        answer = await client.post("/executions", json=cell("import time; time.sleep(3); 6 * 7"), timeout=120)
    assert answer.json()["result"]["executionResult"] == 42


@pytest.mark.long
async def test_a_slow_upload_that_makes_progress_arrives() -> None:
    async def parts():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(30):
            await asyncio.sleep(0.1)
            yield b"x" * 100
        yield b"\r\n--b--\r\n"

    async with serving(SOON) as (_, port), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY) as client:
        answer = await client.post("/files", content=parts(), headers={"content-type": "multipart/form-data; boundary=b"})
        assert answer.status_code == 200
        assert (await client.get("/files/f/content")).content == b"x" * 3000


@pytest.mark.long
async def test_a_client_that_reads_slowly_gets_everything() -> None:
    async with serving(replace(SOON, response=0.5)) as (_, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY, timeout=120) as client:
            await client.post("/executions", json=cell(f"open('z', 'wb').truncate({4 << 20})"))
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.connect(("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=client, limit=1 << 12)
        writer.write(f"GET /files/z/content{TARGET}Connection: close\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        size = 0
        while data := await reader.read(1 << 16):
            size += len(data)
            await asyncio.sleep(0.1)
        writer.close()
        assert size == 4 << 20


async def test_answers_that_wait_below_tls_count_as_unread(tmp_path: Path) -> None:
    files = certificate(tmp_path, "localhost")
    trusting = ssl.create_default_context(cafile=files[0])
    async with serving(ConnectionLimits(unread_bytes=300_000), tls=files) as (server, port), contextlib.AsyncExitStack() as held:
        await held.enter_async_context(asyncio.timeout(120))  # a connection that stays open is a failure, not a wait without end

        async def ask_for_a_megabyte() -> None:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=client, limit=1 << 10, ssl=trusting, server_hostname="localhost")
            held.callback(writer.transport.abort)
            writers.append(writer)
            for place in connections._slots.values():  # otherwise the kernel keeps all of the answer
                place._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            body = json.dumps(cell("print('x' * 1_000_000)") | {"outputStreamsMaxLength": 1_000_000})
            writer.write(f"POST /executions{TARGET}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            assert b" 200 " in await reader.readuntil(b"\r\n")

        connections, writers = server._connections, []
        await ask_for_a_megabyte()
        (place,) = connections._slots.values()
        while not place.protocol.cycle.response_complete:
            await asyncio.sleep(0.01)
        now = time.monotonic()
        assert [place.is_too_slow(now + later, CONNECTION_LIMITS) for later in (0, 2 * CONNECTION_LIMITS.head)] == [False, False]
        await ask_for_a_megabyte()  # both together are over the limit
        while len(server.server_state.connections) > 1:
            await asyncio.sleep(0.01)


async def test_a_request_beyond_the_limit_is_refused_until_a_place_is_free() -> None:
    async with serving() as (server, port):
        server._connections.most, server.config.limit_concurrency = 2, 3

        async def asked(code: str) -> httpx.Response:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY) as client:
                return await client.post("/executions", json=cell(code), timeout=120)

        waiting = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)"
        running = [asyncio.create_task(asked(waiting)) for _ in range(2)]
        while sum(connection.phase == "application" for connection in server.server_state.connections) < 2:
            await asyncio.sleep(0.05)
        assert (await asked("1")).status_code == 503
        running.pop().cancel()
        while len(server.server_state.connections) > 1:
            await asyncio.sleep(0.05)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY, timeout=120) as client:
            await client.post("/files", files={"file": ("go", b"")})
        assert (await running.pop()).status_code == 200


async def test_the_address_with_most_connections_loses_one_if_there_are_too_many() -> None:
    connections = Connections(ConnectionLimits(), 4)
    listener, there = Listener(), []
    try:
        for address in ("192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.2", "192.0.2.3"):
            there.append(Listener())
            assert connections.take(there[-1], (address, 1))
        assert [place.address for place in connections._slots.values()] == ["192.0.2.1", "2001:db8::/64", "192.0.2.2", "192.0.2.3"]
    finally:
        for one in (listener, *there):
            one.close()
