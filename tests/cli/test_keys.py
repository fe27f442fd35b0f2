"""Test the key file of a server, which is read again when it changes."""

import json
import logging
import os
import threading
from argparse import Namespace
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Scope

from aca_sessions.cli.keys import KeyFile, api_keys
from aca_sessions.contract.records import ProblemError
from aca_sessions.errors import ConfigurationError
from aca_sessions.hosting import ACCEPTED_KEY, EVENTS, Hosting
from aca_sessions.server.guard import Guard
from aca_sessions.server.journal import Journal, current_request

from ..conftest import aca_sessions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "keys"
    found.touch(0o600)
    found.write_text("the-first\n")
    return found


def replace(file: Path, text: str | bytes) -> None:
    """Write a file anew, as an editor does."""
    other = file.with_suffix(".new")
    other.touch(0o600)
    other.write_bytes(text if isinstance(text, bytes) else text.encode())
    other.rename(file)


def test_a_changed_file_is_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeyFile(file)
    assert keys() == ("the-first",)
    with caplog.at_level(logging.INFO, logger=EVENTS):
        replace(file, "the-second\r\n# the-comment\n\n  the-third \nthe-second\n")
        assert [keys() for _ in range(3)] == [("the-second", "the-third")] * 3
    assert [record.getMessage() for record in caplog.records] == ["keys_read keys=2 added=2 removed=1"]


def test_two_changes_within_one_time_stamp_are_both_noticed(file: Path) -> None:
    keys, found = KeyFile(file), file.stat()
    for text in ("the-second", "the-other"):
        file.write_text(text + "\n")
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
        assert keys() == (text,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold a key, and is empty"),
        (" \n\n", "must hold a key, and is empty"),
        (b"\xff\xfe", "it is not text"),
        ("caf\u00e9\n", "characters that an HTTP header can hold"),
        ("a\x00b\n", "characters that an HTTP header can hold"),
        ("# keys\n\n# none yet\n", "must hold a key, and is empty"),
        ("# keys\nthe-second\na\n", "at least 8 characters without spaces, and line 3 is none"),
        ("the second\n", "and line 1 is none"),
        ("\n".join(map(str, range(101))), "at most 100 keys"),
        ("k" * 70_000, "at most 100 keys and 65536 bytes"),
        (None, "No such file"),
    ],
    ids=["empty", "blank", "binary", "not ASCII", "a zero", "comments", "short", "two words", "too many", "too large", "missing"],
)
def test_an_unusable_file_keeps_the_earlier_keys_and_logs_one_error(
    file: Path, text: str | bytes | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeyFile(file)
    if text is None:
        file.unlink()
    else:
        replace(file, text)
    assert [keys() for _ in range(3)] == [("the-first",)] * 3
    (record,) = caplog.records
    assert said in record.getMessage()
    assert str(file) in record.getMessage()
    assert "second" not in record.getMessage()
    with pytest.raises(ConfigurationError, match="write one key a line"):
        KeyFile(file)
    replace(file, "the-second\n")
    assert keys() == ("the-second",)


def test_a_file_that_every_user_can_read_is_reported_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.chmod(0o640)
    keys = KeyFile(file)
    assert not caplog.records
    file.chmod(0o644)
    assert [keys() for _ in range(3)] == [("the-first",)] * 3
    (record,) = caplog.records
    assert record.getMessage() == f"every user of this machine can read the keys in {file}: run chmod o= on it"


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_text, args=("the-first\n",))
    writing.start()
    keys = KeyFile(pipe)
    writing.join()
    assert [keys() for _ in range(2)] == [("the-first",)] * 2


def test_a_file_that_becomes_a_pipe_does_not_block_the_server(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeyFile(file)
    file.unlink()
    os.mkfifo(file)
    assert keys() == ("the-first",)
    assert "must be a regular file" in caplog.text


@pytest.mark.long
def test_the_command_keys_names_the_person_of_the_digits_in_the_audit_log(file: Path, tmp_path: Path) -> None:
    replace(file, "# alice\nthe-first\nthe-second\n\n# bob, from May\nthe-third\n")
    shown = aca_sessions("keys", str(file))
    journal = Journal(Hosting(audit=str(tmp_path / "audit")))
    for key in ("the-first", "the-second", "the-third"):
        token = current_request.set({"type": "http", "state": {ACCEPTED_KEY: key}})
        journal.record_session_start("mine")
        current_request.reset(token)
    journal.close()
    digits = [json.loads(line)["key"] for line in (tmp_path / "audit").read_text().splitlines()]
    assert shown.stdout == f"{digits[0]}  # alice\n{digits[1]}\n{digits[2]}  # bob, from May\n"
    refused = aca_sessions("keys", str(tmp_path / "none"))
    assert (refused.returncode, "cannot be read" in refused.stderr) == (2, True)


async def test_each_key_of_the_file_is_accepted_until_it_is_removed(file: Path) -> None:
    replace(file, "the-first\nthe-second\n")
    refusals: list[ProblemError] = []

    def refuse(problem: ProblemError, _scope: Scope) -> PlainTextResponse:
        refusals.append(problem)
        return PlainTextResponse("", problem.status)

    keys = api_keys(Namespace(api_key_file=file, api_key=None))
    app = Guard(PlainTextResponse("in"), Hosting(api_keys=keys, metrics_key="numbers"), refuse=refuse, probe_paths=frozenset({"/livez"}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any") as client:

        async def status(key: str, path: str = "/files") -> int:
            return (await client.get(path, headers={"authorization": f"Bearer {key}"})).status_code

        assert [await status(key) for key in ("the-first", "the-second", "the-firs", "", "numbers")] == [200, 200, 401, 401, 401]
        assert (await status("numbers", "/metrics"), await status("", "/livez")) == (200, 200)
        replace(file, "the-second\nthe-third\n")
        assert [await status(key) for key in ("the-first", "the-second", "the-third")] == [401, 200, 200]
    assert [problem.message.partition(":")[0] for problem in refusals[:2]] == ["the request has a wrong key", "the request has no key"]
    assert not any(key in problem.message for problem in refusals for key in ("the-first", "the-second", "the-third"))
