"""What the network rules of a session cost: a host that the proxy inspects beside a tunnel to it, and beside the host's own network.

python benchmarks/network_rules.py [--rounds N]. Sessions use httpx, and the server is on this machine. The aims: 100 MB/s, and 2 ms more
for a small request.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aca_sessions import Network, Policy, Session, open_pool

MEGABYTES = 200
STARTS, CELLS = 8, 80
CLIENT = """
import httpx, ssl, statistics, time
contexts = [ssl.create_default_context(cadata={authority!r}) for _ in range(2)]  # loading what is trusted takes longer than all else
def client(http2):
    return httpx.Client(http2=http2, http1=not http2, verify=contexts[http2], proxy={proxy!r}, base_url={url!r}, timeout=120)
def timed(act):
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
def download(c):
    with c.stream("GET", "/big") as response:
        assert sum(len(part) for part in response.iter_raw()) == {megabytes} << 20
def upload(c):
    part = bytes(1 << 20)
    headers = {{"content-length": str({megabytes} << 20)}}
    assert c.post("/", content=(part for _ in range({megabytes})), headers=headers).text == f"{{{megabytes} << 20}}\\n"
def small(c):
    response = c.get("/")
    assert response.text == "0\\n", response.text
def connect(http2):
    with client(http2) as c:
        c.get("/")
kept = [client(http2) for http2 in (False, True)]
for c in kept:
    small(c)
measures = [
    lambda http2: {megabytes} / timed(lambda: download(kept[http2])),
    lambda http2: {megabytes} / timed(lambda: upload(kept[http2])),
    lambda http2: statistics.median(timed(lambda: small(kept[http2])) for _ in range(100)) * 1000,
    lambda http2: statistics.median(timed(lambda: connect(http2)) for _ in range(10)) * 1000,
]
"""
MEASURES = ("download, MB/s", "upload, MB/s", "small request, ms", "small request on a new connection, ms")


@dataclass(frozen=True, slots=True)
class Contender:
    """A network of a session, and whether the proxy reads the requests to the server."""

    name: str
    network: Network
    is_inspected: bool = False


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write an authority and a certificate for localhost with its key. Return both files."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority of the benchmark", "localhost")]
    files = folder / "authority.pem", folder / "server.pem"
    for number, file in enumerate(files):
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(names[0], names[number], keys[number].public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        file.write_bytes(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key = keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files[1].write_bytes(files[1].read_bytes() + key)
    return files


def serve(certificate: str) -> None:
    """Serve HTTP/1.1 and HTTP/2 on a port of this machine, and print it. It is our own proxy's half that speaks with sessions."""
    import ssl

    from aca_sessions.sandbox.proxy import http1, http2
    from aca_sessions.sandbox.proxy.messages import Request, Response, text_response
    from aca_sessions.sandbox.proxy.streams import TlsStream

    part = bytes(1 << 18)

    class Answers:
        host, port, authority, is_tls = "localhost", 0, "", True

        @asynccontextmanager
        async def handle(self, request: Request) -> AsyncIterator[Response]:
            size = 0
            if request.body is not None:
                async for data in request.body:
                    size += len(data)
            big = [(b"content-length", str(MEGABYTES << 20).encode())]
            yield Response(200, big, self.parts()) if request.target == "/big" else text_response(200, str(size))

        async def parts(self) -> AsyncIterator[bytes]:
            for _ in range(MEGABYTES * 4):
                yield part

    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.set_alpn_protocols(["h2", "http/1.1"])
        answers = Answers()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = TlsStream((reader, writer), context)
            await stream.handshake()
            await (http2 if stream.protocol == "h2" else http1).serve(stream, answers)
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        answers.port = server.sockets[0].getsockname()[1]
        answers.authority = f"localhost:{answers.port}"
        print(answers.port, flush=True)
        await server.serve_forever()

    asyncio.run(main())


def contenders(port: int) -> list[Contender]:
    host = f"localhost:{port}"
    secret = {"Host": host, "Methods": ["GET", "POST"], "Headers": {"Authorization": "Bearer ${secret:key}"}}
    return [
        Contender("network of the host", Network.host()),
        Contender("tunnel", Network.rules([{"Host": host}])),
        Contender("inspected", Network.rules([{"Host": host, "Methods": ["GET", "POST"]}]), is_inspected=True),
        Contender("inspected, with a secret", Network.rules([secret], secrets={"key": "0123456789abcdef" * 2}), is_inspected=True),
    ]


async def measure_requests(port: int, authority: str, rounds: int) -> None:
    """Print what httpx in sessions measures, in turns."""
    measured: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        sessions: dict[str, Session] = {}
        for contender in contenders(port):
            pool = await stack.enter_async_context(open_pool(policy=Policy(network=contender.network, preload=(), spares=0)))
            session = sessions[contender.name] = await stack.enter_async_context(pool.session())
            proxy = None if contender.network.kind == "host" else "http://127.0.0.1:3128"
            trusted = None if contender.is_inspected else authority  # None: what sessions trust
            setup = CLIENT.format(authority=trusted, proxy=proxy, url=f"https://localhost:{port}", megabytes=MEGABYTES)
            (await session.run(setup)).raise_for_error()
        for round in range(rounds):
            for protocol, (number, what) in product(("HTTP/1.1", "HTTP/2"), enumerate(MEASURES)):
                for name in list(sessions)[:: 1 if round % 2 else -1]:
                    result = await sessions[name].run(f"measures[{number}]({protocol == 'HTTP/2'})", timeout=600)
                    result.raise_for_error()
                    measured[protocol, what][name].append(float(result.text))
    _print(measured, list(sessions))


async def measure_sessions(port: int, rounds: int) -> None:
    """Print how long a session takes to start, and a cell, with each network: without rules, nothing may be added."""
    networks = {"no network": Network.none()} | {one.name: one.network for one in contenders(port)}
    measured: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        pools = {
            name: await stack.enter_async_context(open_pool(policy=Policy(network=network, preload=(), spares=0)))
            for name, network in networks.items()
        }
        for round in range(STARTS * rounds):
            for name in list(pools)[:: 1 if round % 2 else -1]:
                started = time.perf_counter()
                async with pools[name].session() as session:
                    await session.run("1 + 1")
                    measured["", "start of a session, ms"][name].append((time.perf_counter() - started) * 1000)
                    for _ in range(CELLS // STARTS):
                        started = time.perf_counter()
                        await session.run("1 + 1")
                        measured["", "cell `1 + 1`, ms"][name].append((time.perf_counter() - started) * 1000)
    _print(measured, list(pools))


def _print(measured: dict[tuple[str, str], dict[str, list[float]]], names: list[str]) -> None:
    """Print medians, and in brackets the median of the differences to the first column within each round."""
    width = max(len(f"{protocol} {what}") for protocol, what in measured)
    print(f"\n{'':{width}}  " + "  ".join(f"{name:>24}" for name in names))
    for (protocol, what), by_name in measured.items():
        cells = []
        for name in names:
            more = statistics.median(one - first for one, first in zip(by_name[name], by_name[names[0]], strict=True))
            cells.append(f"{statistics.median(by_name[name]):.2f}" + (f" ({more:+.2f})" if name != names[0] else ""))
        print(f"{f'{protocol} {what}'.strip():{width}}  " + "  ".join(f"{cell:>24}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", metavar="CERTIFICATE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    with tempfile.TemporaryDirectory() as folder:
        authority, certificate = make_certificate(Path(folder))
        os.environ["SSL_CERT_FILE"] = str(authority)  # which the proxy trusts
        with subprocess.Popen([sys.executable, __file__, "--serve", certificate], stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout
                port = int(server.stdout.readline())
                asyncio.run(measure_requests(port, authority.read_text(), options.rounds))
                asyncio.run(measure_sessions(port, options.rounds))
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
