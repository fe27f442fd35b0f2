"""Test one server behind a real nginx with deploy/nginx-single.conf. Only addresses and paths in it are replaced."""

import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from aca_sessions import Settings, open_interpreter
from aca_sessions.cli.certificate import certificate
from aca_sessions.hosting import Hosting

from ..conftest import ROOT
from .cluster import CONFIGURATION, KEY, NGINX, Member, answers, free_port, needs_nginx

pytestmark = [pytest.mark.slow, needs_nginx]
SINGLE = ROOT / "deploy" / "nginx-single.conf"
NAME = "localhost"  # the example's name has no address here
MINE = {"api-version": "2025-10-02-preview", "identifier": "the-secret"}
CELL = {"codeInputType": "Inline", "executionType": "Synchronous", "code": "6 * 7"}
_FOLDERS = "pid nginx.pid; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;"
_NOBODY = 65534


class Proxy:
    """nginx, as a user without rights, and the server behind it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aca-sessions-proxy-"))
        self.audit = self.folder / "audit.jsonl"
        flags = ["--allowed-host", NAME, "--trusted-proxy", "127.0.0.1", "--audit", str(self.audit)]
        self.member, port = Member(*flags), free_port()
        self.member.start()
        self.member.wait_until_ready()
        self.endpoint = f"https://{NAME}:{port}"
        self.cert, key = certificate(self.folder, NAME)
        text = SINGLE.read_text()
        for example, value in (
            ("443 ssl", f"127.0.0.1:{port} ssl"),
            ("127.0.0.1:8080", f"127.0.0.1:{self.member.port}"),
            ("sessions.example.org", NAME),
            ("/etc/aca-sessions/tls", str(self.folder)),
            ("/var/log/nginx", str(self.folder)),
        ):
            assert example in text
            text = text.replace(example, value)
        (self.folder / "single.conf").write_text(text)
        head, _, folders = _FOLDERS.partition(" client")
        (self.folder / "nginx.conf").write_text(f"{head}\nevents {{}}\nhttp {{ client{folders} include single.conf; }}\n")
        user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        for file in (self.folder, key) if user else ():
            os.chown(file, _NOBODY, _NOBODY)
        command = [str(NGINX), "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-g", "daemon off;"]
        self.process = subprocess.Popen(command, **user)
        while not answers(port):
            assert self.process.poll() is None
            time.sleep(0.02)

    def settings(self, **options: object) -> Settings:
        return Settings(SessionsHttpClient={"Endpoint": self.endpoint, "ApiKey": KEY, **options})


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.member.end()
    made.process.terminate()
    made.process.wait(120)
    shutil.rmtree(made.folder)


@pytest.fixture(autouse=True)
def trusted(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make clients trust the certificate, as users do."""
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.cert))


@pytest.mark.long
async def test_a_session_is_used_over_tls_with_files_up_to_the_servers_limit(proxy: Proxy) -> None:
    most = Hosting().max_upload
    async with open_interpreter(proxy.settings()) as interpreter:
        await interpreter.upload_file("the-secret", "large.bin", b"x" * most)
        result = await interpreter.execute("the-secret", "import os; os.path.getsize('large.bin')")
    assert (result.value, str(result.state)) == (most, "kept")


@pytest.mark.long
def test_a_larger_upload_is_refused_before_it_is_sent(proxy: Proxy) -> None:
    address = urlsplit(proxy.endpoint)
    connection = HTTPSConnection(NAME, address.port, timeout=240, context=ssl.create_default_context(cafile=str(proxy.cert)))
    connection.putrequest("POST", "/files?api-version=2025-10-02-preview&identifier=the-secret")
    connection.putheader("content-length", str(Hosting().max_upload + (1 << 17)))
    connection.endheaders()
    reply = connection.getresponse()
    assert (reply.status, json.load(reply)["error"]["code"]) == (413, "RequestTooLarge")  # by nginx, with its own text
    connection.close()


@pytest.mark.long
def test_the_audit_log_has_the_clients_address_and_not_one_that_the_client_claims(proxy: Proxy) -> None:
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    headers = {"authorization": f"Bearer {KEY}", "x-forwarded-for": "192.0.2.9"}
    with httpx.Client(transport=transport, base_url=proxy.endpoint, params=MINE, headers=headers, timeout=120) as client:
        assert client.post("/executions", json=CELL).json()["result"]["executionResult"] == 42
    cells = [event for line in proxy.audit.read_text().splitlines() if (event := json.loads(line))["event"] == "cell"]
    assert cells[-1]["client"] == "127.0.0.2"


def test_no_log_holds_a_name(proxy: Proxy) -> None:
    httpx.get(f"{proxy.endpoint}/files/the-file.txt", params=MINE, headers={"authorization": f"Bearer {KEY}"}, timeout=120)
    while " GET 404 " not in (proxy.folder / "aca-sessions.log").read_text():
        time.sleep(0.02)  # the line is logged after the answer
    assert "the-" not in "".join(file.read_text() for file in proxy.folder.glob("*.log"))


@pytest.mark.long
async def test_a_cell_waits_while_the_server_is_restarted(proxy: Proxy) -> None:
    proxy.member.end()
    refused = httpx.post(f"{proxy.endpoint}/executions", params=MINE, json=CELL, timeout=120)
    assert (refused.status_code, refused.headers["x-ms-error-code"], refused.headers["retry-after"]) == (503, "ServerUnreachable", "1")
    async with open_interpreter(proxy.settings(PatienceSeconds=300)) as interpreter:
        proxy.member.start()
        result = await interpreter.execute("patient", "6 * 7")
    proxy.member.wait_until_ready()
    assert result.value == 42


def test_both_configurations_have_the_same_limits() -> None:
    names = "proxy_connect_timeout|proxy_read_timeout|proxy_send_timeout|client_body_timeout|send_timeout|large_client_header_buffers"
    several, single = (dict(re.findall(rf"^\s+({names}) (.+?);", file.read_text(), re.MULTILINE)) for file in (CONFIGURATION, SINGLE))
    assert len(single) == len(names.split("|"))
    assert single == several
