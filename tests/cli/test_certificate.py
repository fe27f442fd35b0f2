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


def put_own(folder: Path, days: float) -> bytes:
    """Put a certificate of the user's own into a folder, without a key, and return its text."""
    private, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=*.example")
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key()).serial_number(1)
    end = datetime.now(UTC) + timedelta(days=days)
    signed = builder.not_valid_before(end - timedelta(days=30)).not_valid_after(end).sign(private, hashes.SHA256())
    text = signed.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(text)
    return text


@pytest.mark.parametrize(
    ("days", "key", "refusal"),
    [(0.5, "the key", None), (-1, "the key", "cert.pem ended on "), (9, None, "put its private key into")],
    ids=["ends within a day", "has ended", "has no key"],
)
def test_a_certificate_of_the_users_own_is_never_replaced(tmp_path: Path, days: float, key: str | None, refusal: str | None) -> None:
    text = put_own(tmp_path, days)
    if key is not None:
        (tmp_path / "key.pem").write_text(key)
    if refusal is None:
        certificate(tmp_path, "localhost")
    else:
        with pytest.raises(ConfigurationError, match=refusal):
            certificate(tmp_path, "localhost")
    assert (tmp_path / "cert.pem").read_bytes() == text
    assert key is None or (tmp_path / "key.pem").read_text() == key
