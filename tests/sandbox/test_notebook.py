"""Test the semantics of a notebook: magics, history, tasks, processes, and what a cell can leave behind."""

import textwrap

import pytest

from aca_sessions import CodeExecutionResult, Limits, Policy, Session, open_pool

from ..conftest import until


async def run(session: Session, code: str, **options: object) -> CodeExecutionResult:
    return await session.run(textwrap.dedent(code).strip("\n"), sanitize=False, **options)


@pytest.mark.parametrize(
    ("code", "stdout", "text"),
    [
        ("%who", "x\t y\t \n", None),
        ("%pwd", "", "'/mnt/data'"),
        ("%cd /tmp", "/tmp\n", None),
        ("!ls", "here.txt\n", None),
        ("z = !ls\nz", "", "['here.txt']"),
        ("%%bash\necho from $0", "from bash\n", None),
        ("%%writefile a.py\nprint(1)", "Writing a.py\n", None),
        ("# nothing but a comment", "", None),
        ("print('no newline', end='')", "no newline", None),
        ("print('é漢🙂'); 'é漢🙂'", "é漢🙂\n", "'é漢🙂'"),
        (f"len('{'a' * 300_000}')", "", "300000"),
        ("%precision 2\n3.14159", "", "3.14"),
        ("%env GREETING=hello\nimport os; os.environ['GREETING']", "env: GREETING=hello\n", "'hello'"),
    ],
)
async def test_notebook_features_work(session: Session, code: str, stdout: str, text: str | None) -> None:
    await session.upload_file("here.txt", "content")
    await session.run("x = 1; y = 'a'")
    result = await run(session, code)
    assert (result.stdout, result.stderr, result.text) == (stdout, "", text)


@pytest.mark.long
async def test_matplotlib_inline_prints_nothing(session: Session) -> None:
    await session.run("import matplotlib.pyplot")  # if this takes over 5 s, matplotlib reports on stderr that it builds its font cache
    result = await run(session, "%matplotlib inline")
    assert (result.stdout, result.stderr, result.text) == ("", "", None)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("%whos", "x          int         1"),
        ("%time 1 + 1", "Wall time"),
        ("%%time\nsum(range(10))", "Wall time"),
        ("len?", "Return the number of items in a container."),
        ("double?", "twice as much"),
        ("double??", "return 2 * number"),
        ("help(double)", "twice as much"),
        ("%history -n 1-2", "   1: x = 1\n   2:"),
        ("%lsmagic", ""),
        ("%%prun\nsum(range(10))", "function calls"),
    ],
)
async def test_notebook_features_print_messages(session: Session, code: str, said: str) -> None:
    await session.run("x = 1")
    await session.run('"""The second cell."""\ndef double(number):\n    "twice as much"\n    return 2 * number')
    result = await run(session, code)
    assert result.success
    assert said in result.stdout


@pytest.mark.slow
async def test_timeit_reports_a_time(session: Session) -> None:
    assert "10 loops each" in (await run(session, "%%timeit -n 10 -r 2\n1 + 1")).stdout


async def test_a_script_runs_and_leaves_its_names(session: Session) -> None:
    await session.upload_file("script.py", "import sys\nfrom_script = sys.argv[1]\nprint(__name__)")
    assert (await run(session, "%run script.py argument")).stdout == "__main__\n"
    assert (await session.run("from_script")).value == "argument"


async def test_earlier_cells_and_values_are_available(session: Session) -> None:
    await session.run("6 * 7")
    await session.run("'second'")
    result = await session.run("_, __, _1, Out[1], In[1], _i")
    assert result.text == "('second', 42, 42, 42, '6 * 7', \"'second'\")"
    await session.variables()
    last = await session.run("len(In), _i, 1 / 0")
    assert "\nCell In[4], line 1\n" in last.error.traceback  # not counting the cell that read the variables


async def test_a_history_with_a_limit_drops_the_oldest() -> None:
    async with open_pool(policy=Policy(limits=Limits(history=3), preload=(), spares=0)) as pool, pool.session() as session:
        for number in range(6):
            await session.run(f"{number}")
        kept = await session.run("sorted(Out), In[1:-1], [name for name in ('_1', '_6', '_i1', '_i6') if name in globals()]")
    assert " ".join(kept.text.split()) == "([4, 5, 6], ['', '', '', '3', '4', '5'], ['_6', '_i6'])"
    assert kept.stderr == ""


async def test_reset_clears_the_variables_and_processes_can_be_spawned_afterwards(session: Session) -> None:
    await session.upload_file("squares.py", "def square(x): return x * x")
    await session.run("x = 1")
    await run(session, "%reset -f")
    assert (await session.run("'x' in globals()")).value is False
    result = await session.run(
        "import multiprocessing, squares\nwith multiprocessing.get_context('spawn').Pool(2) as p: p.map(squares.square, [3])"
    )
    assert result.success


@pytest.mark.slow
async def test_functions_of_a_cell_can_be_sent_to_forked_processes(session: Session) -> None:
    result = await run(
        session,
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        def square(x): return x * x
        with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(square, [1, 2, 3]))
        with ProcessPoolExecutor(2) as pool: print(list(pool.map(square, [1, 2, 3])))
        with ThreadPoolExecutor(2) as pool: print(list(pool.map(square, [1, 2, 3])))
        """,
    )
    assert result.stdout == "[1, 4, 9]\n" * 3


@pytest.mark.long
async def test_functions_of_a_cell_cannot_be_sent_to_spawned_processes_and_the_session_continues(session: Session) -> None:
    await session.run("import multiprocessing\ndef square(x): return x * x")
    result = await session.run("with multiprocessing.get_context('spawn').Pool(1) as p: p.map(square, [3])", timeout=2)
    assert "Can't get attribute 'square' on <module '__main__'" in result.stderr
    assert (result.error.name, str(result.state)) == ("TimeoutError", "kept")
    assert (await session.run("square(3)")).value == 9


async def test_a_task_can_be_started_without_awaiting(session: Session) -> None:
    await session.run("import asyncio\nasync def answer(): return 42\ntask = asyncio.create_task(answer())")
    assert (await session.run("await task")).value == 42
    assert (await session.run("asyncio.run(answer())")).value == 42


@pytest.mark.slow
async def test_tasks_continue_between_cells(session: Session) -> None:
    await run(
        session,
        """
        import asyncio
        async def count():
            while True:
                seen.append(1)
                open("/mnt/data/seen", "w").write(str(len(seen)))
                await asyncio.sleep(0.001)
        seen = []; task = asyncio.create_task(count())
        """,
    )

    async def seen() -> bool:
        return bool(await session.list_files()) and int(await session.download_file("seen") or b"0") >= 10

    await until(seen)
    assert (await session.run("len(seen) >= 10")).value is True


async def test_a_task_continues_after_a_cell_in_which_a_thread_asked(session: Session) -> None:
    await run(
        session,
        """
        import asyncio, os
        async def follow():
            while not os.path.exists("go"): await asyncio.sleep(0.01)
            open("gone", "w").close()
        """,
    )
    execution = await session.start("task = asyncio.create_task(follow())\nawait asyncio.to_thread(input)", on_input=lambda _: "yes")
    assert (await execution.wait()).value == "yes"
    await session.upload_file("go", b"")

    async def has_continued() -> bool:
        return len(await session.list_files()) == 2

    await until(has_continued)


async def test_tasks_continue_after_a_thread_asked_between_cells(session: Session) -> None:
    code = """
    import asyncio, os
    async def ask():
        while not os.path.exists("go"): await asyncio.sleep(0.01)
        try: await asyncio.to_thread(input)
        except EOFError: await asyncio.sleep(0.2)
        open("refused", "w").close()
    task = asyncio.create_task(ask())
    """
    execution = await session.start(textwrap.dedent(code), on_input=lambda _: "yes")
    assert (await execution.wait()).success
    await session.upload_file("go", b"")

    async def has_continued() -> bool:
        return len(await session.list_files()) == 2

    await until(has_continued)


async def test_a_task_that_raises_system_exit_ends_alone(session: Session) -> None:
    began = await run(
        session,
        """
        import asyncio
        async def leave():
            await asyncio.sleep(0)
            open("/mnt/data/left", "w").close()
            raise SystemExit(3)
        task = asyncio.create_task(leave())
        """,
    )
    await until(session.list_files)
    result = await session.run("task.done()")
    assert (result.value, str(result.state)) == (True, "kept")
    assert "SystemExit: 3" in began.stderr + result.stderr  # it may be faster than the first result


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit()", "exit", "exit()", "quit()", "raise SystemExit(3)", "import sys; sys.exit('why')"]
)
async def test_exit_ends_the_cell_and_keeps_the_session(session: Session, code: str) -> None:
    await session.run("x = 1")
    result = await session.run(code)
    assert (result.error.name, str(result.state)) == ("SystemExit", "kept")
    assert (await session.run("x")).value == 1


async def test_a_warning_is_shown_once_with_its_line(session: Session) -> None:
    result = await session.run("import warnings\ndef warn():\n    warnings.warn('careful')\nfor _ in range(3): warn()")
    assert result.stderr.count("UserWarning: careful") == 1
    assert "warnings.warn('careful')" in result.stderr


async def test_a_syntax_error_shows_its_line(session: Session) -> None:
    result = await session.run("a = 1\nb = 2\nif True\n    pass")
    assert result.stderr == "  Cell In[1], line 3\n    if True\n           ^\nSyntaxError: expected ':'\n"


async def test_an_exception_group_is_shown_whole_and_without_our_frames(session: Session) -> None:
    result = await session.run("def fail():\n    raise ExceptionGroup('several', [ValueError(1), TypeError('b')])\nfail()")
    assert result.error.name == "ExceptionGroup"
    assert "line 2, in fail" in result.stderr
    assert "| ValueError: 1" in result.stderr
    assert "| TypeError: b" in result.stderr
    assert "IPython" not in result.stderr


@pytest.mark.parametrize("code", ["%nosuchmagic", "%%nosuchmagic\n1", "%cd /nowhere/at/all"])
async def test_a_wrong_magic_is_reported_once(session: Session, code: str) -> None:
    result = await run(session, code)
    assert len(result.stderr.splitlines()) <= 1
    assert ("not found" in result.stderr) or ("No such file" in result.stderr + result.stdout)


async def test_a_missing_extension_is_named(session: Session) -> None:
    result = await run(session, "%load_ext nothing_of_that_name")
    assert (result.error.name, result.error.message) == ("ModuleNotFoundError", "No module named 'nothing_of_that_name'")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("act", ["sys.{0} = io.StringIO(); print('lost', file=sys.{0})", "sys.{0}.close()", "sys.{0} = None; 1 / 0"])
async def test_a_stream_that_a_cell_replaced_is_restored_for_the_next(session: Session, stream: str, act: str) -> None:
    await session.run(f"import io, sys\n{act.format(stream)}")
    result = await session.run(f"print('here', file=sys.{stream})")
    assert getattr(result, stream) == "here\n"


async def test_the_clients_own_cells_leave_a_redirected_stream_as_it_is(session: Session) -> None:
    code = """
        import contextlib, io
        with contextlib.redirect_stdout(io.StringIO()) as caught:
            try: input("?")
            except EOFError: print("in")
        caught.getvalue()
        """
    assert (await run(session, code)).value == "?in\n"


async def test_a_display_hook_that_a_cell_replaced_is_kept(session: Session) -> None:
    assert (await session.run("import sys\nsys.displayhook = lambda value: print('mine', value)\n5")).stdout == "mine 5\n"
    assert (await session.run("6")).value == 6


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import threading\ndef f(): raise ValueError('in a thread')\nt = threading.Thread(target=f); t.start(); t.join()", "in a thread"),
        ("class F:\n    def __del__(self): raise ValueError('unraisable')\nF(); None", "unraisable"),
        ("import logging; logging.warning('logged')", "WARNING:root:logged"),
    ],
)
async def test_errors_outside_of_the_cell_are_on_stderr(session: Session, code: str, said: str) -> None:
    result = await session.run(code)
    assert result.success
    assert said in result.stderr


@pytest.mark.parametrize("code", ["breakpoint()\n1", "import pdb; pdb.set_trace()\n1"])
async def test_a_debugger_without_an_answer_reports_it(session: Session, code: str) -> None:
    result = await session.run(code)
    assert result.error.name == "BdbQuit"
    assert "print what you want to see" in result.stderr


async def test_the_debugger_after_an_error_ends_by_itself(session: Session) -> None:
    await session.run("1 / 0")
    assert "1 / 0" in (await run(session, "%debug")).stdout
    assert (await session.run("1")).value == 1
