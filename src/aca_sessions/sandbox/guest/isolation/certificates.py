"""Make a session trust the certificate authority of its proxy, in addition to the authorities in its root file system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ... import syscalls
from ...syscalls import Mount
from ..folders import AUTHORITY, BUNDLE, CERTIFICATES

_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, Red Hat
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_PACKAGE_BUNDLES = ("certifi/cacert.pem", "pip/_vendor/certifi/cacert.pem")
_FLAGS = Mount.NO_SUID | Mount.NO_DEVICES | Mount.NO_EXEC


def mount_bundle(authority: str) -> None:
    """Add `authority`, a certificate in PEM format, to every bundle of authorities in this mount namespace.

    The bundles are those of the system, of OpenSSL, and of certifi in the Python environment. All get the same content: that of the first
    one, and `authority`. Sessions cannot write to them.
    """
    bundles = _find_bundles()
    trusted = Path(bundles[0]).read_bytes() if bundles else b""
    syscalls.mount("tmpfs", CERTIFICATES, "tmpfs", _FLAGS, "size=16m,nr_inodes=16,mode=755")
    Path(BUNDLE).write_bytes(trusted.rstrip() + b"\n" + authority.encode())
    Path(AUTHORITY).write_text(authority)
    syscalls.mount(None, CERTIFICATES, None, Mount.REMOUNT | Mount.BIND | Mount.READ_ONLY | _FLAGS)
    for bundle in bundles:
        syscalls.mount(BUNDLE, bundle, None, Mount.BIND)


def _find_bundles() -> list[str]:
    """Return the paths of the bundles, with links resolved."""
    paths = [*_SYSTEM_BUNDLES, *_find_default_bundle(), *(f"{folder}/{name}" for folder in sys.path for name in _PACKAGE_BUNDLES)]
    found = dict.fromkeys(map(os.path.realpath, paths))
    return [path for path in found if os.path.isfile(path) and os.path.getsize(path)]


def _find_default_bundle() -> list[str]:
    try:
        import ssl
    except ImportError:  # the Python of a container image may lack it
        return []
    return [ssl.get_default_verify_paths().openssl_cafile]
