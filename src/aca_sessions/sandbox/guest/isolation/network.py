"""Prepare the network namespace of a session: its loopback interface, and the sockets in it that the host uses."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

PROXY = ("127.0.0.1", 3128)
_TRANSPARENT_PORTS, _NAME_PORT = (443, 80), 53
_NETLINK_SOCK_DIAG = 4
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def raise_loopback() -> None:
    """Activate the loopback interface, which is down in a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", _IFF_UP, b""))


def open_proxy_sockets() -> list[int]:
    """Open the sockets of the session's proxy, which runs on the host. Return their descriptors in the order of `Ready`.

    Programs that ignore the proxy variables look up a host's name, and connect to the ports of HTTPS and HTTP at the address that they get.
    So the host also answers name lookups, and accepts connections at these ports. Only a process that has capabilities in the namespace can
    open them.
    """
    sockets = [socket.create_server((PROXY[0], port)) for port in (PROXY[1], *_TRANSPARENT_PORTS)]
    sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sockets[-1].bind((PROXY[0], _NAME_PORT))
    return [one.detach() for one in sockets]


def open_sock_diag() -> list[int]:
    """Open a sock_diag(7) socket, from which the host reads how much memory the session's sockets use.

    Return [descriptor], or [] if the kernel lacks sock_diag.
    """
    # If the kernel lacks sock_diag, the list is empty and the host reports that this memory is not counted.
    with contextlib.suppress(OSError):
        return [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG).detach()]
    return []
