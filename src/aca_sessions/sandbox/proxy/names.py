"""The DNS server of a session. It knows only the hosts that the session may reach, all at the session's own loopback address.

The proxy accepts connections there, so that programs that ignore the proxy variables reach the hosts as well.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

_HEADER = struct.Struct("!HHHHHH")  # RFC 1035, 4.1.1: id, flags, and the numbers of questions, answers, authorities and additional records
_TYPE_AND_CLASS = struct.Struct("!HH")
_ADDRESS, _INTERNET = 1, 1
_RESPONSE, _OPERATION, _AUTHORITATIVE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x0400, 0x0100, 0x0080
_NO_SUCH_NAME = 3
_SECONDS = 1  # for which a name may be cached: the rules of a session may change
# The name of the answer is a pointer to that of the question, which is at byte 12.
_ANSWER = struct.pack("!HHHIH4s", 0xC000 | _HEADER.size, _ADDRESS, _INTERNET, _SECONDS, 4, socket.inet_aton("127.0.0.1"))
_MAX_QUERY, _MAX_NAME, _MAX_LABEL = 1232, 255, 63
_AT_ONCE, _PAUSE = 100, 0.05  # queries before a pause, so that a flood of them takes little of the host's time


class NameServer:
    """Responds to the DNS queries that arrive at a socket in a session's network namespace."""

    def __init__(self, queries: socket.socket, has_rule: Callable[[str], bool]) -> None:
        """Take over the socket `queries`. `has_rule` returns whether the session may reach a host, given by its name in lower case."""
        self._queries = queries
        self._has_rule = has_rule
        self._loop = asyncio.get_running_loop()
        self._left = _AT_ONCE
        self._pause: asyncio.TimerHandle | None = None
        queries.setblocking(False)
        self._loop.add_reader(queries, self._on_query)

    def close(self) -> None:
        """Close the socket. Do nothing if closed already."""
        if self._pause is not None:
            self._pause.cancel()
        if self._queries.fileno() >= 0:
            self._loop.remove_reader(self._queries)
            self._queries.close()

    def _on_query(self) -> None:
        try:
            query, source = self._queries.recvfrom(_MAX_QUERY)
            response = answer_query(query, self._has_rule)
            if response is not None:
                self._queries.sendto(response, source)
        except OSError:  # the session does not read responses: its client asks again
            pass
        self._left -= 1
        if self._pause is None:
            self._pause = self._loop.call_later(_PAUSE, self._resume)
        if self._left == 0:
            self._loop.remove_reader(self._queries)

    def _resume(self) -> None:
        self._pause = None
        if self._left == 0:
            self._loop.add_reader(self._queries, self._on_query)
        self._left = _AT_ONCE


def answer_query(query: bytes, has_rule: Callable[[str], bool]) -> bytes | None:
    """Return the response to a DNS query, or None if it is malformed or not a query.

    If `has_rule` returns True for a name, it has the address 127.0.0.1 and no other record. All other names do not exist.
    """
    if len(query) < _HEADER.size:
        return None
    number, flags, questions, answers, authorities, _ = _HEADER.unpack_from(query)
    if flags & (_RESPONSE | _OPERATION) or (questions, answers, authorities) != (1, 0, 0):
        return None
    name, end = _read_name(query)
    if name is None or len(query) < end + _TYPE_AND_CLASS.size:
        return None
    kind, of_class = _TYPE_AND_CLASS.unpack_from(query, end)
    end += _TYPE_AND_CLASS.size
    exists = of_class == _INTERNET and has_rule(name)
    answer = _ANSWER if exists and kind == _ADDRESS else b""
    flags = _RESPONSE | _AUTHORITATIVE | _RECURSION_AVAILABLE | flags & _RECURSION_DESIRED | (0 if exists else _NO_SUCH_NAME)
    return _HEADER.pack(number, flags, 1, bool(answer), 0, 0) + query[_HEADER.size : end] + answer


def _read_name(query: bytes) -> tuple[str | None, int]:
    """Return the name of the first question in lower case, and where it ends. Return None if it is malformed or not ASCII."""
    labels: list[bytes] = []
    place = _HEADER.size
    while place < len(query):
        length = query[place]
        place += 1
        if length == 0:
            name = b".".join(labels)
            return (name.decode().lower(), place) if name.isascii() and place - _HEADER.size <= _MAX_NAME else (None, place)
        label = query[place : place + length]
        if length > _MAX_LABEL or b"." in label:  # a longer one is a pointer, which no query needs
            break
        labels.append(label)
        place += length
    return None, place
