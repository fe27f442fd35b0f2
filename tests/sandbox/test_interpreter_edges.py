"""Test edge cases of the interpreter: processes left running, background output, forged frames, and the display of values."""

import asyncio
import os
import signal
import textwrap
from pathlib import Path

import pytest

from aca_sessions import CodeExecutionResult, Session, SessionPool

from ..conftest import descendants, end_between_cells, until


async def run(session: Session, code: str, **options: object) -> CodeExecutionResult:
    return await session.run(textwrap.dedent(code), **options)


async def test_an_interrupted_await_has_ended(session: Session) -> None:
    await session.run("import asyncio; x, ended = 0, False")
    code = "try:\n    open('begun', 'w').close(); await asyncio.sleep(600); x = 1\nfinally:\n    ended = True"
    running = asyncio.create_task(session.run(code))
    await until(session.list_files)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await session.run("x, ended")).text == "(0, True)"


async def test_background_output_belongs_to_the_next_cell(session: Session) -> None:
    await run(
        session,
        """
        import threading
        go = threading.Event()
        thread = threading.Thread(target=lambda: go.wait() and print("later"))
        thread.start()
        """,
    )
    assert (await session.run("go.set(); thread.join()")).stdout == "later\n"


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


async def test_an_interpreter_that_died_between_two_cells_is_reported_with_the_next(session: Session) -> None:
    await session.run("x = 5")
    await end_between_cells(session)
    result = await session.run("'x' in globals()")
    assert (result.value, str(result.state)) == (False, "lost: exit")
    assert str((await session.run("1")).state) == "kept"


async def test_a_session_killed_from_outside_is_reported(session: Session) -> None:
    await session.run("x = 5")
    running = asyncio.create_task(session.run("open('begun', 'w').close()\nwhile True: pass"))
    await until(session.list_files)
    for pid in descendants(os.getpid()):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # a helper of a server that starts has ended
            continue
        names = next(line for line in status.splitlines() if line.startswith("NSpid")).split()
        if len(names) == 4 and names[-1] == "1":
            os.kill(pid, signal.SIGKILL)
    assert str((await running).state) == "lost: killed"
    assert (await session.run("'x' in globals()")).value is False


async def test_a_fork_that_outlives_its_cell_is_not_a_second_interpreter(session: Session) -> None:
    result = await session.run("import os, time\npid = os.fork()\nif pid == 0: print('child')\nelse: os.waitpid(pid, 0)\nx = 0")
    assert (result.success, result.stdout) == (True, "child\n")
    for count in range(1, 6):
        assert (await session.run("x += 1; (x, os.getpid())")).text == f"({count}, 2)"


async def test_processes_started_by_a_cell_do_not_inherit_the_link(session: Session) -> None:
    result = await session.run("!ls -l /proc/self/fd | grep -c socket")
    assert result.stdout == "0\n"


async def test_displays_from_forked_workers_are_harmless(session: Session) -> None:
    code = """
    from multiprocessing import get_context
    from IPython.display import HTML, display
    def show(n): display(HTML("x" * (1 << 20)))
    with get_context("fork").Pool(4) as pool:
        pool.map(show, range(8))
    """
    result = await run(session, code)
    assert (result.success, str(result.state)) == (True, "kept")


async def test_a_frame_between_cells_ends_the_session_and_is_reported(session: Session) -> None:
    code = """
    import os, stat, struct
    link = next(d for d in range(3, 100) if os.path.exists(f"/proc/self/fd/{d}") and stat.S_ISFIFO(os.fstat(d).st_mode))
    """
    await run(session, code)
    await end_between_cells(session, 'os.write(link, struct.pack("<I", 3) + b"abc")')
    assert str((await session.run("1")).state) == "lost: crash"


async def test_a_long_cell_in_a_non_latin_script_arrives(session: Session) -> None:
    await session.run("x = 5")
    result = await session.run("#" + "é" * 6_000_000 + "\nx")
    assert (result.value, str(result.state)) == (5, "kept")


async def test_an_interrupted_cell_shows_only_its_own_frames(session: Session) -> None:
    result = await session.run("import signal\ndef f():\n    signal.raise_signal(signal.SIGINT)\nf()")
    assert result.error.name == "KeyboardInterrupt"
    assert "/.guest" not in result.stderr
    assert "raise_signal" in result.stderr


async def test_a_flood_from_an_idle_session_does_not_disturb_others(pool: SessionPool) -> None:
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


async def test_processes_left_by_a_cell_are_listed_and_end_with_a_reset(session: Session) -> None:
    started = await session.run("import subprocess; left = [subprocess.Popen(['sleep', '60']), subprocess.Popen(['sleep', '61'])]; 1")
    assert [process.name for process in started.processes] == ["sleep", "sleep"]
    assert "[processes] 2 still running: sleep (" in str(started)
    pid = started.processes[0].pid
    later = await session.run(f"import os; os.kill({pid}, 9); left[0].wait()")
    assert [process.pid for process in later.processes] == [started.processes[1].pid]
    await session.reset()
    assert (await session.run("1")).processes == ()


async def test_a_zombie_process_is_not_listed(session: Session) -> None:
    await session.run("import os, subprocess")
    result = await session.run("p = subprocess.Popen(['true']); os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT); 1")
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
async def test_a_plain_value_is_formatted_as_by_ipython(session: Session, code: str) -> None:
    from IPython.core.formatters import PlainTextFormatter

    value = eval(code.rpartition(";")[2] if "'" not in code else code)
    assert (await session.run(code)).text == PlainTextFormatter()(value)


async def test_the_format_of_plain_values_can_be_changed(session: Session) -> None:
    assert (await session.run("%precision 2\n3.14159")).text == "3.14"
    assert (await session.run("%precision %r\n3.14159")).text == "3.14159"
    await session.run("get_ipython().display_formatter.formatters['text/plain'].for_type(int, lambda n, p, c: p.text(f'<{n}>'))")
    assert (await session.run("7")).text == "<7>"
    await session.run("get_ipython().display_formatter.formatters['text/html'].for_type(str, lambda s: f'<b>{s}</b>')")
    assert (await session.run("'x'")).displays[0].data["text/html"] == "<b>x</b>"


async def test_a_semicolon_hides_the_value(session: Session) -> None:
    assert (await session.run("6 * 7;")).text is None
    assert (await session.run("'a;b'")).value == "a;b"


async def test_names_that_older_matplotlib_imports_from_ipython_exist(session: Session) -> None:
    assert (await session.run("from IPython.core.pylabtools import backend2gui; backend2gui.get('agg')")).success


async def test_a_cell_may_create_many_files_with_long_names_in_any_script(session: Session) -> None:
    """The header of the result's frame stays below its limit, although JSON needs six characters for each of these."""
    result = await session.run("for i in range(1000): open(f'{i:04}' + '文' * 80, 'w').close()")
    assert (result.error, len(result.files), result.files[0].path) == (None, 1000, "0000" + "文" * 80)


@pytest.mark.parametrize(
    "code",
    [
        "raise type('x' * 3_000_000, (Exception,), {})('a')",
        "from IPython.display import display; display({'x' * 700_000: 'a', 'text/plain': 'b'}, raw=True)",
        "globals().update({'v' * 1_000_000 + str(number): number for number in range(60)})",
        "answer = input('x' * 2_000_000)",
    ],
)
async def test_names_and_prompts_of_any_length_end_no_session(session: Session, code: str) -> None:
    """Each of these was once more than the host takes from a guest, which ended the interpreter."""
    events = [event async for event in session.stream(code, on_input=lambda _: "42")]
    assert str(events[-1].result.state) == "kept"
    assert (await session.run("6 * 7")).value == 42
