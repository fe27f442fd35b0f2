"""Test sessions without `await`: scripts, threads, Ctrl-C, notebooks."""

import asyncio
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aca_sessions import InteractiveSession, Session
from aca_sessions.errors import ACASessionsError, InvalidArgumentError
from aca_sessions.sandbox.forkserver import ForkServer

from ..cli.test_cli import Server
from ..conftest import ROOT, mostly_long

ENDLESS = "while True: pass"


@pytest.fixture
def session() -> Iterator[InteractiveSession]:
    with InteractiveSession() as opened:
        yield opened


def test_state_persists_between_cells(session: InteractiveSession) -> None:
    session.run("x = 20")
    result = session.run("print('out')\nx + 22")
    assert (result.output, result.text, str(result.state)) == ("out\n42", "42", "kept")


def test_a_failed_cell_is_a_result(session: InteractiveSession) -> None:
    assert (session.run("1 / 0").exit_code, session.run("1").exit_code) == (1, 0)


def test_output_arrives_while_the_cell_runs_in_the_callers_thread(session: InteractiveSession) -> None:
    seen = []

    def take(text: str) -> None:
        seen.append((text, threading.get_ident()))
        session.delete_file("gate")

    code = "import os, time\nopen('gate', 'w').close()\nprint('go', flush=True)\nwhile os.path.exists('gate'): time.sleep(0.01)\n5"
    result = session.run(code, on_stdout=take)
    assert (seen, result.value) == ([("go\n", threading.get_ident())], 5)


BLOCKING = {name for name, method in vars(InteractiveSession).items() if inspect.isfunction(method) and hasattr(method, "__wrapped__")}


@pytest.mark.parametrize("name", sorted(BLOCKING))
def test_a_blocking_method_has_the_signature_and_the_docstring_of_the_async_one(name: str) -> None:
    blocking, asynchronous = getattr(InteractiveSession, name), getattr(Session, name)
    assert inspect.signature(blocking) == inspect.signature(asynchronous)
    assert (inspect.getdoc(blocking), blocking.__name__) == (inspect.getdoc(asynchronous), name)
    assert not inspect.iscoroutinefunction(blocking)


def test_every_operation_of_a_session_has_a_blocking_form() -> None:
    written_here = {"run", "branch", "stream"}  # with callbacks, or with other results
    internal = {"start", "install_missing"}
    operations = {name for name, method in inspect.getmembers(Session, inspect.iscoroutinefunction) if not name.startswith("_")}
    assert operations - internal - written_here == BLOCKING


@pytest.mark.long
def test_a_type_checker_infers_what_blocking_methods_return(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    calls = ('install("humanize", timeout=5)', "health()", "rollback()", 'list_files("folder")', "install")
    revealed = "".join(f"reveal_type(session.{call})\n" for call in calls)
    script.write_text(f"from aca_sessions import InteractiveSession\nsession = InteractiveSession()\n{revealed}session.install(3)\n")
    checked = subprocess.run([sys.executable, "-m", "mypy", "--strict", script], cwd=ROOT, capture_output=True, text=True)
    assert re.findall(r'Revealed type is "(.*)"', checked.stdout) == [
        "aca_sessions.models.CodeExecutionResult",
        "aca_sessions.models.SessionHealth",
        "aca_sessions.models.Checkpoint",
        "list[aca_sessions.models.RemoteFile]",
        "def (*requirements: str, timeout: float =) -> aca_sessions.models.CodeExecutionResult",
    ]
    assert checked.stdout.count("error:") == 1
    assert 'incompatible type "int"; expected "str"' in checked.stdout


def test_stderr_is_separate(session: InteractiveSession) -> None:
    out, err = [], []
    session.run("import sys\nprint('a')\nprint('b', file=sys.stderr)", on_stdout=out.append, on_stderr=err.append)
    assert (out, err) == (["a\n"], ["b\n"])


def test_input_is_answered_in_the_callers_thread(session: InteractiveSession) -> None:
    result = session.run("input('a ') + input('b ')", on_input=lambda prompt: f"{prompt}{threading.get_ident()} ")
    assert result.value == f"a {threading.get_ident()} b {threading.get_ident()} "


def test_an_exception_in_a_callback_reaches_the_caller_and_ends_the_cell(session: InteractiveSession) -> None:
    def fail(text: str) -> None:
        raise LookupError(text)

    with pytest.raises(LookupError):
        session.run("import time\nwhile True:\n    print(1, flush=True); time.sleep(0.01)", on_stdout=fail)
    assert session.run("1").value == 1


@pytest.mark.parametrize("live", [False, True])
def test_a_transactional_cell_that_fails_leaves_no_trace(session: InteractiveSession, live: bool) -> None:
    session.run("x = 1")
    result = session.run("x = 2; print('seen'); 1 / 0", transactional=True, on_stdout=print if live else None)
    assert (result.stdout, str(result.state), session.run("x").value) == ("seen\n", "rolled_back", 1)


def test_reset_clears_the_variables_and_keeps_the_files(session: InteractiveSession) -> None:
    session.run("x = 1; open('kept.txt', 'w').write('here')")
    session.reset()
    assert session.run("'x' in globals(), open('kept.txt').read()").text == "(False, 'here')"


def test_files_go_in_and_out(session: InteractiveSession, tmp_path: Path) -> None:
    session.upload_file("in.txt", b"hello")
    session.run("open('out.txt', 'w').write(open('in.txt').read().upper())")
    assert session.download_file("out.txt") == b"HELLO"
    assert session.save_file("out.txt", tmp_path / "saved") == 5
    session.delete_file("in.txt")
    assert [file.name for file in session.list_files()] == ["out.txt"]


def test_commands_run_in_the_session(session: InteractiveSession) -> None:
    session.upload_file("a.txt", b"")
    done = session.execute_command("ls; echo oops >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code, done.success) == ("a.txt\n", "oops\n", 3, False)
    assert session.execute_command("printf no-newline").stdout == "no-newline"
    assert session.execute_command("kill -9 $$").exit_code == -9


@pytest.mark.parametrize("command", ["", " ", None, [], [1]])
def test_an_invalid_command_is_refused(session: InteractiveSession, command: object) -> None:
    with pytest.raises(InvalidArgumentError, match="command must be text"):
        session.execute_command(command)  # type: ignore[arg-type]


def test_a_command_over_its_time_reports_it(session: InteractiveSession) -> None:
    done = session.execute_command("sleep 60", timeout=0.2)
    assert (done.exit_code, done.timed_out) == (-9, True)


def test_files_anywhere_are_read_and_changed(session: InteractiveSession) -> None:
    session.filesystem.write("/tmp/notes/a.txt", "one")
    assert session.filesystem.edit("/tmp/notes/a.txt", "one", "two") == 1
    assert session.filesystem.read("/tmp/notes/a.txt") == b"two"
    with pytest.raises(FileNotFoundError, match="cannot read '/tmp/none': No such file or directory"):
        session.filesystem.read("/tmp/none")


def test_variables_and_health_are_reported(session: InteractiveSession) -> None:
    session.run("x = [1, 2]")
    assert [(variable.name, variable.shape) for variable in session.variables()] == [("x", (2,))]
    assert session.health().responsive


def test_another_thread_interrupts_the_cell_that_runs(session: InteractiveSession) -> None:
    session.run("x = 5")
    with ThreadPoolExecutor() as threads:
        started = threading.Event()
        running = threads.submit(session.run, f"print(1, flush=True)\n{ENDLESS}", on_stdout=lambda _: started.set())
        started.wait()
        session.interrupt()
        result = running.result()
    assert (result.error and result.error.name, str(result.state), session.run("x").value) == ("KeyboardInterrupt", "kept", 5)


def test_cells_of_several_threads_run_one_after_the_other(session: InteractiveSession) -> None:
    session.run("order = []")
    with ThreadPoolExecutor(8) as threads:
        results = [*threads.map(lambda number: session.run(f"order.append({number}); {number}"), range(20))]
    assert [result.value for result in results] == [*range(20)]
    assert session.run("sorted(order) == list(range(20))").value is True


@pytest.fixture
def listens_to_ctrl_c() -> Iterator[None]:
    """Restore SIGINT: programs that a shell starts in the background ignore it, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
@pytest.mark.parametrize("live", [False, True])
def test_ctrl_c_interrupts_the_cell_and_keeps_the_state(session: InteractiveSession, live: bool) -> None:
    def press() -> None:
        while not session.list_files():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    session.run("x = 5")
    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        session.run(f"open('begun', 'w').close()\n{ENDLESS}", on_stdout=print if live else None)
    result = session.run("x")
    assert (result.value, str(result.state)) == (5, "kept")


def test_a_cell_is_streamed_and_cancelled_and_its_result_still_arrives(session: InteractiveSession) -> None:
    session.run("x = 5")
    cell = session.stream(f"print('go', flush=True)\n{ENDLESS}")
    for event in cell:
        if event.kind == "stdout":
            cell.cancel()
    assert event.result is not None
    assert (event.result.error and event.result.error.name, str(event.result.state)) == ("KeyboardInterrupt", "kept")


def test_an_immediate_cancellation_interrupts_as_well(session: InteractiveSession) -> None:
    cell = session.stream(ENDLESS)
    cell.cancel()
    last = [*cell][-1].result
    assert last is not None
    assert (last.error and last.error.name, session.run("1").value) == ("KeyboardInterrupt", 1)


def test_input_that_has_ended_is_pythons_error_in_the_cell(session: InteractiveSession) -> None:
    lines = iter(("one",))

    def read(_prompt: str) -> str:
        for line in lines:
            return line
        raise EOFError

    result = session.run("print(input())\ninput()", on_input=read)
    assert (result.stdout, str(result.error)) == ("one\n", "EOFError: EOF when reading a line")


def test_a_refused_input_is_an_end_of_file_in_the_cell(session: InteractiveSession) -> None:
    result = session.run("input('a ')", on_input=lambda _: None)
    assert result.error is not None
    assert result.error.name == "EOFError"


def test_time_travel(session: InteractiveSession) -> None:
    session.run("x = 1")
    first = session.checkpoint("first")
    session.run("x = 2")
    session.checkpoint()
    session.run("x = 3")
    assert (session.undo().name, session.run("x").value) == (None, 2)
    assert (session.rollback("first"), session.run("x").value) == (first, 1)
    assert session.checkpoints() == [first]


def test_branches_continue_independently_and_end_with_the_session() -> None:
    with InteractiveSession() as session:
        session.run("x = 1")
        one, other = session.branch(2)
        with one:
            one.run("x = 2")
        other.run("x = 3")
        assert (session.run("x").value, other.run("x").value) == (1, 3)
    for ended in (one, other):
        with pytest.raises(ACASessionsError, match="not open"):
            ended.run("x")


async def test_it_works_inside_a_running_event_loop() -> None:
    with InteractiveSession() as session:
        assert session.run("import asyncio\nawait asyncio.sleep(0, 7)").value == 7
    assert asyncio.get_running_loop().is_running()


def test_a_second_session_starts_no_second_fork_server(session: InteractiveSession) -> None:
    session.run("x = 1")
    servers = len(ForkServer._shared)
    with InteractiveSession() as second:
        assert second.run("'x' in globals()").value is False
        assert len(ForkServer._shared) == servers


def test_a_name_identifies_the_session() -> None:
    with InteractiveSession(session_id="alice") as session:
        assert session.run("1").session_id == "alice"


@pytest.mark.long
@pytest.mark.slow
def test_a_session_that_is_joined_continues_after_it_is_left(tmp_path: Path) -> None:
    with Server("--socket", str(tmp_path / "s")) as server:
        for code, value in [("x = 5", None), ("x", 5)]:
            with InteractiveSession.join("alice", endpoint=server.endpoint) as session:
                assert session.run(code).value == value


def test_it_can_be_opened_and_closed_explicitly() -> None:
    session = InteractiveSession(timeout=4)
    session.open().open()
    assert session.run("import time; time.sleep(60)").error is not None
    session.close()
    session.close()
    with pytest.raises(ACASessionsError, match="not open"):
        session.run("1")
    with session.open():
        assert session.run("1", timeout=100).value == 1


def test_closing_it_ends_the_cell_of_another_thread() -> None:
    session = InteractiveSession().open()
    with ThreadPoolExecutor() as threads:
        started = threading.Event()
        running = threads.submit(session.run, f"print(1, flush=True)\n{ENDLESS}", on_stdout=lambda _: started.set())
        started.wait()
        session.close()
        with pytest.raises(ACASessionsError, match="closed"):
            running.result()


def test_a_session_that_was_not_closed_warns() -> None:
    with pytest.warns(ResourceWarning, match="never closed") as warned:
        InteractiveSession().open()
    assert warned[0].filename == __file__


@pytest.mark.long
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("end", mostly_long(["", "raise KeyError"], "raise KeyError"))
def test_a_script_ends_although_it_did_not_close_its_session(end: str) -> None:
    code = f"from aca_sessions import InteractiveSession\nsession = InteractiveSession().open()\nprint(session.run('6 * 7'))\n{end}"
    run = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert (run.stdout, run.returncode) == ("42\n", 1 if end else 0)
    assert "<InteractiveSession open> made at <string>:2 was never closed: use 'with'" in run.stderr


def test_it_leaves_nothing_behind() -> None:
    with InteractiveSession() as session:
        session.run("x = 1", on_stdout=print)


def test_a_session_is_saved_and_replayed(session: InteractiveSession, tmp_path: Path) -> None:
    session.upload_file("a.txt", "content")
    session.run("open('a.txt').read()")
    session.write_notebook(tmp_path / "a.ipynb")
    session.write_script(tmp_path / "a.py")
    with InteractiveSession() as fresh:
        assert fresh.replay(tmp_path / "a.ipynb").same
        assert [cell.code for cell in fresh.history.cells] == ["open('a.txt').read()"]
