"""Test files that a session had open at a checkpoint, after a rollback to it."""

from collections.abc import AsyncIterator

import pytest

from aca_sessions import Policy
from aca_sessions.sandbox.sandbox import Sandbox
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session.copies import deleted_open_files
from aca_sessions.sandbox.session.descriptors import host_pid

from ..conftest import mostly_long

pytestmark = pytest.mark.slow

OPEN = """import os, sqlite3
os.mkdir('folder')
log = open('folder/log', 'a'); print('before', file=log, flush=True)
db = sqlite3.connect('db'); db.execute('create table t (a)'); db.execute('insert into t values (1)'); db.commit()"""
GO_ON = """print('after', file=log, flush=True)
db.execute('insert into t values (2)'); db.commit()
open('folder/log').read(), [a for a, in sqlite3.connect('db').execute('select a from t order by a')]"""
AS_IF_NOTHING_HAD_HAPPENED = "('before\\nafter\\n', [1, 2])"
CHANGES = {
    "written to": "print('undone', file=log, flush=True); db.execute('delete from t'); db.commit()",
    "closed": "log.close(); db.close(); open('folder/log', 'w').write('undone')",
    "rotated": "os.rename('folder/log', 'folder/log.1'); open('folder/log', 'w').write('undone'); os.rename('db', 'old db')",
    "grown": "log.write('x' * 100_000); log.flush(); db.executemany('insert into t values (?)', [(i,) for i in range(9999)]); db.commit()",
    "cut off": "os.truncate('folder/log', 0); os.truncate('db', 0)",
    "locked": "os.chmod('folder/log', 0); os.chmod('db', 0); os.chmod('folder', 0)",
    "in a full folder": "db.close()\nwith open('junk', 'wb') as junk:\n    while True: junk.write(bytes(1 << 20))",
}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandboxes(Policy(preload=(), spares=0)) as sandboxes:
        opened = await sandboxes.open()
        yield opened
        await opened.close()


async def run(sandbox: Sandbox, code: str):
    return await (await sandbox.interpreter()).run("e", code, 20.0)


async def named(sandbox: Sandbox) -> tuple[str, ...] | None:
    return deleted_open_files(host_pid((await sandbox.interpreter()).pidfd), sandbox.files)


@pytest.mark.long
@pytest.mark.parametrize("change", mostly_long(CHANGES, every=3))
@pytest.mark.parametrize("way", ["rollback", "failing cell"])
async def test_an_open_log_and_a_database_continue_after_a_rollback(sandbox: Sandbox, way: str, change: str) -> None:
    assert (await run(sandbox, OPEN)).success
    if way == "rollback":
        await sandbox.checkpoint()
        await run(sandbox, CHANGES[change])
        await sandbox.roll_back()
    else:
        await sandbox.execute(lambda interpreter: interpreter.run("e", f"{CHANGES[change]}\n1 / 0", 20.0), transactional=True)
    assert sandbox.ledger.contains("rolled_back", since=0)
    assert (await run(sandbox, GO_ON)).text == AS_IF_NOTHING_HAD_HAPPENED
    assert await named(sandbox) == ()


async def test_an_open_file_continues_at_its_position_of_the_checkpoint(sandbox: Sandbox) -> None:
    """The interpreter that was undone has moved the position, and a checkpoint serves more than once."""
    await run(
        sandbox, "import os; file = open('file', 'w+'); print('kept', file=file, flush=True); os.set_inheritable(file.fileno(), True)"
    )
    assert (await sandbox.checkpoint()).left_behind == ()
    for _ in range(2):
        await run(sandbox, "print('undone', file=file, flush=True)")
        await sandbox.roll_back()
        assert (await run(sandbox, "print('new', file=file, flush=True); open('file').read().split()")).text == "['kept', 'new']"
        found = await run(sandbox, "os.get_inheritable(file.fileno()), file.seek(0), file.read().split()")
        assert found.text == "(True, 0, ['kept', 'new'])"


async def test_a_checkpoint_unlocks_no_database(sandbox: Sandbox) -> None:
    """Closing any descriptor of a file releases all locks that the process has on it: fcntl(2)."""
    await run(sandbox, f"{OPEN}\ndb.execute('insert into t values (5)')")
    await sandbox.checkpoint()
    locked = await run(sandbox, 'import subprocess, sys; code = \'import sqlite3; sqlite3.connect("db", 0).execute("delete from t")\'')
    assert locked.success
    other = await run(sandbox, "subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr.splitlines()[-1]")
    assert other.value == "sqlite3.OperationalError: database is locked"


async def test_open_files_that_were_deleted_are_reported(sandbox: Sandbox) -> None:
    await run(sandbox, f"{OPEN}\nkept = open('kept', 'w'); odd = open(b'\\xff\\x1b[2J', 'w'); elsewhere = open('/tmp/elsewhere', 'w')")
    await sandbox.checkpoint()
    await run(sandbox, "import shutil; shutil.rmtree('folder'); os.unlink(b'\\xff\\x1b[2J'); os.unlink('db'); os.unlink('/tmp/elsewhere')")
    await sandbox.roll_back()
    assert await named(sandbox) == ("'\\udcff\\x1b[2J'", "db", "folder/log")
    assert (await run(sandbox, "open('folder/log').read(), sorted(os.listdir())")).text == (
        "('before\\n', ['db', 'folder', 'kept', '\\udcff\\x1b[2J'])"
    )


async def test_open_deleted_files_are_reported_after_branches_took_turns(sandbox: Sandbox) -> None:
    """Another mount of the tree is shown by then."""
    branch = await sandbox.branch()
    await run(branch, "1")
    await run(sandbox, OPEN)
    await sandbox.checkpoint()
    await run(branch, "open('mine', 'w').close()")
    await run(sandbox, "os.unlink('folder/log')")
    await sandbox.roll_back()
    assert await named(sandbox) == ("folder/log",)
    await branch.close()


async def test_the_number_of_reported_files_is_bounded(sandbox: Sandbox) -> None:
    await run(sandbox, "import os\nopened = [open(f'{n:03}', 'w') for n in range(100)]")
    await sandbox.checkpoint()
    await run(sandbox, "for n in range(100): os.unlink(f'{n:03}')")
    await sandbox.roll_back()
    assert await named(sandbox) == (*(f"{n:03}" for n in range(20)), "and 80 more")


async def test_nothing_is_reported_of_a_process_that_has_ended(sandbox: Sandbox) -> None:
    pid = host_pid((await sandbox.interpreter()).pidfd)
    await sandbox.reset()
    assert deleted_open_files(pid, sandbox.files) is None


async def test_a_process_that_forbids_inspection_is_inspected_all_the_same(sandbox: Sandbox) -> None:
    await run(sandbox, "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); gone = open('gone', 'w'); import os; os.unlink('gone')")
    assert await named(sandbox) == ("gone",)
