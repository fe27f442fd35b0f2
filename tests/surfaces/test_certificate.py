"""The certificate that `aca-sessions serve --tls` makes."""

import ipaddress
from pathlib import Path

from cryptography import x509

from aca_sessions.surfaces.certificate import certificate


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
