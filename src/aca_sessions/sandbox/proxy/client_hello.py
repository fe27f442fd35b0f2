"""Read the host that a TLS client names in its first message, from which the proxy decides whether to inspect the connection."""

import asyncio

from .session_network import MalformedError

_HANDSHAKE, _CLIENT_HELLO, _MAJOR_VERSION = 22, 1, 3
_SERVER_NAME, _HOST_NAME = 0, b"\0"
_RECORD_HEADER, _MESSAGE_HEADER = 5, 4
_MAX_RECORD, _MAX_RECORDS = 1 << 14, 8  # RFC 8446, 5.1
_MAX_HELLO = 1 << 14  # clients send less than 2 KB
_RANDOM = 32


class ClientHelloError(MalformedError):
    """Raised if a connection does not begin with a complete, well-formed ClientHello. The message gives the reason."""


async def read_client_hello(reader: asyncio.StreamReader, early: bytes = b"") -> tuple[bytes, str | None]:
    """Read the ClientHello with which a TLS connection begins. Return all bytes that were read, and the host that it names or None.

    `early` is what was read already. The name is in lower case. Raise ClientHelloError if the message is malformed or too large, or the
    client closes the connection first.
    """
    while (message := _join_records(early)) is None:
        data = await reader.read(_MAX_HELLO)
        if not data:
            raise ClientHelloError("the connection must begin with a ClientHello, but it was closed")
        early += data
    return early, _find_name(message)


def _join_records(received: bytes) -> bytes | None:
    """Return the ClientHello from the TLS records at the beginning of `received`, or None if it is not complete yet."""
    message, place = b"", 0
    for _ in range(_MAX_RECORDS):
        header = received[place : place + _RECORD_HEADER]
        if (header and header[0] != _HANDSHAKE) or (len(header) > 1 and header[1] != _MAJOR_VERSION):
            raise ClientHelloError("the connection must begin with a ClientHello of TLS, got something else")
        if len(header) < _RECORD_HEADER:
            return None
        size = int.from_bytes(header[3:])
        if not 0 < size <= _MAX_RECORD:
            raise ClientHelloError(f"a TLS record must have 1 to {_MAX_RECORD} bytes, got {size}")
        place += _RECORD_HEADER
        message += received[place : place + size]
        place += size
        if message and message[0] != _CLIENT_HELLO:
            raise ClientHelloError("the first message of TLS must be a ClientHello, got another")
        length = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER]) if len(message) >= _MESSAGE_HEADER else _MAX_HELLO
        if not len(message) <= length <= _MAX_HELLO:
            raise ClientHelloError(f"a ClientHello must end its record and have at most {_MAX_HELLO} bytes")
        if place > len(received):
            return None
        if len(message) == length:
            return message
    raise ClientHelloError(f"a ClientHello must be in at most {_MAX_RECORDS} TLS records")


def _find_name(message: bytes) -> str | None:
    """Return the host that a ClientHello names (RFC 6066, 3), or None if it names none."""
    body = _Reader(message[_MESSAGE_HEADER:])
    if body.take(2)[0] != _MAJOR_VERSION:
        raise ClientHelloError("the version in a ClientHello must be one of TLS")
    body.take(_RANDOM)
    body.vector(1)  # session id
    body.vector(2)  # cipher suites
    body.vector(1)  # compression methods
    extensions = _Reader(body.vector(2) if body.left else b"")
    body.check_end()
    found: dict[int, bytes] = {}
    while extensions.left:
        kind = int.from_bytes(extensions.take(2))
        if kind in found:
            raise ClientHelloError("an extension must not be in a ClientHello twice")
        found[kind] = extensions.vector(2)
    return _read_name(found[_SERVER_NAME]) if _SERVER_NAME in found else None


def _read_name(extension: bytes) -> str:
    outer = _Reader(extension)
    names = _Reader(outer.vector(2))
    outer.check_end()
    if names.take(1) != _HOST_NAME:
        raise ClientHelloError("the name in a ClientHello must be that of a host")
    name = names.vector(2)
    names.check_end()
    if not name or not name.isascii():
        raise ClientHelloError("the host in a ClientHello must be a name in ASCII")
    return name.decode().lower()


class _Reader:
    """A part of a TLS message, from which fields are read in their order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._place

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        if size > self.left:
            raise ClientHelloError("a field of a ClientHello must end before the field that it is in")
        self._place += size
        return self._data[self._place - size : self._place]

    def vector(self, size_bytes: int) -> bytes:
        """Return a field that begins with its length."""
        return self.take(int.from_bytes(self.take(size_bytes)))

    def check_end(self) -> None:
        """Raise ClientHelloError if there is more."""
        if self.left:
            raise ClientHelloError("a ClientHello must have nothing between its fields")
