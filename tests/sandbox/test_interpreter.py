"""Test cells: their state, their output, and the error when one fails."""

import asyncio
import sys
import textwrap

import pytest

from aca_sessions import CodeExecutionResult, Session, SessionPool

from ..conftest import until

PNG = b"\x89PNG\r\n\x1a\n"


async def run(session: Session, code: str, **options: object) -> CodeExecutionResult:
    return await session.run(textwrap.dedent(code), **options)


async def test_variables_persist_between_cells(session: Session) -> None:
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


async def test_stdout_and_stderr_are_separate(session: Session) -> None:
    result = await session.run("import sys; print('out'); print('err', file=sys.stderr)")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


async def test_python_c_and_child_processes_write_in_the_right_order(session: Session) -> None:
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


async def test_a_flood_of_output_is_cut_in_the_middle_and_reported(session: Session) -> None:
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
        ("f(", "SyntaxError"),  # 3.13 has its own error for incomplete code
        ("a\0b", "Error"),  # patch releases of Python disagree: SyntaxError or ValueError
        ("%nosuchmagic", "UsageError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "RecursionError"),
        ("input()", "EOFError"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
        ("await nothing", "NameError"),
        ("import asyncio; await asyncio.wait_for(asyncio.sleep(9), 0.01)", "TimeoutError"),
    ],
)
async def test_a_cell_that_fails_reports_its_error_and_keeps_the_session(session: Session, code: str, name: str) -> None:
    await session.run("x = 1")
    result = await session.run(code)
    assert result.error.name.endswith(name)
    assert name in result.stderr
    assert (await session.run("x")).value == 1


async def test_a_figure_is_shown_once_as_png(session: Session) -> None:
    result = await session.run("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.title('t'); plt.show()")
    assert [image[:8] for image in result.images] == [PNG]
    assert (await session.run("1")).images == ()


@pytest.mark.long
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


async def test_a_display_over_the_budget_is_dropped_and_reported(session: Session) -> None:
    result = await session.run("from IPython.display import HTML, display; display(HTML('x' * (30 << 20)))")
    assert "was dropped" in result.displays[0].data["text/plain"]


async def test_top_level_await_and_background_tasks(session: Session) -> None:
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


async def test_asyncio_run_works_in_a_cell_without_a_top_level_await(session: Session) -> None:
    code = "import asyncio\nasync def f(): return 5\nasyncio.run(f())"
    assert (await session.run(code)).value == 5
    error = (await session.run(f"{code}\nawait f()")).error
    assert error is not None
    assert error.message == "asyncio.run() cannot be called from a running event loop"


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


async def test_a_cell_over_its_time_is_interrupted_and_reports_it(session: Session) -> None:
    await session.run("x = 5")
    result = await session.run("while True: pass", timeout=0.2)
    assert result.error.name == "TimeoutError"
    assert "0.2 s" in result.error.message
    assert "kept" in result.error.message
    assert str(result.state) == "kept"
    assert (await session.run("x")).value == 5


@pytest.mark.slow
@pytest.mark.long
async def test_a_cell_that_cannot_be_interrupted_is_killed_and_reports_it(session: Session) -> None:
    await session.run("x = 5; open('kept', 'w').write('file')")
    result = await session.run("sum(range(10 ** 12))", timeout=3)
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
    running = asyncio.create_task(session.run("started = True\nopen('begun', 'w').close()\nwhile True: pass"))
    await until(session.list_files)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result = await session.run("x, started")
    assert (result.text, str(result.state)) == ("(5, True)", "kept")


@pytest.mark.parametrize("event", ["pre_execute", "pre_run_cell"])
async def test_an_interrupt_before_the_code_of_a_cell_ends_the_cell(session: Session, event: str) -> None:
    hook = "import signal\ndef hook(*_):\n    events.unregister(event, hook)\n    signal.raise_signal(signal.SIGINT)"
    await session.run(f"{hook}\nevent, ran = {event!r}, False\nevents = get_ipython().events; events.register(event, hook)")
    interrupted = await session.run("ran = True")
    assert (interrupted.success, interrupted.error.name) == (False, "KeyboardInterrupt")
    result = await session.run("ran")
    assert (result.value, str(result.state)) == (False, "kept")
    assert (await session.run("len(In) == get_ipython().execution_count")).value is True


@pytest.mark.parametrize(
    "code",
    [
        "%run part.py\nran = True",
        "%run -m part\nran = True",
        "%run part.ipy\nran = True",
        "for _ in range(2):\n    %run part.py\nran = True",
        "%%capture\n%run part.py\nran = True",
        "ran = get_ipython().run_cell(open('part.py').read())",
    ],
)
async def test_an_interrupt_in_a_script_or_nested_cell_ends_the_cell(session: Session, code: str) -> None:
    await session.upload_file("part.py", b"import signal\nopen('times', 'a').write('1')\nsignal.raise_signal(signal.SIGINT)")
    await session.run("import shutil; shutil.copy('part.py', 'part.ipy'); ran = False")
    interrupted = await session.run(code)
    assert (interrupted.success, interrupted.error.name) == (False, "KeyboardInterrupt")
    assert "raise_signal" in interrupted.error.traceback
    assert "/.guest" not in interrupted.error.traceback
    assert (await session.run("ran, open('times').read()")).text == "(False, '1')"


async def test_the_variables_of_an_interrupted_script_are_kept(session: Session) -> None:
    await session.upload_file("part.py", b"import signal\nfound = 5\nsignal.raise_signal(signal.SIGINT)")
    await session.run("%run part.py")
    assert (await session.run("found")).value == 5


async def test_a_cell_may_go_on_after_an_interrupt_of_a_nested_cell(session: Session) -> None:
    nested = "get_ipython().run_cell('import signal; signal.raise_signal(signal.SIGINT)')"
    await session.run(f"try:\n    {nested}\nexcept KeyboardInterrupt:\n    caught = True\nran = True")
    assert (await session.run("caught, ran")).text == "(True, True)"


@pytest.mark.parametrize("debugger", ["pdb", "IPython.core.debugger"])
@pytest.mark.parametrize("answered", [False, True])
async def test_an_interrupt_at_or_after_a_debugger_prompt_ends_the_cell(session: Session, debugger: str, answered: bool) -> None:
    code = """
        import builtins, signal
        prompts, ran = [], False
        def answer(prompt=""):
            prompts.append(prompt)
            if not answered and len(prompts) == 1:
                signal.raise_signal(signal.SIGINT)
            return "continue"
        builtins.input = answer
        """
    await run(session, f"answered = {answered}\nfrom {debugger} import set_trace\n{textwrap.dedent(code)}")
    interrupted = await session.run("set_trace()\nsignal.raise_signal(signal.SIGINT)\nran = True")
    assert (interrupted.success, interrupted.error.name) == (False, "KeyboardInterrupt")
    assert (await session.run("ran, len(prompts)")).text == "(False, 1)"


@pytest.mark.parametrize("where", ["a display", "a callback"])
async def test_an_interrupt_while_a_traceback_is_formatted_ends_the_cell(session: Session, where: str) -> None:
    await run(
        session,
        f"""
        import signal
        from IPython.display import display
        ran = False
        class Slow(Exception):
            def _render_traceback_(self): signal.raise_signal(signal.SIGINT)
        class Broken:
            def _repr_html_(self): raise Slow
        def fail():
            events.unregister("pre_execute", fail)
            raise Slow
        events = get_ipython().events
        if {where!r} == "a callback": events.register("pre_execute", fail)
        """,
    )
    interrupted = await session.run("display(Broken())\nran = True" if where == "a display" else "ran = True")
    assert (interrupted.success, interrupted.error.name) == (False, "KeyboardInterrupt")
    result = await session.run("ran")
    assert (result.value, str(result.state)) == (False, "kept")


async def test_a_cell_that_is_interrupted_twice_has_ended(session: Session) -> None:
    code = """
    import asyncio, signal
    def interrupt():
        signal.raise_signal(signal.SIGINT)
    loop = asyncio.get_running_loop()
    try:
        loop.call_soon(interrupt)
        await asyncio.sleep(9)
    finally:
        loop.call_soon(interrupt)
        await asyncio.sleep(0.2)
    """
    assert (await run(session, code)).error.name == "KeyboardInterrupt"
    result = await session.run("await asyncio.sleep(0.5); 'undisturbed'")
    assert (result.error, result.value) == (None, "undisturbed")


async def test_an_interrupt_at_the_start_of_an_asynchronous_cell_ends_the_cell(session: Session) -> None:
    code = """
    import asyncio, signal
    def start(loop, coroutine, **options):
        loop.set_task_factory(None)
        task = asyncio.Task(coroutine, loop=loop, **options)
        signal.raise_signal(signal.SIGINT)
        return task
    asyncio.get_running_loop().set_task_factory(start)
    ran = False
    """
    await run(session, code)
    assert (await session.run("ran = True; await asyncio.sleep(0)")).error.name == "KeyboardInterrupt"
    assert (await session.run("await asyncio.sleep(0); ran")).value is False


INTERRUPT_AT = """
import _thread, asyncio, signal, sys
class Signal(int):
    sent = property(_thread.interrupt_main)
def interrupt_at(function):
    def interrupt(frame, event, _argument):
        if event == "call" and frame.f_code is function.__code__:
            sys.setprofile(None)
            Signal(signal.SIGINT).sent  # no call: after calls Python handles signals, and here it must do so in the function
    sys.setprofile(interrupt)
"""


IN_THE_LOOP = pytest.mark.skipif(sys.version_info >= (3, 12), reason="from Python 3.12 on, this signal is handled in the code of the task")


@pytest.mark.parametrize("task", ["work()", pytest.param("asyncio.create_task(work())", marks=IN_THE_LOOP)])
async def test_an_interrupt_between_two_steps_of_tasks_ends_the_cell_alone(session: Session, task: str) -> None:
    await session.run(INTERRUPT_AT)
    code = f"""
    async def work():
        while not worked: await asyncio.sleep(0)
        return "worked"
    worked, task = False, {task}
    interrupt_at(asyncio.Handle._run)
    while True: await asyncio.sleep(0)
    """
    result = await run(session, code, timeout=20)
    assert (result.error.name, str(result.state)) == ("KeyboardInterrupt", "kept")
    assert (await session.run("worked = True; await task", timeout=20)).value == "worked"


async def test_an_interrupt_while_a_step_is_scheduled_ends_the_cell(session: Session) -> None:
    await session.run(INTERRUPT_AT)
    code = """
    async def work():
        interrupt_at(asyncio.Handle.__init__)
        event.set()
    event = asyncio.Event()
    task = asyncio.create_task(work())
    await event.wait()
    """
    result = await run(session, code, timeout=20)
    assert (result.error.name, str(result.state)) == ("KeyboardInterrupt", "kept")


async def test_a_third_interrupt_ends_a_cell_that_does_not_let_itself_be_cancelled(session: Session) -> None:
    code = """
    import asyncio, signal
    loop, times = asyncio.get_running_loop(), 0
    while times < 4:
        times += 1
        loop.call_soon(signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass
    """
    result = await run(session, code, timeout=20)
    assert (result.error.name, str(result.state)) == ("KeyboardInterrupt", "kept")
    assert (await session.run("times")).value == 3


async def test_an_error_in_a_callback_is_reported_and_the_others_are_called(session: Session) -> None:
    await session.run("done = []; events = get_ipython().events; events.register('post_run_cell', lambda _result: 1 / 0)")
    result = await session.run("events.register('post_run_cell', done.append)")
    assert (result.error.name, "Error in callback" in result.stdout) == ("ZeroDivisionError", True)
    assert (await session.run("len(done)")).value == 1


async def test_a_cell_that_ignores_interrupts_does_so_for_itself_only(session: Session) -> None:
    await session.run("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)")
    result = await session.run("while True: pass", timeout=0.2)
    assert (result.error.name, str(result.state)) == ("TimeoutError", "kept")


AT_THE_CELLS_END = """
def interrupt(frame, event, _argument):
    if event == "call" and frame.f_code.co_name == "__exit__" and frame.f_back.f_code is get_ipython().run.__code__:
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)
sys.setprofile(interrupt)
"""


@pytest.mark.parametrize("ending", ["signal.signal(signal.SIGINT, signal.default_int_handler)", AT_THE_CELLS_END])
async def test_an_interrupt_between_cells_is_ignored(session: Session, ending: str) -> None:
    later = "until [ -e go ]; do sleep 0.01; done; kill -INT $PPID; touch sent"
    await session.run(f"import signal, subprocess, sys\nx, helper = 5, subprocess.Popen({later!r}, shell=True)")
    await session.run(ending)
    await session.upload_file("go", b"")
    await until(lambda: _has_file(session, "sent"))
    result = await session.run("x")
    assert (result.value, str(result.state)) == (5, "kept")


async def _has_file(session: Session, name: str) -> bool:
    return name in [file.name for file in await session.list_files()]


async def test_an_immediate_cancellation_interrupts_as_well(session: Session) -> None:
    for _ in range(20):
        running = asyncio.create_task(session.run("while True: pass"))
        await asyncio.sleep(0.002)
        running.cancel()
        await asyncio.wait({running})
    result = await session.run("1 + 1")
    assert (result.value, str(result.state)) == (2, "kept")


async def test_a_cell_cancelled_before_its_turn_never_runs(session: Session) -> None:
    wait = "import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)"
    first = asyncio.create_task(session.run(wait))
    await until(session.list_files)
    second = asyncio.create_task(session.run("ran = True"))
    await asyncio.sleep(0.05)
    second.cancel()
    await session.upload_file("go", b"")
    await first
    assert (await session.run("'ran' in globals()")).value is False
