"""Test cells that call tools at a plain endpoint: the cell runs in a thread of the session, and plain executions carry its calls."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from aca_sessions import AgentSession, FileStorage, SessionPool, Settings, open_pool, tool
from aca_sessions.bridge.threaded_host import Clock, send_modules
from aca_sessions.errors import NotSupportedError, ServiceError

from ..cli.test_cli import Server
from ..client.faults import FaultyProxy
from ..conftest import mostly_long

pytestmark = pytest.mark.slow


@tool(effect="read")
async def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with Server("--port", "0", "--api-key", "key", "--plain") as server:
        yield server.endpoint


@pytest.fixture
async def pool(endpoint: str) -> AsyncIterator[SessionPool]:
    async with open_pool(Settings(Endpoint=endpoint, ApiKey="key")) as opened:
        yield opened


@pytest.fixture
async def agent(pool: SessionPool) -> AsyncIterator[AgentSession]:
    async with AgentSession(pool, tools=[weather]) as opened:
        yield opened


async def test_a_cell_behaves_as_in_a_notebook(agent: AgentSession) -> None:
    result = await agent.run("import sys, asyncio\nprint('out')\nprint('err', file=sys.stderr)\nx = await asyncio.sleep(0, 20)\nx + 22")
    assert (result.stdout, result.stderr, result.value, result.text, str(result.state)) == ("out\n", "err\n", 42, "42", "kept")
    assert (await agent.run("_ + x")).value == 62
    assert (await agent.run("x;")).text is None
    assert (await agent.run("!echo shell")).stdout == "shell\n"


@pytest.mark.parametrize(
    ("code", "name", "last"),
    mostly_long(
        [
            ("1 / 0", "ZeroDivisionError", "ZeroDivisionError: division by zero"),
            ("def f(:", "SyntaxError", "SyntaxError: invalid syntax"),
            ("raise SystemExit(3)", "SystemExit", "SystemExit: 3"),
            ("exit()", "SystemExit", "SystemExit"),
            ("%no_magic", "UsageError", "UsageError: Line magic function `%no_magic` not found."),
            ("input()", "EOFError", "put the values into the code"),
            ("class Odd(Exception):\n    def __str__(self): 1 / 0\nraise Odd", "Odd", "Odd"),
            ("raise ExceptionGroup('many', [ValueError('one')])", "ExceptionGroup", "ValueError: one"),
        ],
        every=2,
    ),
)
async def test_an_error_in_a_cell_is_shown_without_our_frames(agent: AgentSession, code: str, name: str, last: str) -> None:
    result = await agent.run(code)
    assert (result.error and result.error.name, str(result.state)) == (name, "kept")
    assert last in result.stderr
    assert "_aca_sessions" not in result.stderr
    assert (await agent.run("6 * 7")).value == 42


async def test_every_display_of_a_cell_is_in_the_result(agent: AgentSession) -> None:
    code = """
import matplotlib.pyplot as plt
from IPython.display import HTML, display, update_display
display(HTML('<b>first</b>'), display_id='a')
plt.plot([1, 2])
tools.weather('Oslo')
plt.title('one figure, in spite of the executions meanwhile')
update_display(HTML('<b>second</b>'), display_id='a')"""
    result = await agent.run(code)
    assert result.displays[0].data["text/html"] == "<b>second</b>"
    assert (len(result.displays), len(result.images)) == (2, 1)
    assert (await agent.run("display(1); from IPython.display import clear_output; clear_output()")).displays == ()


@pytest.mark.parametrize("size", [10_000_000, 3_000_000])
async def test_a_flood_of_output_is_cut_in_the_middle(agent: AgentSession, size: int) -> None:
    result = await agent.run(f"print('a' * {size} + 'end')\ntools.weather('Oslo')")
    assert result.value == "sunny in Oslo"
    assert (len(result.stdout) < 1_100_000, result.stdout[0], result.stdout[-4:]) == (True, "a", "end\n")


async def test_output_of_child_processes_is_in_the_result(agent: AgentSession) -> None:
    result = await agent.run("import os\nos.system('echo raw; echo error >&2')\nprint('python')")
    assert (sorted(result.stdout.split()), result.stderr) == (["python", "raw"], "error\n")


@pytest.mark.long
async def test_a_cell_that_never_ends_is_interrupted(agent: AgentSession) -> None:
    for code in (
        "x = 1\nwhile True: pass",
        "import asyncio\nawait asyncio.sleep(100)",
        "x = 1\nimport asyncio\nasyncio.run(asyncio.sleep(100))",
    ):
        result = await agent.run(code, timeout=1)
        assert (result.error and result.error.name, str(result.state)) == ("TimeoutError", "kept")
        assert "was interrupted; its variables are kept" in result.stderr
    assert (await agent.run("x, tools.weather('Oslo')")).text == "(1, 'sunny in Oslo')"


@pytest.mark.long
@pytest.mark.parametrize("code", mostly_long(["import time\ntime.sleep(30)", "import threading\nthreading.Event().wait()"], every=2))
async def test_a_cell_that_cannot_be_interrupted_is_reported_as_such(agent: AgentSession, code: str) -> None:
    result = await agent.run(code, timeout=0.3)
    assert (result.error and result.error.name, str(result.state)) == ("TimeoutError", "unknown: still running")
    assert "still runs in a thread of the session" in result.stderr
    assert (await agent.run("print('beside it')\ntools.weather('Oslo')")).output == "beside it\n'sunny in Oslo'"


async def test_a_cancelled_call_interrupts_its_cell(pool: SessionPool) -> None:
    reached = asyncio.Event()

    @tool(effect="read")
    async def tell() -> None:
        reached.set()

    async with AgentSession(pool, tools=[tell]) as agent:
        running = asyncio.create_task(agent.run("reached = 1\ntools.tell()\nwhile True: pass"))
        await reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await agent.run("import threading\nreached, threading.active_count() < 4")).text == "(1, True)"


@pytest.mark.long
async def test_the_clock_of_a_cell_stops_while_the_host_works(pool: SessionPool) -> None:
    @tool(effect="read")
    async def slow() -> str:
        await asyncio.sleep(5)
        return "done"

    async with AgentSession(pool, tools=[slow]) as agent:
        assert (await agent.run("tools.slow()", timeout=4)).value == "done"


def test_the_clock_counts_computing_at_most_at_the_rate_of_real_time() -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])
    used = []
    for seconds, ran, computed in [(2, 2, 1.0), (10, 0, 1.5), (10, 0, 40.0), (10, 0, None), (10, 3, 41.0), (10, 0, 2.0)]:
        now[0] += seconds
        clock.count(ran, computed)
        used.append(clock.used)
    assert used == [2, 2.5, 12.5, 12.5, 15.5, 15.5]


@pytest.mark.parametrize("computed", [0.0, None, float("nan"), -1e300])
def test_the_clock_stops_for_an_hour_at_most_whatever_a_session_reports(computed: float | None) -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])
    for seconds in (10, 3580, 100):
        now[0] += seconds
        clock.count(0.0, computed)
    assert clock.used == 90


async def test_a_cell_that_ends_its_interpreter_reports_what_is_lost(agent: AgentSession) -> None:
    await agent.run("x = 1")
    result = await agent.run("import os; os._exit(1)")
    assert (result.error and result.error.name, result.state.kind) == ("InterpreterDied", "lost")
    again = await agent.run("'x' in globals(), tools.weather('Oslo')")
    assert (again.text, str(again.state)) == ("(False, 'sunny in Oslo')", "kept")


async def test_a_session_that_ends_while_the_host_works_is_reported_as_lost(pool: SessionPool) -> None:
    @tool(effect="read")
    async def end() -> str:
        session = agent._live.session
        await session._interpreter.delete_session(session.session_id)
        return "ended"

    async with AgentSession(pool, tools=[end, weather]) as agent:
        result = await agent.run("x = tools.end()")
        assert (result.error and result.error.name, result.state.kind) == ("InterpreterDied", "lost")
        assert (await agent.run("tools.weather('Oslo')")).value == "sunny in Oslo"


async def test_a_session_that_ended_between_two_cells_is_reported_with_the_later_one(agent: AgentSession) -> None:
    await agent.run("x = 1")
    session = agent._live.session
    await session._interpreter.delete_session(session.session_id)
    result = await agent.run("tools.weather('Oslo')")
    assert (result.value, str(result.state)) == ("sunny in Oslo", "lost: terminated")
    assert str((await agent.run("1")).state) == "kept"


@pytest.mark.parametrize("fault", mostly_long(["drop after", "drop before", "500"], every=2))
@pytest.mark.parametrize("answered_before", mostly_long(range(3, 8), 4, 5))
async def test_a_lost_reply_runs_neither_the_cell_nor_a_tool_twice(endpoint: str, fault: str, answered_before: int) -> None:
    ran = []
    note = tool(name="note", effect="write")(lambda number: ran.append(number))
    proxy = FaultyProxy(int(endpoint.rpartition(":")[2]), "POST /executions", [*["pass"] * answered_before, fault])
    async with AsyncExitStack() as stack:
        faulty = await stack.enter_async_context(proxy.listening())
        pool = await stack.enter_async_context(open_pool(Settings(Endpoint=faulty, ApiKey="key")))
        agent = await stack.enter_async_context(AgentSession(pool, tools=[note]))
        try:
            result = await agent.run("print('once', file=open('ran', 'a'))\nfor number in range(3): tools.note(number)\nnumber")
        except ServiceError:
            assert (ran, fault, answered_before) == ([], "500", 3)  # the service reports that it did not run
            return
        if result.state.kind == "kept":
            assert (ran, result.value, await agent._live.session.download_file("ran")) == ([0, 1, 2], 2, b"once\n")
        else:
            assert (ran, str(result.state), fault, answered_before) == ([], "unknown: no reply", "drop before", 3)


async def test_a_printed_line_that_looks_like_our_protocol_is_text(agent: AgentSession) -> None:
    code = "import os, json\nline = json.dumps({'cell': 'over', 'result': {}})\nprint(line)\nos.write(1, line.encode() + b'\\n')\n6 * 7"
    result = await agent.run(code)
    assert (result.value, result.stdout.count('"over"')) == (42, 2)


async def test_redirected_output_and_output_of_forks_go_where_they_should(agent: AgentSession) -> None:
    fork = "import os\nchild = os.fork()\nif not child:\n    print('child', flush=True)\n    os._exit(0)\nos.waitpid(child, 0)[1]"
    assert (await agent.run(fork)).stdout == "child\n"
    code = "with contextlib.redirect_stdout(io.StringIO()) as into:\n    print(tools.weather('Oslo'))\ninto.getvalue()"
    result = await agent.run(f"import contextlib, io\n{code}")
    assert (result.stdout, result.value) == ("", "sunny in Oslo\n")


async def test_a_cell_reports_that_no_thread_can_be_started(agent: AgentSession) -> None:
    code = "import threading\nend = threading.Event()\nwhile True: threading.Thread(target=end.wait, daemon=True).start()"
    assert "can't start new thread" in (await agent._live.session.run(code)).stderr
    result = await agent.run("end.set()")
    assert (str(result.error), str(result.state)) == ("RuntimeError: can't start new thread", "kept")
    await agent._live.session.run("end.set()\nfor thread in threading.enumerate()[1:]: thread.join()")
    assert (await agent.run("tools.weather('Oslo')")).value == "sunny in Oslo"


async def test_a_tool_that_cancels_itself_fails_like_any_other(pool: SessionPool) -> None:
    @tool(effect="read")
    async def cancel() -> None:
        raise asyncio.CancelledError

    async with AgentSession(pool, tools=[cancel]) as agent:
        assert (await agent.run("tools.cancel()")).error.name == "ToolError"


async def test_cells_that_are_sent_together_run_one_after_the_other(agent: AgentSession) -> None:
    await agent.run("running = 0")
    code = "running += 1\ntools.weather('Oslo')\nrunning -= 1\nrunning"
    assert [result.value for result in await asyncio.gather(*[agent.run(code) for _ in range(3)])] == [0, 0, 0]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("import sys; sys.version_info = (3, 8)", "its sessions have a Python older than 3.9"),
        ("import sys; sys.modules['IPython'].get_ipython = lambda: None", "its sessions have no IPython"),
        ("import threading\ndef start(self): raise RuntimeError\nthreading.Thread.start = start", "its sessions cannot start threads"),
        ("import zlib; zlib.decompress = None", "its sessions cannot load the modules that cells with host calls need"),
    ],
)
async def test_a_session_that_lacks_a_module_is_reported_by_its_name(pool: SessionPool, broken: str, said: str) -> None:
    async with pool.session() as session:
        await session.run(broken)
        assert await send_modules(session) == said


@pytest.mark.long
async def test_an_endpoint_that_cannot_carry_calls_is_refused_with_the_reason(tmp_path: Path) -> None:
    with Server("--port", "0", "--api-key", "key", "--plain", "--shell") as server:
        async with open_pool(Settings(Endpoint=server.endpoint, ApiKey="key")) as pool:
            async with AgentSession(pool, storage=FileStorage(tmp_path)) as agent:
                assert (agent.supports("host_tools"), agent.supports("timeout")) == (False, True)
                documented = 'def run():\n    """Nothing.\n\n    >>> run()\n    """'
                assert (await agent.add_skill("nothing", documented))["tested"] is False
                await agent.save_artifact("a", {"b": 1})
                assert await agent.load_artifact("a") == {"b": 1}
            with pytest.raises(NotSupportedError, match="cells with host calls need, so cells cannot call tools"):
                await AgentSession(pool, tools=[weather]).start()


async def test_a_thread_of_an_earlier_cell_calls_no_tool(agent: AgentSession) -> None:
    code = """
import threading
over, said = threading.Event(), []
def late():
    over.wait()
    try:
        tools.weather('Oslo')
    except AttributeError as error:
        said.append(str(error))
thread = threading.Thread(target=late)
thread.start()"""
    await agent.run(code)
    session = agent._live.session
    await session.run("over.set(); thread.join()")
    assert (await agent.run("said")).text == "['host calls are not answered here: run the cell in an AgentSession']"


async def test_the_history_records_a_cell_as_it_was_sent(agent: AgentSession) -> None:
    await agent.run("```python\nx = tools.weather('Oslo')\n```")
    await agent.run("x")
    cells = agent._live.session.history.cells
    assert [(cell.code, cell.result and cell.result.value) for cell in cells] == [
        ("x = tools.weather('Oslo')", None),
        ("x", "sunny in Oslo"),
    ]


@pytest.mark.parametrize("code", [5, "'\ud800'"])
async def test_code_that_is_not_text_is_refused_before_it_is_sent(agent: AgentSession, code: str) -> None:
    result = await agent.run(code)
    assert (result.success, str(result.state)) == (False, "kept")


async def test_a_long_cell_and_a_long_answer_are_carried_by_files(pool: SessionPool) -> None:
    many = tool(name="many", effect="read")(lambda: list(range(200_000)))
    async with AgentSession(pool, tools=[many]) as agent:
        assert (await agent.run("text = " + repr("x" * 200_000) + "\nlen(text), len(tools.many())")).text == "(200000, 200000)"
        assert (await agent.run("import os; os.listdir('/mnt/data')")).text == "[]"


async def test_a_dependency_that_cannot_be_installed_is_reported(agent: AgentSession, tmp_path: Path) -> None:
    result = await agent.run("deps.add('humanize')['pending']")
    assert result.text == "['humanize']"
    assert "deps: humanize could not be installed: cannot install packages, because this session reaches no package index" in result.stderr
