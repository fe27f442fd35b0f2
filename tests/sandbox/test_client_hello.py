"""Test how the proxy reads the host that a TLS client names."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions.sandbox.proxy.client_hello import ClientHelloError, read_client_hello

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def hello_of(name: str | None, *, least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> bytes:
    """Return what a client of Python sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.minimum_version = least
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


HELLO = hello_of("api.example.org")


@asynccontextmanager
async def connected(accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]) -> AsyncIterator[int]:
    """Serve connections, and yield the port."""
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def read(*pieces: bytes, end: bool = True) -> tuple[bytes, str | None]:
    """Send pieces to a server apart from each other, and return what it reads of them."""
    found: asyncio.Future[tuple[bytes, str | None]] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            found.set_result(await read_client_hello(reader))
        except ClientHelloError as error:
            found.set_exception(error)
        writer.close()

    async with connected(accept) as port:
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.001 if len(pieces) > 1 else 0)
        if end:
            writer.write_eof()
        try:
            return await found
        finally:
            writer.close()


def in_records(hello: bytes, *sizes: int) -> bytes:
    """Return a hello of one record in several ones."""
    message, records = hello[5:], b""
    for size in (*sizes, len(message)):
        part, message = message[:size], message[size:]
        records += b"\x16\x03\x01" + len(part).to_bytes(2) + part if part else b""
    return records


def with_extensions(extensions: bytes) -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + len(extensions).to_bytes(2) + extensions
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


def named(name: bytes, kind: int = 0) -> bytes:
    entry = bytes([kind]) + len(name).to_bytes(2) + name
    return b"\0\0" + (len(entry) + 2).to_bytes(2) + len(entry).to_bytes(2) + entry


@pytest.mark.parametrize("least", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_host_that_a_client_names_is_found(least: ssl.TLSVersion) -> None:
    assert (await read(hello_of("API.example.org", least=least)))[1] == "api.example.org"
    assert (await read(hello_of(None, least=least)))[1] is None
    assert (await read(with_extensions(named(b"a.test"))))[1] == "a.test"


async def test_a_hello_may_arrive_in_any_pieces() -> None:
    assert await read(*(HELLO[place : place + 1] for place in range(len(HELLO)))) == (HELLO, "api.example.org")
    assert await read(HELLO[:7], HELLO[7:]) == (HELLO, "api.example.org")
    split = in_records(HELLO, 1, 2, 1, 50, 100)
    assert await read(split) == (split, "api.example.org")
    assert await read(*(split[place : place + 3] for place in range(0, len(split), 3))) == (split, "api.example.org")


async def test_what_a_client_sends_next_is_returned_as_well() -> None:
    more = b"\x14\x03\x03\0\x01\x01\x17\x03\x03\0\x05early"
    assert await read(HELLO + more) == (HELLO + more, "api.example.org")


MALFORMED = {
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "an end": HELLO[:-1],
    "no bytes": b"",
    "an old version": b"\x80\x2e\x01\x03\x01",
    "an alert": b"\x15\x03\x01\0\x02\x02\x28",
    "another message": b"\x16\x03\x01\0\x04\x02\0\0\0",
    "an empty record": b"\x16\x03\x01\0\0" + HELLO,
    "a large record": b"\x16\x03\x01\x40\x01" + bytes(99),
    "a large message": b"\x16\x03\x01\x40\0\x01\0\xff\xff" + bytes(0x3FFC),
    "many records": in_records(HELLO, *[1] * 9),
    "more in its record": HELLO[:3] + (len(HELLO) - 4).to_bytes(2) + HELLO[5:] + b"\0",
    "a name twice": with_extensions(named(b"a.test") + named(b"b.test")),
    "two names in a list": with_extensions(b"\0\0\0\x14\0\x12\0\0\x06a.test\0\0\x06b.test"),
    "an empty name": with_extensions(named(b"")),
    "a name of another kind": with_extensions(named(b"a.test", kind=1)),
    "a name that is not ASCII": with_extensions(named("ä.test".encode())),
    "a name that is cut off": with_extensions(named(b"a.test")[:-1]),
    "a name longer than its extension": with_extensions(b"\0\0\0\x04\0\x02\0\xff"),
    "extensions that are cut off": with_extensions(b"\0\0\0"),
}


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_malformed_hello_is_refused(malformed: str) -> None:
    with pytest.raises(ClientHelloError):
        await asyncio.wait_for(read(MALFORMED[malformed], end=malformed in ("an end", "no bytes")), 20)


@given(st.integers(0, len(HELLO) - 1), st.binary(max_size=3))
def test_a_changed_hello_is_read_or_refused(place: int, change: bytes) -> None:
    from aca_sessions.sandbox.proxy import client_hello

    changed = HELLO[:place] + change + HELLO[place + len(change) :]
    try:
        message = client_hello._join_records(changed)
        name = client_hello._find_name(message) if message else None
        assert name is None or name.isascii()
    except ClientHelloError:
        pass
