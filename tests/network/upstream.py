"""A web server of this machine that sessions reach by rules: with TLS by an authority of the tests, and a record of what it received."""

import datetime
import http.server
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ("api.site.test", "other.site.test", "files.test", "localhost")


@dataclass
class Received:
    """A request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        """Return all values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class Upstream:
    """The server: its port, the file with the authority that its certificate is from, and what it received."""

    port: int
    authority: Path
    requests: list[Received] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)  # that clients asked for by SNI


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def _answer(self) -> None:
        body = self._read_body()
        self.server.upstream.requests.append(Received(self.command, self.path, [*self.headers.items()], body))
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match parts.path.rpartition("/")[2]:
            case "big":
                self._send(200, size=int(query["size"]))
            case "endless":
                self._send_endless()
            case "redirect":
                self._send(302, headers={"Location": query["to"]})
            case "echo":  # everything that it got, as some debugging endpoints do
                got = json.dumps({"headers": [*self.headers.items()], "body": body.decode("latin-1")}).encode()
                self._send(200, got, headers={"X-Echo": self.headers.get("Authorization", "none"), "Content-Type": "application/json"})
            case "chunked":
                self._send_chunked(int(query["size"]))
            case _:
                self._send(200, f"{self.command} {self.path}".encode())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_PROPFIND = _answer

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: bytes = b"", *, size: int | None = None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            for start in range(0, size or 0, 1 << 20):
                self.wfile.write(b"x" * min(1 << 20, (size or 0) - start))

    def _send_chunked(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, size, 100_000):
            part = b"y" * min(100_000, size - start)
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send_endless(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        part = b"e" * 65536
        try:
            while True:
                self.wfile.write(b"10000\r\n" + part + b"\r\n")
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    upstream: Upstream

    def handle_error(self, *_: object) -> None:
        """Print nothing: clients of the tests go away in the middle."""


@contextmanager
def upstream(folder: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool = True) -> Iterator[Upstream]:
    """Run a server for NAMES on this machine's loopback, and let this process trust its authority and look up its names.

    A public name that leads to loopback exists on no machine of the tests, so this process's look-ups are replaced for NAMES.
    """
    authority, certificate = _make_certificates(folder)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.upstream = Upstream(server.server_port, authority)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _socket, name, _context: server.upstream.names.append(name)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    _look_up_here(monkeypatch)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # seconds until it notices its end
    try:
        yield server.upstream
    finally:
        server.shutdown()
        server.server_close()


def _look_up_here(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: object, port: object, *arguments: object, **options: object) -> object:
        return real("127.0.0.1" if host in NAMES else host, port, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def _make_certificates(folder: Path) -> tuple[Path, Path]:
    """Make an authority and a certificate for NAMES. Return the file of the authority, and the one of the certificate with its key."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority of the tests", NAMES[0])]

    def sign(number: int, extension: x509.ExtensionType, *, is_authority: bool) -> bytes:
        builder = x509.CertificateBuilder(names[0], names[number], keys[number].public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True).add_extension(extension, critical=False)
        if is_authority:  # without these, Python 3.13 trusts no certificate
            usages = {"key_cert_sign": True, "crl_sign": True, "digital_signature": False}
            others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
            builder = builder.add_extension(x509.KeyUsage(**usages, **dict.fromkeys(others, False)), critical=True)
        else:
            builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        return builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, certificate = folder / "authority.pem", folder / "server.pem"
    authority.write_bytes(sign(0, x509.SubjectKeyIdentifier.from_public_key(keys[0].public_key()), is_authority=True))
    alternative = x509.SubjectAlternativeName([*(x509.DNSName(name) for name in NAMES), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    key = keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate.write_bytes(sign(1, alternative, is_authority=False) + key)
    return authority, certificate
