"""Cells: their state, their output, and what is said when one goes wrong."""

import asyncio
import os
import signal
import textwrap
from pathlib import Path

import pytest

from aca_sessions import CodeExecutionResult, Session, SessionPool

from ..conftest import descendants

PNG = b"\x89PNG\r\n\x1a\n"


async def run(session: Session, code: str, **options: object) -> CodeExecutionResult:
    return await session.run(textwrap.dedent(code), **options)


async def test_variables_are_kept_from_cell_to_cell(session: Session) -> None:
    await session.run("x = 20")
    result = await session.run("x + 22")
    assert (result.output, str(result.state)) == ("42", "kept")


@pytest.mark.parametrize(
    ("code", "value", "text"),
    [
        ("6 * 7", 42, "42"),
        ("1 / 4", 0.25, "0.25"),
        ("True", True, "True"),
        ("'a' * 3", "aaa", "'aaa'"),
        ("[1, 2]", "[1, 2]", "[1, 2]"),
        ("None", None, None),
        ("x = 1", None, None),
        ("float('inf')", float("inf"), "inf"),
        ("2 ** 100", 2**100, str(2**100)),
        ("import numpy; numpy.int64(3)", 3, "3"),
        ("import numpy; numpy.float64(1) / 3", 1 / 3, "0.3333333333333333"),
        ("import numpy; numpy.bool_(True)", True, "True"),
        ("import numpy; numpy.arange(3)", "array([0, 1, 2])", "array([0, 1, 2])"),
    ],
)
async def test_the_last_value(session: Session, code: str, value: object, text: str | None) -> None:
    result = await session.run(code)
    assert (result.value, result.text) == (value, text)
    assert type(result.value) is type(value)


async def test_not_a_number_is_a_number(session: Session) -> None:
    result = await session.run("float('nan')")
    assert isinstance(result.value, float)
    assert result.value != result.value


async def test_stdout_and_stderr_are_told_apart(session: Session) -> None:
    result = await session.run("import sys; print('out'); print('err', file=sys.stderr)")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


async def test_python_c_and_child_processes_write_in_true_order(session: Session) -> None:
    result = await run(
        session,
        """
        import ctypes, os, subprocess
        print("python")
        ctypes.CDLL(None).puts(b"c")
        subprocess.run(["echo", "child"])
        os.write(1, b"descriptor\\n")
        print("python")
        !echo shell
        """,
    )
    assert result.stdout.split() == ["python", "c", "child", "descriptor", "python", "shell"]


async def test_a_flood_of_output_is_cut_in_the_middle_and_told(session: Session) -> None:
    result = await session.run("import os\nos.write(1, b'first')\nfor _ in range(20): os.write(1, b'x' * 1_000_000)\nos.write(1, b'last')")
    assert result.success
    assert result.stdout.startswith("firstx")
    assert result.stdout.endswith("xlast")
    assert "bytes cut" in result.stdout
    assert len(result.stdout) < 1_100_000


async def test_an_exception_is_data_with_a_readable_traceback(session: Session) -> None:
    result = await run(
        session,
        """
        def divide(a, b):
            return a / b
        divide(1, 0)
        """,
    )
    assert not result.success
    assert result.exit_code == 1
    assert (result.error.name, result.error.message) == ("ZeroDivisionError", "division by zero")
    assert result.stderr.endswith("ZeroDivisionError: division by zero")
    assert "return a / b" in result.error.traceback
    assert "\x1b" not in result.error.traceback
    assert "aca_sessions" not in result.error.traceback
    assert str(result.state) == "kept"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("x = (", "SyntaxError"),
        ("a\0b", "Error"),  # Python's patch releases disagree: SyntaxError or ValueError
        ("%nosuchmagic", "UsageError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "RecursionError"),
        ("input()", "EOFError"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "ValueError"),
        ("await nothing", "NameError"),
        ("import asyncio; await asyncio.wait_for(asyncio.sleep(9), 0.01)", "TimeoutError"),
    ],
)
async def test_a_cell_that_fails_says_how_and_keeps_the_session(session: Session, code: str, name: str) -> None:
    await session.run("x = 1")
    result = await session.run(code)
    assert result.error.name.endswith(name)
    assert name in result.stderr
    assert (await session.run("x")).value == 1


async def test_a_figure_is_shown_once_as_png(session: Session) -> None:
    result = await session.run("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.title('t'); plt.show()")
    assert [image[:8] for image in result.images] == [PNG]
    assert (await session.run("1")).images == ()


async def test_a_figure_left_open_is_shown_at_the_end(session: Session) -> None:
    assert len((await session.run("import matplotlib.pyplot as plt; _ = plt.plot([1, 2])")).images) == 1


async def test_displays_come_by_mime_type_and_in_order(session: Session) -> None:
    result = await run(
        session,
        """
        from IPython.display import HTML, Markdown, display
        display(HTML("<b>1</b>"))
        display(Markdown("*2*"))
        import pandas
        pandas.DataFrame({"a": [3]})
        """,
    )
    kinds = [next(kind for kind in display.data if kind != "text/plain") for display in result.displays]
    assert kinds == ["text/html", "text/markdown", "text/html"]
    assert "<table" in result.displays[2].data["text/html"]


async def test_a_display_over_the_budget_is_dropped_and_told(session: Session) -> None:
    result = await session.run("from IPython.display import HTML, display; display(HTML('x' * (30 << 20)))")
    assert "was dropped" in result.displays[0].data["text/plain"]


async def test_top_level_await_and_tasks_that_go_on(session: Session) -> None:
    await run(
        session,
        """
        import asyncio
        async def count():
            global n
            for n in range(1000):
                await asyncio.sleep(0.001)
        task = asyncio.create_task(count())
        await asyncio.sleep(0.01)
        before = n
        """,
    )
    result = await session.run("await asyncio.sleep(0.02); n > before")
    assert result.value is True


async def test_asyncio_run_works_in_a_cell(session: Session) -> None:
    assert (await session.run("import asyncio\nasync def f(): return 5\nasyncio.run(f())")).value == 5


async def test_magics_work(session: Session) -> None:
    assert (await session.run("%pwd")).value == "/mnt/data"
    assert (await session.run("%%bash\necho $((6 * 7))")).stdout == "42\n"


async def test_data_is_the_working_directory_and_importable(session: Session) -> None:
    await session.upload_file("data.py", "values = [1, 2, 3, 4, 5]")
    assert (await session.run("import data; sum(data.values)")).value == 15
    await session.upload_file("more.py", "values = [6]")
    assert (await session.run("import more; more.values[0]")).value == 6


async def test_subprocesses_and_spawned_pools_work(session: Session) -> None:
    result = await run(
        session,
        """
        import sys, subprocess, multiprocessing
        subprocess.run([sys.executable, "-c", "print(6 * 7)"])
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(abs, [-1, -2]))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(abs, [-3]))
        """,
    )
    assert result.stdout == "42\n[1, 2]\n[3]\n"


async def test_sessions_draw_different_numbers(pool: SessionPool) -> None:
    async with pool.session() as one, pool.session() as other:
        code = "import random, tempfile, uuid; (random.random(), tempfile.mktemp(), uuid.uuid4())"
        first, second = await one.run(code), await other.run(code)
    assert set(eval(first.text, {"UUID": str})) & set(eval(second.text, {"UUID": str})) == set()


async def test_a_cell_over_its_time_is_interrupted_and_says_so(session: Session) -> None:
    result = await session.run("x = 5\nwhile True: pass", timeout=0.2)
    assert result.error.name == "TimeoutError"
    assert "0.2 s" in result.error.message
    assert "kept" in result.error.message
    assert str(result.state) == "kept"
    assert (await session.run("x")).value == 5


@pytest.mark.slow
async def test_a_cell_that_cannot_be_interrupted_is_killed_and_says_so(session: Session) -> None:
    await session.run("x = 5; open('kept', 'w').write('file')")
    result = await session.run("sum(range(10 ** 12))", timeout=0.2)
    assert result.error.name == "TimeoutError"
    assert str(result.state) == "lost: killed"
    fresh = await session.run("'x' in globals(), open('kept').read()")
    assert (fresh.text, str(fresh.state)) == ("(False, 'file')", "kept")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(3)", "exit"),
        ("import ctypes; ctypes.string_at(0)", "crash"),
        ("import os; os.kill(os.getpid(), 9)", "killed"),
        ("import os; os.closerange(3, 50); input(); import time; time.sleep(9)", "crash"),
    ],
)
async def test_an_interpreter_that_dies_loses_variables_but_no_file(session: Session, code: str, reason: str) -> None:
    await session.run("x = 5; open('kept', 'w').write('file')")
    result = await session.run(f"print('before', flush=True)\n{code}")
    assert result.error.name == "InterpreterDied"
    assert result.stdout == "before\n"
    assert str(result.state) == f"lost: {reason}"
    assert (await session.run("'x' in globals(), open('kept').read()")).text == "(False, 'file')"


async def test_an_interpreter_that_leaves_a_child_behind_is_dead_all_the_same(session: Session) -> None:
    result = await session.run("import os, time\nif os.fork() == 0: time.sleep(60)\nos._exit(0)")
    assert str(result.state) == "lost: exit"
    assert (await session.run("1 + 1")).value == 2


async def test_a_forged_frame_ends_that_session_only(pool: SessionPool) -> None:
    async with pool.session() as hostile, pool.session() as other:
        await other.run("x = 1")
        result = await run(
            hostile,
            """
            import os, stat, struct, time
            link = next(d for d in range(3, 100) if os.path.exists(f"/proc/self/fd/{d}") and stat.S_ISFIFO(os.fstat(d).st_mode))
            os.write(link, struct.pack("<I", 12) + b'{"kind": 13}')
            time.sleep(9)
            """,
        )
        assert str(result.state) == "lost: crash"
        assert (await hostile.run("1 + 1")).value == 2
        assert (await other.run("x")).value == 1


async def test_cancelling_interrupts_the_cell_and_keeps_the_state(session: Session) -> None:
    await session.run("x = 5")
    running = asyncio.create_task(session.run("started = True\nwhile True: pass"))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result = await session.run("x, started")
    assert (result.text, str(result.state)) == ("(5, True)", "kept")


async def test_cancelling_right_away_interrupts_as_well(session: Session) -> None:
    for _ in range(20):
        running = asyncio.create_task(session.run("while True: pass"))
        await asyncio.sleep(0.002)
        running.cancel()
        await asyncio.wait({running})
    result = await session.run("1 + 1")
    assert (result.value, str(result.state)) == (2, "kept")


async def test_a_cell_cancelled_before_its_turn_never_runs(session: Session) -> None:
    first = asyncio.create_task(session.run("import time; time.sleep(0.3)"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(session.run("ran = True"))
    await asyncio.sleep(0.05)
    second.cancel()
    await first
    assert (await session.run("'ran' in globals()")).value is False


async def test_an_interrupted_await_is_over(session: Session) -> None:
    await session.run("import asyncio; x = 0", timeout=5)
    await session.run("await asyncio.sleep(0.4); x = 1", timeout=0.1)
    await session.run("await asyncio.sleep(0.6)")
    assert (await session.run("x")).value == 0


async def test_background_output_belongs_to_the_next_cell(session: Session) -> None:
    await session.run("import threading; threading.Timer(0.05, print, ['later']).start()")
    result = await session.run("import time; time.sleep(0.1)")
    assert result.stdout == "later\n"


async def test_cells_of_one_session_run_in_order(session: Session) -> None:
    await session.run("order = []")
    await asyncio.gather(*(session.run(f"order.append({number})") for number in range(20)))
    assert (await session.run("order == list(range(20))")).value is True


@pytest.mark.usefixtures("nothing_left")
async def test_a_closed_session_leaves_nothing() -> None:
    from aca_sessions import open_pool

    async with open_pool() as pool, pool.session() as session:
        await session.run("import subprocess; subprocess.Popen(['sleep', '60'])")
        await session.run("import os; os._exit(1)")
        await session.run("x = 1")
        await session.run("while True: pass", timeout=0.1)


async def test_an_interpreter_that_died_between_two_cells_is_told_with_the_next(session: Session) -> None:
    await session.run("x = 5; import threading, os; threading.Timer(0.05, os._exit, [1]).start()")
    await asyncio.sleep(0.2)
    result = await session.run("'x' in globals()")
    assert (result.value, str(result.state)) == (False, "lost: exit")
    assert str((await session.run("1")).state) == "kept"


async def test_a_session_killed_from_outside_says_so(session: Session) -> None:
    await session.run("x = 5")
    running = asyncio.create_task(session.run("while True: pass"))
    await asyncio.sleep(0.1)
    for pid in descendants(os.getpid()):
        names = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid")).split()
        if len(names) == 4 and names[-1] == "1":
            os.kill(pid, signal.SIGKILL)
    assert str((await running).state) == "lost: killed"
    assert (await session.run("'x' in globals()")).value is False


async def test_a_fork_that_a_cell_lets_run_on_is_no_second_interpreter(session: Session) -> None:
    result = await session.run("import os, time\npid = os.fork()\nif pid == 0: print('child')\nelse: os.waitpid(pid, 0)\nx = 0")
    assert (result.success, result.stdout) == (True, "child\n")
    for count in range(1, 6):
        assert (await session.run("x += 1; (x, os.getpid())")).text == f"({count}, 2)"


async def test_processes_that_a_cell_starts_do_not_have_the_link(session: Session) -> None:
    result = await session.run("!ls -l /proc/self/fd | grep -c socket")
    assert result.stdout == "0\n"


async def test_displays_from_forked_workers_harm_nobody(session: Session) -> None:
    code = """
    from multiprocessing import get_context
    from IPython.display import HTML, display
    def show(n): display(HTML("x" * (1 << 20)))
    with get_context("fork").Pool(4) as pool:
        pool.map(show, range(8))
    """
    result = await run(session, code)
    assert (result.success, str(result.state)) == (True, "kept")


async def test_a_frame_while_no_cell_runs_ends_the_session_and_is_told(session: Session) -> None:
    code = """
    import os, stat, struct, threading
    link = next(d for d in range(3, 100) if os.path.exists(f"/proc/self/fd/{d}") and stat.S_ISFIFO(os.fstat(d).st_mode))
    threading.Timer(0.1, lambda: os.write(link, struct.pack("<I", 3) + b"abc")).start()
    """
    await run(session, code)
    await asyncio.sleep(0.3)
    assert str((await session.run("1")).state) == "lost: crash"


async def test_a_long_cell_in_another_script_arrives(session: Session) -> None:
    await session.run("x = 5")
    result = await session.run("#" + "é" * 6_000_000 + "\nx")
    assert (result.value, str(result.state)) == (5, "kept")


async def test_an_interrupted_cell_shows_its_own_frames_only(session: Session) -> None:
    result = await session.run("import signal\ndef f():\n    signal.raise_signal(signal.SIGINT)\nf()")
    assert result.error.name == "KeyboardInterrupt"
    assert "/.guest" not in result.stderr
    assert "raise_signal" in result.stderr


async def test_a_flood_from_an_idle_session_leaves_the_others_alone(pool: SessionPool) -> None:
    async with pool.session() as noisy, pool.session() as other:
        await run(
            noisy,
            """
            import os, threading
            def flood():
                while True: os.write(1, b"x" * 65536)
            threading.Thread(target=flood, daemon=True).start()
            """,
        )
        for _ in range(20):
            assert (await other.run("1 + 1")).value == 2


async def test_small_files_in_shared_memory_are_limited(session: Session) -> None:
    result = await session.run("for n in range(20_000): open(f'/dev/shm/{n}', 'w').close()")
    assert result.error.name == "OSError"


async def test_terminals_are_limited(session: Session) -> None:
    result = await session.run("import os\nheld = [os.openpty() for _ in range(100)]")
    assert result.error.name == "OSError"


async def test_processes_that_a_cell_left_are_named_and_end_with_reset(session: Session) -> None:
    started = await session.run("import subprocess; left = [subprocess.Popen(['sleep', '60']), subprocess.Popen(['sleep', '61'])]; 1")
    assert [process.name for process in started.processes] == ["sleep", "sleep"]
    assert "[processes] 2 still running: sleep (" in str(started)
    pid = started.processes[0].pid
    later = await session.run(f"import os; os.kill({pid}, 9); left[0].wait()")
    assert [process.pid for process in later.processes] == [started.processes[1].pid]
    await session.reset()
    assert (await session.run("1")).processes == ()


async def test_a_process_that_is_dead_and_not_collected_is_not_named(session: Session) -> None:
    result = await session.run("import subprocess, time; p = subprocess.Popen(['true']); time.sleep(0.2); 1")
    assert result.processes == ()


VALUES = [
    "1",
    "-7",
    "10**50",
    "1.5",
    "1e300",
    "float('nan')",
    "True",
    "'a'",
    "'é\\n\\x85\"'",
    "'x' * 30_000",
    "''",
    "0.1 + 0.2",
    "3; 4",
    "'a;b'",
]


@pytest.mark.parametrize("code", VALUES)
async def test_a_plain_value_looks_as_ipython_lays_it_out(session: Session, code: str) -> None:
    from IPython.core.formatters import PlainTextFormatter

    value = eval(code.rpartition(";")[2] if "'" not in code else code)
    assert (await session.run(code)).text == PlainTextFormatter()(value)


async def test_how_plain_values_are_shown_can_be_changed(session: Session) -> None:
    assert (await session.run("%precision 2\n3.14159")).text == "3.14"
    assert (await session.run("%precision %r\n3.14159")).text == "3.14159"
    await session.run("get_ipython().display_formatter.formatters['text/plain'].for_type(int, lambda n, p, c: p.text(f'<{n}>'))")
    assert (await session.run("7")).text == "<7>"
    await session.run("get_ipython().display_formatter.formatters['text/html'].for_type(str, lambda s: f'<b>{s}</b>')")
    assert (await session.run("'x'")).displays[0].data["text/html"] == "<b>x</b>"


async def test_a_semicolon_hides_the_value(session: Session) -> None:
    assert (await session.run("6 * 7;")).text is None
    assert (await session.run("'a;b'")).value == "a;b"
