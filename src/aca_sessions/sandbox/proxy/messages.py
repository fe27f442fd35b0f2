"""A request of a session to an inspected host, and the response: what the proxy's protocols pass to each other."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

Headers = list[tuple[bytes, bytes]]

# Of one connection, and not of the message (RFC 9110, 7.6.1). What is sent on has its own.
_OF_CONNECTIONS = frozenset((b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"))


class BrokenResponseError(Exception):
    """Raised when a response ends before its end, or the request that it belongs to. Nothing more can be sent: cut the connection."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was parsed. What is sent on is written anew from this.

    Attributes:
        method: The method.
        target: The path and the query.
        headers: The headers with names in lower case, without those about the connection, the framing and the host.
        body: The body, or None if there is none. It raises MalformedError if the client breaks the protocol, and OSError if it goes away.
        length: The length that the client gave for the body, or None.
        is_websocket: Whether the client asked to go on with a WebSocket.
    """

    method: str
    target: str
    headers: Headers
    body: AsyncIterator[bytes] | None = None
    length: int | None = None
    is_websocket: bool = False


@dataclass(slots=True)
class Response:
    """A response that is sent to the session. Its headers are without those about the connection and the framing.

    Attributes:
        status: The status.
        headers: The headers, with a content-length if the length of the body is known.
        body: The body. After the status 101, all that the host sends. It raises BrokenResponseError if it cannot be read to its end.
        send: After the status 101, sends bytes to the host. It may raise BrokenResponseError. No bytes: nothing more will be sent.
    """

    status: int
    headers: Headers
    body: AsyncIterator[bytes]
    send: Callable[[bytes], Awaitable[None]] | None = None


def without_connection(headers: Headers) -> Headers:
    """Return the headers of a message, which have names in lower case, without those about the connection that carried it."""
    listed = {name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")}
    # Its own check covers the length, so that no `Connection` can remove it.
    dropped = (_OF_CONNECTIONS | listed) - {b"content-length"}
    return [(name, value) for name, value in headers if name not in dropped and not name.startswith(b"proxy-")]


def text_response(status: int, reason: str) -> Response:
    """Return a response of the proxy itself, with a line of text."""
    text = f"{reason}\n".encode()

    async def body() -> AsyncIterator[bytes]:
        yield text

    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    return Response(status, headers, body())
