"""Test one leased session, at an endpoint with extensions."""

import asyncio
from contextlib import aclosing

import pytest

from aca_sessions import Session, SessionPool
from aca_sessions.client.snippet_results import parse_printed_json
from aca_sessions.errors import ExecutionError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("code", ["", " \n\t", "# nothing", "```python\n```"])
async def test_an_empty_cell_succeeds_and_changes_nothing(session: Session, code: str) -> None:
    await session.run("x = 20; x + 22")
    result = await session.run(code)
    assert (result.success, result.output, result.stderr, result.value, str(result.state)) == (True, "", "", None, "kept")
    assert (await session.run("x, _")).text == "(20, 42)"
    assert (await (await session.start(code)).wait()).success


async def test_reset_ends_a_cell_that_does_not_end(session: Session) -> None:
    code = "import signal; signal.pthread_sigmask(0, [2])\nopen('begun', 'w')\nwhile True: pass"
    endless = asyncio.create_task(session.run(code))
    while not await session.list_files():
        await asyncio.sleep(0.01)
    await session.reset()
    assert str((await endless).state) == "lost: reset"
    assert str((await session.run("1")).state) == "kept"


async def test_reset_ends_what_cells_left_running(session: Session) -> None:
    await session.run("import subprocess; p = subprocess.Popen(['sleep', '60'])")
    assert (await session.run("p.poll() is None")).value is True
    await session.reset()
    counted = "import os; sum(name.isdecimal() for name in os.listdir('/proc'))"
    assert (await session.run(counted)).value == 2


@pytest.mark.long
async def test_a_busy_session_is_not_responsive_and_its_cell_continues(session: Session) -> None:
    busy = await session.start("import os, time; print('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n'done'")
    async with aclosing(busy.events()) as events:
        await anext(events)
    assert not (await session.health(timeout=0.1)).responsive
    await session.upload_file("go", b"")
    assert (await busy.wait()).value == "done"
    assert (await session.health(timeout=120)).responsive


@pytest.mark.parametrize(
    ("code", "matches", "start"),
    [
        ("table.me", ["mean", "median", "median_abs", "merge"], 6),
        ("print(tab", ["table"], 6),
        ("table[0].rea", ["real"], 9),
        ("import stringp", ["stringprep"], 7),
        ("%whos_", [], 6),
    ],
)
async def test_completions_are_of_the_objects_in_the_session_and_do_not_wait_for_jedi(
    session: Session, code: str, matches: list[str], start: int
) -> None:
    await session.run("class Table(list): mean = median = median_abs = merge = 1\ntable = Table([1])")
    found = await session.complete(code, len(code))
    assert ([*found.matches], found.start, found.end) == (matches, start, len(code))
    assert (await session.run("import sys; 'jedi' in sys.modules")).value is False


TRAPS = """
armed, sprung = [], []
def spring(*_):
    sprung.extend(armed)
    return 0

class Meta(type):
    __eq__ = __hash__ = spring
    __name__ = __module__ = property(spring)

class Name(str):
    __hash__ = __format__ = __radd__ = __eq__ = split = partition = spring

class list(metaclass=Meta):
    __module__ = 'numpy'
    __class__ = shape = nbytes = property(spring)
    __eq__ = __lt__ = __iter__ = __len__ = __sizeof__ = __repr__ = spring
    __hash__ = lambda _: spring() or 7

class Claims:
    __module__ = Name('numpy')

trap, in_set, in_dict, named, claims = list(), {list(), list()}, {1: {list(): list()}}, type(Name('X'), (), {})(), Claims()
globals()[trap] = get_ipython = spring
armed.append(1)
"""


async def test_no_code_of_a_class_runs_when_variables_are_listed(session: Session) -> None:
    await session.run(TRAPS)
    found = {one.name: one for one in await session.variables()}
    assert found["in_set"].text == "{<list>, <list>}"
    assert found["in_dict"].text == "{1: {<list>: <list>}}"
    assert (found["trap"].type, found["trap"].text, found["trap"].shape, found["named"].type) == ("list", "", None, "X")
    assert (await session.run("sprung")).text == "[]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("[True, None, 1.5, b'ab', range(3)]", "[True, None, 1.5, b'ab', range(0, 3)]"),
        ("{3, 1, 2}", "{1, 2, 3}"),
        ("{'b': 1, 'a': frozenset()}", "{'b': 1, 'a': frozenset()}"),
        ("dict.fromkeys(range(9))", "{0: None, 1: None, 2: None, 3: None, ...}"),
        ("10 ** 5000", "<int>"),
        ("b'x' * 1000", f"b'{'x' * 36}...{'x' * 38}'"),
    ],
)
async def test_plain_variables_have_a_short_text(session: Session, value: str, text: str) -> None:
    await session.run(f"x = {value}")
    assert [one.text for one in await session.variables()] == [text]


async def test_an_unsupported_operation_raises_the_reason(pool: SessionPool) -> None:
    async with pool.session() as session:
        await session.run("import builtins; builtins.exec = None")
        with pytest.raises(ExecutionError, match="TypeError"):
            await session.variables()
        await session.reset()
        assert await session.variables() == []


async def test_an_index_whose_url_is_malformed_is_not_reached(session: Session) -> None:
    for url in ("no url", "http://[", "http://host:port/"):
        await session.run(f"import os; os.environ['PIP_INDEX_URL'] = {url!r}")
        assert parse_printed_json(await session._run_snippet("check_index", "http://127.0.0.1:1/")) is False
