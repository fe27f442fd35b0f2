"""Attack the logs and metrics of operators: no name and no content of a session is in them, and no session writes into them."""

import contextlib
import json
import os
import stat
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from aca_sessions import Policy, open_server
from aca_sessions.hosting import Hosting

from ..conftest import COMMAND, descendants, mostly_long

pytestmark = pytest.mark.slow

SECRETS = ("the-secret", "hunter2", "payroll", "wage", "the-callers-key", "the-scrapers-key")
FORGED = '{"event":"forged"}'


def numbers() -> bytes:
    from prometheus_client import REGISTRY, generate_latest

    return generate_latest(REGISTRY)


@pytest.fixture(scope="module", autouse=True)
def _collected() -> None:
    """Collect metrics in this process, as `serve --metrics` does."""
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider

    from aca_sessions.cli.serving import prometheus

    if not isinstance(metrics.get_meter_provider(), MeterProvider):
        prometheus()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
async def client(file: Path, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    audit = getattr(request, "param", {"audit": str(file)})
    hosting = Hosting(**({"audit": str(file)} | audit), api_key="the-callers-key", metrics=numbers, metrics_key="the-scrapers-key")
    params, headers = {"api-version": "2025-10-02-preview", "identifier": "the-secret"}, {"authorization": "Bearer the-callers-key"}
    async with open_server(policy=Policy(preload=(), spares=0), hosting=hosting) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", params=params, headers=headers) as opened:
            yield opened


async def execute(client: httpx.AsyncClient, code: str) -> httpx.Response:
    return await client.post("/executions", json={"codeInputType": "Inline", "executionType": "Synchronous", "code": code})


async def test_names_and_contents_are_in_no_audit_log_and_no_metric(client: httpx.AsyncClient, file: Path) -> None:
    """Of a session's name the audit log holds a hash and the numbers nothing; of its code, output and files both hold sizes alone."""
    await client.post("/files", files={"file": ("payroll.txt", b"wage 1")})
    assert (await execute(client, "password = 'hunter2'; print(password); open('payroll.txt').read()")).status_code == 200
    await execute(client, "raise ValueError('hunter2')")
    await client.get("/files/payroll.txt/content")
    await client.get("/files/payroll-2.txt")
    told = file.read_text() + (await client.get("/metrics")).text
    assert "aca_sessions_server_execution_duration" in told
    assert '"event":"download"' in told
    assert [secret for secret in SECRETS if secret in told] == []


@pytest.mark.parametrize("client", [{"audit_code": True}], indirect=True)
async def test_a_cell_forges_no_line_of_the_audit_log(client: httpx.AsyncClient, file: Path) -> None:
    """Whatever a cell holds and prints, and whatever a request names, one event is one line of the audit log."""
    await execute(client, f"print('''\n{FORGED}\n''')\n{FORGED}\n#\x0b\x85\u2028{FORGED}\ud800".encode("utf-8", "replace").decode())
    await execute(client, f"raise type('''KeyboardInterrupt\n{FORGED}''', (Exception,), {{}})")
    await client.get("/session", params={"identifier": f"x\n{FORGED}"})
    await client.get("/files/%7B%22event%22%3A%22forged%22%7D")
    lines = [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
    assert [line["event"] for line in lines] == ["session_begun", "cell", "cell", "refusal", "refusal"]


async def test_clients_without_a_key_read_no_metric_and_fill_no_disk(client: httpx.AsyncClient, file: Path) -> None:
    """Who has no key reads no number and adds few lines to the audit log; the key of the numbers opens nothing else."""
    scraper = {"authorization": "Bearer the-scrapers-key"}
    for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "Bearer "}):
        assert (await client.get("/metrics", headers={"authorization": "", **headers})).status_code == 401
    assert (await client.get("/metrics", headers=scraper)).status_code == 200
    for path in ("/listSessions", "/session", "/files", "/metrics/", "/metrics/../files", "/mcp"):
        assert (await client.get(path, headers=scraper)).status_code == 401, path
    before, began = len(file.read_text().splitlines()), time.monotonic()
    for _ in range(300):
        await client.get("/files", headers={"authorization": "Bearer other"})
    added = len(file.read_text().splitlines()) - before
    assert added <= 20 * (int(time.monotonic() - began) + 2)


@pytest.mark.parametrize("client", [{"audit": "/dev/full"}], indirect=True)
async def test_a_full_disk_stops_no_session(client: httpx.AsyncClient) -> None:
    """Where the audit log's disk is full sessions go on, and the server's log and its numbers say that events are lost."""
    before = lost((await client.get("/metrics")).text)
    assert (await execute(client, "6 * 7")).json()["status"] == "Succeeded"
    assert lost((await client.get("/metrics")).text) >= before + 2


def lost(numbers: str) -> float:
    (line,) = [line for line in numbers.splitlines() if line.startswith("aca_sessions_server_audit_lost_total")]
    return float(line.split()[-1])


@pytest.mark.parametrize("command", mostly_long([["serve"], ["serve", "--metrics"], ["mcp", "--http"]], ["serve", "--metrics"]))
@pytest.mark.parametrize("way", mostly_long(["file", "environment", "option", "option="], "option"))
@pytest.mark.long
def test_the_key_is_in_no_command_line(command: list[str], way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a server can be reached, its key is in no command line, however it was given, and only its user reads its variables."""
    (tmp_path / "key").write_text("the-callers-key\n")
    options = {
        "file": ["--api-key-file", str(tmp_path / "key")],
        "option": ["--api-key", "the-callers-key"],
        "option=": ["--api-key=the-callers-key"],
    }
    given = options.get(way, [])
    if way == "environment":
        monkeypatch.setenv("ACA_SESSIONS_API_KEY", "the-callers-key")
    if "--metrics" in command:
        given = [*given, "--metrics-key", "the-scrapers-key"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, *command, "--port", "0", *given], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            endpoint = process.stdout.readline().removeprefix("Endpoint: ").strip()
            assert process.stdout.readline() == "ApiKey: (as given)\n"
            for pid in (process.pid, *descendants(process.pid)):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    assert b"the-callers-key" not in line
                    assert b"the-scrapers-key" not in line
            assert stat.S_IMODE(os.stat(f"/proc/{process.pid}/environ").st_mode) == 0o400
            url = endpoint if "mcp" in command else f"{endpoint}/files?api-version=2025-10-02-preview&identifier=a"
            codes = [
                httpx.get(url, headers={"authorization": f"Bearer {key}"}).status_code
                for key in ("the-callers-key", "the-scrapers-key", "x")
            ]
            assert (codes[0] == 401, codes[1:]) == (False, [401, 401])
        finally:
            process.terminate()
            _, said = process.communicate()
    assert ("other users of this machine could read the key" in said) == ("option" in way or "--metrics" in command)
    assert ("use $ACA_SESSIONS_API_KEY or --api-key-file in place of --api-key" in said) == ("option" in way)
    assert ("$ACA_SESSIONS_METRICS_KEY in place of --metrics-key" in said) == ("--metrics" in command)
    assert "the-callers-key" not in said
