"""Test modules of the workspace: each cell sees them as their files are now."""

import pytest

from aca_sessions import Session

COUNTED = """
import os
from aca_sessions.sandbox.guest.notebook import modules
seen, real = [], modules._stamp
modules._stamp = lambda path: (seen.append(path), real(path))[1]
"""


async def test_a_module_whose_file_changed_is_imported_again(session: Session) -> None:
    await session.upload_file("data.py", b"V=1")
    assert (await session.run("import data; data.V")).value == 1
    await session.upload_file("data.py", b"V=2")
    assert (await session.run("import data; data.V")).value == 2
    await session.run("open('data.py', 'w').write('V=3')")
    assert (await session.run("data.V")).value == 3


@pytest.mark.long
async def test_without_namespaces_a_changed_module_is_imported_again_too(bare: Session) -> None:
    await test_a_module_whose_file_changed_is_imported_again(bare)


async def test_a_change_with_the_same_size_and_time_is_noticed_and_no_old_pyc_is_used(session: Session) -> None:
    await session.run(
        "import os, py_compile\nopen('data.py', 'w').write('V=1')\npy_compile.compile('data.py')\nos.utime('data.py', (0, 0))\nimport data"
    )
    await session.run("with open('data.py', 'w') as f: f.write('V=2')\nos.utime('data.py', (0, 0))")
    assert (await session.run("import data; data.V")).value == 2
    await session.run("del data, __import__('sys').modules['data']")
    assert (await session.run("import data; data.V")).value == 2


async def test_functions_and_classes_imported_from_a_module_are_updated(session: Session) -> None:
    await session.upload_file("tool.py", b"def f(): return 1\nclass C:\n    def m(self): return 1")
    await session.run("from tool import f, C; c = C()")
    await session.upload_file("tool.py", b"def f(): return 2\nclass C:\n    def m(self): return 2")
    assert (await session.run("f(), c.m(), C().m()")).text == "(2, 2, 2)"


async def test_packages_and_modules_that_import_each_other_are_imported_again(session: Session) -> None:
    await session.upload_file("pkg/__init__.py", b"A = 1")
    await session.upload_file("pkg/part.py", b"from base import X\nB = X")
    await session.upload_file("base.py", b"X = 1")
    assert (await session.run("import pkg.part; pkg.A, pkg.part.B")).text == "(1, 1)"
    await session.upload_file("pkg/__init__.py", b"A = 2")
    assert (await session.run("pkg.A, pkg.part.B")).text == "(2, 1)"
    await session.upload_file("pkg/part.py", b"from base import X\nB = X * 10")
    await session.upload_file("base.py", b"X = 2")
    assert (await session.run("pkg.A, pkg.part.B")).text == "(2, 20)"


async def test_a_module_that_can_no_longer_be_imported_is_reported(session: Session) -> None:
    await session.upload_file("data.py", b"V = 1")
    await session.run("import data")
    for source, name in ((b"V = (", "SyntaxError"), (b"V = 1 / 0", "ZeroDivisionError"), (b"raise SystemExit", "SystemExit")):
        await session.upload_file("data.py", source)
        told = await session.run("data.V")
        assert (told.value, name in told.stderr) == (1, True)
        assert "data.py has changed and cannot be imported" in told.stderr
        assert ".guest" not in told.stderr, "no frame of ours"
        assert (await session.run("data.V")).stderr == "", "it is told once"
        failed = await session.run("import data")
        assert failed.error.name == name
        assert "importlib" not in failed.error.traceback, "nor of Python's imports"
    await session.upload_file("data.py", b"V = 2")
    assert (await session.run("data.V")).value == 2


async def test_modules_whose_reload_was_interrupted_are_reloaded_before_the_next_cell(session: Session) -> None:
    await session.upload_file("first.py", b"V = 1")
    await session.upload_file("second.py", b"V = 1")
    await session.run("import os, first, second")
    once = "if not os.path.exists('once'):\n    open('once', 'w').close()\n    signal.raise_signal(signal.SIGINT)"
    first = f"import os, signal\n{once}\nV = 2"
    # The pause makes both stamps reliable: the content of a file that was just written is compared in any case.
    await session.run(f"open('first.py', 'w').write({first!r})\nopen('second.py', 'w').write('V = 2')\nimport time; time.sleep(0.2)")
    interrupted = await session.run("first.V")
    assert (interrupted.success, interrupted.error.name) == (False, "KeyboardInterrupt")
    assert (await session.run("first.V, second.V")).text == "(2, 2)"


async def test_a_deleted_module_stays_as_it_was_imported(session: Session) -> None:
    await session.upload_file("data.py", b"V = 1")
    await session.run("import data")
    await session.delete_file("data.py")
    result = await session.run("import data; data.V")
    assert (result.value, result.stderr) == (1, "")


async def test_a_rollback_or_branch_imports_no_unchanged_module_again(session: Session) -> None:
    await session.upload_file("data.py", b"V = 1\ncalls = []")
    await session.run("import data; data.calls.append(1)")
    before = await session.checkpoint()
    (branch,) = await session.branch()
    async with branch:
        assert (await branch.run("import data; data.V, data.calls")).text == "(1, [1])"
        await branch.upload_file("data.py", b"V = 3")
        assert (await branch.run("data.V")).value == 3
    await session.upload_file("data.py", b"V = 2\ncalls = []")
    assert (await session.run("data.V, data.calls")).text == "(2, [])"
    await session.rollback(before)
    assert (await session.run("import data; data.V, data.calls")).text == "(1, [1])"
    await session.upload_file("data.py", b"V = 4")
    assert (await session.run("data.V")).value == 4


async def test_checking_for_changes_costs_one_stat_per_file_and_nothing_without_modules(session: Session) -> None:
    await session.run(COUNTED)
    await session.run("1 + 1")
    assert (await session.run("len(seen)")).value == 0
    await session.upload_file("data.py", b"V = 1")
    await session.run("import data, time; time.sleep(0.2)")
    await session.run("seen.clear(); modules.open = None")
    await session.run("1 + 1")  # not even the file is read
    assert (await session.run("seen")).text == "['/mnt/data/data.py', '/mnt/data/data.py']"


async def test_output_of_an_import_by_the_clients_own_cells_belongs_to_the_next_user_cell(session: Session) -> None:
    await session.upload_file("data.py", b"V = 1")
    await session.run("import data")
    await session.upload_file("data.py", b"print('again')")
    assert [one.name for one in await session.variables()] == []
    assert (await session.run("1")).stdout == "again\n"
