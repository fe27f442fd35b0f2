"""Test what a caller gets from an endpoint whose certificate is refused."""

import asyncio
import contextlib
import ipaddress
import os
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aca_sessions import InteractiveSession, Settings, open_interpreter
from aca_sessions.cli import endpoints
from aca_sessions.client.http import MAY_SPEAK_TLS
from aca_sessions.errors import CertificateError, ConfigurationError, ServiceUnavailableError

from ..cli.test_cli import Server
from ..conftest import COMMAND

NOW = datetime.now(UTC)


def write_certificate(
    folder: Path, *, begins: datetime = NOW - timedelta(days=2), days: float = 9, host: str = "127.0.0.1", names: tuple[str, ...] = ()
) -> Path:
    """Write a self-signed certificate and its key as one PEM file."""
    private, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=a server")
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host)), *map(x509.DNSName, names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    path = folder / "server.pem"
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
    return path


Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


@contextlib.asynccontextmanager
async def listening(accept: Accept, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Yield the https endpoint of a port on loopback, whatever the port speaks."""
    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def tls(certificate: Path) -> contextlib.AbstractAsyncContextManager[str]:
    """Serve TLS with a certificate, and nothing behind it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return listening(lambda _reader, writer: writer.close(), context)


def settings_for(endpoint: str) -> Settings:
    return Settings(SessionsHttpClient={"Endpoint": endpoint, "ApiKey": "the-secret-key", "PatienceSeconds": 1})


async def refusal(endpoint: str) -> ServiceUnavailableError:
    async with open_interpreter(settings_for(endpoint)) as interpreter:
        with pytest.raises(ServiceUnavailableError) as refused:
            await interpreter.execute("one", "1")
    assert not refused.value.sent
    assert "the-secret-key" not in str(refused.value)
    return refused.value


async def test_a_certificate_that_is_not_trusted_is_reported_with_the_line_that_trusts_it(tmp_path: Path) -> None:
    async with tls(write_certificate(tmp_path)) as endpoint:
        error = await refusal(endpoint)
    assert isinstance(error, CertificateError)
    assert str(error).startswith(
        f"the certificate of {endpoint.removeprefix('https://')} was refused: this machine does not trust it (self"
    )
    assert str(error).endswith("SSL_CERT_FILE=/path/to/cert.pem")


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"days": 1}, "it has expired. Renew it at the server"),
        ({"begins": NOW + timedelta(days=1)}, "it is not valid yet. Compare the clocks"),
        ({"host": "192.0.2.1"}, "it does not name 127.0.0.1. Use a name that it has"),
    ],
    ids=["expired", "not yet valid", "another host"],
)
async def test_a_trusted_certificate_that_does_not_fit_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: dict[str, object], told: str
) -> None:
    certificate = write_certificate(tmp_path, **made)  # type: ignore[arg-type]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with tls(certificate) as endpoint:
        error = await refusal(endpoint)
    assert isinstance(error, CertificateError)
    assert told in str(error)


async def test_an_endpoint_without_tls_is_told_from_one_that_cannot_be_reached() -> None:
    async with listening(_answer_in_plain) as endpoint:
        error = await refusal(endpoint)
    assert not isinstance(error, CertificateError)
    assert f"{endpoint.removeprefix('https://')} does not answer with TLS: if its server runs without --tls" in str(error)


async def test_an_http_endpoint_that_speaks_tls_is_asked_about_https(tmp_path: Path) -> None:
    async with (
        tls(write_certificate(tmp_path)) as endpoint,
        open_interpreter(settings_for(endpoint.replace("https", "http"))) as interpreter,
    ):
        with pytest.raises(ServiceUnavailableError, match=re.escape(f"try again. {MAY_SPEAK_TLS}")):
            await interpreter.list_sessions()
        result = await interpreter.execute("one", "1")
    assert str(result.error).startswith("ConnectionError: the answer was lost")
    assert str(result.error).endswith(f". {MAY_SPEAK_TLS}")


@pytest.mark.long
async def test_a_server_that_has_answered_before_it_loses_an_answer_is_not_asked_about_https() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readline()).startswith(b"GET /listSessions?"):
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{"sessions": []}')
        writer.close()

    async with listening(accept) as endpoint, open_interpreter(settings_for(endpoint.replace("https", "http"))) as interpreter:
        await interpreter.list_sessions()
        result = await interpreter.execute("one", "1")
    assert str(result.error).endswith("before you run it again")


async def test_doctor_reports_a_refused_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with tls(write_certificate(tmp_path)) as endpoint:
        assert not await endpoints.check(settings_for(endpoint))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("NO  reach           the certificate of 127.0.0.1:")
    assert "SSL_CERT_FILE=" in line


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "not PEM"])
async def test_a_file_of_certificates_that_cannot_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE is '.*cert.pem', which cannot be read as certificates"):
        async with open_interpreter(settings_for("https://127.0.0.1:1")):
            pass


@pytest.mark.long
def test_the_file_of_serve_tls_in_ssl_cert_file_makes_its_endpoint_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server("--port", "0", "--api-key", "key", "--tls", "--tls-dir", str(tmp_path)) as server:
        settings = Settings(SessionsHttpClient={"Endpoint": server.endpoint, "ApiKey": "key"})
        with InteractiveSession(settings) as session, pytest.raises(CertificateError, match="does not trust it"):
            session.run("1")
        command = [*COMMAND, "doctor", "--endpoint", server.endpoint]
        refused = subprocess.run(
            command, env={**os.environ, "ACASessions__SessionsHttpClient__ApiKey": "key"}, capture_output=True, text=True, timeout=240
        )
        assert refused.returncode == 1
        assert "does not trust it" in refused.stdout
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        with InteractiveSession(settings) as session:
            assert session.run("6 * 7").value == 42


def _answer_in_plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    writer.close()
