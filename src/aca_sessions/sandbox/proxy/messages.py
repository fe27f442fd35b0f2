"""A request of a session to an inspected host, and the response: what the proxy's protocols pass to each other."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpcore

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was parsed. What is sent on is written anew from this.

    Attributes:
        method: The method.
        target: The path and the query.
        headers: The headers with names in lower case, without those about the connection, the framing and the host.
        body: The body, or None if there is none.
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
        body: The body, which is empty for the status 101.
        stream: After the status 101, the connection to the host.
    """

    status: int
    headers: Headers
    body: AsyncIterator[bytes]
    stream: "httpcore.AsyncNetworkStream | None" = None
