"""The certificate authority of the proxy, which speaks TLS with sessions instead of the hosts whose requests it must inspect.

Only sessions trust it. Its keys are in the memory of this process only.
"""

import ipaddress
import os
import ssl
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from ...errors import imports_of

with imports_of("network"):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAYS = 825  # the longest validity that clients accept of a certificate of a private authority
_MOST_HOSTS = 256  # contexts that are cached; making one takes 1 ms
_UNUSED_USAGES = dict.fromkeys(
    ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
)


class Authority:
    """A certificate authority, which issues a certificate for each inspected host. Any thread may use it.

    Attributes:
        pem: The certificate of the authority, for sessions.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """Use `create` instead."""
        self._key = key
        self._certificate = certificate
        # All hosts have one key: separate keys would not be safer, because this process would have all of them.
        self._host_key = ec.generate_private_key(ec.SECP256R1())
        self._host_key_pem = self._host_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._cached_context = lru_cache(_MOST_HOSTS)(self._make_context)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode()

    @classmethod
    def create(cls) -> "Authority":
        """Return a new authority, with new keys."""
        key = ec.generate_private_key(ec.SECP256R1())
        # OpenSSL finds an issuer by its name, so each authority needs a different one.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"aca-sessions {os.urandom(8).hex()}")])
        certificate = (
            _begin(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **_UNUSED_USAGES), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    def context_for(self, host: str) -> ssl.SSLContext:
        """Return the context of a TLS server with a certificate for `host`, which is a name in ASCII or an IP address.

        It offers HTTP/2 and HTTP/1.1. It refuses clients that name another host. They must name the host, unless `host` is an address.
        """
        return self._cached_context(host.lower().removesuffix("."))

    def _make_context(self, host: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["h2", "http/1.1"])
        alternative = _alternative(host)
        is_address = isinstance(alternative, x509.IPAddress)  # clients do not send an address as a name (RFC 6066, 3)

        def check_name(_: ssl.SSLObject, sent: str | None, __: ssl.SSLContext) -> int | None:
            matches = is_address if sent is None else sent.lower().removesuffix(".") == host
            return None if matches else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        context.sni_callback = check_name
        self._load_certificate(context, alternative)
        return context

    def _load_certificate(self, context: ssl.SSLContext, alternative: x509.GeneralName) -> None:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aca-sessions")])
        certificate = (
            _begin(subject, self._certificate.subject, self._host_key.public_key())
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **_UNUSED_USAGES), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._host_key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        # Python's ssl loads keys from files only. This file is in memory, and has no name.
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with open(descriptor, "wb") as file:
            file.write(self._host_key_pem + certificate.public_bytes(serialization.Encoding.PEM))
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def _begin(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    """Return a builder of a certificate, without extensions."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # a session may have another clock
        .not_valid_after(now + timedelta(days=_DAYS))
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        return x509.DNSName(host)
