"""Test the audit log: one line for each event, in a file that may be rotated and whose disk may be full."""

import errno
import json
import logging
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from aca_sessions import Policy, Settings, open_pool, open_server
from aca_sessions.errors import ConfigurationError
from aca_sessions.hosting import ACCEPTED_KEY, Hosting
from aca_sessions.sandbox.proxy.session_network import NetworkRecord
from aca_sessions.server.journal import AuditLog, Journal, current_request
from aca_sessions.server.routing import to_problem

POLICY = Policy(preload=(), spares=0)
Events = Callable[[], list[dict[str, object]]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def events(file: Path) -> Events:
    return lambda: [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def log(file: Path) -> Iterator[AuditLog]:
    opened = AuditLog(str(file))
    yield opened
    opened.close()


@pytest.mark.slow
async def test_an_embedded_pool_writes_a_line_for_each_event(file: Path, events: Events) -> None:
    async with open_pool(Settings(Audit={"File": str(file)}), policy=POLICY) as pool, pool.session("mine") as session:
        await session.upload_file("a.txt", b"12345")
        await session.run("print('six', 7)")
        await session.run("while True: pass", timeout=0.1)
        await session.download_file("a.txt")
        await session.delete_file("a.txt")
        await session.install("no such name")
    seen = [event["event"] for event in events()]
    assert seen == ["session_begun", "upload", "cell", "cell", "download", "delete", "install", "session_ended"]
    _, upload, cell, overrun, download, _, install, ended = events()
    assert (upload["bytes"], download["bytes"], install["success"], ended["reason"]) == (5, 5, False, "deleted")
    assert (cell["outcome"], cell["state"], cell["stdout_length"], cell["code_length"]) == ("succeeded", "kept", 6, 15)
    assert overrun["outcome"] == "timed_out"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len({event["session"] for event in events()}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
async def test_code_is_logged_only_if_configured(file: Path, events: Events, named: bool) -> None:
    async with open_pool(Settings(Audit={"File": str(file), "Code": named}), policy=POLICY) as pool, pool.session() as session:
        await session.run("x = 1")
    (cell,) = [event for event in events() if event["event"] == "cell"]
    assert cell.get("code") == ("x = 1" if named else None)


@pytest.mark.slow
async def test_a_refusal_is_logged_with_its_code_and_route(file: Path, events: Events) -> None:
    hosting = Hosting(audit=str(file), api_key="key", max_upload=10)
    params, headers = {"api-version": "2025-10-02-preview", "identifier": "mine"}, {"authorization": "Bearer key"}
    async with open_server(policy=POLICY, hosting=hosting) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", params=params, headers=headers) as client:
            await client.get("/files", headers={"authorization": "Bearer other"})
            refused = await client.post("/files", files={"file": ("secret.txt", b"much more than ten")})
            await client.get("/session")
    assert "an uploaded file must have at most 10 bytes, got more: split it, or have" in refused.json()["error"]["message"]
    told = [(event["status"], event["code"], event["route"]) for event in events() if event["event"] == "refusal"]
    assert told == [
        (401, "Unauthorized", "any"),
        (413, "RequestTooLarge", "POST files"),
        (400, "SessionWithIdentifierNotFound", "GET session"),
    ]
    known = {event["key"] for event in events()}
    assert None in known
    assert len(known) == 2
    assert "key" not in known


def test_events_have_the_key_and_the_address_of_the_request_that_caused_them(file: Path, events: Events) -> None:
    journal = Journal(Hosting(audit=str(file)))
    request = {"type": "http", "client": ("::ffff:192.0.2.1", 1), "state": {ACCEPTED_KEY: "key"}}
    token = current_request.set(request)
    journal.record_session_start("mine")
    journal.record_refusal(to_problem(PermissionError(errno.EACCES, "")), "GET files/{name:path}/content", "mine")
    journal.record_session_end("theirs", "evicted", 1.0)  # to make room for mine
    journal.record_session_end("mine", "deleted", 1.0)
    current_request.set({"type": "http", "client": ("a text of a proxy", 1)})
    journal.record_session_start("mine")
    current_request.reset(token)
    journal.record_session_end("mine", "closed", 1.0)
    journal.close()
    begun, refusal, evicted, deleted, unknown, closed = events()
    assert (refusal["status"], refusal["code"]) == (403, "FileNotAccessible")
    assert [event["client"] for event in (begun, refusal, deleted)] == ["192.0.2.1"] * 3
    assert {event["key"] for event in (begun, refusal, deleted)} == {begun["key"]} != {None}
    assert [(event["client"], event["key"]) for event in (evicted, unknown, closed)] == [(None, None)] * 3


@pytest.mark.slow
async def test_a_session_that_a_full_server_ends_is_logged_as_evicted(file: Path, events: Events, caplog: pytest.LogCaptureFixture) -> None:
    async with open_server(policy=POLICY, hosting=Hosting(max_sessions=1, audit=str(file))) as app:
        query = {"api-version": "2025-10-02-preview"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any", params=query, timeout=60) as client:
            for name in ("first", "second", "third"):
                assert (await client.get("/files", params={"identifier": name})).status_code == 200
    assert [event["reason"] for event in events() if event["event"] == "session_ended"] == ["evicted", "evicted", "closed"]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]  # at most one a minute
    assert record.getMessage().startswith("this server has its maximum of 1 sessions: it ended the one that was idle for longest")
    assert "Raise --max-sessions" in record.getMessage()


def test_a_rotated_file_is_created_again(log: AuditLog, file: Path, events: Events) -> None:
    log.write("one")
    file.rename(file.with_suffix(".1"))
    log.write("two")
    file.unlink()
    log.write("three")
    assert [event["event"] for event in events()] == ["three"]
    assert json.loads(file.with_suffix(".1").read_text())["event"] == "one"
    assert file.stat().st_mode & 0o777 == 0o600


def test_events_lost_to_a_full_disk_are_counted_and_reported(file: Path, events: Events, caplog: pytest.LogCaptureFixture) -> None:
    file.symlink_to("/dev/full")
    log = AuditLog(str(file))
    with caplog.at_level(logging.ERROR, logger="aca_sessions"):
        for _ in range(3):
            log.write("lost")
    file.unlink()
    log.write("kept")
    log.write("kept")
    log.close()
    assert [record.message for record in caplog.records] == [
        f"cannot write to the audit log {file} (No space left on device): events are lost until it can be written again"
    ]
    assert [event.get("lost_before") for event in events()] == [3, None]


def test_a_truncated_line_does_not_spoil_the_next(log: AuditLog, file: Path) -> None:
    log.write("whole")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, hard))
        log.write("cut")
        log.write("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    log.write("whole")
    first, cut, last = file.read_text().splitlines()
    assert (json.loads(first)["event"], len(cut), json.loads(last)["event"], json.loads(last)["lost_before"]) == ("whole", 10, "whole", 2)


def test_lines_are_appended_to_an_existing_file(file: Path, events: Events) -> None:
    for _ in range(2):
        log = AuditLog(str(file))
        log.write("same")
        log.close()
    assert len(events()) == 2


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o604])
def test_a_file_that_other_users_may_read_or_write_is_refused(file: Path, mode: int) -> None:
    file.touch()
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        AuditLog(str(file))


@pytest.mark.parametrize("name", ["", "none/audit.jsonl", "pipe"])
def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="ACASessions:Audit:File"):
        AuditLog(str(tmp_path / name))


def test_what_a_session_does_on_the_network_is_logged_without_its_path(file: Path, events: Events) -> None:
    journal = Journal(Hosting(audit=str(file)))
    recorder = journal.network_recorder("mine")
    recorder.record(NetworkRecord(host="a.test", port=443, method="GET", pattern="/x/**", status=200, sent=1, received=2, seconds=0.5))
    recorder.record(NetworkRecord(host="b.test", port=22, decision="refused", status=403, reason="rule"))
    recorder.record(NetworkRecord(host="x" * 8000, port=0, decision="refused", status=400, reason="malformed"))
    recorder.finish()
    allowed, refused, malformed = events()
    assert allowed | {"time": 0, "session": 0} == {
        "time": 0,
        "event": "network",
        "key": None,
        "client": None,
        "session": 0,
        "decision": "allowed",
        "host": "a.test",
        "port": 443,
        "method": "GET",
        "pattern": "/x/**",
        "status": 200,
        "reason": None,
        "sent": 1,
        "received": 2,
        "seconds": 0.5,
    }
    assert (refused["decision"], refused["host"], refused["reason"], "sent" in refused) == ("refused", "b.test", "rule", False)
    assert (malformed["host"], malformed["port"]) == ("x" * 253, None)
    assert "mine" not in file.read_text()
    journal.close()


@pytest.mark.parametrize(("decision", "most"), [("refused", 60), ("allowed", 300)])
def test_a_session_that_floods_the_network_does_not_flood_the_audit_log(file: Path, events: Events, decision: str, most: int) -> None:
    journal = Journal(Hosting(audit=str(file)))
    flooding, other = journal.network_recorder("flooding"), journal.network_recorder("other")
    for _ in range(1000):
        flooding.record(NetworkRecord(host="a.test", port=443, decision=decision))
    flooding.record(NetworkRecord(host="a.test", port=443, decision="allowed" if decision == "refused" else "refused"))
    other.record(NetworkRecord(host="b.test", port=443, decision=decision))
    flooding.finish()
    flooding.finish()
    assert len(events()) == most + 2
    assert [event["unsaid_before"] for event in events() if "unsaid_before" in event] == [1000 - most]
    for _ in range(most):
        flooding.record(NetworkRecord(host="a.test", port=443, decision=decision))
    flooding.finish()
    assert events()[-1].keys() == {"time", "event", "key", "client", "session", "unsaid_before"}
    journal.close()


def test_many_sessions_that_flood_the_network_do_not_flood_the_audit_log(file: Path, events: Events) -> None:
    journal = Journal(Hosting(audit=str(file)))
    recorders = [journal.network_recorder(str(number)) for number in range(50)]
    for recorder in recorders:
        for _ in range(60):
            recorder.record(NetworkRecord(host="a.test", port=443, decision="refused"))
    assert len(events()) == 1200
    for recorder in recorders:
        recorder.finish()
    assert sum(int(event.get("unsaid_before", 0)) for event in events()) == 50 * 60 - 1200  # type: ignore[call-overload]
    journal.close()
