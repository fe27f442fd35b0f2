"""Create a self-signed certificate for a server, for clients that accept only https. It is stored in a folder, to be used at each start."""

import ipaddress
import logging
import os
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ..errors import ConfigurationError
from ..hosting import log_event

_DAYS = 825  # the longest validity that clients accept of a certificate that no authority signed
_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aca-sessions")])
_logger = logging.getLogger("aca_sessions")
_NAMES = ("localhost", "127.0.0.1", "::1")


def certificate(folder: Path, *hosts: str) -> tuple[Path, Path]:
    """Return the paths of cert.pem and key.pem in a folder. If one is missing, create both, with a self-signed certificate for `hosts`.

    A certificate that this function created is replaced if it expires within a day or lacks one of `hosts`. The user's own certificate is
    never replaced. Raise ConfigurationError if the user's certificate has expired or has no key, or if a file or the folder is unusable.
    """
    cert, key = folder / "cert.pem", folder / "key.pem"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = _read(cert) if cert.exists() else None
        if found is not None and found.subject != _SUBJECT:
            _check_own(found, cert, key)
        elif found is None or not key.exists() or not _is_usable(found, hosts):
            _make(cert, key, {*_NAMES, *hosts})
        _check_key(cert, key)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--tls-dir {folder} cannot be used ({error}): name a folder that can be written") from error
    return cert, key


class ServedCertificate:
    """The certificate of a running server, and its key. They are loaded again when a file has changed."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._stamp = self._read_stamp()
        self.problem: str | None = None  # why the changed files are unusable

    def reload(self, context: ssl.SSLContext) -> None:
        """If a file has changed, use the new certificate for new connections.

        If the new files are unusable, log an error once, and keep the certificate that was loaded before.
        """
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        try:
            found = _read(self._cert)
            _check_own(found, self._cert, self._key)
            _check_key(self._cert, self._key)  # first: a failure of the next line would leave `context` without a key
            context.load_cert_chain(self._cert, self._key, password="")
        except (OSError, ConfigurationError) as error:
            if str(error) != self.problem:  # once, and not every time
                self.problem = str(error)
                _logger.error("%s. Until then the certificate that was loaded before is used", error)
            return
        self._stamp, self.problem = stamp, None
        log_event("certificate_read", ends=f"{found.not_valid_after_utc:%Y-%m-%d}")

    def _read_stamp(self) -> list[tuple[int, ...]]:
        """Return inode, size and times of the files that exist. If they have changed, a file has changed."""
        found = [file.stat() for file in (self._cert, self._key) if file.exists()]
        return [(one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found]


def is_self_signed(cert: Path) -> bool:
    """Return whether a certificate is self-signed. Clients trust such a certificate only if its file is given to them."""
    found = x509.load_pem_x509_certificate(cert.read_bytes())
    return found.issuer == found.subject


def _read(cert: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(cert.read_bytes())
    except ValueError as error:
        raise ConfigurationError(
            f"--tls-dir: {cert} must be a certificate in PEM format: replace it, or delete it to get a new one"
        ) from error


def _check_key(cert: Path, key: Path) -> None:
    key.read_bytes()  # raises an OSError that names the file
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")  # never asks for one at the terminal
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"--tls-dir: {key} must be the private key of {cert.name}, in PEM format and without a password: replace it, or delete both "
            "files to get new ones"
        ) from error


def _check_own(found: x509.Certificate, cert: Path, key: Path) -> None:
    # It is not compared with the host: it may have a wildcard, or the name of a proxy.
    if not key.exists():
        raise ConfigurationError(f"--tls-dir: {cert} has no key beside it: put its private key into {key}")
    if found.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigurationError(f"--tls-dir: {cert} ended on {found.not_valid_after_utc:%Y-%m-%d}: replace it and {key.name}")


def _is_usable(found: x509.Certificate, hosts: Iterable[str]) -> bool:
    if found.not_valid_after_utc <= datetime.now(UTC) + timedelta(days=1):
        return False
    named = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return all(_alternative(host) in named for host in hosts)


def _make(cert: Path, key: Path, names: set[str]) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(_SUBJECT)
        .issuer_name(_SUBJECT)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in sorted(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secret)
    cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
