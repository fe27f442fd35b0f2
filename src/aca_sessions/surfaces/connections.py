"""The connections of a server: a limited number, none of which keeps its place by being slow.

A client that reaches the port can open connections without a key. uvicorn limits the size of a head and the time between two requests. But
it waits forever for the first head, for a body, and for a client that does not read. So a few hundred silent connections take all
descriptors.
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
from ..hosting import KNOWS_KEY

_MOST = 4096
_SHARE = 4  # connections get a quarter of this process's descriptors: each session takes ten, each transfer one
_BEYOND = 32  # connections over the limit that get an answer (503), and as many that are being closed
_LOG_SECONDS = 60.0
_logger = logging.getLogger("aca_sessions")


@dataclass(frozen=True, slots=True)
class Pace:
    """Limits on how slow a client may be. The time until an answer begins has no limit: cells run for minutes.

    Args:
        head: Seconds for the head of a request, from the start of the connection or the end of the last answer.
        body: Seconds in which `body_bytes` of a body must come.
        body_bytes: The least that must come in that time.
        answer: Seconds in which a client must take something of an answer that waits for it. deploy/nginx.conf lets its clients pause for
            as long.
        unread_bytes: The most of all answers together that may wait in this process's memory for their clients.
    """

    head: float = 20.0
    body: float = 60.0
    body_bytes: int = 10_000
    answer: float = 600.0
    unread_bytes: int = 256 << 20


PACE = Pace()


def most_connections() -> int:
    """Return how many connections this process can have and still serve sessions."""
    import resource  # not on Windows, where commands that reach a server run too and import this module

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(8, min(_MOST, soft // _SHARE))


class Place:
    """One open connection. During a TLS handshake it has no protocol yet."""

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
        """Return whether its descriptor is still in use."""
        return self._socket.fileno() == self.number

    @property
    def phase(self) -> str:
        """Return what it waits for: see `Connection.phase`."""
        return self.protocol.phase if self.protocol is not None else "head"

    @property
    def knows_key(self) -> bool:
        """Return whether its latest request had the key."""
        return self.protocol is not None and self.protocol.knows_key

    @property
    def unread(self) -> int:
        """Return how many bytes of an answer neither the client nor the kernel has taken."""
        return _buffered(self.protocol.transport) if self.protocol is not None else 0

    def is_too_slow(self, now: float, pace: Pace) -> bool:
        """Return whether it has made too little progress for longer than the limits allow. Progress is measured from call to call."""
        phase, protocol = self.phase, self.protocol
        mark = (phase, protocol and protocol.cycle, self._waiting() if phase == "answer" else 0)
        received = protocol.received if protocol is not None else 0
        elapsed = now - self.since
        keeps_up = (received - self._received) * pace.body >= pace.body_bytes * elapsed
        if mark != self._mark or (phase == "body" and elapsed >= pace.body and keeps_up):
            self._mark, self.since, self._received = mark, now, received
            return False
        limits = {"head": pace.head, "body": pace.body, "answer": pace.answer}
        return phase in limits and elapsed >= limits[phase]

    def close(self) -> None:
        """Close it at once, whatever is still to be sent."""
        if self.protocol is not None:
            self.protocol.transport.abort()
            return
        with contextlib.suppress(OSError):  # the client has closed it already
            self._socket.shutdown(socket.SHUT_RDWR)  # asyncio reads the end of the stream and closes the socket

    def _waiting(self) -> int:
        """Return how many bytes of an answer the client has not taken, including those in the kernel.

        The kernel takes more from us only once a third of its buffer is free, which may be megabytes: a slow reader would look idle.
        """
        import fcntl
        import termios

        # The bytes in the socket's send queue (SIOCOUTQ, tcp(7)).
        left = fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0\0\0\0")
        return self.unread + int(struct.unpack("i", left)[0])


class Connections(ServerState):
    """All connections of a server. If the limit is reached, one that waits for its client is closed."""

    def __init__(self, pace: Pace, most: int) -> None:
        super().__init__()
        self.most = most
        self._pace = pace
        self._places: dict[int, Place] = {}
        self._closing: list[Place] = []
        self._logged = -_LOG_SECONDS

    @property
    def can_take(self) -> bool:
        """Return whether another connection can be accepted in this turn of the event loop.

        Closed connections free their descriptors in the next turn.
        """
        self._closing = [place for place in self._closing if place.is_open]
        return len(self._closing) < _BEYOND

    def take(self, accepted: socket.socket, address: object) -> bool:
        """Give a new connection a place, if need be that of another one. Return False if all others are at work."""
        if len(self._places) >= self.most:
            self._places = {number: place for number, place in self._places.items() if place.is_open}
        if len(self._places) >= self.most and not self.close_one() and len(self._places) >= self.most + _BEYOND:
            return False
        self._places[accepted.fileno()] = Place(accepted, address)
        return True

    def place_of(self, transport: Transport) -> Place | None:
        """Return the place of an accepted connection."""
        return self._places.get(transport.get_extra_info("socket").fileno())

    def close_one(self) -> bool:
        """Close the least important connection among those that do no work for a caller. Return False if there is none.

        Unauthenticated clients count as idle while they take an answer: they could send a request and never read.
        """
        waiting = [place for place in self._places.values() if place.phase == "head" or (place.phase == "answer" and not place.knows_key)]
        if not self._close_least_missed(waiting, lambda _place: 1):
            return False
        if time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            _logger.warning("more than %d connections are open: those that wait longest for a request are closed", self.most)
        return True

    def close_unread(self) -> None:
        """Close connections until the unread answers are within the limit. A single unread answer may exceed it."""
        waiting = [place for place in self._places.values() if place.unread]
        while len(waiting) > 1 and sum(place.unread for place in waiting) > self._pace.unread_bytes:
            self._close_least_missed(waiting, lambda place: place.unread)
            waiting = [place for place in waiting if place.unread]

    def close_slow(self) -> None:
        """Close every connection that is slower than the limits allow."""
        now = time.monotonic()
        for number, place in [*self._places.items()]:
            if not place.is_open:
                del self._places[number]
            elif place.is_too_slow(now, self._pace):
                self._close(place)

    def _close_least_missed(self, waiting: list[Place], weight: Callable[[Place], int]) -> bool:
        """Close an open connection: first one without the key, then one of the address with the largest share, then the oldest.

        Return False if none is open.

        Args:
            waiting: The connections to choose from.
            weight: Returns how much a connection adds to the share of its address.
        """
        open_ones = [place for place in waiting if place.is_open]
        shares = Counter[str]()
        for place in open_ones:
            shares[place.address] += weight(place)
        if not open_ones:
            return False
        self._close(min(open_ones, key=lambda place: (place.knows_key, -shares[place.address], place.since)))
        return True

    def _close(self, place: Place) -> None:
        del self._places[place.number]
        self._closing.append(place)
        place.close()


class Listener(socket.socket):
    """A listening socket that accepts a connection only if there is a place for it."""

    connections: Connections | None = None

    def accept(self) -> "tuple[socket.socket, Any]":
        """Accept a connection. asyncio calls this; after a BlockingIOError it calls again in the next turn of its loop."""
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
    """HTTP on one connection, with what its place needs to know."""

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], _loop: AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.received = 0
        self._answer, self.app = self.app, self._answer_or_break_off

    @property
    def phase(self) -> str:
        """Return what it waits for: a head, a body, the client to take an answer, or the application."""
        if _buffered(self.transport):
            return "answer"
        if self.cycle is None or self.cycle.response_complete:
            return "head"
        is_sending = self.cycle.more_body and not self.flow.read_paused and not self.cycle.waiting_for_100_continue
        return "body" if is_sending else "application"

    @property
    def knows_key(self) -> bool:
        """Return whether its latest request had the key."""
        return self.scope is not None and KNOWS_KEY in self.scope.get("state", {})

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Connect this protocol to the connection's place."""
        super().connection_made(transport)
        place = self.server_state.place_of(transport) if isinstance(self.server_state, Connections) else None
        if place is not None:
            place.protocol = self

    def data_received(self, data: bytes) -> None:
        """Count the bytes that arrive."""
        self.received += len(data)
        super().data_received(data)

    async def _answer_or_break_off(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer a request, and close the connection if the answer cannot be completed. The client then sees that the rest is missing."""
        try:
            await self._answer(scope, receive, partial(self._send_within_limit, send))
        except ServiceError as error:
            _logger.info("an answer was broken off: %s", error)
            self.cycle.disconnected = True
            self.transport.close()

    async def _send_within_limit(self, send: ASGISendCallable, event: ASGISendEvent) -> None:
        """Send a part of an answer. If it stays in this process's memory, make room for it."""
        await send(event)
        if _buffered(self.transport) and isinstance(self.server_state, Connections):
            self.server_state.close_unread()


def _buffered(transport: Transport) -> int:
    """Return how many bytes wait in this process until the kernel takes them."""
    # Under TLS asyncio has a second transport below this one. It gets an answer as soon as that is encrypted, and has no public name.
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return sum(layer.get_write_buffer_size() for layer in (transport, below) if layer is not None)


def _network(address: object) -> str:
    """Return the network of one client: an IPv4 address, or the /64 of an IPv6 address. All clients of a socket file are one."""
    match address:
        case (str(host), *_) if ":" in host:
            six = ipaddress.IPv6Address(host.partition("%")[0])
            # A provider usually gives each customer a whole /64, so its addresses count as one client.
            return str(six.ipv4_mapped or ipaddress.IPv6Network((int(six), 64), strict=False))
        case (str(host), *_):
            return host
    return ""
