"""Connections to inspected hosts, which speak HTTP/1.1. Each session has its own, which are reused for a short time.

This uses h11 directly: httpcore sends the whole body of a request before it reads the response, and drops responses that arrive early.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...errors import imports_of
from ...lifetime import Tasks
from ...network.rules import Rule
from .addresses import Dialer
from .messages import Headers
from .streams import Stream, TlsStream

with imports_of("network"):
    import h11

_CONNECT_SECONDS = 20.0  # for TLS, after the same time for TCP
_IDLE_SECONDS = 4.0  # less than the 5 s after which servers close unused connections, so that no request meets a closed one
_MOST_IDLE = 16
_EVENTS_AT_ONCE = 64  # chunks of a body, which may have a byte each: then others have their turn
_MAX_HEAD = 100 << 10


class UpstreamError(Exception):
    """Raised when a host cannot be reached, or breaks the protocol. The message gives the reason and is sent to the session."""

    def __init__(self, reason: str, status: int = 502) -> None:
        super().__init__(reason)
        self.status = status


class ClosedError(UpstreamError):
    """Raised when a host closed the connection before it sent anything for a request."""


@dataclass(frozen=True, slots=True)
class Target:
    """A host to connect to. Connections are reused only for equal targets."""

    host: str
    port: int
    is_tls: bool
    addresses: tuple[str, ...] = ()  # that its rules name

    @property
    def authority(self) -> str:
        """Return the value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


class Connection:
    """A connection to a host. It carries one request at a time."""

    def __init__(self, target: Target, stream: Stream) -> None:
        self.target = target
        self.is_reused = False
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._received = False
        self._events = 0

    @property
    def is_done(self) -> bool:
        """Return whether the request and the response are complete, and another request can follow."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE and not self._http.trailing_data[0]

    async def send_head(self, method: str, path: str, headers: Headers, *, has_body: bool) -> None:
        """Send the beginning of a request, or all of it if it has no body."""
        head = self._http.send(h11.Request(method=method, target=path, headers=headers)) or b""
        end = b"" if has_body else self._http.send(h11.EndOfMessage()) or b""
        with contextlib.suppress(OSError):  # the next read raises the reason
            await self._write(head + end)

    async def send_body(self, parts: AsyncIterator[bytes]) -> None:
        """Send the body of a request. Return early if the host closes the connection: its response may have arrived nevertheless.

        Raise h11.LocalProtocolError if the body has another length than its headers promised.
        """
        async for part in parts:
            data = self._http.send(h11.Data(data=part)) or b""
            try:
                await self._write(data)
            except OSError:
                return
        data = self._http.send(h11.EndOfMessage()) or b""
        with contextlib.suppress(OSError):
            await self._write(data)

    async def read_head(self) -> tuple[int, Headers]:
        """Return the status and the headers of the response. Raise ClosedError if the host closed the connection instead."""
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response) or (isinstance(event, h11.InformationalResponse) and event.status_code == 101):
                return event.status_code, list(event.headers)

    async def read_body(self) -> bytes:
        """Return a part of the response's body, or empty bytes at its end."""
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                return event.data
            if isinstance(event, h11.EndOfMessage):
                return b""

    async def read_raw(self) -> bytes:
        """Return data that the host sent after the status 101, or empty bytes at the end."""
        if early := self._http.trailing_data[0]:
            self._http = h11.Connection(h11.CLIENT)
            return early
        return await self._stream.read()

    async def write_raw(self, data: bytes) -> None:
        """Send bytes after the status 101. Empty bytes end the data."""
        if data:
            await self._stream.send(data)
        else:
            self._stream.write_eof()

    async def wait_closed(self) -> None:
        """Wait until the host closes the connection, or sends data that was not requested."""
        with contextlib.suppress(OSError):
            await self._stream.read()

    def prepare(self) -> None:
        """Prepare for another request."""
        self._http.start_next_cycle()
        self._received = False

    def abort(self) -> None:
        """Close the connection at once."""
        self._stream.abort()

    async def _write(self, data: bytes) -> None:
        if data:
            await self._stream.send(data)

    async def _next_event(self) -> "h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]":
        self._events += 1
        if self._events % _EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._stream.read()
                if not data and not self._received:
                    raise ClosedError(f"{self.target.host} closed the connection without a response")
                self._received = True
                self._http.receive_data(data)
        except h11.RemoteProtocolError:
            # Without the error, whose text quotes lines of the host: they may have a secret.
            raise UpstreamError(f"{self.target.host} did not send a complete response of HTTP/1.1") from None
        except OSError as error:
            if self._received:
                raise UpstreamError(f"{self.target.host} closed the connection in the middle of its response") from error
            raise ClosedError(f"{self.target.host} closed the connection without a response") from error
        return event


class Pool:
    """The connections of one session to inspected hosts."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._idle: dict[Connection, asyncio.Task[None]] = {}
        self._tasks = Tasks()
        self._closed = False

    async def open(self, target: Target, rules: Sequence[Rule], *, fresh: bool = False) -> Connection:
        """Return a connection to a host. Reuse one unless `fresh` is true. The caller must give it back or abort it."""
        while not fresh and (connection := next((one for one in reversed(self._idle) if one.target == target), None)) is not None:
            if await self._take(connection):
                return connection
        return await _connect(self._dialer, target, rules)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request, for a short time."""
        if self._closed or not connection.is_done:
            connection.abort()
            return
        connection.prepare()
        self._idle[connection] = waiting = self._tasks.start(connection.wait_closed())
        for oldest in [*self._idle][:-_MOST_IDLE]:
            self._idle.pop(oldest).cancel()
            oldest.abort()
        self._tasks.start(self._drop(connection, waiting))

    async def close(self) -> None:
        """Close the connections that are not in use, and those that are given back later."""
        self._closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        await self._tasks.cancel()

    async def _take(self, connection: Connection) -> bool:
        """Reuse a connection. Return False if the host has closed it, or has sent data that was not requested."""
        waiting = self._idle.pop(connection)
        waiting.cancel()
        try:
            await asyncio.wait({waiting})  # only one task may read
        finally:
            connection.is_reused = waiting.cancelled()
            if not connection.is_reused:
                connection.abort()
        return connection.is_reused

    async def _drop(self, connection: Connection, waiting: "asyncio.Task[None]") -> None:
        """Close a connection when the host closes it, or when it was not used for a time."""
        await asyncio.wait({waiting}, timeout=_IDLE_SECONDS)
        if self._idle.get(connection) is waiting:
            del self._idle[connection]
            waiting.cancel()
            connection.abort()


async def _connect(dialer: Dialer, target: Target, rules: Sequence[Rule]) -> Connection:
    try:
        reader, writer = await dialer.connect(target.host, target.port, rules)
    except TimeoutError as error:
        raise UpstreamError(f"{target.host} could not be connected in time: port {target.port} does not answer", 504) from error
    except OSError as error:
        raise UpstreamError(f"{target.host} port {target.port} cannot be connected: {error.strerror or 'unknown error'}") from error
    if not target.is_tls:
        return Connection(target, Stream(reader, writer))
    stream = TlsStream((reader, writer), client_context(), host=target.host)
    with contextlib.ExitStack() as stack:
        stack.callback(stream.abort)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await stream.handshake()
        except ssl.SSLCertVerificationError as error:
            raise UpstreamError(f"the certificate of {target.host} was not accepted: {error.verify_message}") from error
        except TimeoutError as error:
            raise UpstreamError(f"{target.host} did not complete the TLS handshake within {_CONNECT_SECONDS:.0f} s", 504) from error
        except OSError as error:  # also ssl.SSLError
            raise UpstreamError(f"{target.host} port {target.port} did not agree on TLS: {error.strerror or error}") from error
        stack.pop_all()
    return Connection(target, stream)


def client_context() -> ssl.SSLContext:
    """Return the context for TLS to hosts. It trusts the same authorities as this program, also those of SSL_CERT_FILE."""
    return _context_for(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(1)
def _context_for(*_: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
