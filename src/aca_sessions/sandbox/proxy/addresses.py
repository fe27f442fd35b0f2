"""Look up hosts for sessions, and check their addresses. Only public ones are allowed, unless a rule names others."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

from ...network.rules import Rule, is_address
from .session_network import PrivateAddressError

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_CONNECT_SECONDS = 20.0


async def resolve(host: str, port: int) -> list[str]:
    """Look up a host name, and return its addresses without duplicates."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


async def connect(address: str, port: int) -> Streams:
    """Open a TCP connection to an address that the proxy has checked."""
    return await asyncio.open_connection(address, port)


class Dialer:
    """Connects to hosts, after it has looked up and checked their addresses."""

    def __init__(
        self,
        *,
        resolve: Callable[[str, int], Awaitable[list[str]]] = resolve,
        connect: Callable[[str, int], Awaitable[Streams]] = connect,
    ) -> None:
        self._resolve = resolve
        self._connect = connect

    async def find_address(self, host: str, port: int, rules: Sequence[Rule]) -> str:
        """Return the IP address to connect to for a host with these rules.

        Raise PrivateAddressError unless all addresses of the host are public or in a network that a rule names. The addresses of the
        machine that runs the proxy do not count as public.
        """
        if is_address(host):  # a rule names it
            return host
        async with asyncio.timeout(_CONNECT_SECONDS):
            addresses = await self._resolve(host, port)
        named = [network for rule in rules for network in rule.reachable]
        if not addresses or not all(is_in(address, named) or is_public(address) for address in addresses):
            raise PrivateAddressError(
                f"the domain {host} must lead to public addresses only, and at least one of its addresses is not public"
            )
        return addresses[0]

    async def connect(self, host: str, port: int, rules: Sequence[Rule]) -> Streams:
        """Look up a host, check its addresses, and connect to the one that was checked."""
        address = await self.find_address(host, port, rules)
        async with asyncio.timeout(_CONNECT_SECONDS):
            return await self._connect(address, port)


def is_public(address: str) -> bool:
    """Return whether an address belongs to the public internet, but not to this machine."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if any(found in network for network in _NEVER) or found.is_multicast or not found.is_global:
        return False
    if isinstance(found, ipaddress.IPv6Address) and (found.is_site_local or _embeds_ipv4(found)):
        return False
    return not _is_own_address(address, found.version)


def is_in(address: str, networks: Sequence[str]) -> bool:
    """Return whether an address is in one of these networks."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return any(found in ipaddress.ip_network(network) for network in networks)


def _embeds_ipv4(address: ipaddress.IPv6Address) -> bool:
    """Return whether an IPv6 address contains an IPv4 address. A router may send packets to the IPv4 address, which was not checked."""
    isatap = (int(address) >> 32) & 0xFDFF_FFFF == 0x5EFE  # RFC 5214, 6.1: the bit that the mask clears marks a global address
    return isatap or any((address.ipv4_mapped, address.sixtofour, address.teredo))


# `is_global` differs between releases of Python for these, or is true although no public service has such an address.
_NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            *("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96"),  # translated or tunnelled to IPv4
            *("192.88.99.0/24", "5f00::/16", "3fff::/20"),  # relays of 6to4; segment routing; documentation
            # Services of clouds for their own machines, at addresses that look public: they return settings and credentials.
            "168.63.129.16/32",  # Azure: wire server, DNS and health
            "192.0.0.0/24",  # Oracle: metadata at 192.0.0.192; the whole block is for protocols (RFC 6890)
            *("161.26.0.0/16", "166.8.0.0/14"),  # IBM: DNS, mirrors and service endpoints on the private network
            *("169.254.0.0/16", "100.64.0.0/10", "fc00::/7"),  # metadata of the others (Alibaba: 100.100.100.200, AWS: fd00:ec2::254)
        ),
    )
)


def _is_own_address(address: str, version: int) -> bool:
    """Return whether an address belongs to this host, whose services sessions must not reach. `version` is 4 for IPv4 or 6 for IPv6."""
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))  # works only with an address of this host
        except OSError:
            return False
    return True
