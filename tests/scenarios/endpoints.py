"""Endpoints for the scenarios: the same sessions in process, over TCP with TLS, without extensions, and Azure itself."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aca_sessions import Settings

from ..cli.test_cli import Server
from ..wheels import make_wheel

LIVE = os.environ.get("ACA_TEST_ENDPOINT")
NAMES = ["embedded", pytest.param("tls", marks=pytest.mark.long), "plain", *(["azure"] if LIVE else [])]
_FLAGS = {"tls": ("--tls",), "plain": ("--plain",)}


@contextmanager
def settings_of(name: str, folder: Path) -> Iterator[Settings]:
    """Yield the settings of an endpoint while it runs."""
    if name == "azure":
        yield Settings(Endpoint=LIVE)
        return
    make_wheel(folder / "wheels", "humanize", files={"humanize.py": "def intcomma(number): return f'{number:,}'"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACASessions__Packages__WheelFolder", str(folder / "wheels"))
        yield from _own(name, folder)


def _own(name: str, folder: Path) -> Iterator[Settings]:
    if name == "embedded":
        yield Settings(Packages={"WheelFolder": str(folder / "wheels")})
    else:
        flags = [*_FLAGS[name], *(("--tls-dir", str(folder)) if name == "tls" else ())]
        with Server("--port", "0", "--api-key", "key", *flags) as server:
            yield Settings(Endpoint=server.endpoint, ApiKey="key")


@contextmanager
def trusted(certificate: Path) -> Iterator[None]:
    """Trust a self-signed certificate by the environment, as any client can."""
    with pytest.MonkeyPatch.context() as patch:
        if certificate.exists():
            assert ssl.create_default_context(cafile=str(certificate))
            patch.setenv("SSL_CERT_FILE", str(certificate))
        yield
