"""Test `aca-sessions repl` at a terminal."""

import fcntl
import os
import re
import select
import signal
import stat
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aca_sessions.cli.repl import is_complete

from ..conftest import COMMAND, aca_sessions
from .test_cli import Server

_CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")
PROMPT = ">>>"  # the space behind it is drawn by moving the cursor
CTRL_C, CTRL_D = "\x03", "\x04"
ENDLESS = "print('re' + 'ady'); exec('while True: pass')"


class Terminal:
    """The command at a terminal of its own, with typed input and the output on the screen."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._ours, theirs = os.openpty()
        kind = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, "repl", *arguments],
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

    def enters(self, code: str) -> str:
        """Type a line, and return the output up to the next prompt."""
        self.types(f"{code}\r")
        self.reads("\n")
        return self.reads(PROMPT)

    def ends(self) -> int:
        self.types(CTRL_D)
        return self.process.wait(timeout=120)


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


@pytest.mark.slow
def test_a_failure_is_shown_and_the_session_continues(terminal: Terminal) -> None:
    assert "ZeroDivisionError: division by zero" in terminal.enters("1 / 0")
    assert "SyntaxError" in terminal.enters("1 +")
    assert "42" in terminal.enters("6 * 7")


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


@pytest.mark.slow
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
    assert "[image not saved: it is none]" in terminal.enters("display({'image/png': 'x'}, raw=True)")
    assert ((tmp_path / "image-1.png").read_text(), (tmp_path / "image-2.png").read_bytes()) == ("mine", b"\x89PNG")


@pytest.mark.slow
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
