"""Test that a server reads changed keys and certificates while it runs, and what it reports to systemd."""

import json
import os
import pty
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from ..cli.test_certificate import key_text, put_own
from ..cli.test_cli import Server
from ..conftest import COMMAND

pytestmark = pytest.mark.slow


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text("the-first\n")
    return file


def replace(file: Path, text: bytes) -> None:
    other = file.with_suffix(".new")
    other.touch(0o600)
    other.write_bytes(text)
    other.rename(file)


def events_of(server: Server) -> Callable[..., dict[str, object]]:
    """Return a function that reads the server's log up to an event with the given fields, and returns the event."""
    return lambda **fields: next(line for line in map(json.loads, server.process.stderr) if fields.items() <= line.items())


def test_a_hangup_reads_the_keys_at_once_and_ends_no_session(keys: Path) -> None:
    mine = {"api-version": "2025-10-02-preview", "identifier": "mine"}
    cell = {"codeInputType": "Inline", "executionType": "Synchronous", "code": "x = globals().get('x', 41) + 1; x"}
    with Server("--port", "0", "--log-format", "json", "--api-key-file", str(keys)) as server:
        event = events_of(server)
        with httpx.Client(base_url=server.endpoint, params=mine, timeout=120) as client:
            values = []
            for key in ("the-first", "the-second"):
                replace(keys, f"{key}\n".encode())
                server.process.send_signal(signal.SIGHUP)
                assert event(event="reloaded")["keys"] == 1
                answer = client.post("/executions", json=cell, headers={"authorization": f"Bearer {key}"})
                values.append(answer.json()["result"]["executionResult"])
        keys.unlink()
        server.process.send_signal(signal.SIGHUP)
        assert "cannot be read" in str(event(event="reloaded")["problem"])
    assert values == [42, 43]
    assert server.process.returncode == 0


@pytest.mark.long
async def test_an_unusable_key_file_is_counted_and_logged_without_a_request(keys: Path) -> None:
    flags = ["--log-format", "json", "--api-key-file", str(keys), "--metrics", "--metrics-key", "scrape"]

    def unusable() -> str:
        text = httpx.get(f"{server.endpoint}/metrics", headers={"authorization": "Bearer scrape"}).text
        return next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("aca_sessions_server_key_file_unusable{"))

    with Server("--port", "0", *flags) as server:
        server.process.stderr.readline()  # of the key in the command line
        event = events_of(server)
        assert unusable() == "0.0"
        replace(keys, b"")
        assert "must hold a key, and is empty" in str(event(level="ERROR")["message"])
        assert unusable() == "1.0"
        replace(keys, b"the-second\nthe-third\n")
        assert event(event="keys_read")["keys"] == 2
        assert unusable() == "0.0"


@pytest.mark.long
async def test_a_renewed_certificate_is_used_for_new_connections(tmp_path: Path) -> None:
    _, private = put_own(tmp_path, 9)
    (tmp_path / "key.pem").write_bytes(key_text(private))

    def days_left() -> str:
        host, port = server.endpoint.removeprefix("https://").split(":")
        return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).not_valid_after_utc.isoformat()

    with Server("--port", "0", "--log-format", "json", "--tls", "--tls-dir", str(tmp_path)) as server:
        event = events_of(server)
        first = days_left()
        _, renewed = put_own(tmp_path, 90)
        assert "must be the private key of cert.pem" in str(event(level="ERROR")["message"])  # the key follows
        assert days_left() == first
        (tmp_path / "key.pem").write_bytes(key_text(renewed))
        server.process.send_signal(signal.SIGHUP)
        event(event="certificate_read")
        assert days_left() > first
        _, renewed = put_own(tmp_path, 300)
        (tmp_path / "key.pem").write_bytes(key_text(renewed))
        event(event="certificate_read")  # without a signal


@pytest.mark.long
async def test_systemd_is_notified_when_the_server_listens_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(120)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with Server("--port", "0", "--api-key", "key") as server:
            assert systemd.recv(100) == b"READY=1"
            assert httpx.get(f"{server.endpoint}/livez").status_code == 200
        assert systemd.recv(100) == b"STOPPING=1"


@pytest.mark.long
async def test_a_server_ends_with_its_terminal() -> None:
    terminal, side = pty.openpty()
    command = [*COMMAND, "serve", "--port", "0"]
    with subprocess.Popen(command, stdin=side, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("Endpoint: ")
        process.send_signal(signal.SIGHUP)
        assert next(line for line in process.stderr if " reloaded " in line)
        os.close(side)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 0


@pytest.mark.long
async def test_a_server_for_mcp_reads_its_keys_at_a_hangup(keys: Path) -> None:
    command = [*COMMAND, "mcp", "--http", "--port", "0", "--log-format", "json", "--api-key-file", str(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()  # the event `started`
        replace(keys, b"the-second\nthe-third\n")
        process.send_signal(signal.SIGHUP)
        logged = [json.loads(process.stderr.readline()) for _ in range(2)]
        process.terminate()
    assert [(line["event"], line["keys"]) for line in logged] == [("keys_read", 2), ("reloaded", 2)]
    assert process.returncode == 0
