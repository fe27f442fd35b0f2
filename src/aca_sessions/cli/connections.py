"""Limits for the connections of a server: how many there may be, and how slow a client may be before its connection is closed.

A client that reaches the port can open connections without a key. uvicorn limits the size of a request's head and the time between two
requests. But it waits forever for the first head, for a body, and for a client that does not read. So without the limits of this module, a
few hundred silent connections could take all file descriptors.
"""

import contextlib
import errno
import ipaddress
import logging
import socket
import struct
import time
from asyncio import AbstractEventLoop, Transport
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ..errors import ServiceError
from ..hosting import ACCEPTED_KEY

_MOST = 4096
_SHARE = 4  # connections get a quarter of this process's descriptors: each session takes ten, each transfer one
_BEYOND = 32  # connections over the limit that get a response (503), and as many that are being closed
_LOG_SECONDS = 60.0
UNIX = "unix"  # in place of the address of a client on a socket file
_logger = logging.getLogger("aca_sessions")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on how slow a client may be. The time until a response begins has no limit, because cells may run for minutes.

    Args:
        head: Seconds in which the head of a request must arrive, counted from the opening of the connection or the end of the last
            response.
        body: Seconds in which at least `body_bytes` of a request's body must arrive.
        body_bytes: How many bytes must arrive in `body` seconds.
        response: For how many seconds a client may read nothing of a response that is ready. deploy/nginx.conf has the same limit.
        unread_bytes: How many bytes of responses, of all connections together, may wait in this process's memory.
    """

    head: float = 20.0
    body: float = 60.0
    body_bytes: int = 10_000
    response: float = 600.0
    unread_bytes: int = 256 << 20


CONNECTION_LIMITS = ConnectionLimits()


def most_connections() -> int:
    """Return how many client connections a server may have: a quarter of its file descriptors, but at least 8 and at most 4096.

    Sessions need the other descriptors.
    """
    import resource  # not on Windows, where commands that reach a server run too and import this module

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(8, min(_MOST, soft // _SHARE))


class ConnectionSlot:
    """A place for one connection among the limited number of open ones. `protocol` is None during a TLS handshake."""

    def __init__(self, accepted: socket.socket, address: object) -> None:
        self.address = _network(address)
        self.since = time.monotonic()
        self.protocol: Connection | None = None
        self._socket = accepted
        self.number = accepted.fileno()
        self._mark: tuple[object, ...] = ()
        self._received = 0

    @property
    def is_open(self) -> bool:
        """Return whether the connection's file descriptor is still open."""
        return self._socket.fileno() == self.number

    @property
    def phase(self) -> str:
        """Return what the server waits for on this connection: "head", "body", "response" or "application", as in `Connection.phase`.

        During a TLS handshake, before the first request, return "head".
        """
        return self.protocol.phase if self.protocol is not None else "head"

    @property
    def knows_key(self) -> bool:
        """Return whether the connection's latest request contained the API key."""
        return self.protocol is not None and self.protocol.knows_key

    @property
    def unread(self) -> int:
        """Return how many bytes of responses wait in this process's memory, because the kernel's buffer is full until the client reads."""
        return _buffered(self.protocol.transport) if self.protocol is not None else 0

    def is_too_slow(self, now: float, limits: ConnectionLimits) -> bool:
        """Return whether the client has sent or read too little for longer than `limits` allow. `now` is a time of `time.monotonic`.

        Each call records how far the client has come, and compares this with the earlier calls. So call this regularly.
        """
        phase, protocol = self.phase, self.protocol
        mark = (phase, protocol and protocol.cycle, self._waiting() if phase == "response" else 0)
        received = protocol.received if protocol is not None else 0
        elapsed = now - self.since
        keeps_up = (received - self._received) * limits.body >= limits.body_bytes * elapsed
        if mark != self._mark or (phase == "body" and elapsed >= limits.body and keeps_up):
            self._mark, self.since, self._received = mark, now, received
            return False
        seconds = {"head": limits.head, "body": limits.body, "response": limits.response}
        return phase in seconds and elapsed >= seconds[phase]

    def close(self) -> None:
        """Close the connection at once, and drop the parts of a response that are not yet sent."""
        if self.protocol is not None:
            self.protocol.transport.abort()
            return
        with contextlib.suppress(OSError):  # the client has closed it already
            self._socket.shutdown(socket.SHUT_RDWR)  # asyncio reads the end of the stream and closes the socket

    def _waiting(self) -> int:
        """Return how many bytes of a response the client has not received, including those in the kernel's buffer.

        The kernel's buffer may hold megabytes, and accepts more data only once a third of it is empty. Without counting its bytes, a client
        that reads slowly would look until then like one that reads nothing.
        """
        import fcntl
        import termios

        # The bytes in the socket's send queue (SIOCOUTQ, tcp(7)).
        left = fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0\0\0\0")
        return self.unread + int(struct.unpack("i", left)[0])


class Connections(ServerState):
    """All connections of a server, up to a limit.

    At the limit, a new connection is accepted and another one is closed, on which the server waits for its client.
    """

    def __init__(self, limits: ConnectionLimits, most: int) -> None:
        super().__init__()
        self.most = most
        self._limits = limits
        self._slots: dict[int, ConnectionSlot] = {}
        self._closing: list[ConnectionSlot] = []
        self._logged = -_LOG_SECONDS

    @property
    def can_take(self) -> bool:
        """Return whether another connection can be accepted now.

        Return False while 32 closed connections still have their file descriptors. asyncio closes these in the next turn of its event loop.
        """
        self._closing = [slot for slot in self._closing if slot.is_open]
        return len(self._closing) < _BEYOND

    def take(self, accepted: socket.socket, address: object) -> bool:
        """Add a new connection and return True. At the limit, close another one to make room.

        If no other can be closed, accept up to 32 connections beyond the limit, which get the response 503. Return False if there are that
        many already: the caller must close the new connection.
        """
        if len(self._slots) >= self.most:
            self._slots = {number: slot for number, slot in self._slots.items() if slot.is_open}
        if len(self._slots) >= self.most and not self.close_one() and len(self._slots) >= self.most + _BEYOND:
            return False
        self._slots[accepted.fileno()] = ConnectionSlot(accepted, address)
        return True

    def slot_of(self, transport: Transport) -> ConnectionSlot | None:
        """Return the slot that `take` created for a connection, or None if the connection has none."""
        return self._slots.get(transport.get_extra_info("socket").fileno())

    def close_one(self) -> bool:
        """Close one connection that can be spared, chosen by `_close_least_important`. Return False if there is none.

        It is one on which the server waits for a request, or one whose client has not sent the key and has not yet read its whole response.
        Without the second kind, clients without a key could occupy all connections for minutes by not reading.
        """
        waiting = [slot for slot in self._slots.values() if slot.phase == "head" or (slot.phase == "response" and not slot.knows_key)]
        if not self._close_least_important(waiting, lambda _slot: 1):
            return False
        if time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            _logger.warning(
                "more than %d connections are open: closing those that have waited longest for a request. Raise `ulimit -n` to allow more",
                self.most,
            )
        return True

    def close_unread(self) -> None:
        """Close connections while more than one has unread responses, and these responses together exceed the limit on memory."""
        waiting = [slot for slot in self._slots.values() if slot.unread]
        while len(waiting) > 1 and sum(slot.unread for slot in waiting) > self._limits.unread_bytes:
            self._close_least_important(waiting, lambda slot: slot.unread)
            waiting = [slot for slot in waiting if slot.unread]

    def close_slow(self) -> None:
        """Close every connection whose client is slower than the limits allow."""
        now = time.monotonic()
        for number, slot in [*self._slots.items()]:
            if not slot.is_open:
                del self._slots[number]
            elif slot.is_too_slow(now, self._limits):
                self._close(slot)

    def _close_least_important(self, waiting: list[ConnectionSlot], weight: Callable[[ConnectionSlot], int]) -> bool:
        """Close one open connection of `waiting`. Return False if none of them is open.

        Choose among clients without the key, if there are any. Of these, choose from the address whose connections have the largest
        `weight` together. Of its connections, choose the one that has waited longest.
        """
        open_ones = [slot for slot in waiting if slot.is_open]
        shares = Counter[str]()
        for slot in open_ones:
            shares[slot.address] += weight(slot)
        if not open_ones:
            return False
        self._close(min(open_ones, key=lambda slot: (slot.knows_key, -shares[slot.address], slot.since)))
        return True

    def _close(self, slot: ConnectionSlot) -> None:
        del self._slots[slot.number]
        self._closing.append(slot)
        slot.close()


class Listener(socket.socket):
    """A listening socket that asks `connections` about each connection. At the limit, `connections` closes another one to make room.

    Without `connections`, it is an ordinary socket.
    """

    connections: Connections | None = None

    def accept(self) -> "tuple[socket.socket, Any]":
        """Accept a connection, and return its socket and the client's address.

        Raise BlockingIOError if none can be accepted now, so that asyncio tries again in its loop's next turn. If there are too many
        connections, close the new one and raise ConnectionAbortedError.
        """
        connections = self.connections
        if connections is None:
            return super().accept()
        if not connections.can_take:
            raise BlockingIOError
        try:
            accepted, address = super().accept()
        except OSError as error:
            # No descriptor is left (accept(2)): asyncio would stop listening for a second, so one is freed instead.
            if error.errno in (errno.EMFILE, errno.ENFILE) and connections.close_one():
                raise BlockingIOError from error
            raise
        if not connections.take(accepted, address):
            accepted.close()
            raise ConnectionAbortedError
        return accepted, address


class Connection(H11Protocol):
    """uvicorn's HTTP protocol for one connection. It also reports what the server waits for, and whether the client has the API key."""

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], _loop: AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.received = 0
        self._respond, self.app = self.app, self._respond_or_break_off

    @property
    def phase(self) -> str:
        """Return what the server waits for on this connection, in one word.

        "head" or "body" is a part of a request that the client has to send. "response" is a response that the client has to read.
        "application" means that the application processes a request.
        """
        if _buffered(self.transport):
            return "response"
        if self.cycle is None or self.cycle.response_complete:
            return "head"
        is_sending = self.cycle.more_body and not self.flow.read_paused and not self.cycle.waiting_for_100_continue
        return "body" if is_sending else "application"

    @property
    def knows_key(self) -> bool:
        """Return whether the connection's latest request contained the API key."""
        return self.scope is not None and ACCEPTED_KEY in self.scope.get("state", {})

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Prepare a new connection as uvicorn does, and store this protocol in the connection's slot."""
        super().connection_made(transport)
        if self.client is None:
            self.client = UNIX, 0
        slot = self.server_state.slot_of(transport) if isinstance(self.server_state, Connections) else None
        if slot is not None:
            slot.protocol = self

    def data_received(self, data: bytes) -> None:
        """Count the bytes that arrive from the client, then process them as uvicorn does."""
        self.received += len(data)
        super().data_received(data)

    async def _respond_or_break_off(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Respond to a request. If the response fails after it has begun, close the connection, so that the client notices."""
        try:
            await self._respond(scope, receive, partial(self._send_within_limit, send))
        except ServiceError as error:
            _logger.info("a response was broken off: %s", error)
            self.cycle.disconnected = True
            self.transport.close()

    async def _send_within_limit(self, send: ASGISendCallable, event: ASGISendEvent) -> None:
        """Send a part of a response.

        If the client does not read it at once, a part must wait in memory. Then close connections if all such parts together exceed the
        limit.
        """
        await send(event)
        if _buffered(self.transport) and isinstance(self.server_state, Connections):
            self.server_state.close_unread()


def _buffered(transport: Transport) -> int:
    # Under TLS asyncio has a second transport below this one. It gets a response as soon as that is encrypted, and has no public name.
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return sum(layer.get_write_buffer_size() for layer in (transport, below) if layer is not None)


def _network(address: object) -> str:
    """Return what counts as one client when connections are compared: an IPv4 address, or the first 64 bits of an IPv6 address.

    Return "" for a client on a socket file.
    """
    match address:
        case (str(host), *_) if ":" in host:
            six = ipaddress.IPv6Address(host.partition("%")[0])
            # A provider usually gives each customer a whole /64, so its addresses count as one client.
            return str(six.ipv4_mapped or ipaddress.IPv6Network((int(six), 64), strict=False))
        case (str(host), *_):
            return host
    return ""
