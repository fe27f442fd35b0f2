"""Test what operators and clients of a server read when its fork server was killed."""

import json
import os
import signal
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aca_sessions import Settings, open_interpreter

from ..cli.test_cli import Server
from ..conftest import descendants, until

pytestmark = pytest.mark.slow


def fork_server_of(server: Server) -> int:
    """Return the pid of the fork server: the server's own child, which runs the zygote."""
    children = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in descendants(server.process.pid)}
    (found,) = (
        pid for pid, stat in children.items() if int(stat[1]) == server.process.pid and "zygote" in Path(f"/proc/{pid}/cmdline").read_text()
    )
    return found


def count(server: Server, name: str, **labels: str) -> float:
    text = httpx.get(f"{server.endpoint}/metrics", headers={"authorization": "Bearer key"}).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(one.value for one in samples if one.name == f"aca_sessions_server_{name}" and labels.items() <= one.labels.items())


@pytest.mark.long
async def test_its_death_is_logged_and_counted_at_once_and_the_audit_log_has_what_clients_read(tmp_path: Path) -> None:
    audit = tmp_path / "audit"

    def events(kind: str) -> list[tuple[object, object]]:
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        return [(line.get("state"), line["reason"]) for line in lines if line["event"] == kind]

    async def are_ended() -> bool:
        return len(events("session_ended")) == 3

    flags = ["--log-format", "json", "--metrics", "--audit", str(audit)]
    with Server("--port", "0", "--api-key", "key", *flags) as server:
        async with open_interpreter(Settings(Endpoint=server.endpoint, ApiKey="key")) as interpreter:
            for name in ("idle", "used", "busy"):
                assert (await interpreter.execute(name, "x = 42")).success
            running = await interpreter.start("busy", "import time; print('begun', flush=True); time.sleep(600)")
            await anext(running.events())
            os.kill(fork_server_of(server), signal.SIGKILL)
            logged = json.loads(next(line for line in server.process.stderr if "fork_server_died" in line))
            await until(are_ended)
            assert (logged["level"], logged["event"], logged["sessions"], logged["exit_code"]) == ("ERROR", "fork_server_died", 3, -9)
            assert str((await running.wait()).state) == "lost: crash"
            assert events("session_ended") == [(None, "crash")] * 3
            assert (count(server, "losses_total", reason="crash"), count(server, "losses_total")) == (3, 3)
            assert count(server, "fork_server_deaths_total") == 1
            assert count(server, "sessions") == 0
            before = events("cell")
            result = await interpreter.execute("used", "'x' in globals()")
            assert (result.value, str(result.state)) == (False, "lost: crash")
            assert str((await interpreter.execute("used", "1")).state) == "kept"
            assert events("cell")[len(before) :] == [("lost", "crash"), ("kept", None)]
            assert ("lost", "crash") in before
            assert count(server, "losses_total") == 3
        assert httpx.get(f"{server.endpoint}/readyz").status_code == 200
    assert "fork_server_died" not in server.rest[1]


@pytest.mark.long
async def test_the_first_cell_after_an_expiry_has_in_the_audit_log_what_its_client_reads(tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    with Server("--port", "0", "--api-key", "key", "--max-sessions", "1", "--audit", str(audit)) as server:
        async with open_interpreter(Settings(Endpoint=server.endpoint, ApiKey="key")) as interpreter:
            for name in ("one", "other"):
                assert (await interpreter.execute(name, "x = 42")).success
            assert str((await interpreter.execute("one", "1")).state) == "lost: expired"
    cells = [event for event in map(json.loads, audit.read_text().splitlines()) if event["event"] == "cell"]
    assert [(cell["state"], cell["reason"]) for cell in cells] == [("kept", None)] * 2 + [("lost", "expired")]
