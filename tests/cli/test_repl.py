"""Test `aca-sessions repl` at a terminal."""

import asyncio
import fcntl
import os
import re
import select
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from aca_sessions.cli.prompt import COMMANDS, CellCompleter, is_complete, open_history
from aca_sessions.errors import ConfigurationError
from aca_sessions.models import Completions

from ..conftest import COMMAND, aca_sessions, mostly_long
from ..wheels import make_wheel
from .test_cli import Server

_CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")
PROMPT = ">>>"  # the space behind it is drawn by moving the cursor
CTRL_C, CTRL_D = "\x03", "\x04"
ENDLESS = "print('re' + 'ady'); exec('while True: pass')"


class Terminal:
    """The command at a terminal of its own, with typed input and the output on the screen."""

    command = "repl"

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._ours, theirs = os.openpty()
        kind = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, self.command, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | kind | environment,
            start_new_session=True,
            preexec_fn=lambda: (signal.signal(signal.SIGINT, signal.SIG_DFL), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        )
        os.close(theirs)
        self._unread = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=120)
        os.close(self._ours)

    def types(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def reads(self, expected: str) -> str:
        """Return the output up to a text, including it."""
        deadline = time.monotonic() + 120
        while expected not in self._unread:
            ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{expected!r} did not come: {self._unread!r}"
            self._unread = _CONTROL.sub("", self._unread + os.read(self._ours, 65536).decode(errors="replace"))
        before, _, self._unread = self._unread.partition(expected)
        return before + expected

    def has_output(self, seconds: float) -> bool:
        """Return whether there is unread output, or some comes in that time."""
        return bool(self._unread or select.select([self._ours], [], [], seconds)[0])

    def enters(self, code: str) -> str:
        """Type a line, and return the output up to the next prompt."""
        self.types(f"{code}\r")
        self.reads("\n")
        return self.reads(PROMPT)

    def enters_and_answers(self, code: str, answer: str) -> str:
        """Type a line of code and then a line that answers its question. Return the output up to the next prompt."""
        self.types(f"{code}\r")
        self.reads("\n")
        self.types(f"{answer}\r")
        return self.reads(PROMPT)

    def ends(self) -> int:
        self.types(CTRL_D)
        return self.process.wait(timeout=120)


@pytest.fixture(autouse=True)
def state_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder where the repl keeps its history, in place of this user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal() as opened:
        opened.reads(PROMPT)
        yield opened


@pytest.mark.slow
def test_values_and_output_are_shown_and_state_is_kept(terminal: Terminal) -> None:
    terminal.enters("x = 20")
    assert "42" in terminal.enters("x + 22")
    assert "in the session" in terminal.enters("print('in the', 'session')")
    assert terminal.ends() == 0


@pytest.mark.long
def test_lines_are_read_until_the_cell_is_complete(terminal: Terminal) -> None:
    terminal.types("for number in range(3):\r")
    terminal.reads("...")
    terminal.types("print('at', number * 11)\r\r")
    assert "at 0\r\nat 11\r\nat 22" in terminal.reads("at 22")


@pytest.mark.long
def test_a_failure_is_shown_and_the_session_continues(terminal: Terminal) -> None:
    assert "ZeroDivisionError: division by zero" in terminal.enters("1 / 0")
    assert "SyntaxError" in terminal.enters("1 +")
    assert "42" in terminal.enters("6 * 7")


@pytest.mark.slow
@pytest.mark.long
def test_help_and_hints_name_the_commands_of_the_repl(terminal: Terminal) -> None:
    assert "%get --force replaces a file here" in terminal.enters("%help").replace("\r\n", " ")
    shown = terminal.enters("!pip install humanizzze")
    assert "[hint] install a missing package with %install PACKAGE" in shown
    assert "session.install" not in shown


@pytest.mark.long
def test_magics_are_the_sessions_own(terminal: Terminal) -> None:
    assert "/mnt/data" in terminal.enters("%pwd")


@pytest.mark.slow
def test_ctrl_c_interrupts_the_cell_and_keeps_the_variables(terminal: Terminal) -> None:
    terminal.enters("x = 42")
    terminal.types(f"{ENDLESS}\r")
    terminal.reads("ready")
    terminal.types(CTRL_C)
    assert "KeyboardInterrupt" in terminal.reads("KeyboardInterrupt")
    terminal.reads(PROMPT)
    assert "42" in terminal.enters("x")


@pytest.mark.long
def test_a_second_ctrl_c_ends_the_repl_at_once_and_reports_it(terminal: Terminal) -> None:
    terminal.enters("import os, signal")
    terminal.types(f"_ = signal.signal(signal.SIGINT, lambda *_: os.write(1, b'n' b'o')); {ENDLESS}\r")
    terminal.reads("ready")
    terminal.types(CTRL_C)
    terminal.reads("no")
    terminal.types(CTRL_C)
    assert "[session state unknown" in terminal.reads(PROMPT)


@pytest.mark.long
def test_a_loss_is_reported(terminal: Terminal) -> None:
    said = "[session state lost: killed; variables from before are gone, files are kept]"
    assert said in terminal.enters("import os; os.kill(os.getpid(), 9)")


@pytest.mark.long
def test_ctrl_c_at_the_prompt_clears_it(terminal: Terminal) -> None:
    for typed in ("1 / 0 + (", "["):
        terminal.types(typed)
        terminal.reads(typed[-1])
        terminal.types(CTRL_C)
        terminal.reads("\n")
        terminal.reads(PROMPT)
    terminal.types(CTRL_C)
    terminal.reads("\n")
    terminal.reads(PROMPT)
    assert "42" in terminal.enters("6 * 7")
    assert terminal.ends() == 0


@pytest.mark.long
def test_time_travel(terminal: Terminal) -> None:
    terminal.enters("x = 11")
    assert "kept: checkpoint 1 first" in terminal.enters("%checkpoint first")
    terminal.enters("x = 22")
    assert "kept: checkpoint 2" in terminal.enters("%checkpoint")
    assert "checkpoint 1 first\r\ncheckpoint 2" in terminal.enters("%checkpoints")
    terminal.enters("x = 33")
    assert "back at checkpoint 2, which is removed" in terminal.enters("%undo")
    assert "22" in terminal.enters("x")
    assert "back at checkpoint 1 first" in terminal.enters("%rollback first")
    assert "11" in terminal.enters("x")


@pytest.mark.long
def test_an_impossible_rollback_is_reported(terminal: Terminal) -> None:
    assert "aca-sessions: " in terminal.enters("%undo")
    assert "aca-sessions: " in terminal.enters("%rollback never")
    assert "must be alone" in terminal.enters("%undo twice")


@pytest.mark.long
def test_images_are_saved_without_replacing_files(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "image-1.png").write_text("mine")
    terminal.enters("from IPython.display import Image")
    assert "[image saved: image-2.png]" in terminal.enters("Image(bytes([137]) + b'PNG', format='png')")
    assert "[image not saved: it is not an image]" in terminal.enters("display({'image/png': 'x'}, raw=True)")
    assert ((tmp_path / "image-1.png").read_text(), (tmp_path / "image-2.png").read_bytes()) == ("mine", b"\x89PNG")


@pytest.mark.slow
@pytest.mark.long
def test_questions_are_answered_at_the_terminal(terminal: Terminal) -> None:
    terminal.types("'hello ' + input('who' + '? ')\r")
    terminal.reads("who? ")
    terminal.types("Ada\r")
    assert "'hello Ada'" in terminal.reads("'hello Ada'")
    terminal.reads(PROMPT)
    terminal.types("input('who' + '? ')\r")
    terminal.reads("who? ")
    terminal.types(CTRL_D)
    assert "EOFError" in terminal.reads(PROMPT)


@pytest.mark.slow
def test_a_password_is_read_without_echo(terminal: Terminal) -> None:
    terminal.types("from getpass import getpass; (print('['), getpass('tok' + 'en? '))[1][::-1]\r")
    terminal.reads("[\r\n")
    terminal.reads("token? ")
    terminal.types("hunter2\r")
    assert "hunter2" not in terminal.reads("'2retnuh'")
    assert "hunter2" not in terminal.reads(PROMPT)
    terminal.types("getpass('tok' + 'en? ')\r")
    terminal.reads("token? ")
    terminal.types(CTRL_D)
    assert "EOFError" in terminal.reads(PROMPT)
    terminal.types("input('na' + 'me? ') + '!'\r")
    terminal.reads("name? ")
    terminal.types("line\r")
    assert "line\r\n" in terminal.reads(PROMPT)  # the terminal echoes again


@pytest.mark.long
def test_ctrl_c_at_a_password_interrupts_the_cell(terminal: Terminal) -> None:
    terminal.enters("x = 42")
    terminal.types("__import__('getpass').getpass('tok' + 'en? ')\r")
    terminal.reads("token? ")
    # Python does not see a signal that arrives just before it calls read(2): one in 5,000 when typed right after the prompt. As a user
    # would, this types another.
    terminal.types(CTRL_C)
    while not terminal.has_output(seconds=20):
        terminal.types(CTRL_C)
    terminal.reads(PROMPT)
    assert "42" in terminal.enters("x")


@pytest.mark.slow
def test_tab_completes_names_of_the_session(terminal: Terminal) -> None:
    terminal.enters("some_long_name = 41 + 1")
    terminal.types("some_lo\t")
    terminal.reads("ng_name")  # only the new part is drawn
    terminal.types("\r")
    assert "42" in terminal.reads("42")
    terminal.reads(PROMPT)
    terminal.types("if 1:\r\tprint(some_long_name)\r\r")  # at the beginning of a line, Tab indents
    assert "42" in terminal.reads("42")


@pytest.mark.slow
@pytest.mark.parametrize("leaving", mostly_long([CTRL_C, "\r"], CTRL_C))
@pytest.mark.long
def test_a_completion_that_does_not_return_is_abandoned_with_its_prompt(terminal: Terminal, leaving: str) -> None:
    terminal.enters("class Slow:\n    def __dir__(self): __import__('time').sleep(10_000)\n\n")
    terminal.enters("slow = Slow()")
    terminal.types("slow.\t")
    terminal.reads("looking for names")
    terminal.types(f"{leaving}6 * 7\r")
    assert "42" in terminal.reads("42")


@pytest.mark.long
def test_tab_completes_commands_files_of_the_session_and_paths_here(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "unique_here.txt").write_text("here")
    terminal.types("%put unique_h\t")
    terminal.reads("ere.txt")
    terminal.types("\r")
    terminal.reads("[file sent: unique_here.txt]")
    terminal.reads(PROMPT)
    terminal.enters("import os; os.rename('unique_here.txt', 'unique_there.txt')")
    terminal.types("%get unique_t\t")
    terminal.reads("here.txt")
    terminal.types("\r")
    terminal.reads("[file saved: unique_there.txt]")
    assert (tmp_path / "unique_there.txt").read_text() == "here"


@pytest.mark.slow
@pytest.mark.parametrize("leaving", mostly_long(["exit", "quit", "exit()", " quit() "], "quit"))
def test_exit_and_quit_leave(leaving: str) -> None:
    with Terminal() as terminal:
        terminal.reads(PROMPT)
        terminal.types(f"{leaving}\r")
        assert terminal.process.wait(timeout=120) == 0


@pytest.mark.long
def test_files_are_sent_and_brought_out(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("one")
    assert "[file sent: data/b.txt]" in terminal.enters("%put 'a b.txt' data/b.txt")
    assert "'one'" in terminal.enters("open('data/b.txt').read()")
    assert "[file saved: b.txt]" in terminal.enters("%get data/b.txt")
    assert (tmp_path / "b.txt").read_text() == "one"
    assert "b.txt exists" in terminal.enters("%get data/b.txt")
    terminal.enters("_ = open('data/b.txt', 'w').write('two')")
    assert "[file saved: b.txt]" in terminal.enters("%get --force data/b.txt")
    assert (tmp_path / "b.txt").read_text() == "two"


@pytest.mark.long
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("%get none.txt", "the session has no file none.txt"),
        ("%get none.txt nowhere/", "the session has no file none.txt"),
        ("%put none.txt", "none.txt"),
        ("%get", "expected %get [--force] NAME [PATH]"),
        ("%put a b c", "expected %get [--force] NAME [PATH]"),
        ("%install", "expected %get [--force] NAME [PATH]"),
        ("%install 'x", "the command has no closing quotation mark"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_reported_and_leaves_nothing(
    terminal: Terminal, tmp_path: Path, typed: str, said: str
) -> None:
    shown = terminal.enters(typed)
    assert f"aca-sessions: {said}" in shown.replace("\r\n", " ")
    assert not [name for name in os.listdir(tmp_path) if name != "state"]
    assert "42" in terminal.enters("6 * 7")


@pytest.mark.long
def test_packages_are_installed_into_the_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "alpha")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))
    with Terminal() as terminal:
        terminal.reads(PROMPT)
        terminal.enters("%install alpha")
        terminal.types("import alpha; 'version ' + alpha.version\r")
        terminal.reads("'version 1.0'")


def test_progress_is_shown_at_a_terminal_until_the_block_ends_and_then_erased() -> None:
    waits = "from aca_sessions.cli.streams import progress\nwith progress('installing x\\x1b[2J'): input()\nprint('end')"
    ours, theirs = os.openpty()
    with subprocess.Popen([sys.executable, "-c", waits], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while not re.search(rb" \d+ s", seen):
            seen += os.read(ours, 4096)
        os.write(ours, b"\n")
        while b"end" not in seen:
            seen += os.read(ours, 4096)
        assert process.wait(timeout=120) == 0
    os.close(ours)
    assert re.search(r"\rinstalling x\\x1b\[2J \.\.\. \d+ s", seen.decode())
    assert re.search(r"\r {23,}\r", seen.decode())


def test_progress_is_not_shown_to_a_program() -> None:
    code = "import threading\nfrom aca_sessions.cli.streams import progress\nwith progress('x'): print(threading.active_count())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert (run.stdout, run.stderr) == ("1\n", "")


@pytest.mark.long
def test_typed_cells_are_kept_for_the_next_time_unless_declined(state_home: Path) -> None:
    with Terminal() as terminal:
        terminal.reads(PROMPT)
        terminal.enters("print('kept by', 'default')")
        assert terminal.ends() == 0
    kept = state_home / "aca-sessions" / "repl-history"
    assert (stat.S_IMODE(kept.stat().st_mode), stat.S_IMODE(kept.parent.stat().st_mode)) == (0o600, 0o700)
    with Terminal("--no-history") as terminal:
        terminal.reads(PROMPT)
        terminal.enters("'not'")
    assert "+print('kept by', 'default')" in kept.read_text()
    assert "'not'" not in kept.read_text()


@pytest.mark.long
def test_typed_lines_are_kept_in_a_file_of_this_user_only(tmp_path: Path) -> None:
    for typed in ("6 * 7\r", "\x1b[A\r"):
        with Terminal("--history", str(tmp_path / "history")) as terminal:
            terminal.reads(PROMPT)
            terminal.types(typed)
            terminal.reads("42")
            terminal.reads(PROMPT)
            assert terminal.ends() == 0
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600


@pytest.mark.long
def test_a_named_session_at_an_endpoint_continues_afterwards() -> None:
    with Server("--port", "0", "--api-key", "key") as server:
        for code, shown in [("x = 42", ""), ("x", "42")]:
            with Terminal("--session", "mine", "--endpoint", server.endpoint, ACASessions__ApiKey="key") as terminal:
                terminal.reads(PROMPT)
                assert shown in terminal.enters(code)
                assert terminal.ends() == 0


@pytest.mark.long
@pytest.mark.parametrize(("arguments", "said"), [([], "needs a terminal"), (["--port", "1"], "--port")])
def test_an_error_is_one_line(arguments: list[str], said: str) -> None:
    run = aca_sessions("repl", *arguments)
    assert (run.returncode, said in run.stderr, "Traceback" in run.stderr) == (2, True, False)


@pytest.mark.parametrize(
    ("code", "complete"),
    [
        ("1", True),
        ("1 = 2", True),
        ("!ls", True),
        ("for x in y:", False),
        ("for x in y:\n    x", False),
        ("for x in y:\n    x\n    ", True),
        ("(1,", False),
        ("'''", False),
        ("%%bash", False),
        ("%%bash\nls", False),
        ("%%bash\nls\n", True),
    ],
)
def test_a_cell_is_complete_if_python_accepts_it_or_after_an_empty_line(code: str, complete: bool) -> None:
    assert is_complete(code) is complete


def offered(typed: str, matches: list[str], start: int, end: int | None = None, after: str = "") -> list[str]:
    """Return what a line becomes with each completion, if the session offers `matches` for the text from `start` to `end`."""
    found = Completions(matches=tuple(matches), start=start, end=len(typed) if end is None else end)
    completer = CellCompleter(lambda code, cursor: found, list, lambda: None)
    completions = completer.get_completions(Document(typed + after, len(typed)), CompleteEvent())
    return [typed[: len(typed) + one.start_position] + one.text + after for one in completions]


def test_completions_continue_what_was_typed() -> None:
    assert offered("x = na", ["name", "names", "NAME", "other"], 4) == ["x = name", "x = names", "x = NAME"]
    assert offered("\\alp", ["\u03b1"], 0) == ["\u03b1"]
    assert offered("%ti", ["%time"], 0) == ["%time"]
    assert offered("%ge", [], 0) == ["%get"]
    assert offered("%che", [], 0) == ["%checkpoint", "%checkpoints"]


async def test_the_commands_of_the_repl_are_offered_before_the_session_answers() -> None:
    answers = threading.Event()
    completer = CellCompleter(lambda _code, _cursor: answers.wait() and Completions(matches=("%cd",), start=0, end=2), list, lambda: None)
    offered = completer.get_completions_async(Document("%c"), CompleteEvent())
    assert [(await anext(offered)).text, (await anext(offered)).text] == ["%checkpoint", "%checkpoints"]
    answers.set()
    assert [one.text async for one in offered] == ["%cd"]


async def test_a_cancelled_completion_is_abandoned_and_not_waited_for() -> None:
    asked, abandoned = threading.Event(), threading.Event()
    completer = CellCompleter(lambda _code, _cursor: asked.set() or threading.Event().wait(), list, abandoned.set)

    async def complete() -> None:
        _ = [one async for one in completer.get_completions_async(Document("x"), CompleteEvent())]

    completing = asyncio.create_task(complete())
    await asyncio.to_thread(asked.wait)
    completing.cancel()
    await asyncio.wait({completing})
    assert (completing.cancelled(), abandoned.is_set()) == (True, True)


@pytest.mark.parametrize(
    ("typed", "match", "start"),
    [
        ("x", "%put /etc/passwd", 0),
        ("", "%put /etc/passwd", 0),
        ("%", "%put /etc/passwd", 0),
        ("%p", "%put ~/.ssh/id_rsa", 0),
        ("%put", "%put /etc/passwd", 0),
        ("%put", " /etc/passwd", 4),
        ("%pu", "t /etc/passwd", 3),
        ("\\x", "%put /etc/passwd", 0),
        ("x", "x\n%put /etc/passwd", 0),
        ("x", "x\x1b[2J", 0),
        ("a x", "%put /etc/passwd", 0),
        ("x", "x", -1),
        ("x", "xy", 5),
    ],
)
def test_a_completion_by_code_in_the_session_becomes_no_command_of_the_repl(typed: str, match: str, start: int) -> None:
    lines = offered(typed, [match], start)
    assert all(line in COMMANDS for line in lines)  # the repl's own


def test_a_history_that_has_grown_large_is_cut_to_its_latest_part(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("".join(f"\n# 2026-11-30 00:00:00\n+x = {number:>80}\n" for number in range(50_000)))
    history = open_history(path, kept=True)
    assert path.stat().st_size < 3 << 20
    kept = [*history.load_history_strings()]
    assert kept[0].split() == ["x", "=", "49999"]
    assert all(cell.startswith("x = ") for cell in kept)


def test_a_history_that_cannot_be_kept_is_an_error_only_if_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"--history .* cannot be used"):
        open_history(tmp_path / "nowhere" / "history", kept=True)
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    assert [*open_history(None, kept=True).load_history_strings()] == []


@pytest.mark.slow
def test_a_refused_request_is_shown_as_data_and_allowed_at_the_terminal() -> None:
    fetch = "def fetch(c):\n try: u.urlopen(f'http://{c}.invalid')\n except e.HTTPError as x: return x.code"
    with Terminal(ACASessions__Sandbox__Network='["target.test"]') as terminal:
        terminal.reads(PROMPT)
        terminal.enters(f"import urllib.request as u, urllib.error as e; exec({fetch!r})")
        for host, typed, shown in (("a", "y", "502"), ("a", "always", "502"), ("b", "", "403"), ("c", "Yes please", "403")):
            terminal.types(f"print('fetch', 'ing\\n[network] no'); fetch('{host}')\r")
            assert "(printed) [network] no" in terminal.reads("[network] The session's network rules do not allow")
            assert f"connect to {host}.invalid, port 80.\r\nThe rules allow: the hosts target.test" in terminal.reads("[y/N/always] ")
            terminal.types(f"{typed}\r")
            assert shown in terminal.reads(PROMPT)
        assert "502" in terminal.enters("fetch('a')")  # without a question
        terminal.types("fetch('d'); exec('while True: pass')\r")
        terminal.reads("[y/N/always] ")
        time.sleep(0.3)  # the terminal waits for the answer
        terminal.types(CTRL_C)
        assert "KeyboardInterrupt" in terminal.reads(PROMPT)
        terminal.types("fetch('d')\r")
        terminal.reads("[y/N/always] ")
        terminal.types(CTRL_D)
        assert "403" in terminal.reads(PROMPT)


class RunTerminal(Terminal):
    command = "run"


@pytest.mark.slow
@pytest.mark.long
def test_run_asks_about_refused_requests_at_a_terminal_only() -> None:
    network = {"ACASessions__Sandbox__Network": '["target.test"]'}
    code = "import urllib.request as u\ntry: u.urlopen('http://a.invalid')\nexcept OSError as error: print(error.code)"
    for typed, shown in (("y\r", "502"), (CTRL_D, "403")):
        with RunTerminal(code, **network) as terminal:
            terminal.reads("connect to a.invalid, port 80.")
            terminal.reads("[y/N/always] ")
            terminal.types(typed)
            terminal.reads(shown)
    with RunTerminal(f"{code}\nwhile True: pass", **network) as terminal:
        terminal.reads("[y/N/always] ")
        time.sleep(0.3)
        terminal.types(CTRL_C)
        terminal.reads("KeyboardInterrupt")
    assert aca_sessions("run", code, env=os.environ | network).stdout == "403\n"
