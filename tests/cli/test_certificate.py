"""The certificate that `aca-sessions serve --tls` makes."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aca_sessions.cli.certificate import certificate
from aca_sessions.errors import ConfigurationError

from .test_cli import Server


def names_of(cert: Path) -> x509.SubjectAlternativeName:
    return x509.load_pem_x509_certificate(cert.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_certificate_that_does_not_name_the_host_is_made_anew(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "localhost")
    for host, named in (("192.0.2.1", x509.IPAddress(ipaddress.ip_address("192.0.2.1"))), ("one.example", x509.DNSName("one.example"))):
        assert certificate(tmp_path, host) == (cert, key)
        assert named in names_of(cert)


def test_a_certificate_that_names_the_host_is_kept(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "one.example")
    before = cert.read_bytes(), key.read_bytes()
    for host in ("one.example", "localhost", "127.0.0.1"):
        certificate(tmp_path, host)
    assert (cert.read_bytes(), key.read_bytes()) == before


def test_a_certificate_names_all_hosts_that_are_allowed(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path, "0.0.0.0", "one.example")
    certificate(tmp_path, "0.0.0.0", "one.example", "two.example", "192.0.2.1")
    assert {*names_of(cert).get_values_for_type(x509.DNSName)} >= {"localhost", "one.example", "two.example"}
    assert ipaddress.ip_address("192.0.2.1") in names_of(cert).get_values_for_type(x509.IPAddress)


@pytest.mark.slow
@pytest.mark.long
def test_the_certificate_of_serve_names_all_hosts_that_are_allowed(tmp_path: Path) -> None:
    flags = ["--tls", "--tls-dir", str(tmp_path), "--allowed-host", "one.example", "--allowed-host", "192.0.2.1"]
    with Server("--port", "0", *flags):
        assert {*names_of(tmp_path / "cert.pem").get_values_for_type(x509.DNSName)} >= {"localhost", "one.example"}
        assert ipaddress.ip_address("192.0.2.1") in names_of(tmp_path / "cert.pem").get_values_for_type(x509.IPAddress)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    certificate(tmp_path, "localhost")
    (tmp_path / name).write_text("broken")
    with pytest.raises(ConfigurationError, match=f"{tmp_path / name} must be .*: replace it, or delete "):
        certificate(tmp_path, "localhost")
    assert (tmp_path / name).read_text() == "broken"


@pytest.mark.parametrize("password", [b"a password", None], ids=["with a password", "of another certificate"])
def test_a_key_that_cannot_be_used_is_named(tmp_path: Path, password: bytes | None) -> None:
    own = put_own(tmp_path, 9)[1]
    (tmp_path / "key.pem").write_bytes(key_text(own, password) if password else key_text(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(ConfigurationError, match=r"key.pem must be the private key of cert.pem, in PEM format and without a password"):
        certificate(tmp_path, "localhost")


def key_text(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    secrecy = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secrecy)


def put_own(folder: Path, days: float) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """Put a certificate of the user's own into a folder, without a key, and return its text and its key."""
    private, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=*.example")
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key()).serial_number(1)
    end = datetime.now(UTC) + timedelta(days=days)
    signed = builder.not_valid_before(end - timedelta(days=30)).not_valid_after(end).sign(private, hashes.SHA256())
    text = signed.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(text)
    return text, private


@pytest.mark.parametrize(
    ("days", "has_key", "refusal"),
    [(0.5, True, None), (-1, True, "cert.pem ended on "), (9, False, "put its private key into")],
    ids=["ends within a day", "has ended", "has no key"],
)
def test_a_certificate_of_the_users_own_is_never_replaced(tmp_path: Path, days: float, has_key: bool, refusal: str | None) -> None:
    text, private = put_own(tmp_path, days)
    if has_key:
        (tmp_path / "key.pem").write_bytes(key_text(private))
    if refusal is None:
        certificate(tmp_path, "localhost")
    else:
        with pytest.raises(ConfigurationError, match=refusal):
            certificate(tmp_path, "localhost")
    assert (tmp_path / "cert.pem").read_bytes() == text
    assert not has_key or (tmp_path / "key.pem").read_bytes() == key_text(private)
