"""Test tracebacks: cells have the names that users know, and a long traceback is short and quick."""

import pytest

from aca_sessions import Session

RECURSION = "def f(): f()\n\nf()"


async def test_every_text_names_a_cell_as_its_traceback_does(session: Session) -> None:
    await session.run("def inner(): return 1 / 0")
    result = await session.run(
        "import traceback, warnings\n"
        "warnings.warn('old', DeprecationWarning)\n"
        "try: inner()\n"
        "except ZeroDivisionError: traceback.print_exc()\n"
        "assert (1, 'always true')\n"
        "inner()"
    )
    assert "<Cell In[2]>:2: DeprecationWarning: old\n  warnings.warn('old'" in result.stderr
    assert "<Cell In[2]>:5: SyntaxWarning: assertion is always true" in result.stderr
    assert '  File "<Cell In[2]>", line 3, in <module>\n    try: inner()' in result.stderr
    assert '  File "<Cell In[1]>", line 1, in inner\n    def inner(): return 1 / 0' in result.stderr
    assert "Cell In[2], line 6\n" in result.error.traceback
    assert "Cell In[1], line 1, in inner()" in result.error.traceback
    grouped = await session.run("raise ExceptionGroup('several', [ValueError(1)])")
    assert 'File "<Cell In[3]>", line 1' in grouped.stderr
    unfinished = await session.run("x = (")
    assert (unfinished.error.name, "(<Cell In[4]>, line 1)" in unfinished.error.message) == ("SyntaxError", True)
    told = result.stderr + grouped.stderr + unfinished.stderr
    assert "ipython-input" not in told


async def test_a_result_has_the_number_by_which_tracebacks_name_its_cell(session: Session) -> None:
    counts = [(await session.run(code)).execution_count for code in ("1", "", "1 / 0", "x = (", "x = 1")]
    assert counts == [1, None, 2, 3, 4]
    [first, *_, last] = session.to_notebook()["cells"]
    assert (first["execution_count"], last["execution_count"]) == (1, 4)
    await session.reset()
    assert (await session.run("1")).execution_count == 1
    killed = await session.run("import os; os._exit(1)")
    assert killed.execution_count is None


async def test_the_source_of_a_function_of_a_cell_is_found(session: Session) -> None:
    await session.run("def double(x):\n    return x * 2")
    await session.run("x = 1")
    assert (await session.run("import inspect; inspect.getsource(double)")).value == "def double(x):\n    return x * 2\n"
    assert (
        await session.run("import pickle; pickle.loads(pickle.dumps(double))(21), double.__code__.co_filename")
    ).text == "(42, '<Cell In[1]>')"


async def test_a_cell_that_runs_another_one_keeps_its_own_lines(session: Session) -> None:
    result = await session.run("get_ipython().run_cell('import math\\nx = 1')\n\n1 / 0")
    assert "----> 3 1 / 0" in result.error.traceback


async def test_a_recursion_error_is_short_and_shows_how_many_frames_are_left_out(session: Session) -> None:
    traceback = (await session.run(RECURSION)).error.traceback
    assert traceback.count("Cell In[1]") == 4
    assert "[... skipping similar frames: f at line 1 (" in traceback
    assert traceback.endswith("RecursionError: maximum recursion depth exceeded")
    mutual = (await session.run("def a(): b()\ndef b(): a()\na()")).error.traceback
    assert "skipping similar frames: a at line 1 (" in mutual
    assert ", b at line 2 (" in mutual


@pytest.mark.parametrize(
    ("code", "most"),
    [
        (RECURSION, 50),
        ("".join(f"def f{n}(): f{n + 1}()\n" for n in range(200)) + "f0()", 200),
        ("def h(n):\n    try: h(n + 1)\n    except Exception: raise ValueError(n)\nh(0)", 200),
    ],
)
async def test_few_frames_of_a_long_traceback_are_formatted(session: Session, code: str, most: int) -> None:
    """IPython searches all modules for each frame that it formats, and did so for a thousand frames, twice."""
    await session.run(
        "import inspect\nsought, real = [], inspect.getmodule\ndef counted(*given):\n    sought.append(1)\n    return real(*given)"
    )
    await session.run("inspect.getmodule = counted")
    assert (await session.run(code)).error is not None
    assert 0 < (await session.run("len(sought)")).value < most


async def test_a_long_chain_of_errors_shows_how_many_are_left_out(session: Session) -> None:
    result = await session.run("def h(n):\n    try: h(n + 1)\n    except Exception: raise ValueError(n)\nh(0)")
    assert (result.error.name, result.error.message) == ("ValueError", "0")
    first, *_, last = result.error.traceback.split("During handling of the above exception, another exception occurred:")
    assert "RecursionError: maximum recursion depth exceeded" in first
    assert "ValueError: 0" in last
    assert "more errors are not shown here, each raised while another was handled" in result.error.traceback
    assert result.error.traceback.count("Traceback (most recent call last)") == 10
