"""Test the output of `aca-sessions run` while the cell runs, as a shell uses it."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from ..conftest import COMMAND, aca_sessions, mostly_long
from .test_cli import Server

pytestmark = pytest.mark.slow
ENDLESS = "print('ready', flush=True)\nwhile True: pass"
STUBBORN = f"import os, signal\nsignal.signal(signal.SIGINT, lambda *_: os.write(1, b'no\\n'))\n{ENDLESS}"


class Live:
    """A running command with one cell."""

    def __init__(self, *arguments: str, **options: object) -> None:
        listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job may ignore SIGINT
        command = [*COMMAND, "run", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listens, start_new_session=True, **options
        )

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=120)

    def line(self) -> str:
        return self.process.stdout.readline()

    def end(self) -> tuple[str, str, int]:
        """Return the rest of its output on each stream, and its exit code."""
        return *self.process.communicate(timeout=120), self.process.returncode


@pytest.mark.long
def test_streams_get_what_the_cell_wrote_and_its_value_has_its_own_line() -> None:
    code = "import sys\nprint('out', end='')\nprint('err', end='', file=sys.stderr)"
    run = aca_sessions("run", code)
    assert (run.stdout, run.stderr, run.returncode) == ("out", "err", 0)
    assert aca_sessions("run", f"{code}\n6 * 7").stdout == "out\n42\n"


@pytest.mark.long
def test_all_output_arrives() -> None:
    run = aca_sessions("run", "--live", "import sys\nprint('x' * 3_000_000)\nprint('y' * 3_000_000, file=sys.stderr)")
    assert (run.stdout == "x" * 3_000_000 + "\n", run.stderr == "y" * 3_000_000 + "\n", run.returncode) == (True, True, 0)


@pytest.mark.long
def test_displays_are_printed_once_and_images_are_saved() -> None:
    image = "Image(b'\\x89PNG\\r\\n\\x1a\\n', format='png')"
    code = f"from IPython.display import Image\nprint('zero')\ndisplay('one')\ndisplay({image})\ndisplay('two')\n'two'"
    run = aca_sessions("run", code)
    assert (run.stdout, run.stderr) == ("zero\n'one'\n'two'\n'two'\n", "[image saved: image-1.png]\n")


@pytest.mark.long
def test_a_failed_cell_ends_with_one_traceback() -> None:
    run = aca_sessions("run", "print('out')\n1 / 0")
    assert (run.stdout, run.returncode) == ("out\n", 1)
    assert run.stderr.count("ZeroDivisionError: division by zero") == 1


def test_json_and_live_contradict_each_other() -> None:
    run = aca_sessions("run", "--live", "--json", "1")
    assert (run.returncode, "--json: not allowed with argument --live" in run.stderr) == (2, True)


@pytest.mark.long
def test_ctrl_c_interrupts_the_cell_and_its_result_is_printed() -> None:
    with Live(ENDLESS) as live:
        assert live.line() == "ready\n"  # while it runs
        os.killpg(live.process.pid, signal.SIGINT)
        stdout, stderr, status = live.end()
    assert (stdout, status) == ("", 130)
    assert stderr.rstrip().endswith("KeyboardInterrupt:")
    assert "cli/run.py" not in stderr


def test_ctrl_c_before_a_command_begins_is_quiet() -> None:
    code = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "httpx":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
from aca_sessions.cli.main import main
main(["run", "1"])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert (run.stdout, run.stderr, run.returncode) == ("", "", 130)


def test_a_question_is_answered_at_the_terminal() -> None:
    ours, theirs = os.openpty()
    with Live("input('who? ') + '!'", stdin=theirs) as live:
        os.write(ours, b"Ada\n")
        stdout, _, status = live.end()
    os.close(ours)
    os.close(theirs)
    assert (stdout, status) == ("who? 'Ada!'\n", 0)


@pytest.mark.long
def test_a_cell_that_had_to_be_killed_is_reported() -> None:
    with Live(STUBBORN) as live:
        live.line()
        live.process.send_signal(signal.SIGINT)
        _, stderr, status = live.end()
    assert (stderr, status) == ("InterpreterDied: the session's interpreter ended (killed)\n", 130)


@pytest.mark.long
def test_a_second_ctrl_c_does_not_wait_for_the_result() -> None:
    with Live(STUBBORN) as live:
        live.line()
        live.process.send_signal(signal.SIGINT)
        assert live.line() == "no\n"
        live.process.send_signal(signal.SIGINT)
        _, stderr, status = live.end()
    assert ("Traceback" in stderr, status) == (False, 130)


@pytest.mark.long
@pytest.mark.parametrize("option", mostly_long(["--access-log", "--plain"], "--plain"))
def test_live_works_at_every_endpoint(option: str) -> None:
    with Server("--port", "0", "--api-key", "key", option) as server:
        environment = os.environ | {"ACASessions__Endpoint": server.endpoint, "ACASessions__ApiKey": "key"}
        run = aca_sessions("run", "--live", "--session", "mine", "print('out')\n1 / 0", env=environment)
    assert (run.stdout, run.returncode) == ("out\n", 1)
    assert run.stderr.count("ZeroDivisionError: division by zero") == 1


@pytest.mark.long
def test_output_that_a_slow_reader_lost_is_reported() -> None:
    with Server("--port", "0", "--api-key", "key") as server:
        environment = os.environ | {"ACASessions__Endpoint": server.endpoint, "ACASessions__ApiKey": "key"}
        with Live("--session", "mine", "print('ready')\nfor _ in range(300): print('x' * 100_000)", env=environment) as live:
            assert live.line() == "ready\n"
            assert aca_sessions("run", "--session", "mine", "1", env=environment).returncode == 0  # after the first cell
            stdout, stderr, status = live.end()
    assert (len(stdout) < 30_000_000, "were dropped before they were read]" in stderr, status) == (True, True, 1)
