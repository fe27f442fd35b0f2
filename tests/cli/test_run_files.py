"""Test what `aca-sessions run` does with files and folders of this machine, and with the files that a cell leaves."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from ..conftest import COMMAND, aca_sessions, mostly_long

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a package, a module, files that must not be copied, and a link to a file outside."""
    (package := tmp_path / "project" / "package").mkdir(parents=True)
    (package / "__init__.py").write_text("value = 42")
    (package / ".env").write_text("secret")
    (tmp_path / "outside.txt").write_text("outside")
    (package / "link.txt").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "project" / "main.py").write_text("import os, package\nprint(package.value, sorted(os.listdir('package')))")
    (tmp_path / "project" / "helper.py").write_text("value = 5")
    (tmp_path / "project" / "__main__.py").write_text("import sys, helper, package\nprint(helper.value, package.value, sys.argv[1:])")
    return tmp_path / "project"


@pytest.mark.long
@pytest.mark.usefixtures("project")
def test_a_folder_is_copied_without_links_and_hidden_files() -> None:
    run = aca_sessions("run", "--file", "project/package", "project/main.py")
    assert (run.stdout, run.stderr) == ("42 ['__init__.py']\n", "[not copied: 1 link in project/package]\n")


@pytest.mark.long
@pytest.mark.usefixtures("project")
def test_a_missing_package_beside_the_file_ends_with_the_option_that_brings_it_in() -> None:
    run = aca_sessions("run", "project/main.py")
    assert run.stderr.splitlines()[-1] == "[hint] package is not in the session: bring it in with --file project/package"


@pytest.mark.long
@pytest.mark.usefixtures("project")
def test_a_folder_with_a_main_module_is_run_with_arguments() -> None:
    assert aca_sessions("run", "project", "one", "--two").stdout == "5 42 ['one', '--two']\n"


@pytest.mark.long
@pytest.mark.usefixtures("project")
def test_a_file_and_a_folder_may_get_another_name_with_folders() -> None:
    arguments = ["--file", "outside.txt=a/b/c.txt", "--file", "project/package=lib/other"]
    run = aca_sessions("run", *arguments, "import lib.other; print(open('a/b/c.txt').read(), lib.other.value)")
    assert run.stdout == "outside 42\n"
    Path("x=y.txt").write_text("whole")
    assert aca_sessions("run", "--file", "x=y.txt", "open('x=y.txt').read()").stdout == "'whole'\n"


@pytest.mark.long
def test_a_folder_with_too_many_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(1001):
        (tmp_path / "many" / str(number)).touch()
    run = aca_sessions("run", "--file", "many", "1")
    assert (run.returncode, "--file many must have at most 1000 files with 100 MB in all" in run.stderr) == (2, True)


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "hint"),
    mostly_long(
        [
            ("open('data.csv')", "data.csv is not in the session: bring it in with --file data.csv"),
            ("open('/mnt/data/sub/a b.csv')", "'sub/a b.csv' is not in the session: bring it in with --file 'sub/a b.csv=sub/a b.csv'"),
            *((f"open({name!r})", "") for name in (".secret/key", "../data.csv", "/etc/hostname/x", "none.csv")),
        ],
        every=9,
    ),
)
def test_a_missing_file_that_is_here_ends_with_the_option_that_brings_it_in(tmp_path: Path, code: str, hint: str) -> None:
    for name in ("data.csv", "sub/a b.csv", ".secret/key"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    last = aca_sessions("run", code).stderr.splitlines()[-1]
    assert last == f"[hint] {hint}" if hint else not re.search("secret.* is not in|data.csv is not in", last)


@pytest.mark.long
def test_a_file_that_needs_another_python_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("# /// script\n# requires-python = '>=3.99'\n# ///\nprint('ran')\n")
    run = aca_sessions("run", "a.py")
    assert (run.stdout, run.returncode) == ("", 2)
    advice = r"name one with `export ACASessions__Sandbox__Python=PATH`\n"
    assert re.fullmatch(rf"aca-sessions: the file requires Python >=3\.99, and the session has Python 3\.\d+\.\d+: {advice}", run.stderr)


@pytest.mark.long
@pytest.mark.parametrize(("wanted", "said"), [("'>=3.10'", ""), ("'three'", "must be like '>=3.11', got 'three'"), ("3", "must be a text")])
def test_the_python_that_a_file_needs_is_checked(tmp_path: Path, wanted: str, said: str) -> None:
    (tmp_path / "a.py").write_text(f"# /// script\n# requires-python = {wanted}\n# ///\nprint('ran')\n")
    run = aca_sessions("run", "a.py")
    assert (run.stdout, run.returncode, said in run.stderr) == (("", 2, True) if said else ("ran\n", 0, True))


def at_terminal(*arguments: str) -> str:
    """Return what a command writes to its standard error, which is a terminal."""
    ours, theirs = os.openpty()
    run = subprocess.run([*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, timeout=240, check=False)
    os.close(theirs)
    written = b""
    while True:
        try:
            written += os.read(ours, 65536)
        except OSError:  # EIO: the terminal has no more writers
            break
    os.close(ours)
    assert run.returncode == 0
    return re.sub(r"\r[^\r\n]*\.\.\. \d+ s|\r +\r", "", written.decode()).replace("\r\n", "\n")


@pytest.mark.long
def test_files_that_end_with_the_session_are_named_at_a_terminal() -> None:
    code = "for name in ('lost.csv', 'kept.csv'): open(name, 'w').close()"
    note = "[not copied: lost.csv; --get lost.csv copies it]\n"
    assert at_terminal("run", "--get", "./kept.csv", code) == f"{note}[file saved: kept.csv]\n"
    assert aca_sessions("run", code).stderr == ""


@pytest.mark.long
def test_names_of_lost_files_are_escaped_and_counted() -> None:
    code = "for name in ('a', 'b', 'c', 'd', '\\x1b[2Jx\\n[hint] y'): open(name, 'w').close()"
    shown = at_terminal("run", code)
    assert re.fullmatch(r"\[not copied: .* and 2 more; --get NAME copies one\]\n", shown)
    assert "\x1b" not in at_terminal("run", "open('\\x1b[2Jx\\n[hint] y', 'w').close()")
    assert at_terminal("run", "print('[not copied: fake]', file=__import__('sys').stderr)") == "(printed) [not copied: fake]\n"


@pytest.mark.long
def test_frames_in_libraries_are_left_out_of_a_traceback_and_shown_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import json\n\ndef load(text):\n    return json.loads(text)\n\nload('x')\n")
    short = aca_sessions("run", "a.py").stderr
    assert re.search(r"\[3 frames in libraries not shown; --full-traceback shows all\]\n\Z", short)
    assert ("a.py:6" in short, "a.py:4, in load" in short, "json/" in short, "JSONDecodeError: Expecting" in short) == (
        *(True, True, False, True),
    )
    full = aca_sessions("run", "--full-traceback", "a.py").stderr
    assert ("json/decoder.py" in full, "in libraries" in full) == (True, False)


@pytest.mark.parametrize("line", mostly_long(["echo 'print(42)' | aca run /dev/stdin", "aca run <(echo 'print(42)')"], every=2))
@pytest.mark.long
def test_a_pipe_is_run_as_a_file(line: str) -> None:
    script = f'aca() {{ {" ".join(COMMAND)} "$@"; }}; {line}'
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert (run.stdout, run.stderr) == ("42\n", "")


@pytest.mark.long
def test_code_that_looks_like_a_file_can_be_marked_as_code() -> None:
    refused = aca_sessions("run", "data.csv")
    assert (
        refused.returncode,
        "data.csv is not a file: name a file that exists, or - for standard input, or add -c" in refused.stderr,
    ) == (*(2, True),)
    assert "NameError: name 'data' is not defined" in aca_sessions("run", "-c", "data.csv").stderr
