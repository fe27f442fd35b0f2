"""HTTP/2 with a session: read its requests to an inspected host, and write the responses.

Trailers are dropped in both directions. Nothing is pushed, and no request can become a WebSocket (RFC 8441 is not offered).
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from ...errors import imports_of
from ...lifetime import Tasks
from .messages import Headers, Request, Response, without_connection
from .session_network import MalformedError
from .streams import Stream

with imports_of("network"):
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.errors import ErrorCodes
    from h2.events import DataReceived, Event, RemoteSettingsChanged, RequestReceived, StreamEnded, StreamReset, WindowUpdated
    from h2.exceptions import ProtocolError
    from h2.settings import SettingCodes, Settings

if TYPE_CHECKING:
    from .forwarding import Inspection

_PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_FRAME_HEAD = 9
_HEADERS, _DATA, _GOAWAY = 0x1, 0x0, 0x7  # types of frames
_MAX_FRAME = 1 << 16
_MAX_STREAMS = 64  # as many as the connections to hosts that a session has by default
_MAX_HEADER_LIST = 64 << 10
_STREAM_WINDOW, _CONNECTION_WINDOW = 512 << 10, 1 << 20  # memory for request bodies that are not forwarded yet
_MAX_UNSENT = 512 << 10  # with more, no frame is read: each may need a reply
_SMALL = 4 << 10  # bytes of a body; fewer wait for what is written right after them
_FRAMES_AT_ONCE = 64  # then other tasks get a turn
_IDLE_SECONDS = 300.0
# A client's allowance of frames besides requests and bodies: so many at once, then so many a second, and more as it receives bodies.
# Without it, a few bytes (a ping, a request that is reset at once, headers that HPACK unpacks to 64 KB) could keep the host busy.
_MAX_ALLOWANCE, _ALLOWANCE_A_SECOND, _ALLOWANCE_A_RESPONSE, _BYTES_FOR_ALLOWANCE = 2000.0, 200.0, 4, 2048
_COST_OF_RESET, _HEADER_BYTES_FOR_COST = 10, 4096
_METHOD = re.compile(rb"[A-Z][A-Z-]{0,19}")
_PATH = re.compile(rb"/[\x21\x22\x24-\x7e]{0,8191}")  # without '#': for some servers, it ends the path
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]{1,256}")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_LENGTH = re.compile(rb"[0-9]{1,16}")
_PSEUDO = (b":method", b":scheme", b":authority", b":path")
_OF_CONNECTION = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings"))
_FRAMING = (b"host", b"connection", b"content-length", b"transfer-encoding")
_logger = logging.getLogger("aca_sessions")


class _FloodError(Exception):
    """Raised when a client sends more than its allowance of frames that carry no request and no body."""


async def serve(stream: Stream, inspection: "Inspection") -> None:
    """Answer the requests of one connection until the session closes it, breaks the protocol, or is idle for 300 s."""
    connection = _Connection(stream, inspection)
    try:
        await connection.read()
    except (ProtocolError, _FloodError) as error:
        connection.refuse(MalformedError(f"the connection of HTTP/2 was closed: {error}"))
    except (OSError, TimeoutError, asyncio.IncompleteReadError):  # closed by the session, or idle
        pass
    finally:
        await connection.close()


class _Exchange:
    """A request and its response, on a stream of HTTP/2."""

    def __init__(self, id: int, acknowledge: Callable[[int], None]) -> None:
        self.id = id
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()  # set when the client's window has grown
        self.length: int | None = None
        self.has_ended = False
        self._acknowledge = acknowledge
        self._arrived = asyncio.Event()
        self._data = bytearray()  # at most the window
        self._unacknowledged = 0  # with the padding
        self._received = 0

    def receive(self, data: bytes, flow_controlled_size: int) -> None:
        """Add data to the body. Raise ProtocolError if it is longer than its Content-Length."""
        self._received += len(data)
        if self.length is not None and self._received > self.length:
            raise ProtocolError("the body is longer than its content-length")
        self._data += data
        self._unacknowledged += flow_controlled_size
        self._arrived.set()

    def end(self) -> None:
        """End the body. Raise ProtocolError if it is shorter than its Content-Length."""
        # h2 does not check this if the headers or the trailers end the request.
        if self.length is not None and self._received != self.length:
            raise ProtocolError("the body is shorter than its content-length")
        self.has_ended = True
        self._arrived.set()

    def cancel(self) -> None:
        """Abort the request."""
        if self.task is not None:
            self.task.cancel()

    def drop(self) -> None:
        """Drop the data that arrived, so that it does not reduce the connection's window."""
        size, self._unacknowledged = self._unacknowledged, 0
        self._data.clear()
        if size:
            self._acknowledge(size)

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. The client may send more only after data is read from this iterator."""
        while True:
            while not self._data and not self.has_ended:
                self._arrived.clear()
                await self._arrived.wait()
            data = bytes(self._data)
            self.drop()
            if data:
                yield data
            elif self.has_ended:
                return


class _Connection:
    """An HTTP/2 connection of a session."""

    def __init__(self, stream: Stream, inspection: "Inspection") -> None:
        self._stream, self._inspection = stream, inspection
        self._buffer = bytearray()  # received, and not handled yet
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        # Instead of `update_settings`, whose values are in force only after the client has acknowledged them.
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADER_LIST,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: _MAX_FRAME,
            },
        )
        self._h2.max_inbound_frame_size = _MAX_FRAME
        self._h2.decoder.max_header_list_size = _MAX_HEADER_LIST
        self._exchanges: dict[int, _Exchange] = {}
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self._allowance, self._charged = _MAX_ALLOWANCE, self._loop.time()
        self._idle: asyncio.Timeout | None = None
        self._moved = 0.0
        self._error = ErrorCodes.NO_ERROR

    async def read(self) -> None:
        """Read frames and start to answer requests. Raise ProtocolError, _FloodError, OSError, TimeoutError or IncompleteReadError."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW - self._h2.inbound_flow_control_window)
        self._flush()
        async with asyncio.timeout(_IDLE_SECONDS) as self._idle:
            self._receive(await self._take(_PREFACE))
            while True:
                for _ in range(_FRAMES_AT_ONCE):
                    await self._read_frame()
                await asyncio.sleep(0)

    def refuse(self, error: MalformedError) -> Response:
        """Record that the client broke the protocol, and return the response to a request."""
        _logger.info("network: refused, %.200s", error)
        return self._inspection.refuse(error, None)

    async def close(self) -> None:
        """End all requests, and write GOAWAY. The caller closes the connection."""
        await self._tasks.cancel()
        self._h2.close_connection(self._error)
        with contextlib.suppress(OSError):
            self._flush()

    async def _read_frame(self) -> None:
        # One by one, since h2 handles all that it gets before it returns: a few kilobytes can keep it busy for seconds.
        size = int.from_bytes(await self._take(3, remove=False), "big")
        if size > _MAX_FRAME:
            self._error = ErrorCodes.FRAME_SIZE_ERROR
            raise ProtocolError(f"a frame has {size} bytes, more than {_MAX_FRAME}")
        frame = await self._take(_FRAME_HEAD + size)
        events = [] if frame[3] == _GOAWAY else self._receive(frame)  # h2 would close the connection at once, without ending the requests
        self._charge(frame[3], events)
        for event in events:
            self._handle(event)
        self._flush()
        self._note_traffic()
        if self._stream.transport.get_write_buffer_size() > _MAX_UNSENT:
            await self._stream.drain()

    async def _take(self, size: int, *, remove: bool = True) -> bytearray:
        """Return the next bytes of the connection. Raise IncompleteReadError at its end."""
        while len(self._buffer) < size:
            received = await self._stream.read()
            if not received:
                raise asyncio.IncompleteReadError(bytes(self._buffer), size)
            self._buffer += received
        data = self._buffer[:size]
        if remove:
            del self._buffer[:size]
        return data

    def _receive(self, data: bytearray) -> list[Event]:
        try:
            return self._h2.receive_data(data)
        except ProtocolError as error:
            self._error = error.error_code
            raise

    def _charge(self, kind: int, events: list[Event]) -> None:
        """Subtract the cost of a frame from the client's allowance. Raise _FloodError if nothing is left."""
        cost = 0
        match events:
            case [RequestReceived(headers=headers), *_]:
                cost = sum(len(name) + len(value) + 32 for name, value in headers or ()) // _HEADER_BYTES_FOR_COST
            case [DataReceived(data=data), *rest] if data or rest:  # the rest is the end of the request
                pass
            case [StreamReset(), *_]:
                cost = _COST_OF_RESET
            case _:
                cost = 1
        if not cost:
            return
        now = self._loop.time()
        self._allowance = min(_MAX_ALLOWANCE, self._allowance + (now - self._charged) * _ALLOWANCE_A_SECOND) - cost
        self._charged = now
        if self._allowance < 0:
            self._error = ErrorCodes.ENHANCE_YOUR_CALM
            raise _FloodError(f"too many frames without a request or a body, the last of type {kind}")

    def _handle(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._open(event)
            case DataReceived(stream_id=int(id), data=data, flow_controlled_length=size):
                if (exchange := self._exchanges.get(id)) is None:  # it was refused, or answered before its end
                    self._acknowledge(id, size or 0)
                else:
                    self._go_on(exchange, partial(exchange.receive, data or b"", size or 0))
            case StreamEnded(stream_id=int(id)) if exchange := self._exchanges.get(id):
                self._go_on(exchange, exchange.end)
            case StreamReset(stream_id=int(id)) if exchange := self._exchanges.get(id):
                exchange.cancel()
            case WindowUpdated() | RemoteSettingsChanged():
                for exchange in self._exchanges.values():
                    exchange.writable.set()

    def _open(self, event: RequestReceived) -> None:
        """Start to answer a request."""
        id, headers = event.stream_id or 0, event.headers or []
        if len(self._exchanges) >= _MAX_STREAMS:  # requests that were reset count until they have ended
            self._h2.reset_stream(id, ErrorCodes.REFUSED_STREAM)
            return
        exchange = self._exchanges[id] = _Exchange(id, lambda size: self._acknowledge(id, size))
        answer: AbstractAsyncContextManager[Response]
        try:
            request = _request_of(headers, self._inspection, exchange.body() if event.stream_ended is None else None)
            exchange.length = request.length
            answer = self._inspection.handle(request)
        except MalformedError as error:
            request = Request("GET", "/", [])
            answer = nullcontext(self.refuse(error))
        exchange.task = self._tasks.start(self._answer(exchange, request, answer))
        exchange.task.add_done_callback(lambda _: self._forget(exchange))

    def _go_on(self, exchange: _Exchange, act: Callable[[], None]) -> None:
        """Receive a part of a body. If it contradicts the headers, reset the stream."""
        try:
            act()
        except ProtocolError as error:
            self.refuse(MalformedError(str(error)))
            self._reset(exchange, ErrorCodes.PROTOCOL_ERROR)
            exchange.cancel()

    def _forget(self, exchange: _Exchange) -> None:
        self._exchanges.pop(exchange.id, None)
        exchange.drop()
        self._flush()

    async def _answer(self, exchange: _Exchange, request: Request, answer: AbstractAsyncContextManager[Response]) -> None:
        try:
            async with answer as response:
                await self._respond(exchange, request, response)
            if not exchange.has_ended:  # RFC 9113, 8.1: the client need not send the rest
                self._reset(exchange, ErrorCodes.NO_ERROR)
        except OSError:  # the session closed the connection
            self._stream.abort()
        except Exception as error:  # the host failed in the middle, or a limit is used up
            _logger.debug("network: a response of %s was not completed (%s)", self._inspection.host, type(error).__name__)
            self._reset(exchange, ErrorCodes.INTERNAL_ERROR)

    async def _respond(self, exchange: _Exchange, request: Request, response: Response) -> None:
        is_empty = request.method == "HEAD" or response.status in (204, 304)
        self._h2.send_headers(exchange.id, [(b":status", b"%d" % response.status), *response.headers], end_stream=is_empty)
        self._flush(soon=True)
        async for data in response.body:
            if not is_empty:
                await self._send(exchange, data)
        if not is_empty:
            self._h2.end_stream(exchange.id)
        self._allowance += _ALLOWANCE_A_RESPONSE
        self._flush(soon=True)

    async def _send(self, exchange: _Exchange, data: bytes) -> None:
        """Send a part of a response's body, as fast as the client's windows allow."""
        left = memoryview(data)
        while left:
            await self._stream.drain()
            size = min(len(left), _MAX_FRAME, self._h2.local_flow_control_window(exchange.id))
            if size <= 0:
                exchange.writable.clear()
                await exchange.writable.wait()
                continue
            for start in range(0, size, self._h2.max_outbound_frame_size):
                self._h2.send_data(exchange.id, left[start : min(size, start + self._h2.max_outbound_frame_size)])
            left = left[size:]
            self._allowance += size / _BYTES_FOR_ALLOWANCE
            self._flush(soon=size < _SMALL)
            self._note_traffic()

    def _reset(self, exchange: _Exchange, code: ErrorCodes) -> None:
        with contextlib.suppress(ProtocolError):  # it is closed already
            self._h2.reset_stream(exchange.id, code)

    def _acknowledge(self, id: int, size: int) -> None:
        with contextlib.suppress(ProtocolError):  # the connection is closed already
            self._h2.acknowledge_received_data(size, id)
            self._flush()

    def _flush(self, *, soon: bool = False) -> None:
        """Write the data that h2 has to send: now, or together with the next write."""
        if (data := self._h2.data_to_send()) and not self._stream.is_closing():
            (self._stream.write_soon if soon else self._stream.write)(data)

    def _note_traffic(self) -> None:
        """Restart the idle time."""
        now = self._loop.time()
        if now - self._moved > 1 and self._idle is not None and not self._idle.expired():
            self._moved = now
            self._idle.reschedule(now + _IDLE_SECONDS)


def _request_of(headers: Headers, inspection: "Inspection", body: AsyncIterator[bytes] | None) -> Request:
    """Return a request that may be forwarded. Raise MalformedError if servers could read it in different ways.

    h2 checks some of this before, and then closes the connection.
    """
    values = dict(headers)
    if [name for name, _ in headers if name.startswith(b":")] != [name for name in values if name in _PSEUDO] or len(values) < len(_PSEUDO):
        raise MalformedError("a request must have :method, :scheme, :authority and :path once each, and no other pseudo-header")
    method, path = values[b":method"], values[b":path"]
    if not _METHOD.fullmatch(method) or method == b"CONNECT":
        raise MalformedError(f"the method must be one such as GET, other than CONNECT, got {_shown(method)}")
    if values[b":scheme"] != (b"https" if inspection.is_tls else b"http"):
        raise MalformedError(f"the :scheme must be that of the connection, got {_shown(values[b':scheme'])}")
    if not _PATH.fullmatch(path):
        raise MalformedError("the :path must begin with '/' and have at most 8192 printable characters, without '#'")
    kept = []
    length: int | None = None
    for name, value in headers:
        if name in (b":authority", b"host") and not _is_authority(value, inspection):
            raise MalformedError(f"the host of a request must be {inspection.authority}, as in CONNECT, got {_shown(value)}")
        if name in _PSEUDO:
            continue
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise MalformedError("headers must have lower-case names, and values of printable characters without spaces around them")
        if name in _OF_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
            raise MalformedError(f"the header {_shown(name)} is not allowed in HTTP/2: remove it")
        if b"_" in name and name.replace(b"_", b"-") in _FRAMING:  # some servers read '_' as '-'
            raise MalformedError(f"the header {_shown(name)} must not have '_' in its name, which some servers read as '-'")
        if name == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise MalformedError("expected one content-length of 1 to 16 digits: send the size of the body in bytes once")
            length = int(value)
        elif name != b"host":
            kept.append((bytes(name), bytes(value)))
    if length and body is None:
        raise MalformedError(f"the content-length is {length}, but the request has no body")
    return Request(method.decode(), path.decode(), without_connection(kept), body, length)


def _is_authority(value: bytes, inspection: "Inspection") -> bool:
    host = f"[{inspection.host}]" if ":" in inspection.host else inspection.host
    return value.lower().decode("latin-1") in (inspection.authority, f"{host}:{inspection.port}")


def _shown(value: bytes) -> str:
    return f"{value.decode('ascii', 'replace')!r:.80}"
