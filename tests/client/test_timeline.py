"""Test time travel: checkpoints, rollback, branches and transactional cells."""

import asyncio
import contextlib
import os
import signal
import textwrap

import pytest

from aca_sessions import CodeExecutionResult, Limits, Policy, Session, SessionPool, Settings, open_pool
from aca_sessions.errors import InvalidArgumentError, NotSupportedError, SnapshotError

from ..cli.test_cli import Server
from ..conftest import descendants, end_between_cells, mostly_long, until

WORLD = "x, sorted(__import__('os').listdir()), open('a').read()"
FAILING = "x = 99; open('a', 'w').write('changed'); open('b', 'w').write('new')\n"


@pytest.fixture
async def begun(session: Session) -> Session:
    await session.run("x = 1; open('a', 'w').write('one')")
    return session


async def world(session: Session) -> str | None:
    return (await session.run(WORLD)).text


async def test_a_rollback_restores_variables_and_files(begun: Session) -> None:
    checkpoint = await begun.checkpoint("first")
    await begun.run(FAILING)
    await begun.rollback(checkpoint)
    assert await world(begun) == "(1, ['a'], 'one')"


async def test_a_checkpoint_can_be_restored_again_and_again(begun: Session) -> None:
    await begun.checkpoint("first")
    for number in range(3):
        await begun.run(f"x = {number}; open('a', 'w').write('x')")
        await begun.rollback("first")
        assert await world(begun) == "(1, ['a'], 'one')"


async def test_a_rollback_to_a_later_checkpoint_works(begun: Session) -> None:
    await begun.checkpoint("early")
    await begun.run("x = 2")
    await begun.checkpoint("late")
    await begun.rollback("early")
    assert (await begun.run("x")).value == 1
    await begun.rollback("late")
    assert (await begun.run("x")).value == 2


async def test_undo_goes_back_step_by_step(begun: Session) -> None:
    for number in (2, 3, 4):
        await begun.checkpoint()
        await begun.run(f"x = {number}")
    seen = []
    for _ in range(3):
        await begun.undo()
        seen.append((await begun.run("x")).value)
    assert seen == [3, 2, 1]
    with pytest.raises(SnapshotError, match="does not have a checkpoint"):
        await begun.undo()


async def test_checkpoints_are_listed_and_named(begun: Session) -> None:
    await begun.checkpoint("first")
    await begun.checkpoint()
    assert [(one.id, one.name, one.size) for one in await begun.checkpoints()] == [("1", "first", 3), ("2", None, 3)]


async def test_the_oldest_checkpoints_are_dropped_first() -> None:
    async with open_pool(policy=Policy(limits=Limits(checkpoints=2), preload=(), spares=0)) as pool, pool.session() as session:
        for name in ("a", "b", "c"):
            await session.checkpoint(name)
        assert [one.name for one in await session.checkpoints()] == ["b", "c"]


@pytest.mark.parametrize("name", ["", 5, "x" * 257, "\ud800"])
async def test_an_invalid_name_is_refused(session: Session, name: object) -> None:
    for act in (session.checkpoint, session.rollback):
        with pytest.raises(InvalidArgumentError, match="a checkpoint's name"):
            await act(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1, 65, True, "2", 1.5])
async def test_the_number_of_branches_is_bounded(session: Session, count: object) -> None:
    with pytest.raises(InvalidArgumentError, match="1 to 64"):
        await session.branch(count)  # type: ignore[arg-type]


async def test_a_missing_checkpoint_is_reported(begun: Session) -> None:
    with pytest.raises(SnapshotError, match="the checkpoint 'nowhere' does not exist, and the session has no other"):
        await begun.rollback("nowhere")
    await begun.checkpoint("first")
    await begun.checkpoint()
    await begun.checkpoint("n\x1b" * 100)
    with pytest.raises(SnapshotError, match=r"'nowhere' does not exist\. The session has 'n\\x1bn\\x.{60,80}, '2', 'first'; ") as caught:
        await begun.rollback("nowhere")
    assert str(caught.value).isprintable()
    assert await world(begun) == "(1, ['a'], 'one')"


async def test_folders_links_and_modes_are_restored(session: Session) -> None:
    await session.run(
        "import os\nos.makedirs('d/e')\nopen('d/e/f', 'w').write('deep')\nos.symlink('d/e/f', 'link')\nos.chmod('d/e/f', 0o640)"
    )
    await session.checkpoint()
    await session.run("import shutil\nshutil.rmtree('d'); os.unlink('link')")
    await session.rollback()
    assert (
        await session.run("open('link').read(), oct(os.stat('d/e/f').st_mode), os.readlink('link')")
    ).text == "('deep', '0o100640', 'd/e/f')"


async def test_the_working_folder_survives_a_rollback(session: Session) -> None:
    await session.run("import os\nos.mkdir('sub'); os.chdir('sub'); open('here', 'w').close()")
    await session.checkpoint()
    await session.run("os.chdir('/')")
    await session.rollback()
    assert (await session.run("os.getcwd(), os.listdir()")).text == "('/mnt/data/sub', ['here'])"


async def test_output_still_arrives_after_a_rollback(begun: Session) -> None:
    await begun.checkpoint()
    await begun.rollback()
    result = await begun.run(
        "import os, sys\nprint('out'); os.system('echo child'); print('err', file=sys.stderr); open('/dev/stdout', 'a').write('again\\n')"
    )
    assert (result.stdout, result.stderr) == ("out\nchild\nagain\n", "err\n")


async def test_await_still_works_in_both_branches(session: Session) -> None:
    await session.run("import asyncio\nawait asyncio.sleep(0)")
    await session.checkpoint()
    assert (await session.run("await asyncio.sleep(0, 1)")).value == 1
    await session.rollback()
    assert (await session.run("await asyncio.sleep(0, 2)")).value == 2


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import asyncio\ntask = asyncio.ensure_future(asyncio.sleep(60))\nawait asyncio.sleep(0)", "1 unfinished asyncio tasks"),
        ("import subprocess\nchild = subprocess.Popen(['sleep', '60'])", "1 processes that were started"),
        ("import socket\nopen_socket = socket.socket()", "1 open sockets, which are shared"),
        ("file = open('/tmp/a', 'w')", "1 open files, whose position is shared"),
        ("import fcntl\nfile = open('a', 'w'); fcntl.flock(file, fcntl.LOCK_EX)", "1 open files, whose position is shared"),
        ("import os\nos.mkfifo('pipe')", "1 pipes, sockets or devices among the files"),
    ],
)
async def test_what_a_checkpoint_cannot_contain_is_reported(session: Session, code: str, told: str) -> None:
    await session.run(code)
    assert (await session.checkpoint()).left_behind == (told,)


async def test_a_session_with_threads_cannot_be_checkpointed(begun: Session) -> None:
    await begun.run(
        "import threading\nstop = threading.Event()\nworker = threading.Thread(target=stop.wait, name='worker')\nworker.start()"
    )
    with pytest.raises(SnapshotError, match="worker"):
        await begun.checkpoint()
    await begun.run("stop.set(); worker.join()")
    assert (await begun.checkpoint()).id == "1"


RUNNING = "[thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]"
BAR = """
import io, threading
from tqdm import tqdm
tqdm.monitor_interval = 0.01
screen = io.StringIO()
bar = tqdm(total=10, file=screen, miniters=5, maxinterval=0.01, mininterval=0)
bar.update(3)
"""


async def test_a_progress_bar_goes_on_after_checkpoints_rollbacks_and_branches(begun: Session) -> None:
    """tqdm starts a thread, which draws a bar again that does not move."""
    assert (await begun.run(BAR + RUNNING)).text == "['tqdm_monitor']"
    await begun.checkpoint("half")
    moved = f"bar.update(3); list(tqdm(range(3), file=io.StringIO())); bar.n, {RUNNING}"
    assert (await begun.run(moved)).text == "(6, ['tqdm_monitor'])"
    for _ in range(2):  # a checkpoint is forked anew for each rollback to it
        await begun.rollback("half")
        assert (await begun.run(moved)).text == "(6, ['tqdm_monitor'])"
    await begun.checkpoint()
    (branch,) = await begun.branch()
    async with branch:
        assert (await branch.run(moved)).text == "(9, ['tqdm_monitor'])"
    assert (await begun.run("1 / 0", transactional=True)).state.kind == "rolled_back"
    # The new monitor works: it lowers `miniters` of a bar that stands still, and draws it.
    drawn = "import time\nbar.miniters = 5; bar.update(1)\nwhile '7/10' not in screen.getvalue(): time.sleep(0.01)\nbar.n"
    assert (await begun.run(drawn, timeout=120)).text == "7"


@pytest.mark.long
async def test_a_bar_that_was_killed_while_it_drew_blocks_no_bar_of_the_checkpoint(begun: Session) -> None:
    await begun.run("from tqdm import tqdm\nimport io, os, signal\nlist(tqdm(range(3), file=io.StringIO()))")
    await begun.checkpoint()
    died = await begun.run("tqdm.get_lock().acquire(); os.kill(os.getpid(), signal.SIGKILL)")
    assert str(died.state) == "rolled_back: killed, to the last checkpoint"
    assert (await begun.run("len(list(tqdm(range(3), file=io.StringIO())))", timeout=120)).value == 3


async def test_an_ordinary_daemon_thread_refuses_a_checkpoint_and_nothing_is_stopped(begun: Session) -> None:
    await begun.run(
        BAR + "stop = threading.Event()\nworker = threading.Thread(target=stop.wait, name='worker', daemon=True)\nworker.start()"
    )
    monitor = (await begun.run("id(tqdm.monitor)")).value
    with pytest.raises(SnapshotError, match=r"threads are running, which a checkpoint cannot keep: worker\. End them first"):
        await begun.checkpoint()
    assert (await begun.run("id(tqdm.monitor), tqdm.monitor.is_alive(), worker.is_alive()")).text == f"({monitor}, True, True)"
    await begun.run("stop.set(); worker.join()")
    assert (await begun.checkpoint()).id == "1"


@pytest.mark.long
async def test_a_monitor_that_does_not_end_refuses_a_checkpoint_and_is_replaced(begun: Session) -> None:
    held = "import time\ntqdm.get_lock().acquire(); old = tqdm.monitor\nwhile old.was_killed.wait(0.05): pass\ntime.sleep(0.1)"
    await begun.run(BAR + held)
    with pytest.raises(SnapshotError, match="tqdm_monitor"):
        await begun.checkpoint()
    await begun.run("tqdm.get_lock().release(); old.join()")
    assert (await begun.checkpoint()).id == "1"
    assert (await begun.run(f"bar.update(1); {RUNNING}")).text == "['tqdm_monitor']"


async def is_checkpoint_made(session: Session) -> bool:
    with contextlib.suppress(SnapshotError):
        return bool(await session.checkpoint())
    return False


async def test_a_cell_of_bash_does_not_refuse_later_checkpoints(begun: Session) -> None:
    await begun.run("%%bash\necho first")
    checkpoint = await begun.checkpoint()
    assert (await begun.run("%%bash\necho second")).stdout == "second\n"
    await begun.rollback(checkpoint)
    assert (await begun.run("%%bash\necho third")).stdout == "third\n"
    await begun.run("%%bash --bg\ntouch ended")
    await until(lambda: is_checkpoint_made(begun))  # when the program has ended
    await begun.run("%%bash --bg\nsleep 60")
    with pytest.raises(SnapshotError, match="threads are running"):
        await begun.checkpoint()


# The C library calls `usleep(300000)` for the thread after Python has ended it.
ENDS_LATE = """
import ctypes, threading
libc, key = ctypes.CDLL(None), ctypes.c_uint()
libc.pthread_key_create(ctypes.byref(key), libc.usleep)
thread = threading.Thread(target=lambda: libc.pthread_setspecific(key, ctypes.c_void_p(300_000)))
thread.start(); thread.join()
"""


# A thread that Python has ended and that goes on, with a name. Python 3.13 joins a `threading.Thread` in the C library as well.
LINGERS = """
import _thread, ctypes, time
libc, key = ctypes.CDLL(None), ctypes.c_uint()
libc.pthread_key_create(ctypes.byref(key), libc.usleep)
def end():
    libc.prctl(15, b'poolworker-1')
    libc.pthread_setspecific(key, ctypes.c_void_p((1 << 32) - 1))
_thread.start_new_thread(end, ())
while _thread._count(): time.sleep(0.01)
"""


async def test_a_thread_that_was_joined_does_not_refuse_a_checkpoint(begun: Session) -> None:
    await begun.run(ENDS_LATE)
    assert (await begun.checkpoint()).id == "1"


async def test_a_refused_checkpoint_names_the_threads_of_a_library(begun: Session) -> None:
    await begun.run(LINGERS)
    with pytest.raises(SnapshotError, match=r"1 threads of a library run \(poolworker\)"):
        await begun.checkpoint()


async def test_threads_of_asyncio_that_wait_for_work_do_not_refuse_a_checkpoint(begun: Session) -> None:
    double = "import asyncio, threading\nawait asyncio.to_thread(lambda: x * 2)"
    assert (await begun.run(double)).value == 2
    assert (await begun.run(RUNNING)).text == "['asyncio_0']"
    await begun.checkpoint()
    assert (await begun.run("x = 2\n" + double)).value == 4
    await begun.rollback()
    assert (await begun.run(double)).value == 2


@pytest.mark.long
async def test_work_in_a_thread_of_asyncio_refuses_a_checkpoint_and_ends_well(begun: Session) -> None:
    await begun.run("import asyncio, threading\nstop = threading.Event()\ntask = asyncio.create_task(asyncio.to_thread(stop.wait))")
    with pytest.raises(SnapshotError, match="asyncio_0"):
        await begun.checkpoint()
    assert (await begun.run("stop.set()\nawait task")).value is True
    assert (await begun.checkpoint()).id == "1"


@pytest.mark.long
async def test_the_history_of_another_shell_is_written_after_a_checkpoint(begun: Session) -> None:
    begin = """
    import threading
    from IPython.core.history import HistoryManager
    from IPython.core.interactiveshell import InteractiveShell
    kept = HistoryManager(shell=get_ipython(), parent=None, hist_file='/tmp/history.sqlite', enabled=True)
    kept.db_cache_size = 0
    """
    assert (await begun.run(textwrap.dedent(begin) + RUNNING)).text == "['IPythonHistorySavingThread']"
    await begun.checkpoint()
    await begun.rollback()
    assert (await begun.run(f"1\n{RUNNING}, kept.save_thread.is_alive()")).text == "(['IPythonHistorySavingThread'], True)"


async def test_more_files_than_a_checkpoint_may_hold_are_refused() -> None:
    async with open_pool(policy=Policy(limits=Limits(checkpoint_files=1000), preload=(), spares=0)) as pool, pool.session() as session:
        await session.run("open('big', 'wb').write(bytes(2000))")
        with pytest.raises(SnapshotError, match="the files have"):
            await session.checkpoint()
        assert (await session.run("1", transactional=True)).error is not None


async def test_processes_left_by_a_cell_end_when_it_is_undone(begun: Session) -> None:
    await begun.checkpoint()
    await begun.run("import subprocess\nsubprocess.Popen(['sleep', '4321'])\nsubprocess.Popen('(sleep 4321 &)', shell=True).wait()")
    await begun.rollback()
    result = await begun.run("1")
    assert result.processes == ()
    await begun.run("subprocess = __import__('subprocess'); subprocess.Popen(['sleep', '4321'])")
    await begun.rollback()  # in a fork of the checkpoint
    assert (await begun.run("1")).processes == ()


async def test_a_failed_transactional_cell_leaves_no_trace(begun: Session) -> None:
    result = await begun.run(f"{FAILING}print('seen'); 1 / 0", transactional=True)
    assert (result.stdout, result.error and result.error.name, str(result.state)) == ("seen\n", "ZeroDivisionError", "rolled_back")
    assert await world(begun) == "(1, ['a'], 'one')"


async def test_open_files_continue_after_a_failed_transactional_cell(session: Session) -> None:
    await session.run("log = open('log', 'w'); log.write('before\\n'); log.flush()")
    await session.run("import sqlite3; db = sqlite3.connect('db'); db.execute('create table t(a)'); db.commit()")
    await session.run("1 / 0", transactional=True)
    assert (await session.run("log.write('after\\n'); log.flush(); db.execute('insert into t values(1)'); db.commit()")).success
    seen = await session.run("open('log').read(), sqlite3.connect('db').execute('select count(*) from t').fetchone()")
    assert seen.text == "('before\\nafter\\n', (1,))"


async def test_a_successful_transactional_cell_is_kept(begun: Session) -> None:
    result = await begun.run("x = 2", transactional=True)
    assert (str(result.state), await begun.checkpoints()) == ("kept", [])
    assert (await begun.run("x")).value == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "state", "name"),
    mostly_long(
        [
            ("import time; time.sleep(60)", "rolled_back", "TimeoutError"),
            ("while True:\n    try: sum(range(10_000))\n    except KeyboardInterrupt: pass", "rolled_back: killed", "TimeoutError"),
            ("import os; os._exit(3)", "rolled_back: exit", "InterpreterDied"),
            ("import ctypes; ctypes.string_at(0)", "rolled_back: crash", "InterpreterDied"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "rolled_back: killed", "InterpreterDied"),
            ("1 / 0", "rolled_back", "ZeroDivisionError"),
            ("raise SystemExit(3)", "rolled_back", "SystemExit"),
            ("def (", "rolled_back", "SyntaxError"),
        ],
        every=2,
    ),
)
async def test_a_transactional_cell_reports_how_it_ended(begun: Session, code: str, state: str, name: str) -> None:
    is_endless = "sleep(60)" in code or "while True" in code
    result = await begun.run(f"{FAILING}{code}", timeout=3 if is_endless else 120, transactional=True)
    assert (str(result.state), result.error and result.error.name) == (state, name)
    assert "are lost" not in result.stderr
    assert await world(begun) == "(1, ['a'], 'one')"


@pytest.mark.long
async def test_a_transactional_cell_that_ran_out_of_memory_leaves_no_trace() -> None:
    async with open_pool(policy=Policy(limits=Limits(memory=200 << 20), preload=(), spares=0)) as pool, pool.session() as session:
        await session.run("x = 1; open('a', 'w').write('one')")
        code = "import os\nheld = b'x' * (170 << 20)\nif os.fork() == 0:\n    more = b'x' * (120 << 20)\nos.wait()\nwhile True: pass"
        result = await session.run(f"{FAILING}{code}", timeout=5, transactional=True)
        assert (result.success, result.state.kind) == (False, "rolled_back")
        assert await world(session) == "(1, ['a'], 'one')"


async def test_a_lost_interpreter_is_restored_from_the_last_checkpoint(begun: Session) -> None:
    await begun.checkpoint()
    result = await begun.run("x = 2; open('a', 'w').write('two'); import os; os._exit(3)")
    assert str(result.state) == "rolled_back: exit, to the last checkpoint"
    assert "as at the last checkpoint" in result.stderr
    assert await world(begun) == "(1, ['a'], 'two')"


async def test_a_loss_between_two_cells_is_restored_from_the_last_checkpoint_and_reported(begun: Session) -> None:
    await begun.checkpoint()
    await begun.run("x = 2")
    await end_between_cells(begun)
    result = await begun.run("x")
    assert (result.value, str(result.state)) == (1, "rolled_back: exit, to the last checkpoint")


async def test_branches_diverge(begun: Session) -> None:
    branches = await begun.branch(3)
    for number, branch in enumerate(branches):
        await branch.run(f"x += {10 * number}; open('a', 'w').write('branch {number}')")
    assert [await world(branch) for branch in branches] == [f"({1 + 10 * n}, ['a'], 'branch {n}')" for n in range(3)]
    assert await world(begun) == "(1, ['a'], 'one')"


async def test_files_of_branches_are_separate_for_the_host_as_well(begun: Session) -> None:
    async with (await begun.branch())[0] as branch:
        await branch.upload_file("b", b"b")
        assert [file.name for file in await begun.list_files()] == ["a"]
        assert await branch.download_file("a") == b"one"


async def test_the_end_of_one_branch_ends_no_other(begun: Session) -> None:
    first, second = await begun.branch(2)
    await first.close()
    await second.run("import os; os._exit(1)")
    assert (await begun.run("x")).value == 1
    assert (await second.run("open('a').read()")).value == "one"


async def test_a_branch_outlives_the_session_it_came_from(pool: SessionPool) -> None:
    async with pool.session() as session:
        await session.run("x = 5")
        (branch,) = await session.branch()
    async with branch:
        assert (await branch.run("x")).value == 5


async def test_branches_draw_random_numbers_of_their_own_or_the_same(session: Session) -> None:
    draw = "import random; random.random()"
    await session.run("import random")
    own = [(await branch.run(draw)).value for branch in await session.branch(2)]
    same = [(await branch.run(draw)).value for branch in await session.branch(2, reseed=False)]
    assert (len({*own}), len({*same})) == (2, 1)


async def test_cells_of_a_session_and_its_branches_take_turns(begun: Session) -> None:
    branches = [begun, *await begun.branch(2)]
    code = "for _ in range(50):\n    open('mine', 'a').write(str(x))\nassert {*open('mine').read()} == {str(x)}"
    for number, branch in enumerate(branches):
        await branch.run(f"x = {number}")
    results = await asyncio.gather(*(branch.run(code) for branch in branches))
    assert all(result.success for result in results)


async def test_a_search_over_branches_finds_the_best(begun: Session) -> None:
    scores = {}
    for step, branch in zip((3, 7, 5), await begun.branch(3), strict=True):
        result: CodeExecutionResult = await branch.run(f"x = -(({step} - 5) ** 2); x")
        scores[step] = result.value
        await branch.close()
    assert max(scores, key=lambda step: scores[step]) == 5


async def test_reset_deletes_the_checkpoints(begun: Session) -> None:
    await begun.checkpoint()
    await begun.reset()
    assert await begun.checkpoints() == []


async def test_a_branch_needs_a_name_of_its_own(begun: Session) -> None:
    with pytest.raises(Exception, match="SessionExists"):
        await begun._interpreter._branch(begun.session_id, [begun.session_id], begun._copy_position(), reseed=True)


@pytest.mark.slow
@pytest.mark.long
async def test_an_endpoint_without_time_travel_reports_it() -> None:
    with Server("--port", "0", "--api-key", "key", "--plain") as server:
        async with open_pool(Settings(Endpoint=server.endpoint, ApiKey="key")) as pool, pool.session() as session:
            for act in (session.checkpoint(), session.branch(), session.run("1", transactional=True)):
                with pytest.raises(NotSupportedError):
                    await act


@pytest.mark.slow
@pytest.mark.long
async def test_a_failed_transactional_cell_with_half_a_gigabyte_leaves_it_unchanged(session: Session) -> None:
    await session.run("import numpy, pandas\nframe = pandas.DataFrame({'a': numpy.ones(62_500_000)})")
    result = await session.run("frame['a'] = 0.0\nframe['b'] = 1.0\n1 / 0", transactional=True)
    assert str(result.state) == "rolled_back"
    assert (await session.run("float(frame.a.sum()), list(frame.columns)")).text == "(62500000.0, ['a'])"


@pytest.mark.usefixtures("nothing_left")
async def test_nothing_is_left_of_checkpoints_and_branches() -> None:
    async with open_pool(policy=Policy(preload=(), spares=0)) as pool, pool.session() as session:
        await session.run("x = 1")
        await session.checkpoint()
        await session.rollback()
        (branch,) = await session.branch()
        await branch.checkpoint()
        await branch.run("x = 2", transactional=True)
        await branch.run("1 / 0", transactional=True)


async def test_a_checkpoint_killed_from_outside_is_no_longer_listed() -> None:
    async with open_pool(policy=Policy(spares=0, preload=())) as pool, pool.session() as session:
        await session.run("x = 1; open('a', 'w').write('one')")
        before = {*descendants(os.getpid())}
        await session.checkpoint()
        (snapshot,) = {*descendants(os.getpid())} - before
        os.kill(snapshot, signal.SIGKILL)
        while await session.checkpoints():
            await asyncio.sleep(0)
        assert await world(session) == "(1, ['a'], 'one')"
