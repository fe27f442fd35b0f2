"""Attack the network: a session has a loopback of its own, and nothing else."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from aca_sessions import Policy, Session, open_pool
from aca_sessions.network.rules import Network
from aca_sessions.sandbox.proxy.addresses import Dialer
from aca_sessions.sandbox.proxy.proxy import Proxy
from aca_sessions.sandbox.proxy.session_network import SessionNetwork
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session.interpreter import Interpreter
from aca_sessions.sandbox.syscalls import landlock_version

from ..conftest import IMAGE, mostly_long
from .attempts import PRELUDE, outcome

pytestmark = pytest.mark.slow
FAMILIES = {
    "ax25": 3, "ipx": 4, "appletalk": 5, "x25": 9, "key": 15, "netlink": 16, "packet": 17, "rds": 21, "pppox": 24, "llc": 26, "can": 29,
    "tipc": 30, "bluetooth": 31, "rxrpc": 33, "phonet": 35, "ieee802154": 36, "alg": 38, "nfc": 39, "vsock": 40, "kcm": 41,
    "qipcrtr": 42, "smc": 43, "xdp": 44, "mctp": 45,
}  # fmt: skip
ODD_SOCKETS = {
    "raw ICMP": ("AF_INET", 3, 1), "raw ICMPv6": ("AF_INET6", 3, 58), "raw IP": ("AF_INET", 3, 255), "raw TCP": ("AF_INET", 3, 6),
    "ping": ("AF_INET", 2, 1), "ping over IPv6": ("AF_INET6", 2, 58), "packets by the old door": ("AF_INET", 10, 0),
    "SCTP": ("AF_INET", 1, 132), "SCTP by its type": ("AF_INET", 5, 0), "DCCP by its type": ("AF_INET", 6, 0), "DCCP": ("AF_INET", 6, 33),
    "MPTCP": ("AF_INET", 1, 262), "UDP-Lite": ("AF_INET", 2, 136), "L2TP": ("AF_INET", 2, 115), "SMC over IPv6": ("AF_INET6", 1, 256),
}  # fmt: skip
ADDRESSES = {
    "a documentation address": "('192.0.2.1', 80)",
    "a public address": "('8.8.8.8', 443)",
    "the metadata service": "('169.254.169.254', 80)",
    "the metadata service of containers": "('169.254.170.2', 80)",
    "a private network": "('10.0.0.1', 22)",
    "the usual bridge of containers": "('172.17.0.1', 2375)",
    "a router at home": "('192.168.1.1', 80)",
    "a public address of IPv6": "('2606:4700:4700::1111', 443)",
    "the metadata service over IPv6": "('fd00:ec2::254', 80)",
}
PLATFORMS = {
    "Azure's wire server": "168.63.129.16", "Oracle's metadata": "192.0.0.192", "Alibaba's metadata": "100.100.100.200",
    "the metadata of most": "169.254.169.254", "AWS's metadata over IPv6": "fd00:ec2::254", "IBM's service endpoints": "166.9.14.5",
    "mapped to IPv6": "::ffff:168.63.129.16", "by NAT64": "64:ff9b::a83f:8110", "by 6to4": "2002:a83f:8110::1",
    "by Teredo": "2001:0:a83f:8110::1", "by ISATAP": "2606:4700::5efe:a83f:8110", "a private network": "10.0.0.5", "loopback": "127.0.0.1",
}  # fmt: skip
LOCAL_ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1")
LOOK_UPS = ("example.org", "localhost.localdomain", "metadata.google.internal", "host.docker.internal", socket.gethostname())
CHANGES = {
    "give the loopback an address": "fcntl.ioctl(s, 0x8916, struct.pack('16sHH4s8s', b'lo', 2, 0, bytes([10, 0, 0, 1]), bytes(8)))",
    "bring an interface up": "fcntl.ioctl(s, 0x8914, struct.pack('16sH14s', b'lo', 1, b''))",
    "add a route": "fcntl.ioctl(s, 0x890B, bytes(120))",
    "add a bridge": "fcntl.ioctl(s, 0x89A0, b'br0'.ljust(16, bytes(1)))",
    "rename the loopback": "fcntl.ioctl(s, 0x8923, struct.pack('16s16s', b'lo', b'eth0'))",
    "change an address table": "s.setsockopt(socket.IPPROTO_IP, 64, bytes(200))",
    "pass the routes by": "s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)",
    "send as somebody else": "s.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)",
}


@pytest.fixture
async def visits() -> AsyncIterator[list[int]]:
    """A service on the host's loopback: yield its port, and then one item for each visitor."""
    seen: list[int] = []
    server = await asyncio.start_server(lambda reader, writer: seen.append(1) or writer.close(), "127.0.0.1", 0)
    seen.append(server.sockets[0].getsockname()[1])
    yield seen
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("family", mostly_long(FAMILIES, every=3))
async def test_sockets_of_other_families_cannot_be_made(session: Session, family: str) -> None:
    """Of all families of sockets a session has Unix and the two of the internet; others are not made, not even in pairs."""
    for kind in (1, 2, 3, 5):
        assert await outcome(session, f"socket.socket({FAMILIES[family]}, {kind})", prelude=PRELUDE) == "EAFNOSUPPORT"
        pair = f"checked(libc.socketpair({FAMILIES[family]}, {kind}, 0, (ctypes.c_int * 2)()))"
        assert await outcome(session, pair, prelude=PRELUDE) == "EAFNOSUPPORT"


@pytest.mark.parametrize("kind", mostly_long(ODD_SOCKETS, every=3))
async def test_internet_sockets_are_only_tcp_and_udp(session: Session, kind: str) -> None:
    """Internet sockets are TCP or UDP: no raw, ping, packet or other protocol's socket is made."""
    family, type_, protocol = ODD_SOCKETS[kind]
    ended = await outcome(session, f"socket.socket(socket.{family}, {type_}, {protocol})", prelude=PRELUDE)
    assert ended in ("ESOCKTNOSUPPORT", "EPROTONOSUPPORT")


@pytest.mark.parametrize("address", ADDRESSES)
async def test_no_address_is_reached(session: Session, address: str) -> None:
    """A session reaches no address: no public, private or metadata service's, neither by TCP nor by UDP."""
    family = "socket.AF_INET6" if "::" in ADDRESSES[address] else "socket.AF_INET"
    assert await outcome(session, f"socket.socket({family}).connect({ADDRESSES[address]})", prelude=PRELUDE) == "ENETUNREACH"
    send = f"socket.socket({family}, socket.SOCK_DGRAM).sendto(b'x', {ADDRESSES[address]})"
    assert await outcome(session, send, prelude=PRELUDE) == "ENETUNREACH"


async def test_no_allowed_name_leads_to_a_cloud_platform() -> None:
    """Whatever domains its policy allows, no name leads a session to a private address or to a known service of a cloud's own."""
    dialled: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        return ["8.8.8.8", PLATFORMS[[*PLATFORMS][int(host.removesuffix(".any.test"))]]]  # one such address among good ones is enough

    async def connect(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        dialled.append(address)
        raise OSError("nobody is there")

    network = Network.allow("*")
    dialer = Dialer(resolve=resolve, connect=connect)
    async with Sandboxes(Policy(network=network, image=IMAGE, spares=0, preload=()), dialer) as sandboxes:
        sandbox = await sandboxes.open()
        code = f"import urllib.request as u, urllib.error\ncodes = []\nfor n in range({len(PLATFORMS)}):\n"
        code += "    try: u.urlopen(f'http://{n}.any.test/', timeout=60)\n    except urllib.error.HTTPError as e: codes.append(e.code)\n"
        interpreter: Interpreter = await sandbox.interpreter()
        assert (await interpreter.run("e", f"{code}str(codes)", 300.0)).value == str([403] * len(PLATFORMS))
        await sandbox.close()
    assert dialled == []


MALFORMED = {
    "a folded length": b"Content-Length: 5\r\n 0",
    "a folded host": b"X: a\r\n\tHost: private.test",
    "a folded first line": b" X: a",
    "no colon": b"garbage",
    "a space before the colon": b"Content-Length : 5",
    "a tab before the colon": b"Transfer-Encoding\t: chunked",
    "a control character before the colon": b"Transfer-Encoding\x0b: chunked",
    "a space of another alphabet before the colon": b"Transfer-Encoding\xa0: chunked",
    "a control character in a value": b"X: a\x0bTransfer-Encoding: chunked",
    "an underscore": b"Transfer_Encoding: chunked\r\nContent-Length: 3",
    "an underscore in a length": b"Content_Length: 30",
    "chunks": b"Transfer-Encoding: chunked",
    "chunks by another name": b"transfer-encoding: xchunked",
    "no encoding": b"Transfer-Encoding:",
    "chunks and a length": b"Content-Length: 3\r\nTransfer-Encoding: identity",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 3",
    "a length with a sign": b"Content-Length: +3",
    "a list of lengths": b"Content-Length: 3, 3",
    "a bare line feed": b"X: a\nHost: private.test",
    "a bare carriage return": b"X: a\rHost: private.test",
    "a null": b"X: a\0",
    "no name": b": x",
}


@pytest.mark.parametrize("method", ["GET http://a.any.test/", "CONNECT a.any.test:443"])
@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_request_that_servers_may_read_differently_is_not_forwarded(malformed: str, method: str) -> None:
    """The proxy carries no request whose headers or length another server might read in another way, and answers it with 400."""
    dialled: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        return ["8.8.8.8"]

    async def connect(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        dialled.append(address)
        raise OSError("nobody is there")

    listener = socket.create_server(("127.0.0.1", 0))
    serving = await Proxy(SessionNetwork(Network.allow("*")), Dialer(resolve=resolve, connect=connect)).serve(listener)
    try:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(f"{method} HTTP/1.1\r\n".encode() + MALFORMED[malformed] + b"\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await writer.wait_closed()
    finally:
        await serving.close()
    assert dialled == []


@pytest.mark.parametrize("address", LOCAL_ADDRESSES)
async def test_the_hosts_loopback_is_not_reachable(session: Session, visits: list[int], address: str) -> None:
    """A session's loopback is its own: the host's services there are not reached."""
    family = "socket.AF_INET6" if ":" in address else "socket.AF_INET"
    attempt = f"s = socket.socket({family}); s.settimeout(5); s.connect(('{address}', {visits[0]}))"
    assert await outcome(session, attempt, prelude=PRELUDE) == "ECONNREFUSED"
    reader, writer = await asyncio.open_connection("127.0.0.1", visits[0])
    await reader.read()
    writer.close()
    assert len(visits) == 2, "only this test has been there"


@pytest.mark.parametrize("name", LOOK_UPS)
async def test_no_name_can_be_looked_up(session: Session, name: str) -> None:
    """A session looks up no name."""
    assert await outcome(session, f"import socket; socket.getaddrinfo({name!r}, 80)") == "gaierror"


@pytest.mark.parametrize("change", CHANGES)
async def test_the_network_cannot_be_changed(session: Session, change: str) -> None:
    """A session changes nothing of its network, which has a loopback and no other device."""
    attempt = f"import fcntl; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); {CHANGES[change]}"
    assert await outcome(session, attempt, prelude=PRELUDE) in ("EPERM", "ENOPROTOOPT")
    devices = "print(*(line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line))"
    assert await outcome(session, devices) == "got: lo\n"


@pytest.mark.parametrize("network", ["none", "host"] if landlock_version() >= 6 else ["none"])
async def test_the_hosts_abstract_sockets_are_not_reached(network: str) -> None:
    """A session reaches no abstract Unix socket of the host, not even where it shares the host's network (from Linux 6.12 on)."""
    name = f"aca-sessions-{os.urandom(8).hex()}"
    policy = Policy(image=IMAGE, network=Network.host() if network == "host" else Network.none(), preload=(), spares=0)
    with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        stream.bind(f"\0{name}")
        stream.listen()
        datagram.bind(f"\0{name}-datagrams")
        datagram.setblocking(False)
        async with open_pool(policy=policy) as pool, pool.session() as session:
            connect = f"socket.socket(socket.AF_UNIX).connect('\\0{name}')"
            send = f"socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '\\0{name}-datagrams')"
            for attempt in (connect, send):
                assert await outcome(session, attempt, prelude=PRELUDE) in ("ECONNREFUSED", "EPERM")
        with pytest.raises(BlockingIOError):
            datagram.recv(1)
