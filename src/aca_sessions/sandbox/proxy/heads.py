"""Parse the head of a request strictly: refuse one that two servers could read in different ways."""

import re
from dataclasses import dataclass

from .session_network import MalformedError

_REQUEST = re.compile(rb"([A-Z]{1,20}) (\S{1,8192}) HTTP/1\.([01])", re.ASCII)
# RFC 9112, 5: no space before the colon, no folding. h11 would parse the head as well, but it unfolds lines and merges equal lengths before
# its caller sees them: it accepts seven of the requests that tests/hostile/test_network_walls.py refuses.
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
_FRAMING = (b"host", b"connection", b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request.

    Attributes:
        method: The method.
        target: The target as it was sent: a host and port, a whole URL, or a path.
        is_old: Whether the request has the version HTTP/1.0.
        headers: All headers with names in lower case.
        length: The length of the body, or None if it was not given.
        is_chunked: Whether the body comes in chunks.
    """

    method: str
    target: str
    is_old: bool
    headers: list[tuple[bytes, bytes]]
    length: int | None
    is_chunked: bool

    def values(self, name: bytes) -> list[bytes]:
        """Return all values of a header."""
        return [value for key, value in self.headers if key == name]


def parse(head: bytes) -> Head | None:
    """Return the head of a request, which ends with an empty line, or None if its first line is not a request line.

    Raise MalformedError for a malformed or ambiguous header.
    """
    lines = head[:-4].split(b"\r\n")
    request = _REQUEST.fullmatch(lines[0])
    if request is None:
        return None
    headers: list[tuple[bytes, bytes]] = []
    length: int | None = None
    is_chunked = False
    for number, line in enumerate(lines[1:], 1):
        name, value = _header(number, line)
        match name:
            case b"content-length" if length is not None or not value.isdigit() or len(value) > 16:
                got = "a second one" if length is not None else f"{value.decode('ascii', 'replace')!r:.40}"
                raise MalformedError(f"expected one Content-Length of 1 to 16 digits, got {got}: send the size of the body in bytes once")
            case b"content-length":
                length = int(value)
            case b"transfer-encoding" if is_chunked or value.lower() != b"chunked" or request[3] == b"0":
                raise MalformedError("Transfer-Encoding must be chunked, once, in HTTP/1.1: correct it, or send a Content-Length")
            case b"transfer-encoding":
                is_chunked = True
        headers.append((name, value))
    if is_chunked and length is not None:
        raise MalformedError("a request must not have both a Content-Length and a Transfer-Encoding: remove one")
    return Head(request[1].decode(), request[2].decode("ascii", "replace"), request[3] == b"0", headers, length, is_chunked)


def _header(number: int, line: bytes) -> tuple[bytes, bytes]:
    header = _HEADER.fullmatch(line)
    if header is None:
        raise MalformedError(f"header {number} must be 'name: value' on one line of printable characters: correct or remove it")
    name, value = header[1].lower(), line[len(header[1]) + 1 :].strip()
    if b"_" in name and name.replace(b"_", b"-") in _FRAMING:  # some servers read '_' as '-'
        raise MalformedError(
            f"the header {name.decode()!r:.80} must not have '_' in its name, which some servers read as '-': use '-', or remove it"
        )
    return name, value
