"""HTTP/1.1 with a session: read its requests to an inspected host, and write the responses."""

import asyncio
import contextlib
import http
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from ...errors import imports_of
from ...network.rules import split_host
from .forwarding import Inspection
from .heads import Head, parse
from .messages import BrokenResponseError, Request, Response, without_connection
from .session_network import MalformedError
from .streams import Stream

with imports_of("network"):
    import h11

_END = b"\r\n\r\n"
_MAX_HEAD = 64 << 10
_SMALL = 4 << 10  # bytes; fewer wait for what is written right after them
_EVENTS_AT_ONCE = 64  # chunks of a body, which may have a byte each: then others have their turn
_HEAD_SECONDS, _IDLE_SECONDS, _LINGER_SECONDS = 10.0, 300.0, 5.0
_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
_DROPPED = frozenset((b"host", b"content-length", b"expect"))
_logger = logging.getLogger("aca_sessions")


async def serve(stream: Stream, inspection: Inspection) -> None:
    """Answer the requests of one connection until the session closes it, breaks the protocol, or is idle for 300 s.

    The caller closes the connection.
    """
    try:
        while await _Conversation(stream, inspection).answer():
            pass
        await _finish(stream)
    except (BrokenResponseError, OSError, h11.ProtocolError) as error:  # the session or the host closed its connection in the middle
        _logger.debug("network: a request to %s was not completed (%s)", inspection.host, type(error).__name__)
        stream.abort()


class _Conversation:
    """One request of a connection, and its response."""

    def __init__(self, stream: Stream, inspection: Inspection) -> None:
        self._stream = stream
        self._inspection = inspection
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)

    async def answer(self) -> bool:
        """Read a request and answer it. Return whether another one may follow."""
        method = None
        try:
            if not (raw := await self._read_head()):
                return False
            head = _checked(parse(raw[: raw.index(_END) + len(_END)]), self._inspection)
            method = head.method
            request = self._request_of(head, raw)
        except MalformedError as error:
            _logger.info("network: refused, %s", error)
            await self._refuse(self._inspection.refuse(error, method))
            return False
        async with self._inspection.handle(request) as response:
            if response.status == 101 and response.send is not None:
                await self._switch(response, response.send)
            else:
                await self._respond(response)
        done = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return done and not self._http.trailing_data[0]

    async def _read_head(self) -> bytes:
        """Return the head of a request, and what was read after it, or nothing if the session sends no more."""
        async with asyncio.timeout(_IDLE_SECONDS):
            raw = await self._stream.read()
        async with asyncio.timeout(_HEAD_SECONDS):
            while raw and _END not in raw[:_MAX_HEAD]:
                if len(raw) > _MAX_HEAD or not (more := await self._stream.read()):
                    raise MalformedError(f"the request must have at most {_MAX_HEAD >> 10} KB of headers, and an empty line after them")
                raw += more
        return raw

    def _request_of(self, head: Head, raw: bytes) -> Request:
        """Return a request that may be forwarded. h11 parses the head once more, and then the body."""
        has_body = head.is_chunked or bool(head.length)
        self._http.receive_data(raw)
        try:
            self._http.next_event()
            if not has_body:
                self._http.next_event()  # the end of the request
        except h11.RemoteProtocolError as error:
            raise MalformedError("the request must be valid HTTP/1.1: check its headers") from error
        kept = [(name, value) for name, value in without_connection(head.headers) if name not in _DROPPED]
        is_upgrade = any(b"upgrade" in value.lower() for value in head.values(b"connection"))
        is_websocket = is_upgrade and [value.lower() for value in head.values(b"upgrade")] == [b"websocket"] and head.method == "GET"
        body = self._read_body() if has_body else None
        return Request(head.method, head.target, kept, body, head.length if has_body or head.length == 0 else None, is_websocket)

    async def _read_body(self) -> AsyncIterator[bytes]:
        if self._http.they_are_waiting_for_100_continue:
            await self._stream.send(self._http.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b"")
        for number in itertools.count(1):
            if number % _EVENTS_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._stream.read())
            except h11.RemoteProtocolError as error:
                raise MalformedError("the body of the request is malformed or incomplete") from error
            if isinstance(event, h11.Data):
                yield event.data
            elif isinstance(event, h11.EndOfMessage):
                return

    async def _respond(self, response: Response) -> None:
        headers = response.headers
        if self._http.their_state is h11.DONE and self._http.trailing_data[0]:  # another request before the response to the first
            headers = [*headers, (b"connection", b"close")]
        reason = _REASONS.get(response.status, "").encode()
        data = self._http.send(h11.Response(status_code=response.status, headers=headers, reason=reason)) or b""
        self._stream.write_soon(data)
        async for part in response.body:
            for piece in self._http.send_with_data_passthrough(h11.Data(data=part)) or ():
                if len(piece) < _SMALL:
                    self._stream.write_soon(piece)
                else:
                    self._stream.write(piece)
            await self._stream.drain()
        if end := self._http.send(h11.EndOfMessage()):
            self._stream.write_soon(end)
        await self._stream.drain()

    async def _refuse(self, response: Response) -> None:
        """Send a response to a request that is malformed, which h11 has not read."""
        text = b"".join([part async for part in response.body])
        lines = [f"HTTP/1.1 {response.status} {_REASONS[response.status]}".encode()]
        lines += [name + b": " + value for name, value in response.headers]
        await self._stream.send(b"\r\n".join([*lines, b"connection: close", b"", text]))

    async def _switch(self, response: Response, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Carry data in both directions after both sides have agreed on a WebSocket."""
        headers = [*response.headers, (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
        early = self._http.trailing_data[0]
        switching = h11.InformationalResponse(status_code=101, headers=headers, reason=b"Switching Protocols")
        await self._stream.send(self._http.send(switching) or b"")

        async def upload() -> None:
            data = early or await self._stream.read()
            while data:
                await send(data)
                data = await self._stream.read()
            await send(b"")

        async def download() -> None:
            async for data in response.body:
                await self._stream.send(data)

        sending, receiving = asyncio.ensure_future(upload()), asyncio.ensure_future(download())
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                sending.result()  # it may have failed
                await receiving
        finally:
            sending.cancel()
            receiving.cancel()
            await asyncio.wait({sending, receiving})
        receiving.result()


async def _finish(stream: Stream) -> None:
    """End a connection. Continue to read for a short time, or a client that still sends may lose the response."""
    stream.write_eof()
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while await stream.read():
                pass


def _checked(head: Head | None, inspection: Inspection) -> Head:
    """Return the head. Raise MalformedError unless its target and Host are those of the connection."""
    if head is None or not head.target.startswith("/") or "#" in head.target:
        raise MalformedError("the request must begin with a method and a path, such as GET /")
    hosts = head.values(b"host")
    if len(hosts) != 1 and not (head.is_old and not hosts):
        raise MalformedError("the request must have one header Host")
    if hosts and _named(hosts[0]) not in (_named(inspection.authority.encode()), (inspection.host, str(inspection.port))):
        raise MalformedError(f"the header Host must be {inspection.authority}, the host of the connection")
    return head


def _named(authority: bytes) -> tuple[str, str]:
    host, port = split_host(authority.decode("latin-1").lower())
    return host.removesuffix("."), port
