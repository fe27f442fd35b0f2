"""The HTTP proxy for sessions whose network has rules. It runs on the host, and such a session can reach nothing else.

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
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ...lifetime import Tasks, run_in_thread
from ...network.rules import NetworkLimits, Rule, is_address
from . import heads
from .addresses import Dialer, Streams
from .client_hello import ClientHelloError, read_client_hello
from .messages import without_connection
from .names import NameServer
from .session_network import (
    Decide,
    DeniedError,
    LimitReachedError,
    MalformedError,
    NetworkRecord,
    PrivateAddressError,
    SessionNetwork,
    deciding,
)
from .streams import Stream, TlsStream

if TYPE_CHECKING:
    from .authority import Authority
    from .forwarding import Forwarding, Inspection

_MAX_HEAD = 64 << 10
_HEAD_SECONDS, _IDLE_SECONDS = 10.0, 300.0
_CHUNK = 1 << 16
_PLAIN_URL = re.compile(r"http://([^/?#@]+)(/[^#]*|\?[^#]*)?(?:#.*)?", re.ASCII)
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.ASCII)
_NUMBER_LIKE = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_.:\[\]-]+", re.ASCII)
_ACCESS_DENIED, _INTERNAL_ERROR = 49, 80  # RFC 8446, 6.2
_logger = logging.getLogger("aca_sessions")


# HTTP libraries show the status of a refused CONNECT, and not its body.
_STATUS = {400: "400 Bad Request", 403: "403 Forbidden", 429: "429 Too Many Requests"}
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_TLS_HANDSHAKE = b"\x16"  # the first byte of a connection with TLS
_MAX_REASON = 400
_PRIVATE = "403 Forbidden, because at least one of its addresses is not public"


@dataclass(frozen=True, slots=True)
class _Head:
    """The part of a request that the proxy has read: its target, and the size of its body.

    `forwarded` is sent to the target: the request line and the headers, or the beginning of TLS. `reply` is sent to the session first, if
    the request is allowed. If `body` is None, everything that follows is sent to the target.
    """

    host: str
    port: int
    method: str | None = None
    forwarded: bytes = b""
    body: int | None = None
    reply: bytes = b""


class DirectSockets(NamedTuple):
    """Sockets in a session's network namespace for programs that ignore its proxy.

    Attributes:
        https: Listens for connections to port 443 of a host whose name was looked up.
        http: Listens for connections to port 80.
        names: Receives the DNS queries.
    """

    https: socket.socket
    http: socket.socket
    names: socket.socket


class Proxy:
    """The HTTP proxy of one session. It connects the session to the hosts of its rules and refuses all other targets."""

    def __init__(self, network: SessionNetwork, dialer: Dialer | None = None, authority: "Callable[[], Authority] | None" = None) -> None:
        """Create the proxy. `authority` returns the certificate authority that the session trusts, for inspected hosts."""
        self.network = network
        self._dialer = dialer or Dialer()
        self._authority = authority
        self._forwarding: Forwarding | None = None

    async def serve(self, listener: socket.socket, direct: DirectSockets | None = None, decide: Decide | None = None) -> "ProxyConnections":
        """Start to accept the session's connections. Close the returned `ProxyConnections` to stop.

        Args:
            listener: Accepts requests to a proxy.
            direct: Sockets for programs that ignore the proxy.
            decide: Decides about refused requests of these connections. A branch that was reset has other connections to the same proxy.
        """
        connections = ProxyConnections(self._close, lambda: self.network.network.limits.connections)
        try:
            await connections.start(listener, partial(self._answer, decide, _read_request))
            if direct is not None:
                await connections.start(direct.https, partial(self._answer, decide, _read_hello))
                await connections.start(direct.http, partial(self._answer, decide, _read_direct_request))
                connections.names = NameServer(direct.names, lambda host: self.network.reaches(host))
        except BaseException:
            await connections.close()
            for one in (listener, *(direct or ())):
                one.close()
            raise
        return connections

    async def inspect(self, host: str, port: int, here: Streams, early: bytes = b"") -> None:
        """Act as the host towards the session, with TLS if the session begins with it, and forward the requests that the rules allow.

        `early` has the bytes that were already read from the session. Raise MissingExtraError if a library for it is missing.
        """
        from . import http1  # the libraries for it take 0.1 s to load, and only sessions with inspected hosts need them

        if not early:
            async with asyncio.timeout(_IDLE_SECONDS):
                early = await here[0].read(_CHUNK)
        if early[:1] != _TLS_HANDSHAKE:
            await http1.serve(Stream(*here, early), self._inspection(host, port, is_tls=False))
        elif (stream := await self._agree_on_tls(host, port, here, early)) is not None:
            inspection = self._inspection(host, port, is_tls=True)
            if stream.protocol == "h2":
                from . import http2

                await http2.serve(stream, inspection)
            else:
                await http1.serve(stream, inspection)

    async def _agree_on_tls(self, host: str, port: int, here: Streams, early: bytes) -> TlsStream | None:
        """Return the session's connection with TLS, or None if the handshake fails or the session names another host."""
        if self._authority is None:
            raise ValueError("a proxy for inspected hosts needs a certificate authority")
        authority = await run_in_thread(self._authority)
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                early, _ = await read_client_hello(here[0], early)  # checked first: Python's ssl prints a name that is not ASCII to stderr
                stream = TlsStream(here, authority.context_for(host), early=early)
                await stream.handshake()
        except (OSError, TimeoutError, ClientHelloError) as error:  # ssl.SSLError too
            reason = getattr(error, "reason", None) or type(error).__name__
            _logger.info("network: refused, the TLS handshake of a session for %s failed (%s)", host, reason)
            self.network.record(NetworkRecord(host=host, port=port, decision="refused", reason="tls"))
            if isinstance(error, ClientHelloError):
                here[1].write(_alert(str(error)))
            return None
        return stream

    def _inspection(self, host: str, port: int, *, is_tls: bool) -> "Inspection":
        from .forwarding import Forwarding

        if self._forwarding is None:
            self._forwarding = Forwarding(self.network, self._dialer)
        return self._forwarding.inspection(host, port, is_tls=is_tls)

    async def _close(self) -> None:
        if self._forwarding is not None:
            forwarding, self._forwarding = self._forwarding, None
            await forwarding.close()

    async def _answer(self, decide: Decide | None, read: "_Read", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        deciding.set(decide)
        record = NetworkRecord(host="", port=0)  # until the request was read
        refuse = _alert if read is _read_hello else _refusal
        is_recorded = True
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await read(reader)
            record = NetworkRecord(host=head.host, port=head.port, method=head.method)
            rules = await self._rules_for(head)
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - this is a coroutine
            with self.network.close_if_replaced(head.host, head.port, task.cancel):
                if any(rule.is_inspected for rule in rules):
                    is_recorded = False  # each of its requests is recorded instead
                    writer.write(head.reply)
                    with contextlib.suppress(OSError, TimeoutError):  # too late for a response
                        await self.inspect(head.host, head.port, (reader, writer), head.forwarded)
                else:
                    await self._tunnel(head, rules, (reader, writer), record)
        except DeniedError as denied:
            record.decision, record.status, record.reason = "refused", denied.status, denied.reason
            _logger.info("network: refused, %s", denied)
            writer.write(refuse(str(denied), status=_status_line(denied)))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            record.reason, record.status = "unreachable", 502
            reason = "cannot reach the target, or the request is incomplete: check its host and port, and try again"
            writer.write(refuse(reason, status="502 Bad Gateway"))
        finally:
            if is_recorded:
                record.seconds = time.monotonic() - record.started
                self.network.record(record)

    async def _rules_for(self, head: _Head) -> tuple[Rule, ...]:
        if not is_address(head.host) and (_NUMBER_LIKE.fullmatch(head.host) or not _NAME.fullmatch(head.host)):
            raise DeniedError(f"the target must be a domain name, got {head.host.rpartition('@')[2]!r:.80}")
        return await self.network.rules_for(head.host, head.port)

    async def _tunnel(self, head: _Head, rules: tuple[Rule, ...], here: Streams, record: NetworkRecord) -> None:
        """Connect a session to the target of its request, and carry data in both directions without inspecting it."""
        rule = rules[0]
        if not any(rule is one for one in self.network.network.hosts):
            record.decision = "approved"
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
    if isinstance(denied, PrivateAddressError):
        return _PRIVATE
    # The values from the session in this message were matched before, so they cannot contain a line break.
    return f"{_STATUS[denied.status]}, {str(denied)[:_MAX_REASON]}" if denied.status == 403 else _STATUS[denied.status]


class ProxyConnections:
    """The connections of one session to the proxy, and its DNS server."""

    def __init__(
        self, on_close: Callable[[], Awaitable[None]] | None = None, limit: Callable[[], int] = lambda: NetworkLimits().connections
    ) -> None:
        """Create the object. `on_close` is called when all are closed. `limit` returns how many may be open at a time."""
        self.names: NameServer | None = None
        self._on_close = on_close
        self._limit = limit
        self._tasks = Tasks()
        self._open: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []
        self._closed = False

    async def start(self, listener: socket.socket, answer: "_Answer") -> None:
        """Start to accept connections from the session. `answer` is called with the streams of each."""
        self._servers.append(await asyncio.start_server(partial(self._accept, answer), sock=listener, limit=_MAX_HEAD))

    async def close(self) -> None:
        """Close the listeners, the DNS server and every connection."""
        self._closed = True
        for server in self._servers:
            server.close()
        if self.names is not None:
            self.names.close()
        await self._tasks.cancel()
        for writer in self._open:  # a task that was cancelled before its first step has not closed its connection
            writer.transport.abort()
        if self._on_close is not None:
            await self._on_close()

    def _accept(self, answer: "_Answer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed or len(self._open) >= self._limit():
            if not self._closed:
                _logger.info("network: refused, a session has %d connections already", len(self._open))
            writer.transport.abort()
            return
        end = writer.get_extra_info("socket")
        if end.family != socket.AF_UNIX:
            # asyncio does this only for sockets made with this protocol number. Without it, a small response after another waits for 40 ms.
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(writer)
        self._tasks.start(self._answer_and_close(answer, reader, writer))

    async def _answer_and_close(self, answer: "_Answer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_HEAD_SECONDS):
                    await writer.wait_closed()
        finally:
            self._open.discard(writer)
            writer.transport.abort()  # a client that does not read the rest cannot keep the connection open


_Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_Read = Callable[[asyncio.StreamReader], Awaitable[_Head]]


async def _read_request(reader: asyncio.StreamReader) -> _Head:
    return _parse(await reader.readuntil(b"\r\n\r\n"))


async def _read_direct_request(reader: asyncio.StreamReader) -> _Head:
    """Read a request in the form that is sent to a server and not to a proxy: its header Host has the target."""
    request = _parse_head(await reader.readuntil(b"\r\n\r\n"))
    hosts = [value.decode("latin-1") for value in request.values(b"host")]
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]) or not request.target.startswith("/"):
        raise MalformedError("the request must have a path and exactly one header Host")
    head = _plain(request, hosts[0], request.target)
    if head.port != 80:
        raise MalformedError(f"the port in the header Host must be 80, the port of the connection, got {head.port}")
    return head


async def _read_hello(reader: asyncio.StreamReader) -> _Head:
    """Read the beginning of TLS, in which the client names the target."""
    received, name = await read_client_hello(reader)
    if name is None:
        raise MalformedError("the TLS client must name its host (SNI)")
    return _Head(name, 443, forwarded=received)


def _parse_head(head: bytes) -> heads.Head:
    request = heads.parse(head)
    if request is None:
        raise DeniedError("the request must begin with CONNECT host:port, or with a method and a whole http:// URL")
    if request.is_chunked:
        raise MalformedError("a request must not have a Transfer-Encoding: send the size of its body in Content-Length")
    return request


def _parse(head: bytes) -> _Head:
    request = _parse_head(head)
    target = request.target
    if request.method == "CONNECT":
        return _Head(*_host_and_port(target, 0), reply=_ESTABLISHED)
    url = _PLAIN_URL.fullmatch(target)
    if url is None:
        scheme = target.partition("://")[0] if "://" in target else ""  # only this: the rest may hold a password
        raise DeniedError(
            f"expected a whole http:// URL without a user name, got the scheme {scheme!r:.20}: for https:// send CONNECT host:port"
        )
    path = url[2] or "/"
    return _plain(request, url[1], path if path.startswith("/") else f"/{path}")


def _plain(request: heads.Head, authority: str, path: str) -> _Head:
    host, port = _host_and_port(authority, 80)
    # Each connection to a target carries one request, so that a session cannot smuggle in a second one.
    first = f"{request.method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n".encode()
    kept = [name + b": " + value + b"\r\n" for name, value in without_connection(request.headers) if name != b"host"]
    return _Head(host, port, request.method, first + b"".join(kept) + b"\r\n", request.length or 0)


def _host_and_port(target: str, default: int) -> tuple[str, int]:
    host, colon, port = target.rpartition(":") if ":" in target else (target, "", "")
    if (colon and not (port.isascii() and port.isdecimal() and len(port) <= 5)) or (not colon and not default):
        got = f"{port!r:.20}" if colon else "none"
        raise DeniedError(f"the target must have a port from 0 to 65535, got {got}: send host:port")
    return host.lower().removesuffix("."), int(port) if colon else default


async def _carry(head: _Head, here: Streams, there: Streams, count: Callable[[int, int], None] = lambda _sent, _received: None) -> None:
    """Send a request to its target, then copy data in both directions until the target has sent everything.

    Stop early if one side cannot receive, or if no data moves for 300 s.

    Args:
        head: The request.
        here: The streams from and to the session.
        there: The streams from and to the target.
        count: Called with the numbers of bytes that were sent and received. It raises LimitReachedError to end the connection.
    """
    there[1].write(head.forwarded)
    here[1].write(head.reply)
    with contextlib.suppress(OSError, TimeoutError, LimitReachedError):  # one end was closed: close the other as well
        async with asyncio.timeout(_IDLE_SECONDS) as idle:
            sending = asyncio.ensure_future(_copy(here[0], there[1], head.body, idle, lambda size: count(size, 0)))
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


def _alert(_reason: str, *, status: str = "") -> bytes:
    """Return an alert of TLS. It has no text: programs show its name, such as "access denied"."""
    return b"\x15\x03\x03\0\x02\x02" + bytes((_INTERNAL_ERROR if status.startswith("5") else _ACCESS_DENIED,))


def _refusal(reason: str, *, status: str) -> bytes:
    text = f"{reason}\n".encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text
