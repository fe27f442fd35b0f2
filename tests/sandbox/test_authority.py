"""Test the certificates with which the proxy stands for inspected hosts."""

import contextlib
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from aca_sessions.sandbox.proxy.authority import Authority

HOSTS = ["api.example.org", "a.b.c.example.org", "with_underscore.example.org", "x" * 63 + ".example.org", "93.184.215.14", "2001:db8::1"]


def shake_hands(context: ssl.SSLContext, trusted: str, name: str | None, *, protocols: tuple[str, ...] = ("h2",)) -> ssl.SSLObject:
    """Let a client that trusts `trusted` connect to the server of a context, by the name `name`. Return the client's end."""
    strict = ssl.create_default_context(cadata=trusted)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 and newer have it
    strict.check_hostname = name is not None
    strict.set_alpn_protocols(list(protocols))
    to_client, to_server, from_client, from_server = (ssl.MemoryBIO() for _ in range(4))
    client = strict.wrap_bio(to_client, from_client, server_hostname=name)
    server = context.wrap_bio(to_server, from_server, server_side=True)
    for _ in range(3):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        to_server.write(from_client.read())
        with contextlib.suppress(ssl.SSLError):  # the client gets an alert
            server.do_handshake()
        to_client.write(from_server.read())
    return client


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.mark.parametrize("host", HOSTS)
def test_a_certificate_is_accepted_by_a_strict_client(authority: Authority, host: str) -> None:
    client = shake_hands(authority.context_for(host), authority.pem, host)
    assert (client.selected_alpn_protocol(), client.version()) == ("h2", "TLSv1.3")


@pytest.mark.parametrize("host", HOSTS)
def test_openssl_accepts_a_certificate(authority: Authority, host: str, tmp_path: Path) -> None:
    client = shake_hands(authority.context_for(host), authority.pem, host)
    leaf = client.getpeercert(binary_form=True)
    assert leaf is not None
    (tmp_path / "leaf.pem").write_text(ssl.DER_cert_to_PEM_cert(leaf))
    (tmp_path / "authority.pem").write_text(authority.pem)
    kind = "-verify_ip" if host in HOSTS[-2:] else "-verify_hostname"
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", kind, host, "-CAfile", "authority.pem", "leaf.pem"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout == "leaf.pem: OK\n"


def test_a_client_may_write_a_name_in_capitals_and_with_a_dot(authority: Authority) -> None:
    context = authority.context_for("api.example.org")
    assert authority.context_for("API.example.org.") is context
    assert shake_hands(context, authority.pem, "API.Example.ORG").version() == "TLSv1.3"


def test_a_client_without_http_2_gets_http_1(authority: Authority) -> None:
    context = authority.context_for("api.example.org")
    assert shake_hands(context, authority.pem, "api.example.org", protocols=("http/1.1",)).selected_alpn_protocol() == "http/1.1"
    assert shake_hands(context, authority.pem, "api.example.org", protocols=()).selected_alpn_protocol() is None


@pytest.mark.parametrize("name", ["other.example.org", "example.org", "a.api.example.org", None])
def test_a_client_that_names_another_host_or_none_is_refused(authority: Authority, name: str | None) -> None:
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        shake_hands(authority.context_for("api.example.org"), authority.pem, name)


def test_a_certificate_of_another_authority_is_not_accepted(authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(Authority.create().context_for("api.example.org"), authority.pem, "api.example.org")


def test_contexts_are_kept_for_a_bounded_number_of_hosts(authority: Authority) -> None:
    first = authority.context_for("0.many.example.org")
    assert authority.context_for("0.many.example.org") is first
    for number in range(1, 400):
        authority.context_for(f"{number}.many.example.org")
    assert authority.context_for("0.many.example.org") is not first
    assert not [link for link in map(_target, os.listdir("/proc/self/fd")) if "certificate" in link], "no key is left in an open file"


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:  # that of the listing itself
        return ""


def test_what_is_missing_is_named_with_the_line_that_installs_it() -> None:
    code = "import sys; sys.modules['cryptography'] = None; import aca_sessions.sandbox.proxy.authority"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cryptography is not installed: pip install 'aca-sessions-core[network]'" in ended.stderr
