"""Test processes of a session and its branches: they run only while their own /mnt/data is mounted, and end with what started them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from aca_sessions import Policy, Session, open_pool

pytestmark = pytest.mark.slow

DAEMON = "import subprocess; subprocess.run(['sh', '-c', '(while :; do echo again >> /mnt/data/log; sleep 0.01; done) &'])\n"
COUNT = "import os; os.path.getsize('log') if os.path.exists('log') else 0"


@pytest.fixture
async def family() -> AsyncIterator[tuple[Session, Session]]:
    """A session and its branch."""
    async with open_pool(policy=Policy(preload=(), spares=0)) as pool, pool.session() as session:
        await session.run("x = 1; import os, signal, subprocess, threading, time")
        (branch,) = await session.branch()
        yield session, branch


async def size(session: Session) -> int:
    """Return the length of the log as the host sees it, without a cell and so without a turn."""
    return next((file.size for file in await session.list_files() if file.name == "log"), 0)


async def grows(session: Session) -> None:
    before = await size(session)
    async with asyncio.timeout(120):
        while await size(session) <= before:
            await asyncio.sleep(0)


async def test_processes_left_by_a_failed_transaction_end_with_a_branch_alive(family: tuple[Session, Session]) -> None:
    session, branch = family
    result = await session.run(DAEMON + "1 / 0", transactional=True)
    assert str(result.state) == "rolled_back"
    assert (await branch.run("1")).processes == ()
    result = await session.run("import os; os.listdir('/mnt/data')")
    assert (result.text, result.processes) == ("[]", ())


async def test_processes_left_by_a_failed_transaction_end_while_a_cell_of_a_branch_runs(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.run(DAEMON)
    failing = asyncio.create_task(session.run("import os; os.kill(os.getpid(), 9)", transactional=True))
    results = [await branch.run("time.sleep(0.02)") for _ in range(20)]
    assert [result.processes for result in results] == [()] * 20
    assert str((await failing).state) == "rolled_back: killed"
    assert (await session.run("1")).processes == ()


@pytest.mark.parametrize("shown", ["session", "branch"])
async def test_a_reset_ends_processes_left_running_with_a_branch_alive(family: tuple[Session, Session], shown: str) -> None:
    session, branch = family
    await session.run(DAEMON)
    if shown == "branch":
        await branch.run("1")
    await session.reset()
    before = await size(session)
    assert (await branch.run("1")).processes == ()
    assert (await session.run(COUNT)).value == before


@pytest.mark.parametrize("shown", ["session", "branch"])
async def test_the_end_of_a_branch_ends_only_the_processes_it_left_running(family: tuple[Session, Session], shown: str) -> None:
    session, branch = family
    await branch.run("subprocess.run(['sh', '-c', 'tail -f /dev/null &'])")
    await session.run(DAEMON)
    if shown == "branch":
        while "tail" not in [process.name for process in (await branch.run("1")).processes]:  # it was a shell until it started the program
            await asyncio.sleep(0.01)
    await branch.close()
    await grows(session)
    assert {process.name for process in (await session.run("1")).processes} <= {"sh", "sleep"}


async def test_processes_left_by_an_interpreter_that_died_end_with_a_branch_alive(family: tuple[Session, Session]) -> None:
    session, branch = family
    result = await session.run(DAEMON + "os._exit(3)")
    assert str(result.state) == "lost: exit"
    assert (await branch.run("1")).processes == ()
    before = await size(session)
    assert (await session.run(COUNT)).value == before


async def test_a_failed_transaction_in_a_fresh_interpreter_ends_no_process_of_a_branch(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.run("os._exit(3)")
    await session.run("1")
    result = await session.run("1 / 0", transactional=True)
    assert (str(result.state), result.state.processes) == ("rolled_back", "kept")
    result = await branch.run("x")
    assert (result.value, str(result.state)) == (1, "kept")


async def test_a_branch_that_ran_no_cell_before_its_session_died_continues(family: tuple[Session, Session]) -> None:
    session, branch = family
    await branch.run("1")
    (other,) = await session.branch()
    await session.run("os._exit(3)")
    assert (await session.run("'x' in globals()")).value is False
    assert [(await one.run("x")).value for one in (other, branch, other)] == [1, 1, 1]


async def test_processes_continue_after_a_cell_of_a_branch(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.run(DAEMON)
    await branch.run("1")
    await grows(session)


async def test_processes_continue_after_the_last_branch_has_ended(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.run(DAEMON)
    await branch.run("(lambda: time.sleep(0.01))()")
    await branch.close()
    await grows(session)


async def test_processes_left_by_a_branch_continue_until_another_cell(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.run(DAEMON)
    await branch.run(DAEMON)
    await grows(branch)
    still = await size(session)
    await grows(branch)
    assert await size(session) == still
    await session.run("1")
    await grows(session)


async def test_a_branch_outlives_its_session_and_its_processes_continue(family: tuple[Session, Session]) -> None:
    session, branch = family
    await branch.run(DAEMON)
    await session.run("1")
    await session.reset()
    await grows(branch)


async def test_a_process_that_the_session_stopped_stays_stopped(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.run("stopped, running = (subprocess.Popen(['sleep', '100']) for _ in range(2))")
    await session.run("state = lambda child: open(f'/proc/{child.pid}/stat').read().rpartition(') ')[2][0]")
    await session.run("os.kill(stopped.pid, signal.SIGSTOP)\nwhile state(stopped) != 'T': time.sleep(0.01)")
    stand = "state(stopped) == 'T', state(running) == 'T'"
    assert (await session.run(stand)).text == "(True, False)"
    for _ in range(3):
        await branch.run("1")
        assert (await session.run(stand)).text == "(True, False)"


THREAD = """def write():
    while True:
        open('/mnt/data/log', 'a').write('x'); time.sleep(0.001)
threading.Thread(target=write, daemon=True).start()"""


async def test_a_thread_is_stopped_while_a_cell_of_a_branch_runs(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.run(THREAD)
    for _ in range(3):
        assert (await branch.run("time.sleep(0.05); os.listdir('/mnt/data')")).text == "[]"
    await grows(session)


HOPS = "import subprocess; subprocess.run(['sh', '-c', 'f() { echo x >> /mnt/data/log; f & }; f'])\n"  # starts another and ends, again
BOMB = "import subprocess; subprocess.run(['sh', '-c', 'f() { echo x >> /mnt/data/log; f & f & wait; }; f &'], stderr=-3)\n"


@pytest.mark.parametrize("bomb", [HOPS, BOMB], ids=["hops", "bomb"])
async def test_a_bomb_is_stopped_and_ends_with_its_session(family: tuple[Session, Session], bomb: str) -> None:
    session, branch = family
    await session.run(bomb)
    for _ in range(3):
        result = await branch.run("time.sleep(0.02); os.listdir('/mnt/data')")
        assert (result.text, result.processes) == ("[]", ())
        await session.run("1")
    await session.reset()
    assert (await branch.run("os.listdir('/mnt/data')")).text == "[]"
    before = await size(session)
    assert ((await branch.run("1")).processes, await size(session)) == ((), before)


async def test_a_result_lists_processes_of_a_branch_beside_many_of_its_session(family: tuple[Session, Session]) -> None:
    session, branch = family
    assert len((await session.run("children = [subprocess.Popen(['sleep', '100']) for _ in range(105)]")).processes) == 100
    result = await branch.run("child = subprocess.Popen(['sleep', '100']); child.pid")
    assert [process.pid for process in result.processes] == [result.value]


@pytest.mark.long
async def test_children_ended_by_a_failed_transaction_are_reported_each_time(family: tuple[Session, Session]) -> None:
    session, _ = family
    for _ in range(10):
        await session.run("child = subprocess.Popen(['sleep', '100'])")
        assert (await session.run("1 / 0", transactional=True)).state.processes == "ended"
        assert (await session.run("1 / 0", transactional=True)).state.processes == "kept"


async def test_a_checkpoint_waits_for_cells_of_a_branch(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.checkpoint()
    await session.run("x = 2")
    for number in range(3):
        await branch.run(f"x = 10 + {number}")
        await session.rollback()
        assert (await session.run("x")).value == 1
    assert (await branch.run("x")).value == 12


@pytest.mark.long
async def test_a_process_that_a_branch_continued_is_stopped_for_the_next_cell(family: tuple[Session, Session]) -> None:
    session, branch = family
    (other,) = await session.branch()
    await session.run(DAEMON)
    signals = "for _ in range(50):\n    os.kill(-1, signal.SIGCONT)\n    time.sleep(0.01)\nos.path.exists('/mnt/data/log')"
    how = ((await session.health()).isolation or {})["processes of branches"]
    assert (await branch.run(signals)).value is (how != "frozen by control groups"), "a signal continues nothing that is frozen"
    assert (await other.run("time.sleep(0.05); os.listdir('/mnt/data')")).text == "[]"


async def test_a_cell_cancelled_while_it_waits_for_its_turn_shows_no_process_anothers_files(family: tuple[Session, Session]) -> None:
    session, branch = family
    await session.run("open('own', 'w').close()")
    for turns in range(0, 60, 2):
        running = asyncio.create_task(branch.run("1"))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait((running,))
        assert (await session.run("os.listdir('/mnt/data')")).text == "['own']"
