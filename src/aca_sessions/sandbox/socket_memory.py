"""The memory of a session's sockets, on hosts without control groups. The kernel lists sockets with what each holds (sock_diag(7)).

The list covers the network namespace in which the asking socket was made. The session's first process makes that socket and gives it to the
host before any code of a user runs. Only the kernel can write to it, since sessions cannot make netlink sockets.
"""

import logging
import os
import socket
import struct
from collections.abc import Iterator, Sequence

_logger = logging.getLogger("aca_sessions")
_BY_FAMILY, _ERROR, _DONE = 20, 2, 3  # types of messages: netlink(7)
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ALL_STATES = 0xFFFF_FFFF
_MEMORY = struct.Struct("=8I")  # SK_MEMINFO_*: received, its limit, sent, its limit, reserved, queued, options, backlog
# Of a family: its request, the length of the fixed part of an answer, and the attribute that holds the above. 0x20 is UDIAG_SHOW_MEMINFO,
# and 5 UNIX_DIAG_MEMINFO.
_UNIX = (struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ALL_STATES, 0, 0x20, 0, 0), 16, 5)
_ITSELF = 2048  # about what a socket takes without any buffer
_SECONDS = 5.0


def _internet(family: int, protocol: int) -> tuple[bytes, int, int]:
    return struct.pack("=BBBBI48x", family, protocol, 1 << 6, 0, _ALL_STATES), 72, 7


_KINDS = {
    "Unix": (_UNIX,),
    "TCP": (_internet(socket.AF_INET, socket.IPPROTO_TCP), _internet(socket.AF_INET6, socket.IPPROTO_TCP)),
    "UDP": (_internet(socket.AF_INET, socket.IPPROTO_UDP), _internet(socket.AF_INET6, socket.IPPROTO_UDP)),
}


class SocketMemory:
    """The counter of one session's sockets. All calls block, and only one thread may call at a time."""

    def __init__(self, descriptor: int) -> None:
        """Take over a netlink socket of the session's network namespace."""
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(_SECONDS)
        self._sequence = 0
        self._last = 0
        self._is_failing = False

    def used(self, unlisted: Sequence[str] = ()) -> int:
        """Return the bytes of all sockets with their buffers, except for the kinds in `unlisted`, which the kernel does not list."""
        try:
            self._last = sum(self._used(kind) for kind in _KINDS if kind not in unlisted)
            self._is_failing = False
        except OSError as error:  # what was seen last still counts
            if not self._is_failing:  # once, and not at each look while a cell runs
                _logger.warning("the sockets of a session cannot be listed now: %s", error.strerror)
            self._is_failing = True
        return self._last

    def missing(self) -> list[str]:
        """Return the kinds of sockets that this kernel does not list. That part of it is optional (CONFIG_UNIX_DIAG and others)."""
        return [kind for kind in _KINDS if not self._lists(kind)]

    def close(self) -> None:
        """Close the socket. The namespace ends with its last user."""
        self._socket.close()

    def _lists(self, kind: str) -> bool:
        try:
            self._used(kind)
        except OSError:
            return False
        return True

    def _used(self, kind: str) -> int:
        return sum(_held(answer, fixed, attribute) for request, fixed, attribute in _KINDS[kind] for answer in self._dump(request))

    def _dump(self, request: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST_DUMP, self._sequence, 0) + request)
        while True:
            for kind, sequence, payload in _messages(self._socket.recv(1 << 17)):
                if sequence != self._sequence:
                    continue  # an answer to a listing that was given up
                if kind in (_ERROR, _DONE):
                    (error,) = struct.unpack_from("=i", payload) if payload else (0,)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return
                yield payload


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, start)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[start + _HEADER.size : start + length]
        start += (length + 3) & ~3


def _held(answer: bytes, fixed: int, attribute: int) -> int:
    start = fixed
    while start + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, start)
        if length < _ATTRIBUTE.size:
            break
        if kind == attribute and length >= _ATTRIBUTE.size + _MEMORY.size:
            received, _, sent, _, reserved, queued, options, backlog = _MEMORY.unpack_from(answer, start + _ATTRIBUTE.size)
            return int(_ITSELF + received + max(sent, queued) + reserved + options + backlog)
        start += (length + 3) & ~3
    return _ITSELF
