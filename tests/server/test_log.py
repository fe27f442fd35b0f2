"""Test the log of a server: its events, its formats, and that callers without a key cannot fill it."""

import json
import logging
import re
import shlex
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from aca_sessions.cli.logs import JsonLines, TimedLines
from aca_sessions.contract.records import ProblemError
from aca_sessions.hosting import EVENTS, log_event
from aca_sessions.server.guard import RefusalLog, Throttle

from ..cli.test_cli import Server
from ..conftest import COMMAND, LIGHT

MINE = {"api-version": "2025-10-02-preview", "identifier": "the-session"}
CELL = {"codeInputType": "Inline", "executionType": "Synchronous", "code": "x = globals().get('x', 41) + 1; x"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.long
@pytest.mark.slow
def test_a_server_logs_its_start_refusals_new_keys_drain_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, audit = tmp_path / "keys", tmp_path / "audit"
    keys.touch(0o600)
    keys.write_text("the-first\n")
    flags = ["--log-format", "json", "--api-key-file", str(keys), "--audit", str(audit), "--tls", "--tls-dir", str(tmp_path / "a b")]
    with Server("--port", "0", "--drain-seconds", "600", "--max-sessions", "7", *flags) as server:
        started = json.loads(server.process.stderr.readline())
        printed = [server.process.stdout.readline().strip() for _ in range(3)]
        name, _, file = shlex.split(printed[2].partition(": export ")[2])[0].partition("=")
        monkeypatch.setenv(name, file)  # as a user does who pastes the line
        with httpx.Client(base_url=server.endpoint, params=MINE, timeout=120) as client:
            first = client.post("/executions", json=CELL, headers=bearer("the-first"))
            keys.write_text("the-second\nthe-third\n")
            second = client.post("/executions", json=CELL, headers=bearer("the-third"))
            refused = [client.get("/files", headers=bearer("the-first")) for _ in range(30)]
            server.process.send_signal(signal.SIGTERM)
            draining = json.loads([server.process.stderr.readline() for _ in range(12)][-1])
            live, ready = client.get("/livez"), client.get("/readyz")
            client.delete("/session", headers=bearer("the-second"))
        assert server.process.wait(120) == 0
    rest = server.rest[1].splitlines()
    assert printed[:2] == ["ApiKey: (as given)", f"Certificate: {tmp_path / 'a b' / 'cert.pem'}"]
    assert (started["event"], started["endpoint"], started["sessions"], started["drain_seconds"]) == ("started", server.endpoint, 7, 600)
    assert started["isolation"].startswith("full")
    assert started["keys"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", started["time"])
    assert [answer.json()["result"]["executionResult"] for answer in (first, second)] == [42, 43]  # the session lives on
    assert {answer.status_code for answer in refused} == {401}
    assert (draining["event"], draining["sessions"], draining["seconds"]) == ("draining", 1, 600)
    assert (live.status_code, ready.status_code, ready.json()) == (200, 503, {"status": "draining"})
    assert [json.loads(line)["event"] for line in rest] == ["stopping", "refused", "stopped"]
    assert json.loads(rest[1])["left_out_before"] == 20
    assert "the-" not in server.rest[1]
    used = [json.loads(line) for line in audit.read_text().splitlines()]
    cells = [event["key"] for event in used if event["event"] == "cell"]
    assert len({*cells, None}) == 3
    assert {event["client"] for event in used if event["event"] in ("cell", "refusal")} == {"127.0.0.1"}


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sessions of servers light."""
    for name, value in LIGHT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_the_start_names_the_bound_address_and_warns_of_plain_http_and_of_too_many_sessions() -> None:
    with Server("--host", "0.0.0.0", "--port", "0", "--log-format", "json", before="ulimit -n 256;") as server:
        first, started, second = (json.loads(server.process.stderr.readline()) for _ in range(3))
    assert server.endpoint.startswith("http://127.0.0.1:")
    address = server.endpoint.replace("http://127.0.0.1", "0.0.0.0")
    assert (started["event"], started["address"]) == ("started", address)
    assert first["message"].startswith(f"without TLS at {address}, everyone on the network between")
    assert re.match(r"--max-sessions is 100, but only \d\d sessions fit on this machine: descriptors for \d\d \(", second["message"])


@pytest.mark.slow
@pytest.mark.usefixtures("light")
@pytest.mark.long
def test_a_server_for_mcp_names_its_address_and_warns_of_plain_http() -> None:
    command = [*COMMAND, "mcp", "--http", "--host", "0.0.0.0", "--port", "0", "--log-format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        warning, started = (json.loads(process.stderr.readline()) for _ in range(2))
        process.terminate()
    assert warning["message"].startswith(f"without TLS at {started['address']}, everyone on the network between")
    assert started["address"].startswith("0.0.0.0:")


@pytest.mark.slow
@pytest.mark.usefixtures("light")
@pytest.mark.long
def test_a_server_on_a_socket_file_names_it_and_warns_of_nothing(tmp_path: Path) -> None:
    with Server("--socket", str(tmp_path / "socket"), "--max-sessions", "2", "--log-format", "json") as server:
        started = json.loads(server.process.stderr.readline())
    assert (started["event"], started["address"]) == ("started", str(tmp_path / "socket"))
    assert [json.loads(line)["event"] for line in server.rest[1].splitlines()] == ["stopping", "stopped"]


def test_refusals_of_each_status_have_ten_lines_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    log = RefusalLog()
    with caplog.at_level(logging.INFO, logger=EVENTS):
        for _ in range(1000):
            log.write(ProblemError(401, "Unauthorized", "the request must have a key"), "any", "192.0.2.1")
        log.write(ProblemError(403, "HostNotAllowed", "the Host header must name a host of this server, got 'evil'"), "any", None)
        log.write(ProblemError(404, "FileNotFound", "the session has no such file"), "any", None)
        log.close()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:-2] == ['refused status=401 code=Unauthorized route=any client=192.0.2.1 reason="the request must have a key"'] * 10
    assert lines[-2].endswith('reason="the Host header must name a host of this server"')
    assert lines[-1] == "refused status=401 left_out_before=990"


def test_the_next_period_says_how_many_lines_were_left_out() -> None:
    throttle = Throttle(1, 3600)
    assert [throttle.admit() for _ in range(3)] == [0, None, None]
    throttle._ends = 0  # the period is over
    assert throttle.admit() == 2
    assert Throttle(0, 0).admit() is None


def test_a_line_of_json_has_the_fields_of_its_event_and_the_exception_of_another(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_event("drained", count=2, who="a b", nothing=None)
        try:
            raise ValueError("broken\nline")
        except ValueError:
            logging.getLogger("aca_sessions").exception("it failed: %s", "\x1b[31m")
    event, failure = (JsonLines().format(record) for record in caplog.records)
    assert json.loads(event) | {"time": ""} == {
        "time": "",
        "level": "INFO",
        "logger": EVENTS,
        "event": "drained",
        "count": 2,
        "who": "a b",
        "nothing": None,
    }
    assert json.loads(failure)["message"] == "it failed: \x1b[31m"
    assert json.loads(failure)["exception"].endswith("ValueError: broken\nline")
    assert "\n" not in failure
    text = TimedLines().format(caplog.records[0])
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO aca_sessions.server: drained count=2 who="a b"', text)
