"""The requests and responses that the protocols of the proxy pass to each other."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

Headers = list[tuple[bytes, bytes]]

# These belong to one connection and not to the message (RFC 9110, 7.6.1). The forwarded message gets its own.
_OF_CONNECTIONS = frozenset((b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"))


class BrokenResponseError(Exception):
    """Raised when a response or its request is cut off. Nothing more can be sent: abort the connection."""


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed request. The forwarded request is written anew from it.

    Attributes:
        method: The method.
        target: The path and the query.
        headers: The headers with names in lower case, without those about the connection, the framing and the host.
        body: The body, or None. It raises MalformedError if the client breaks the protocol, and OSError if it disconnects.
        length: The length that the client gave for the body, or None.
        is_websocket: Whether the client asked to switch to a WebSocket.
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
        body: The body; after the status 101, everything that the host sends. It raises BrokenResponseError if it is cut off.
        send: After the status 101, sends bytes to the host. Empty bytes end the data. It may raise BrokenResponseError.
    """

    status: int
    headers: Headers
    body: AsyncIterator[bytes]
    send: Callable[[bytes], Awaitable[None]] | None = None


def without_connection(headers: Headers) -> Headers:
    """Return the headers of a message, which have names in lower case, without those about the connection that carried it."""
    listed = {name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")}
    # `Connection` must not remove the length, which was checked.
    dropped = (_OF_CONNECTIONS | listed) - {b"content-length"}
    return [(name, value) for name, value in headers if name not in dropped and not name.startswith(b"proxy-")]


def text_response(status: int, reason: str) -> Response:
    """Return a response of the proxy itself, with a line of text."""
    text = f"{reason}\n".encode()

    async def body() -> AsyncIterator[bytes]:
        yield text

    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    return Response(status, headers, body())
