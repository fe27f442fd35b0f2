"""Test `aca-sessions files` and `aca-sessions sessions` as a shell uses them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import aca_sessions, mostly_long
from .test_cli import Server

pytestmark = pytest.mark.slow
Files = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with Server("--port", "0", "--api-key", "key", "--access-log") as server:
        yield os.environ | {"ACASessions__Endpoint": server.endpoint, "ACASessions__ApiKey": "key"}
    assert "the-secret" not in "".join(server.rest)


@pytest.fixture
def files(environment: dict[str, str]) -> Iterator[Files]:
    yield lambda *arguments, stdin="": aca_sessions("files", *arguments, "--session", "the-secret", stdin=stdin, env=environment)
    aca_sessions("sessions", "rm", "the-secret", env=environment)


@pytest.mark.long
def test_files_are_put_listed_got_and_removed(files: Files, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    put = files("put", "a.txt")
    assert (put.returncode, put.stdout, put.stderr) == (0, "", "[file sent: a.txt]\n")
    assert files("put", "-", "folder/b.txt", stdin="two").returncode == 0
    assert [line.split()[-1] for line in files("ls").stdout.splitlines()] == ["a.txt", "folder/"]
    assert files("ls", "folder").stdout.split()[0] == "3"
    got = files("get", "folder/b.txt")
    assert (got.returncode, got.stdout, got.stderr, (tmp_path / "b.txt").read_text()) == (0, "", "[file saved: b.txt]\n", "two")
    assert files("get", "a.txt", "-").stdout == "one"
    refused = files("rm", "folder")
    assert (refused.returncode, "aca-sessions: folder is a folder with files: delete these first" in refused.stderr) == (2, True)
    assert files("rm", "a.txt", "folder/b.txt").stderr == "[file deleted: a.txt]\n[file deleted: folder/b.txt]\n"
    none = files("ls", "folder")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no files\n")


@pytest.mark.long
def test_a_local_file_is_replaced_only_with_force(files: Files, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    files("put", "-", "a.txt", stdin="theirs")
    refused = files("get", "a.txt")
    assert (refused.returncode, "--force" in refused.stderr, (tmp_path / "a.txt").read_text()) == (2, True, "mine")
    assert (files("get", "a.txt", "--force").returncode, (tmp_path / "a.txt").read_text()) == (0, "theirs")


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "said"),
    mostly_long(
        [
            (["get", "none.txt"], "the session has no file or folder none.txt"),
            (["get", "none.txt", "-"], "the session has no file or folder none.txt"),
            (["get", "none.txt", "/dev/null", "--force"], "is not a file"),
            (["get", "none.txt", "/nonexistent/a"], "cannot be written"),
            (["rm", "none.txt"], "the session has no file or folder none.txt"),
            (["ls", "none"], "the session has no file or folder none"),
            (["put", "none.txt"], "none.txt is not a file on this machine: name an existing file"),
            (["put", "/tmp"], "/tmp is a folder: name a file, or copy the folder with `aca-sessions run"),
            (["put", "-"], "a file from standard input must have a name"),
            (["get", 'a"b'], "a file name cannot contain quotation marks"),
        ],
        (["get", "none.txt"], "the session has no file or folder none.txt"),
        (["put", "none.txt"], "none.txt is not a file on this machine: name an existing file"),
    ),
)
def test_an_error_is_reported_and_leaves_nothing(files: Files, tmp_path: Path, arguments: list[str], said: str) -> None:
    files("put", "-", "there.txt", stdin="")
    run = files(*arguments)
    assert (run.returncode, said in run.stderr, "Traceback" in run.stderr) == (2, True, False), run.stderr
    assert "the-secret" not in run.stderr
    assert [*tmp_path.iterdir()] == []


@pytest.mark.long
def test_a_file_name_with_control_sequences_is_printed_harmlessly(files: Files, environment: dict[str, str]) -> None:
    aca_sessions("run", "--session", "the-secret", "open('\\x1b]0;title\\x07', 'w').close()", env=environment)
    assert "\x1b" not in files("ls").stdout


@pytest.mark.long
def test_sessions_are_listed_and_ended(environment: dict[str, str]) -> None:
    aca_sessions("run", "--session", "the-secret", "x = 5", env=environment)
    header, line = aca_sessions("sessions", "ls", env=environment).stdout.splitlines()
    assert (header.split(), line.split()[-1]) == (["LAST", "USED", "(UTC)", "ENDS", "(UTC)", "NAME"], "the-secret")
    assert line.index("the-secret") == header.index("NAME")
    removed = aca_sessions("sessions", "rm", "the-secret", env=environment)
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "", "[1 session ended]\n")
    none = aca_sessions("sessions", "ls", env=environment)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no sessions\n")
    again = aca_sessions("sessions", "rm", "the-secret", "another", env=environment)
    assert (again.returncode, "NAME 1 of 2 must be the name of a session" in again.stderr, "the-secret" in again.stderr) == (2, True, False)


@pytest.mark.parametrize("command", mostly_long([["ls"], ["get", "a.txt"], ["rm", "a.txt"]], ["ls"]))
def test_files_of_an_unknown_session_are_an_error_that_starts_no_session(environment: dict[str, str], command: list[str]) -> None:
    run = aca_sessions("files", *command, "--session", "the-secret", env=environment)
    assert (run.returncode, "--session must be the name of a session of this endpoint, and is not" in run.stderr) == (2, True)
    assert "the-secret" not in run.stderr
    assert aca_sessions("sessions", "ls", env=environment).stdout == ""


@pytest.mark.parametrize(
    "arguments", mostly_long([["files", "ls", "--session", "mine"], ["sessions", "ls"], ["sessions", "rm", "mine"]], every=3)
)
def test_without_an_endpoint_the_commands_are_refused(arguments: list[str]) -> None:
    run = aca_sessions(*arguments)
    assert (run.returncode, "aca-sessions serve" in run.stderr) == (2, True)


@pytest.mark.long
def test_files_belong_to_one_session() -> None:
    assert "--session" in aca_sessions("files", "ls").stderr
