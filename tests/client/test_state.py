"""Compare what results report of a session's state with what is really in it."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from textwrap import indent

import httpx
import pytest

from aca_sessions import CodeExecutionResult, Policy, PythonTool, Session, SessionPool, Settings, open_pool, open_server
from aca_sessions.client.http import SessionsHttpClient
from aca_sessions.client.interpreter import CodeInterpreter
from aca_sessions.client.replay import replay
from aca_sessions.errors import ACASessionsError, ExecutionError, GuestDiedError, NotFoundError, SnapshotError
from aca_sessions.hosting import Hosting
from aca_sessions.sandbox import sandbox as sandboxes
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.policy import Limits, Together
from aca_sessions.sandbox.session import cell as cells
from aca_sessions.sandbox.session import copies

from ..conftest import mostly_long, until

# The interpreter ends while it waits for the next cell, however long that takes.
DIES_LATER = """import os, sys, threading, time
def end_later():
    while not os.path.exists('/mnt/data/die'):
        time.sleep(0.01)
    while sys._current_frames()[threading.main_thread().ident].f_code.co_name != '_read':
        time.sleep(0.01)
    os._exit(1)
threading.Thread(target=end_later).start()"""
STUBBORN = "import time\nwhile True:\n    try:\n        open('started', 'w').close(); time.sleep(30)\n    except BaseException: pass"
UNTIL_GO = "open('started', 'w').close(); import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
# A fork server of its own, which a test may kill without ending the sessions of others.
OWN_SERVER = Policy(preload=(), spares=0, together=Together(processes=30_000))


async def has_x(session: Session) -> bool:
    return (await session.run("'x' in globals()")).value is True


async def is_there(session: Session, name: str) -> bool:
    return name in {file.name for file in await session.list_files()}


async def dead(session: Session) -> None:
    """Let an interpreter die that waits for it, and wait until it has, without asking the session to run anything."""
    await session.upload_file("die", b"")
    server = session._interpreter._http._client._transport.app  # type: ignore[attr-defined]
    interpreter = server._sessions.find(session.session_id)._opening.result().running
    await until(lambda: asyncio.sleep(0, not interpreter.alive))


async def cancelled(call: Awaitable[object], session: Session) -> None:
    """Cancel a call in the middle of its cell, which has made a file."""
    running = asyncio.ensure_future(call)
    await until(lambda: is_there(session, "started"))
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()


# --- losses are reported until a result was delivered ---


async def test_a_loss_by_a_cancelled_call_is_reported_with_the_next_result(session: Session) -> None:
    await session.run("x = 1")
    await cancelled(session.run(STUBBORN), session)
    result = await session.run("'x' in globals()")
    assert (result.value, str(result.state), result.state.files) == (False, "lost: killed", "kept")
    assert str((await session.run("1")).state) == "kept"


@pytest.mark.parametrize("limited", [False, True], ids=["cancelled", "out of time"])
@pytest.mark.long
async def test_a_dropped_completion_is_waited_for_and_never_killed(
    session: Session, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    monkeypatch.setattr(cells, "INTERRUPT_GRACE", 0.0)
    monkeypatch.setattr(cells, "QUEUED_SECONDS", 0.0)
    body = STUBBORN.replace("while True", "for _ in range(2)").replace("30", "5")
    await session.run(f"x = 1\nclass Slow:\n    def __dir__(self):\n{indent(body, ' ' * 8)}")
    await session.run("slow = Slow()")
    if limited:
        with pytest.raises(ExecutionError, match="no completions after 2 s"):
            await session.complete("slow.", 5, timeout=2)
    else:
        await cancelled(session.complete("slow.", 5), session)
    result = await session.run("x")
    assert (result.value, str(result.state)) == (1, "kept")


@pytest.mark.long
async def test_a_loss_by_an_abandoned_stream_is_reported_with_the_next_result(session: Session) -> None:
    await session.run("x = 1")
    stubborn = STUBBORN.replace("open('started', 'w').close()", "print(1, flush=True)")  # an interrupt before the `try` would end it
    async for _ in session.stream(stubborn):
        break
    assert str((await session.run("1")).state) == "lost: killed"


async def test_a_model_reads_that_its_cancelled_call_lost_the_variables(pool: SessionPool) -> None:
    async with PythonTool(pool, session_id="chat") as tool, pool.session("chat") as session:
        await tool.execute_python("x = 1")
        await cancelled(tool.execute_python(STUBBORN), session)
        assert "[state] lost: killed; variables from before are gone, files are kept" in await tool.execute_python("1")
        assert "[state]" not in await tool.execute_python("1")


@pytest.mark.parametrize("ask", ["variables", "health", "packages", "list_files", "checkpoints"])
async def test_a_loss_that_another_operation_notices_is_still_reported_to_the_user(session: Session, ask: str) -> None:
    await session.run(f"x = 1; {DIES_LATER}")
    await dead(session)
    await getattr(session, ask)()
    result = await session.run("'x' in globals()")
    assert (result.value, str(result.state)) == (False, "lost: exit")


async def test_a_fallback_that_only_an_own_cell_noticed_is_reported(session: Session) -> None:
    await session.run("x = 1")
    await session.checkpoint()
    await session.run(f"x = 2; {DIES_LATER}")
    await dead(session)
    assert [(one.name, one.text) for one in await session.variables()] == [("x", "1")]
    result = await session.run("x")
    assert (result.value, str(result.state)) == (1, "rolled_back: exit, to the last checkpoint")


async def test_every_caller_of_a_session_gets_a_loss_reported(pool: SessionPool) -> None:
    async with pool.session("s") as one, pool.session("s") as other:
        await one.run("x = 1")
        await other.run("1")
        await one.run("import os; os._exit(1)")
        assert str((await other.run("1")).state) == "lost: exit"
        assert str((await one.run("1")).state) == "kept"


async def test_a_reset_is_reported_to_the_other_callers_only(pool: SessionPool) -> None:
    async with pool.session("s") as one, pool.session("s") as other:
        await one.run("x = 1")
        await other.run("1")
        await one.reset()
        assert [str((await caller.run("1")).state) for caller in (one, other)] == ["kept", "lost: reset"]


async def test_a_branch_inherits_an_unreported_loss_of_its_origin(session: Session) -> None:
    await session.run(f"x = 1; {DIES_LATER}")
    await dead(session)
    (branch,) = await session.branch()
    async with branch:
        assert [str((await one.run("1")).state) for one in (branch, branch, session)] == ["lost: exit", "kept", "lost: exit"]


async def test_a_loss_is_reported_to_a_caller_whose_first_calls_run_in_parallel_with_anothers(pool: SessionPool) -> None:
    async with pool.session("s") as one, pool.session("s") as other:
        first, died, second = await asyncio.gather(one.run("x = 1"), other.run("import os; os._exit(1)"), one.run("'x' in globals()"))
        assert (str(first.state), str(died.state)) == ("kept", "lost: exit")
        assert (second.value, str(second.state)) == (False, "lost: exit")


async def test_parallel_results_agree_on_a_loss(session: Session) -> None:
    await session.run("x = 1")
    results = await asyncio.gather(session.run("import os; os._exit(1)"), *(session.run("'x' in globals()") for _ in range(5)))
    assert str(results[0].state) == "lost: exit"
    assert all(result.value is False for result in results[1:])
    assert str((await session.run("1")).state) == "kept"


# --- transactional cells and checkpoints ---


async def test_a_reset_during_a_transactional_cell_deletes_no_file(session: Session) -> None:
    await session.run("x = 1; open('precious', 'w').write('data')")
    running = asyncio.ensure_future(session.run("open('started', 'w').close(); import time; time.sleep(60)", transactional=True))
    await until(lambda: is_there(session, "started"))
    await session.reset()
    result = await running
    assert (result.state.variables, result.state.files, result.state.reason) == ("lost", "rolled_back", "reset")
    assert [file.name for file in await session.list_files()] == ["precious"]
    assert not await has_x(session)


async def test_a_loss_before_a_transactional_cell_that_fails_is_reported(session: Session) -> None:
    await session.run(f"x = 1; {DIES_LATER}")
    await dead(session)
    result = await session.run("1/0", transactional=True)
    assert (result.state.variables, result.state.reason) == ("lost", "exit")
    assert not await has_x(session)


async def test_an_interpreter_that_dies_as_its_checkpoint_is_taken_is_reported(session: Session) -> None:
    await session.run("x = 1; import os; os.register_at_fork(before=lambda: os._exit(3))")
    result = await session.run("y = 2", transactional=True)
    assert result.error is not None
    assert (result.error.name, str(result.state)) == ("SnapshotError", "lost: exit")
    assert not await has_x(session)


async def test_a_failed_transactional_cell_reports_no_changes(session: Session) -> None:
    await session.run("x = 1; z = 1")
    result = await session.run("x = 2; y = 3; del z; open('new', 'w').close(); 1/0", transactional=True)
    assert (result.variables, result.files, result.processes, str(result.state)) == ((), (), (), "rolled_back")
    assert (await session.run("x, z, 'y' in globals()")).text == "(1, 1, False)"


async def test_a_transactional_cell_removes_no_checkpoint() -> None:
    async with open_pool(policy=Policy(limits=Limits(checkpoints=2), preload=(), spares=0)) as pool, pool.session() as session:
        await session.run("x = 1")
        for name in "ab":
            await session.checkpoint(name)
        await session.run("y = 2", transactional=True)
        await session.run("1/0", transactional=True)
        assert [one.name for one in await session.checkpoints()] == ["a", "b"]


KILLS_ALL = ["import os; os.system('kill -9 -1'); 1/0", "import os; os.kill(-1, 9); 1/0", "import os; os.kill(-1, 9); os._exit(1)"]


@pytest.mark.parametrize("code", KILLS_ALL)
async def test_a_transactional_cell_whose_checkpoint_is_dead_does_not_claim_a_rollback(session: Session, code: str) -> None:
    await session.run("x = 1")
    result = await session.run(f"x = 2; open('new', 'w').close(); {code}", transactional=True)
    assert result.state.variables in ("lost", "unknown")
    assert result.state.files == "unknown"
    assert str((await session.run("1")).state) == "kept"
    assert await has_x(session) == (result.state.variables == "unknown")


async def test_a_fallback_is_not_reported_if_the_checkpoint_is_dead(session: Session) -> None:
    await session.run("x = 1")
    await session.checkpoint()
    result = await session.run("import os; os.kill(-1, 9); os._exit(1)")
    assert result.state.variables == "lost"
    assert not await has_x(session)


async def test_a_model_reads_what_a_fallback_restored(session: Session) -> None:
    await session.run("x = 1; open('a', 'w').write('one')")
    await session.checkpoint()
    result = await session.run("x = 2; open('a', 'w').write('two'); import os; os._exit(3)")
    text = "variables are as at the last checkpoint, files are kept"
    assert (result.state.variables, result.state.files, text in str(result)) == ("rolled_back", "kept", True)
    assert (await session.run("x, open('a').read()")).text == "(1, 'two')"


async def test_names_of_checkpoints_are_not_taken_for_ids(session: Session) -> None:
    marks = []
    for step in range(3):
        await session.run(f"x = {step}")
        marks.append(await session.checkpoint(str(step)))
    for step, mark in enumerate(marks):
        assert (await session.rollback(mark)).id == mark.id
        assert (await session.run("x")).value == step
        assert (await session.rollback(str(step))).id == mark.id


async def test_a_checkpoint_is_not_confused_with_one_of_a_branch_or_of_a_session_recreated(pool: SessionPool) -> None:
    async with pool.session("a") as session:
        await session.run("x = 1")
        first = await session.checkpoint()
        (branch,) = await session.branch()
        async with branch:
            await branch.checkpoint()
            with pytest.raises(SnapshotError, match=r"the checkpoint '.*' does not exist"):
                await branch.rollback(first)
        await pool.terminate("a")
        await session.run("x = 2")
        await session.checkpoint()
        with pytest.raises(SnapshotError, match=r"the checkpoint '.*' does not exist"):
            await session.rollback(first)
        assert (await session.run("x")).value == 2


async def test_the_history_marks_the_cells_that_a_fallback_undid(session: Session, pool: SessionPool) -> None:
    await session.run("x = 1")
    await session.checkpoint()
    await session.run("x = 100")
    await session.run("import os; os._exit(1)")
    await session.run("x")
    assert [cell.rolled_back for cell in session.history.cells] == [False, True, True, False]
    async with pool.session() as other:
        report = await replay(session.to_notebook(), other)
    assert {cell.verdict for cell in report.cells} == {"same"}


# --- cancelled cells, and cells that wait ---


@pytest.mark.long
async def test_a_cells_clock_starts_with_the_cell(session: Session) -> None:
    (branch,) = await session.branch()
    async with branch:
        running = asyncio.ensure_future(session.run("open('started', 'w').close(); import time; time.sleep(5)"))
        await until(lambda: is_there(session, "started"))
        result = await branch.run("'ran'", timeout=4)
        assert (result.value, result.error) == ("ran", None)
        await running


async def test_a_cell_that_is_cancelled_while_a_sibling_runs_never_starts(session: Session) -> None:
    (branch,) = await session.branch()
    async with branch:
        await session.run("pass")
        running = asyncio.ensure_future(session.run(UNTIL_GO))
        await until(lambda: is_there(session, "started"))
        execution = await branch.start("open('ran', 'w').close()")
        server = session._interpreter._http._client._transport.app  # type: ignore[attr-defined]
        waiting = server._sessions.find(branch.session_id).executions
        await until(lambda: asyncio.sleep(0, waiting.running is not None))  # it has the turn of its own session, but not of its family
        await execution.cancel()
        await session.upload_file("go", b"")
        result = await execution.wait()
        assert result.error is not None
        assert (result.error.name, str(result.state)) == ("KeyboardInterrupt", "kept")
        await running
        assert [file.name for file in await branch.list_files()] == []


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.03])
async def test_a_transactional_cell_that_is_cancelled_during_its_checkpoint_never_starts(session: Session, pause: float) -> None:
    await session.upload_file("big", bytes(60 << 20))
    execution = await session.start("open('ran', 'w').close()", transactional=True)
    await asyncio.sleep(pause)
    await execution.cancel()
    result = await execution.wait()
    assert (result.success, str(result.state)) in [(True, "kept"), (False, "kept"), (False, "rolled_back")]
    assert await is_there(session, "ran") == result.success


# --- the end of a session, of its server, of its fork server ---


async def test_a_cell_of_a_terminated_session_reports_it_and_the_next_runs_in_a_new_session(pool: SessionPool) -> None:
    async with pool.session("a") as session:
        await session.run("x = 1; open('f', 'w').close()")
        running = asyncio.ensure_future(session.run("open('started', 'w').close(); import time; time.sleep(60)"))
        await until(lambda: is_there(session, "started"))
        await pool.terminate("a")
        result = await running
        assert (result.state.variables, result.state.files, result.state.reason) == ("lost", "lost", "terminated")
        assert "variables and files from before are gone" in str(result)
        assert (await session.run("'x' in globals(), __import__('os').listdir()")).text == "(False, [])"


async def test_a_session_is_terminated_although_an_installation_waits_for_its_cell(pool: SessionPool) -> None:
    async with pool.session("a") as session:
        running = asyncio.ensure_future(session.run("open('started', 'w').close()\nwhile True: pass"))
        await until(lambda: is_there(session, "started"))
        server = session._interpreter._http._client._transport.app  # type: ignore[attr-defined]
        packages = server._sessions.find("a")._opening.result().packages
        installing = asyncio.ensure_future(packages._tasks.run_shielded(packages._replace_sets([], ())))  # the end of an installation
        await pool.terminate("a")
        assert str((await running).state) == "lost: terminated"
        with pytest.raises(GuestDiedError):
            await installing


@pytest.mark.long
async def test_an_interrupt_before_its_cell_has_started_is_not_lost(session: Session) -> None:
    """A callback of an earlier cell keeps the interpreter busy for longer than it may need to react."""
    await session.run("import asyncio, time; x = 1; await asyncio.sleep(0); asyncio.get_running_loop().call_later(0.05, time.sleep, 3.5)")
    await asyncio.sleep(0.5)  # the callback has begun
    running = asyncio.ensure_future(session.run("while True: time.sleep(0.01)"))
    await asyncio.sleep(0.3)
    running.cancel()
    await asyncio.wait({running})
    result = await session.run("x")
    assert (result.value, str(result.state)) == (1, "kept")


async def test_a_caller_without_a_running_cell_gets_the_termination_of_its_session_reported(pool: SessionPool) -> None:
    async with pool.session("a") as session:
        await session.run("x = 1")
        await pool.terminate("a")
        assert str((await session.run("1")).state) == "lost: terminated"
    async with pool.session("a") as session:
        assert str((await session.run("1")).state) == "kept"


def fork_server_of(pool: SessionPool) -> ForkServer:
    server = pool._interpreter._http._client._transport.app  # type: ignore[attr-defined]
    return server._sessions._sandboxes._generations[-1].fork_server


async def test_a_workspace_that_ended_with_the_fork_server_is_reported_once() -> None:
    async with open_pool(policy=OWN_SERVER) as pool, pool.session() as session:
        await session.run("x = 1; open('f', 'w').close()")
        server = fork_server_of(pool)
        server.process.kill()
        await asyncio.to_thread(server.process.wait)
        result = await session.run("import os; 'x' in globals(), os.listdir()")
        assert (result.text, result.state.variables, result.state.files) == ("(False, [])", "lost", "lost")
        assert "variables and files from before are gone" in str(result)
        assert str((await session.run("1")).state) == "kept"


async def test_a_cell_during_which_the_fork_server_dies_reports_that_the_files_are_gone() -> None:
    async with open_pool(policy=OWN_SERVER) as pool, pool.session() as session:
        running = asyncio.ensure_future(session.run("open('started', 'w').close(); import time; time.sleep(60)"))
        await until(lambda: is_there(session, "started"))
        fork_server_of(pool).process.kill()
        result = await running
        assert (result.state.variables, result.state.files) == ("lost", "lost")
        assert (await session.run("__import__('os').listdir()")).text == "[]"
        assert str((await session.run("1")).state) == "kept"


@pytest.mark.long
async def test_a_new_session_that_finds_a_dead_fork_server_starts_another() -> None:
    async with open_pool(policy=OWN_SERVER) as pool:
        async with pool.session() as session:
            await session.run("1")
        server = fork_server_of(pool)
        os.kill(server.process.pid, signal.SIGKILL)
        await asyncio.to_thread(server.process.wait)
        async with pool.session() as session:
            result = await session.run("6 * 7")
            assert (result.value, str(result.state)) == (42, "kept")


@pytest.mark.long
async def test_a_session_that_was_opened_but_not_used_survives_its_fork_server() -> None:
    async with open_pool(policy=OWN_SERVER) as pool, pool.session() as session:
        await session.list_files()
        server = fork_server_of(pool)
        server.process.kill()
        await asyncio.to_thread(server.process.wait)
        result = await session.run("6 * 7")
        assert (result.value, str(result.state)) == (42, "kept")


async def test_an_expired_named_session_is_reported_to_its_next_caller() -> None:
    async with open_pool(Settings(SessionTimeoutMinutes=0.1 / 60)) as pool:
        async with pool.session("alice") as session:
            await session.run("x = 1")
        await until(lambda: asyncio.sleep(0, not pool.active()))
        async with pool.session("alice") as session:
            assert str((await session.run("1")).state) == "lost: expired"


# --- results that were not fetched ---


@pytest.mark.long
async def test_results_of_many_parallel_cells_are_kept_until_they_are_fetched(session: Session) -> None:
    await session.run("n = 0")
    results = await asyncio.gather(*(session.run(f"n += 1; {number}", timeout=300) for number in range(120)))
    assert [(result.value, str(result.state)) for result in results] == [(number, "kept") for number in range(120)]
    assert (await session.run("n")).value == 120


async def test_executions_that_were_started_can_all_be_waited_for_later(session: Session) -> None:
    executions = [await session.start(f"{number}") for number in range(60)]
    await session.run("1")
    assert [(await execution.wait()).value for execution in executions] == [*range(60)]


async def test_an_operation_id_never_runs_twice(http: httpx.AsyncClient) -> None:
    async def run(code: str, id: str) -> httpx.Response:
        return await http.post("/executions", json={"code": code}, headers={"operation-id": id})

    counting = "n = globals().get('n', 0) + 1; n"
    assert (await run(counting, "first")).json()["result"]["executionResult"] == 1
    for number in range(60):
        await run("1", f"later-{number}")
    again = await run(counting, "first")
    assert (again.status_code, again.headers["x-ms-error-code"]) == (410, "ExecutionResultGone")
    assert (await run("n", "last")).json()["result"]["executionResult"] == 1


async def test_an_expired_result_is_not_confused_with_an_unknown_outcome(session: Session) -> None:
    first = await session.start("1")
    await first.wait()
    for _ in range(60):
        await session.run("1")
    result = await session.execution(first.id).wait()
    assert result.error is not None
    assert (result.error.name, str(result.state)) == ("ResultGone", "unknown: no reply")


async def test_a_large_result_does_not_push_out_small_ones(http: httpx.AsyncClient) -> None:
    large = "from IPython.display import HTML, display; display(HTML('x' * (17 << 20)))"
    for code, id in (("'small'", "a"), (large, "b"), ("1", "c")):
        await http.post("/executions", json={"code": code}, headers={"operation-id": id})
    assert (await http.get("/executions/a")).json()["result"]["executionResult"] == "small"


# --- branches ---


async def test_the_identifier_of_a_branch_is_taken_before_it_is_made(http: httpx.AsyncClient) -> None:
    await http.post("/executions", json={"code": "x = 1; open('f', 'wb').write(bytes(40 << 20))"}, params={"identifier": "s"})
    body = {"identifiers": ["b"], "reseed": True}
    branching = asyncio.ensure_future(http.post("/session/branches", json=body, params={"identifier": "s"}))
    await asyncio.sleep(0.01)
    first = await http.post("/executions", json={"code": "mine = x"}, params={"identifier": "b"})
    assert ((await branching).status_code, first.json()["status"]) == (200, "Succeeded")
    assert (await http.post("/executions", json={"code": "mine"}, params={"identifier": "b"})).json()["result"]["executionResult"] == 1


async def test_branches_that_cannot_all_be_made_are_not_made_at_all() -> None:
    async with open_server(policy=Policy(preload=(), spares=0), hosting=Hosting(max_sessions=2)) as app:
        transport = httpx.ASGITransport(app)
        params = {"api-version": "2025-10-02-preview", "identifier": "s"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", params=params) as http:
            await http.post("/executions", json={"code": "x = 1"})
            answer = await http.post("/session/branches", json={"identifiers": ["a", "b", "c"], "reseed": True})
            assert answer.status_code == 429
            listed = (await http.get("/listSessions")).json()["sessions"]
            assert [one["identifier"] for one in listed] == ["s"]
            assert (await http.post("/executions", json={"code": "x"})).json()["result"]["executionResult"] == 1


async def test_a_branch_that_is_gone_already_can_be_closed(session: Session, pool: SessionPool) -> None:
    (branch,) = await session.branch()
    async with branch:
        await branch.close()
    with pytest.raises(NotFoundError):
        await pool._interpreter.get_session(branch.session_id)


@pytest.mark.parametrize("turns", [0, 500])
async def test_a_branch_whose_call_was_cancelled_is_ended(session: Session, pool: SessionPool, turns: int) -> None:
    await session.run("x = 1")
    running = asyncio.ensure_future(session.run("open('started', 'w').close(); import time; time.sleep(600)"))
    await until(lambda: is_there(session, "started"))
    branching = asyncio.ensure_future(session.branch())
    for _ in range(turns):  # then it waits for the cell
        await asyncio.sleep(0)
    branching.cancel()
    await asyncio.wait({branching})
    assert not running.done()  # a call that is cancelled does not wait for the cell before it
    await session.interrupt()
    await running
    await session.checkpoints()  # it comes after the branch
    interpreter = pool._interpreter
    await until(lambda: asyncio.sleep(0, not len(interpreter._tasks)))
    assert [one.session_id for one in await interpreter.list_sessions()] == [session.session_id]


# --- endpoints without our extensions ---


class Flaky(httpx.AsyncBaseTransport):
    """Forward requests, and answer the next one that contains a text with a gateway timeout."""

    def __init__(self, app: object) -> None:
        self._inner = httpx.ASGITransport(app)  # type: ignore[arg-type]
        self.fail: str | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = (await request.aread()).decode(errors="replace")
        if self.fail is not None and self.fail in body:
            self.fail = None
            return httpx.Response(504, text="gateway timeout")
        return await self._inner.handle_async_request(request)


@asynccontextmanager
async def plain_endpoint(version: str) -> AsyncIterator[tuple[Flaky, CodeInterpreter]]:
    async with open_server(policy=Policy(preload=(), spares=0), hosting=Hosting(plain=True)) as app:
        flaky = Flaky(app)
        http = SessionsHttpClient(httpx.AsyncClient(transport=flaky, base_url="http://test"), api_version=version, patience=0.5)
        async with CodeInterpreter(http, verify_after=0) as interpreter:
            yield flaky, interpreter


ID = "11111111-1111-4111-8111-111111111111"


@pytest.mark.parametrize("version", ["2024-02-02-preview", "2025-10-02-preview"])
async def test_an_unanswered_check_of_the_marker_is_not_a_loss(version: str) -> None:
    async with plain_endpoint(version) as (flaky, interpreter):
        await interpreter.execute(ID, "x = 1")
        flaky.fail = "_aca_sessions_mark"
        result = await interpreter.execute(ID, "x")
        assert (flaky.fail, result.value, str(result.state)) == (None, 1, "kept")
        assert str((await interpreter.execute(ID, "x")).state) == "kept"


@pytest.mark.parametrize("version", ["2024-02-02-preview", "2025-10-02-preview"])
async def test_a_prelude_that_failed_is_repeated(version: str) -> None:
    async with plain_endpoint(version) as (flaky, interpreter):
        flaky.fail = "chdir"
        await interpreter.execute(ID, "y = 1")
        assert flaky.fail is None
        result = await interpreter.execute(ID, "import os; y, os.getcwd()")
        assert (result.text, str(result.state)) == ("(1, '/mnt/data')", "kept")


async def test_two_clients_of_one_session_do_not_take_each_others_marker_for_a_loss() -> None:
    async with open_server(policy=Policy(preload=(), spares=0), hosting=Hosting(plain=True)) as app:

        def client() -> CodeInterpreter:
            http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
            return CodeInterpreter(SessionsHttpClient(http), verify_after=0)

        async with client() as one, client() as other:
            states = []
            for caller in (one, other, one, other):
                states.append(str((await caller.execute(ID, "x = 1")).state))
            assert states == ["kept"] * 4
            await one.reset(ID)
            assert [str((await caller.execute(ID, "1")).state) for caller in (one, other)] == ["kept", "lost: reset"]


def described(result: CodeExecutionResult) -> tuple[str, str, str]:
    return result.state.variables, result.state.files, result.state.processes


async def test_the_parts_of_a_state_are_reported_separately(session: Session) -> None:
    await session.run("x = 1; import subprocess; child = subprocess.Popen(['sleep', '100'])")
    assert described(await session.run("1")) == ("kept", "kept", "kept")
    assert described(await session.run("import os; os._exit(1)")) == ("lost", "kept", "ended")


async def test_processes_that_a_rollback_ended_are_reported(session: Session) -> None:
    await session.run("x = 1; import subprocess; child = subprocess.Popen(['sleep', '100'])")
    result = await session.run("1/0", transactional=True)
    assert described(result) == ("rolled_back", "rolled_back", "ended")
    assert "variables and files are as before the cell that failed; background processes were ended" in str(result)
    assert described(await session.run("1/0", transactional=True)) == ("rolled_back", "rolled_back", "kept")


async def test_a_cell_whose_interpreter_is_reset_while_it_waits_runs_in_a_fresh_one(session: Session) -> None:
    await session.run("x = 1")
    (branch,) = await session.branch()
    async with branch:
        running = asyncio.ensure_future(session.run(UNTIL_GO))
        await until(lambda: is_there(session, "started"))
        waiting = asyncio.ensure_future(branch.run("'x' in globals()", transactional=False))
        server = session._interpreter._http._client._transport.app  # type: ignore[attr-defined]
        executions = server._sessions.find(branch.session_id).executions
        await until(lambda: asyncio.sleep(0, executions.running is not None))
        await branch.reset()  # does not wait for the cell of its sibling
        assert not running.done()
        await session.upload_file("go", b"")
        result = await waiting
        assert (result.value, result.error, str(result.state)) == (False, None, "lost: reset")
        await running


# --- a rollback, hit by a death at every step ---

WORST_LAST = ["kept", "rolled_back", "unknown", "lost"]
WORLD = "globals().get('x'), open('a').read() if __import__('os').path.exists('a') else None"
VICTIMS = {
    "the checkpoint": lambda sandbox: sandbox._checkpoints.usable[0].interpreter.pidfd,
    "the live interpreter": lambda sandbox: sandbox.running.pidfd,
    "all of the session": lambda sandbox: sandbox.running.runtime.init,
    "the fork server": lambda sandbox: os.pidfd_open(sandbox._fork_server.process.pid),
}


@pytest.mark.parametrize("turns", mostly_long([0, 8, 16, 24, 32, 48], 16))
@pytest.mark.parametrize("victim", mostly_long(VICTIMS, "the checkpoint"))
async def test_a_rollback_interrupted_by_a_death_is_all_or_nothing_or_reports_it(victim: str, turns: int) -> None:
    async with open_pool(policy=OWN_SERVER) as pool, pool.session() as session:
        await session.run("x = 1; open('a', 'w').write('one')")
        checkpoint = await session.checkpoint()
        await session.run("x = 2; open('a', 'w').write('two')")
        server = session._interpreter._http._client._transport.app  # type: ignore[attr-defined]
        sandbox = server._sessions.find(session.session_id)._opening.result()
        pidfd = VICTIMS[victim](sandbox)
        rolling = asyncio.ensure_future(session.rollback(checkpoint))
        for _ in range(turns):
            await asyncio.sleep(0)
        with contextlib.suppress(OSError):  # the rollback was faster, and has ended it
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await asyncio.wait({rolling})
        returned = rolling.exception() is None
        x_then, a_then = (1, "one") if returned else (2, "two")
        states = []
        while not states or states[-1].kind != "kept":  # the death may come while a cell runs, or after its last statement
            result = await session.run(WORLD)
            states.append(result.state)
        x, a = eval(result.text or "")
        variables, files = (max(parts, key=WORST_LAST.index) for parts in zip(*((s.variables, s.files) for s in states), strict=True))
        assert x == {"kept": x_then, "rolled_back": 1, "lost": None, "unknown": x}[variables], (returned, states)
        assert a == {"kept": a_then, "rolled_back": "one", "lost": None, "unknown": a}[files], (returned, states)


@pytest.mark.parametrize("ending", mostly_long(["the fork server", "delete"], "delete"))
async def test_a_rollback_that_outlives_its_session_is_refused_and_its_files_are_reported_lost(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored, ended = threading.Event(), threading.Event()

    def restore_and_wait(*arguments: object) -> None:
        copies.restore(*arguments)  # type: ignore[arg-type]
        restored.set()
        ended.wait(240)

    monkeypatch.setattr(sandboxes, "restore", restore_and_wait)  # which ends the session at a chosen step, of which nothing is replaced
    async with open_pool(policy=OWN_SERVER) as pool, pool.session() as session:
        await session.run("open('a', 'w').write('one')")
        await session.checkpoint()
        server = session._interpreter._http._client._transport.app  # type: ignore[attr-defined]
        sandbox = server._sessions.find(session.session_id)._opening.result()
        rolling = asyncio.ensure_future(session.rollback())
        await until(lambda: asyncio.sleep(0, restored.is_set()))
        deleting = None
        if ending == "delete":
            deleting = asyncio.ensure_future(session._interpreter.delete_session(session.session_id))
            await until(lambda: asyncio.sleep(0, sandbox._closed))
        else:
            sandbox._fork_server.process.kill()
            await until(lambda: asyncio.sleep(0, sandbox._is_workspace_lost))
        ended.set()
        with pytest.raises(ACASessionsError, match="ended meanwhile"):
            await rolling
        if deleting is not None:
            await deleting
        result = await session.run("import os; os.listdir()")
        assert (result.text, result.state.variables, result.state.files) == ("[]", "lost", "lost")


@pytest.mark.long
async def test_an_interrupt_that_comes_as_its_cell_ends_does_not_hit_the_next_cell(session: Session) -> None:
    await session.run("import time; n = 0")
    for turn in range(60):
        execution = await session.start(f"time.sleep({turn % 6 / 1000})")
        following = asyncio.ensure_future(session.run("n += 1\nfor _ in range(20): time.sleep(0.0005)\nn"))
        await asyncio.sleep(turn % 7 / 1000)
        await execution.cancel()
        result = await following
        if str(result.state) == "lost: killed":  # the first cell was not stopped within the grace period: the machine is that busy
            await session.run(f"import time; n = {turn + 1}")
            continue
        assert (result.value, result.error) == (turn + 1, None)
