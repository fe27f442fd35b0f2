"""Test the command line with standard streams that are closed, full or not in UTF-8: an error, an exit code, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import mostly_long

COMMAND = f"{sys.executable} -m aca_sessions.cli.main"
CLOSED, FULL = "standard output is closed", "standard output cannot be written: No space left on device"
ROWS = [
    ("run \"open('/mnt/data/f', 'w'); print('ran')\" >&-", 2, CLOSED),
    ("run \"print('ran')\" >/dev/full", 2, FULL),
    ("run --json \"print('ran')\" >/dev/full", 2, FULL),
    ("run --live \"print('ran')\" >/dev/full", 2, FULL),
    ("--help >/dev/full", 2, FULL),
    ("run 1/0 2>/dev/full", 1, ""),
    ("run 1/0 2>&-", 1, ""),
    ("run - <&-", 2, "standard input is closed"),
    ("mcp <&-", 2, "standard input is closed"),
    ("repl <&-", 2, "repl needs a terminal"),
    ("run - <bytes.py", 2, "standard input must be UTF-8 text, got byte 0xff at position 7"),
    ("run '' ", 0, ""),
]


def shell(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    script = f'aca() {{ {COMMAND} "$@"; }}; {line}'
    options = {"capture_output": True, "text": True, "timeout": 300, "env": os.environ | environment}
    return subprocess.run(["sh", "-c", script], check=False, **options)


@pytest.mark.long
@pytest.mark.parametrize(("line", "code", "said"), mostly_long(ROWS, *ROWS[::6]))
def test_a_broken_stream_is_reported(line: str, code: int, said: str) -> None:
    Path("bytes.py").write_bytes(b'print("\xff")')
    run = shell(f"aca {line}")
    assert (run.returncode, said in run.stderr, "Traceback" in run.stderr) == (code, True, False), run.stderr
    assert len(run.stderr.splitlines()) <= 1


@pytest.mark.long
def test_a_command_works_without_streams_that_it_does_not_need() -> None:
    run = shell("aca run \"print('ran')\" <&- 2>&-")
    assert (run.stdout, run.returncode) == ("ran\n", 0)


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    """Otherwise what a session's process writes to standard error could go into a file or a socket of the host."""
    code = (
        "import os, sys; from aca_sessions.cli.streams import prepare; prepare(); "
        "print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)], os.open('/', os.O_RDONLY) > 2)"
    )
    run = subprocess.run(["sh", "-c", f'{sys.executable} -c "{code}" <&- 2>&-'], capture_output=True, text=True, timeout=240, check=False)
    assert run.stdout == "['/dev/null', '/dev/null'] True\n"


@pytest.mark.long
def test_a_reader_that_closes_the_pipe_gives_the_exit_code_of_sigpipe() -> None:
    run = shell("{ aca run 'print(\"x\" * 500000)'; echo $? >&2; } | head -c 5")
    assert (run.stdout, run.stderr) == ("xxxxx", "141\n")


@pytest.mark.long
def test_non_ascii_arguments_arrive_in_any_locale() -> None:
    posix = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert shell("aca run \"print(len('ä'), 'ä')\"", **posix).stdout == "1 \\xe4\n"
    assert shell("printf 'len(\"\\303\\244\")' | aca run -", **posix).stdout == "1\n"
    run = shell('aca run "$(printf \'"\\377"\')"', **posix)
    assert (run.returncode, run.stderr) == (
        2,
        "aca-sessions: the code must be UTF-8 text: encode it as UTF-8, or send it from a file to standard input\n",
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "prepare", mostly_long(["export TMPDIR=/nonexistent/tmp", "mkdir gone && cd gone && rmdir ../gone", "unset HOME"], "unset HOME")
)
def test_a_missing_folder_does_not_matter(prepare: str) -> None:
    run = shell(f"{prepare}; aca run 6*7")
    assert (run.stdout, run.stderr, run.returncode) == ("42\n", "", 0)
