"""The HTTP proxy for sessions whose policy names domains. It runs on the host and is all that such a session can reach.

Each session's network namespace has a listening socket, on which the host accepts the session's connections. The proxy looks up and checks
every address, and connects to the one that it checked. It does not inspect what an allowed domain receives or sends.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..lifetime import Tasks
from .policy import Network

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_MAX_HEAD = 64 << 10
_MAX_CONNECTIONS = 64  # of one session, at a time
_HEAD_SECONDS, _CONNECT_SECONDS, _IDLE_SECONDS = 10.0, 20.0, 300.0
_CHUNK = 1 << 16
_PORTS = (80, 443)
_REQUEST = re.compile(rb"([A-Z]{1,20}) (\S{1,8192}) HTTP/1\.[01]", re.ASCII)
# RFC 9112, 5: no space before the colon, no folding. h11 would read the head as well, but it unfolds lines and merges equal lengths before
# its caller sees them: it takes seven of the requests that tests/hostile/test_network_walls.py refuses.
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
_FRAMING = (b"host", b"connection", b"content-length", b"transfer-encoding")
_PLAIN_URL = re.compile(r"http://([^/?#@]+)(/[^#]*|\?[^#]*)?(?:#.*)?", re.ASCII)
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.ASCII)
_NUMBER_LIKE = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)", re.ASCII)
_logger = logging.getLogger("aca_sessions")


class DeniedError(Exception):
    """Raised for a request that the policy does not allow. The message gives the reason and is sent to the session."""


class PrivateAddressError(DeniedError):
    """Raised for an allowed domain of which an address is not public."""


class MalformedError(DeniedError):
    """Raised for a request whose headers are malformed or ambiguous, so that two servers could read it in different ways."""


# HTTP libraries show the status of a refused CONNECT, and not its body.
_REFUSALS = {MalformedError: "400 Bad Request", PrivateAddressError: "403 Forbidden, because at least one of its addresses is not public"}


@dataclass(frozen=True, slots=True)
class _Head:
    """What the proxy has read of a request: its target, and the size of its body.

    `forwarded` is the request line and the headers to send to the target. It is empty for CONNECT.
    """

    host: str
    port: int
    forwarded: bytes = b""
    body: int = 0


async def resolve(host: str, port: int) -> list[str]:
    """Look up a host name, and return its addresses without duplicates."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


async def connect(address: str, port: int) -> Streams:
    """Open a TCP connection to an address that the proxy has checked."""
    return await asyncio.open_connection(address, port)


class Proxy:
    """An HTTP proxy that connects sessions to the policy's domains and refuses all other targets."""

    def __init__(
        self,
        network: Network,
        *,
        resolve: Callable[[str, int], Awaitable[list[str]]] = resolve,
        connect: Callable[[str, int], Awaitable[Streams]] = connect,
    ) -> None:
        self._network = network
        self._resolve = resolve
        self._connect = connect

    async def serve(self, listener: socket.socket) -> "ProxyConnections":
        """Start to accept one session's connections on its listening socket. Close the returned `ProxyConnections` to stop."""
        connections = ProxyConnections(self._answer)
        await connections.start(listener)
        return connections

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = _parse(await reader.readuntil(b"\r\n\r\n"))
            address = await self._checked(head.host, head.port)
            async with asyncio.timeout(_CONNECT_SECONDS):
                there = await self._connect(address, head.port)
        except DeniedError as denied:
            _logger.info("network: refused, %s", denied)
            status = next((status for kind, status in _REFUSALS.items() if isinstance(denied, kind)), "403 Forbidden")
            writer.write(_refusal(str(denied), status=status))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            reason = "cannot reach the target, or the request is incomplete: check its host and port, and try again"
            writer.write(_refusal(reason, status="502 Bad Gateway"))
        else:
            _logger.info("network: connected to %s port %d", head.host, head.port)
            await _carry(head, (reader, writer), there)

    async def _checked(self, host: str, port: int) -> str:
        """Return the IP address to connect to for a request to `host`, after all checks.

        Raise DeniedError unless the policy allows this host and port, and all addresses of the host are public. The addresses of the
        machine that runs the proxy do not count as public.
        """
        if _NUMBER_LIKE.fullmatch(host) or not _NAME.fullmatch(host):
            raise DeniedError(f"the target must be a domain name, got {host.rpartition('@')[2]!r:.80}")
        if not any(_allows(domain, host, port) for domain in self._network.domains):
            raise DeniedError(f"the policy does not allow {host} with port {port}: add it to the domains in ACASessions:Sandbox:Network")
        async with asyncio.timeout(_CONNECT_SECONDS):
            addresses = await self._resolve(host, port)
        if not addresses or not all(_is_public(address) for address in addresses):
            raise PrivateAddressError(
                f"the domain {host} must lead to public addresses only, and at least one of its addresses is not public"
            )
        return addresses[0]


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
    return _Head(host, port, first + b"".join(kept) + b"\r\n", body)


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


def _allows(domain: str, host: str, port: int) -> bool:
    name, _, own_port = domain.partition(":")
    if port != int(own_port) if own_port else port not in _PORTS:
        return False
    return name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if any(found in network for network in _NEVER) or found.is_multicast or not found.is_global:
        return False
    if isinstance(found, ipaddress.IPv6Address) and (found.is_site_local or _embeds_ipv4(found)):
        return False
    return not _is_own_address(address, found.version)


def _embeds_ipv4(address: ipaddress.IPv6Address) -> bool:
    """Return whether an IPv6 address contains an IPv4 address. A router may send packets to the IPv4 address, which was not checked."""
    isatap = (int(address) >> 32) & 0xFDFF_FFFF == 0x5EFE  # RFC 5214, 6.1: the bit that is masked marks a global address
    return isatap or any((address.ipv4_mapped, address.sixtofour, address.teredo))


# `is_global` differs between releases of Python for these, or is true although no public service has such an address.
_NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            *("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96"),  # translated or tunnelled to IPv4
            *("192.88.99.0/24", "5f00::/16", "3fff::/20"),  # relays of 6to4; segment routing; documentation
            # Services that a cloud gives to its own machines at addresses that look public: they hand out settings and credentials.
            "168.63.129.16/32",  # Azure: wire server, DNS and health
            "192.0.0.0/24",  # Oracle: metadata at 192.0.0.192; the whole block is for protocols (RFC 6890)
            *("161.26.0.0/16", "166.8.0.0/14"),  # IBM: DNS, mirrors and service endpoints on the private network
            *("169.254.0.0/16", "100.64.0.0/10", "fc00::/7"),  # metadata of the others (Alibaba: 100.100.100.200, AWS: fd00:ec2::254)
        ),
    )
)


def _is_own_address(address: str, version: int) -> bool:
    """Return whether an address belongs to this host, whose services sessions must not reach. `version` is 4 for IPv4 or 6 for IPv6."""
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))  # works only with an address of this host
        except OSError:
            return False
    return True


async def _carry(head: _Head, here: Streams, there: Streams) -> None:
    """Send a request to its target, then copy data in both directions until the target has sent everything.

    For a CONNECT request, send only a reply to the session before copying. Stop early if one side cannot receive, or if no data moves for
    300 s.

    Args:
        head: The request.
        here: The streams from and to the session.
        there: The streams from and to the target.
    """
    if head.forwarded:
        there[1].write(head.forwarded)
    else:
        here[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    with contextlib.suppress(OSError, TimeoutError):  # one end was closed: close the other as well
        async with asyncio.timeout(_IDLE_SECONDS) as idle:
            sending = asyncio.ensure_future(_copy(here[0], there[1], head.body if head.forwarded else None, idle))
            try:
                await _copy(there[0], here[1], None, idle)
            finally:
                sending.cancel()
                there[1].transport.abort()  # before the wait, which may be cancelled
                await asyncio.wait((sending,))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, left: int | None, idle: asyncio.Timeout) -> None:
    """Copy at most `left` bytes from `source` to `target`. If `left` is None, copy everything, then signal the end of data to `target`.

    Restart the timeout `idle` whenever data moves.
    """
    while left is None or left > 0:
        data = await source.read(_CHUNK if left is None else min(_CHUNK, left))
        if not data:
            break
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
