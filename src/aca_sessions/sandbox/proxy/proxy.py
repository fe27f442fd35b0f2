"""The HTTP proxy for sessions whose network has rules. It runs on the host and is all that such a session can reach.

Each session's network namespace has a listening socket, on which the host accepts the session's connections. The proxy looks up and checks
every address, and connects to the one that it checked.
"""

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ...lifetime import Tasks
from ...network.rules import Rule, is_address
from .addresses import Dialer, Streams
from .session_network import DeniedError, LimitReachedError, MalformedError, NetworkRecord, PrivateAddressError, SessionNetwork

_MAX_HEAD = 64 << 10
_MAX_CONNECTIONS = 64  # of one session, at a time
_HEAD_SECONDS, _IDLE_SECONDS = 10.0, 300.0
_CHUNK = 1 << 16
_REQUEST = re.compile(rb"([A-Z]{1,20}) (\S{1,8192}) HTTP/1\.[01]", re.ASCII)
# RFC 9112, 5: no space before the colon, no folding. h11 would read the head as well, but it unfolds lines and merges equal lengths before
# its caller sees them: it takes seven of the requests that tests/hostile/test_network_walls.py refuses.
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
_FRAMING = (b"host", b"connection", b"content-length", b"transfer-encoding")
_PLAIN_URL = re.compile(r"http://([^/?#@]+)(/[^#]*|\?[^#]*)?(?:#.*)?", re.ASCII)
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.ASCII)
_NUMBER_LIKE = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)", re.ASCII)
_logger = logging.getLogger("aca_sessions")


# HTTP libraries show the status of a refused CONNECT, and not its body.
_STATUS = {400: "400 Bad Request", 403: "403 Forbidden", 429: "429 Too Many Requests"}
_PRIVATE = "403 Forbidden, because at least one of its addresses is not public"


@dataclass(frozen=True, slots=True)
class _Head:
    """What the proxy has read of a request: its target, and the size of its body.

    `forwarded` is the request line and the headers to send to the target. It is empty for CONNECT.
    """

    host: str
    port: int
    method: str | None = None
    forwarded: bytes = b""
    body: int = 0


class Proxy:
    """The HTTP proxy of one session. It connects the session to the hosts of its rules and refuses all other targets."""

    def __init__(self, network: SessionNetwork, dialer: Dialer | None = None) -> None:
        self.network = network
        self._dialer = dialer or Dialer()

    def for_branch(self) -> "Proxy":
        """Return a proxy with the same rules for a branch of the session. What it uses is counted apart."""
        return Proxy(SessionNetwork(self.network.network), self._dialer)

    async def serve(self, listener: socket.socket) -> "ProxyConnections":
        """Start to accept the session's connections on its listening socket. Close the returned `ProxyConnections` to stop."""
        connections = ProxyConnections(self._answer)
        await connections.start(listener)
        return connections

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record = NetworkRecord(host="", port=0)  # as far as the request was read
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = _parse(await reader.readuntil(b"\r\n\r\n"))
            record = NetworkRecord(host=head.host, port=head.port, method=head.method)
            await self._go_on(head, (reader, writer), record)
        except DeniedError as denied:
            record.decision, record.status, record.reason = "refused", denied.status, denied.reason
            _logger.info("network: refused, %s", denied)
            writer.write(_refusal(str(denied), status=_status_line(denied)))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            record.reason, record.status = "unreachable", 502
            reason = "cannot reach the target, or the request is incomplete: check its host and port, and try again"
            writer.write(_refusal(reason, status="502 Bad Gateway"))
        finally:
            record.seconds = time.monotonic() - record.started
            self.network.record(record)

    async def _go_on(self, head: _Head, here: Streams, record: NetworkRecord) -> None:
        """Connect a session to the target of its request, and carry what both send. Raise DeniedError if the request is refused."""
        if not is_address(head.host) and (_NUMBER_LIKE.fullmatch(head.host) or not _NAME.fullmatch(head.host)):
            raise DeniedError(f"the target must be a domain name, got {head.host.rpartition('@')[2]!r:.80}")
        rules = await self.network.rules_for(head.host, head.port)
        rule = rules[0]
        self.network.count_request(rule)
        with self.network.open_connection(rule):
            there = await self._dialer.connect(head.host, head.port, rules)
            _logger.info("network: connected to %s port %d", head.host, head.port)
            await _carry(head, here, there, lambda sent, received: self._count(rule, record, sent, received))

    def _count(self, rule: Rule, record: NetworkRecord, sent: int, received: int) -> None:
        record.sent += sent
        record.received += received
        self.network.count_bytes(rule, sent + received)


def _status_line(denied: DeniedError) -> str:
    return _PRIVATE if isinstance(denied, PrivateAddressError) else _STATUS[denied.status]


class ProxyConnections:
    """The connections of one session to the proxy."""

    def __init__(self, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._answer = answer
        self._tasks = Tasks()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._closed = False

    async def start(self, listener: socket.socket) -> None:
        """Start to accept connections from the session."""
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_MAX_HEAD)

    async def close(self) -> None:
        """Close the listener and every connection."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        await self._tasks.cancel()
        for writer in self._open:  # a task that was cancelled before its first step has not closed its connection
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed or len(self._open) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(writer)
        self._tasks.start(self._answer_and_close(reader, writer))

    async def _answer_and_close(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_HEAD_SECONDS):
                    await writer.wait_closed()
        finally:
            self._open.discard(writer)
            writer.transport.abort()  # a client that does not read the rest cannot keep the connection open


def _parse(head: bytes) -> _Head:
    lines = head[:-4].split(b"\r\n")
    request = _REQUEST.fullmatch(lines[0])
    if request is None:
        raise DeniedError("the request must begin with CONNECT host:port, or with a method and a whole http:// URL, as one to a proxy does")
    kept, body = _headers(lines[1:])
    method, target = request[1].decode(), request[2].decode("ascii", "replace")
    if method == "CONNECT":
        return _Head(*_host_and_port(target, 0))
    url = _PLAIN_URL.fullmatch(target)
    if url is None:
        scheme = target.partition("://")[0] if "://" in target else ""  # only this: the rest may hold a password
        raise DeniedError(
            f"expected a whole http:// URL without a user name, got the scheme {scheme!r:.20}: for https:// send CONNECT host:port"
        )
    host, port = _host_and_port(url[1], 80)
    path = url[2] or "/"
    path = path if path.startswith("/") else f"/{path}"
    first = f"{method} {path} HTTP/1.1\r\nHost: {url[1]}\r\nConnection: close\r\n".encode()
    return _Head(host, port, method, first + b"".join(kept) + b"\r\n", body)


def _headers(lines: list[bytes]) -> tuple[list[bytes], int]:
    """Return the headers to pass on to the target, and the size of the body. Raise MalformedError for a malformed or ambiguous header.

    Drop headers about the connection, such as Keep-Alive. Each connection to a target carries one request, so that a session cannot smuggle
    in a second one.
    """
    kept: list[bytes] = []
    body: int | None = None
    for number, line in enumerate(lines, 1):
        header = _HEADER.fullmatch(line)
        if header is None:
            raise MalformedError(f"header {number} must be 'name: value' on one line of printable characters: correct or remove it")
        name, value = header[1].lower(), line[len(header[1]) + 1 :].strip()
        if b"_" in name and name.replace(b"_", b"-") in _FRAMING:  # some servers read '_' as '-'
            raise MalformedError(
                f"the header {name.decode()!r:.80} must not have '_' in its name, which some servers read as '-': use '-', or remove it"
            )
        match name:
            case b"host" | b"connection" | b"keep-alive" | b"upgrade" | b"te" | b"trailer":
                continue
            case b"transfer-encoding":
                raise MalformedError("a request must not have a Transfer-Encoding: send the size of its body in Content-Length")
            case b"content-length" if body is not None or not value.isdigit() or len(value) > 16:
                got = "a second one" if body is not None else f"{value.decode('ascii', 'replace')!r:.40}"
                raise MalformedError(f"expected one Content-Length of 1 to 16 digits, got {got}: send the size of the body in bytes once")
            case b"content-length":
                body = int(value)
            case hidden if hidden.startswith(b"proxy-"):
                continue
        kept.append(line + b"\r\n")
    return kept, body or 0


def _host_and_port(target: str, default: int) -> tuple[str, int]:
    host, colon, port = target.rpartition(":") if ":" in target else (target, "", "")
    if (colon and not (port.isascii() and port.isdecimal() and len(port) <= 5)) or (not colon and not default):
        got = f"{port!r:.20}" if colon else "none"
        raise DeniedError(f"the target must have a port from 0 to 65535, got {got}: send host:port")
    return host.lower().removesuffix("."), int(port) if colon else default


async def _carry(head: _Head, here: Streams, there: Streams, count: Callable[[int, int], None] = lambda _sent, _received: None) -> None:
    """Send a request to its target, then copy data in both directions until the target has sent everything.

    For a CONNECT request, send only a reply to the session before copying. Stop early if one side cannot receive, or if no data moves for
    300 s.

    Args:
        head: The request.
        here: The streams from and to the session.
        there: The streams from and to the target.
        count: Called with the numbers of bytes that were sent and received. It raises LimitReachedError to end the connection.
    """
    if head.forwarded:
        there[1].write(head.forwarded)
    else:
        here[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    with contextlib.suppress(OSError, TimeoutError, LimitReachedError):  # one end was closed: close the other as well
        async with asyncio.timeout(_IDLE_SECONDS) as idle:
            sending = asyncio.ensure_future(
                _copy(here[0], there[1], head.body if head.forwarded else None, idle, lambda size: count(size, 0))
            )
            try:
                await _copy(there[0], here[1], None, idle, lambda size: count(0, size))
            finally:
                sending.cancel()
                there[1].transport.abort()  # before the wait, which may be cancelled
                await asyncio.wait((sending,))


async def _copy(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, left: int | None, idle: asyncio.Timeout, count: Callable[[int], None]
) -> None:
    """Copy at most `left` bytes from `source` to `target`. If `left` is None, copy everything, then signal the end of data to `target`.

    Restart the timeout `idle` whenever data moves.
    """
    while left is None or left > 0:
        data = await source.read(_CHUNK if left is None else min(_CHUNK, left))
        if not data:
            break
        count(len(data))
        left = None if left is None else left - len(data)
        _restart_timeout(idle)
        target.write(data)
        await target.drain()
        _restart_timeout(idle)
    if left is None and target.can_write_eof():
        target.write_eof()


def _restart_timeout(idle: asyncio.Timeout) -> None:
    if not idle.expired():
        idle.reschedule(asyncio.get_running_loop().time() + _IDLE_SECONDS)


def _refusal(reason: str, *, status: str) -> bytes:
    text = f"{reason}\n".encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text
