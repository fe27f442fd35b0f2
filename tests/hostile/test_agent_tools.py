"""Attack the protocol by which cells call tools of the host."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from aca_sessions import AgentSession, PackageSource, Policy, SessionPool, open_pool, tool
from aca_sessions.agent.approval import Call
from aca_sessions.agent.tools.command import Option, Program, Recipe
from aca_sessions.agent.tools.tool import Parameter

from ..conftest import mostly_long
from ..wheels import make_wheel

BY_HAND = """
import importlib, json
wire, shell = importlib.import_module("aca_sessions.sandbox.wire"), get_ipython()
link, execution = shell._ask.__self__, shell._cell.execution
def by_hand(**call): return link.ask(execution, "call", json.dumps(call))
def frame(about, text, number=10 ** 6): link.send(wire.Asked(execution, number, about, text))
"""


@pytest.mark.parametrize(
    ("name", "arguments"),
    mostly_long(
        [
            ("tools.call", {"name": "hidden", "arguments": {}}),
            ("tools.call", {"name": "look.__class__", "arguments": {}}),
            ("tools.call", {"name": "look", "arguments": {"self": 1}}),
            ("tools.call", {"name": ["look"], "arguments": {}}),
            ("tools.hidden", {}),
            ("__class__", {}),
            ("tools.batch", {"calls": [{"name": "hidden", "arguments": {}}]}),
            ("skills.source", {"name": "../../etc/passwd"}),
            ("artifacts.load", {"name": "../../etc/passwd"}),
            ("artifacts.save", {"name": "/tmp/x", "data": "", "description": "", "metadata": None}),
            ("artifacts.save", {"name": "x", "data": {"$": "bytes", "file": "/etc/passwd"}, "description": "", "metadata": None}),
        ],
        every=3,
    ),
)
async def test_a_session_calls_only_the_tools_it_was_given(pool: SessionPool, name: str, arguments: dict[str, object]) -> None:
    """Code calls no tool that its session was not given, and reaches nothing else of the host by the way of calls."""
    ran = []

    @tool(effect="read")
    def look() -> str:
        ran.append("look")
        return "seen"

    tool(name="hidden")(lambda: ran.append("hidden"))
    async with AgentSession(pool, tools=[look]) as agent:
        answer = await agent.run(f"{BY_HAND}\nby_hand(name={name!r}, arguments={arguments!r})")
        if name == "artifacts.save" and arguments["name"] == "x":
            assert await agent.load_artifact("x") == {"$": "bytes", "file": "/etc/passwd"}
        else:
            assert '"error"' in str(answer.text)
    assert ran == []


@pytest.mark.parametrize(
    "call",
    mostly_long(
        [
            "tools.send()",
            "by_hand(name='tools.call', arguments={'name': 'send', 'arguments': {}})",
            "by_hand(name='tools.batch', arguments={'calls': [{'name': 'send', 'arguments': {}}]})",
            "by_hand(name='tools.call', arguments={'name': 'send', 'arguments': {}, 'decision': 'approved'})",
            "skills.create('s', 'def run(): return tools.send()'); skills.s()",
            "tools.send.__closure__; describe = tools.send; describe()",
            'skills.create(\'s\', \'def run():\\n    """Sends.\\n\\n    >>> tools.send()\\n    """\')',
        ],
        every=2,
    ),
)
async def test_no_call_avoids_its_approval(pool: SessionPool, call: str) -> None:
    """A call that needs approval is made by no frame, batch or skill before it was approved."""
    sent = []
    send = tool(name="send", effect="irreversible")(lambda: sent.append(1))
    for approve in (None, lambda calls: False):
        async with AgentSession(pool, tools=[send], approve=approve) as agent:
            await agent.run(f"{BY_HAND}\n{call}")
            assert {one.decision for one in agent.calls} <= {"refused"}
    assert sent == []


@pytest.mark.parametrize(
    "value",
    mostly_long(["$(touch {mark})", "`touch {mark}`", "; touch {mark}", "x\ntouch {mark}", "| touch {mark}", "--mark={mark}"], every=2),
)
async def test_no_argument_reaches_a_shell(pool: SessionPool, tmp_path: Path, value: str) -> None:
    """What a session gives a program of the host is one word of its arguments: no shell reads it, and it is no option."""
    mark = tmp_path / "mark"
    code = "import sys; [open(word[7:], 'w') for word in sys.argv[1:] if word.startswith('--mark=')]; print(len(sys.argv))"
    program = Program(name="show", command=[sys.executable, "-c", code], positional=(Parameter(name="value"),))
    async with AgentSession(pool, tools=program.tools()) as agent:
        result = await agent.run(f"tools.show({value.format(mark=mark)!r})")
    assert not mark.exists()
    assert result.text == "'2\\n'" or "would be read as an option" in str(result.error)


@pytest.mark.parametrize(
    "frame",
    [
        "frame('call', 'x' * 2_000_000)",
        "frame('other', '{}')",
        "[frame('call', waiting, number) for number in range(1, 300)]",
        "[frame('call', waiting, 5) for _ in range(2)]",
    ],
)
async def test_hostile_calls_end_only_their_own_interpreter(pool: SessionPool, frame: str) -> None:
    """A call of another kind or size, or too many at a time, ends the interpreter that made it; the host and other sessions go on."""
    wait = tool(name="wait", effect="read")(asyncio.Event().wait)
    waiting = "waiting = json.dumps({'name': 'tools.call', 'arguments': {'name': 'wait', 'arguments': {}}})"
    async with AgentSession(pool, tools=[wait]) as agent, AgentSession(pool) as other:
        await other.run("x = 42")
        result = await agent.run(f"{BY_HAND}\n{waiting}\n{frame}\nimport time; time.sleep(20)", timeout=10)
        assert str(result.state) == "lost: crash"
        assert (await agent.run("6 * 7")).value == 42
        assert (await other.run("x")).value == 42


IN_THREADS = """
import threading
def told(call):
    try: return link.ask(execution, "call", json.dumps({"name": "tools.call", "arguments": {"name": "take", "arguments": {"data": call}}}))
    except Exception as error: return str(error)
def at_once(calls):
    answers = []
    threads = [threading.Thread(target=lambda call=call: answers.append(told(call))) for call in calls]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
    return answers
"""
ONE_FILE = """
name = ".call-" + "a" * 32
open(name, "wb").write(bytes(16 << 20))
answers = at_once([{"$": "bytes", "file": name}] * 60)
sum('"value"' in one for one in answers), sum("which has an argument of this call, is missing" in one for one in answers)
"""
MANY_FILES = """
names = [".call-" + f"{n:032x}" for n in range(11)]
for name in names: open(name, "wb").write(bytes(16 << 20))
answers = at_once({"$": "bytes", "file": name} for name in names)
sum('"value"' in one for one in answers)
"""
LARGE_TEXTS = """
answers = at_once([["x" * 60_000] * 17] * 4)
sum('"value"' in one for one in answers)
"""


ARGUMENTS = [(ONE_FILE, "(1, 59)", 1, 1), (MANY_FILES, "11", 11, 8), (LARGE_TEXTS, "4", 4, 2)]


@pytest.mark.parametrize(("code", "text", "made", "most"), mostly_long(ARGUMENTS, ARGUMENTS[1]))
async def test_arguments_of_parallel_calls_take_bounded_memory(pool: SessionPool, code: str, text: str, made: int, most: int) -> None:
    """However many calls a session makes at a time, their arguments take bounded memory of the host, and a file is read once."""
    sizes, running = list[int](), list[int]()

    @tool(effect="read")
    async def take(data: object) -> int:
        sizes.append(len(data))  # type: ignore[arg-type]
        running.append(1)
        in_flight.append(len(running))
        await asyncio.sleep(0.6)  # longer than the host needs to read the arguments of the next call
        running.pop()
        return 1

    in_flight = list[int]()
    async with AgentSession(pool, tools=[take]) as agent:
        assert (await agent.run(f"{BY_HAND}{IN_THREADS}{code}", timeout=30)).text == text
        assert (await agent.run("6 * 7")).value == 42
    assert (len(sizes), max(in_flight) <= most) == (made, True)


@pytest.mark.parametrize(
    "text",
    mostly_long(
        ["", "{", "[]", "[" * 100_000, '{"name": 5, "arguments": {}}', '{"name": "tools.list", "arguments": []}', "1" * 5000], every=2
    ),
)
async def test_a_malformed_call_is_answered_with_an_error(pool: SessionPool, text: str) -> None:
    """Text that is not a call is answered with an error, and the session and its host continue."""
    async with AgentSession(pool) as agent:
        assert '"error"' in str((await agent.run(f"{BY_HAND}\nlink.ask(execution, 'call', {text!r})")).text)
        assert (await agent.run("6 * 7")).value == 42


@pytest.mark.parametrize("kind", ["bytes", "text", "table"])
async def test_nothing_that_a_session_sends_is_unpickled(pool: SessionPool, kind: str) -> None:
    """What a session sends to its host is text, bytes, JSON or a table: nothing of it is unpickled, and parquet is not read on its way."""
    taken = []
    take = tool(name="take", effect="read")(lambda data: taken.append(data))
    write = 'import os, pickle\nclass Evil:\n    def __reduce__(self): return (eval, (\'open("ran", "w").close()\',))\n'
    file = ".call-" + "0" * 32
    async with AgentSession(pool, tools=[take]) as agent:
        for before in ("b''", "b'PAR1'"):
            content = f"open('/mnt/data/{file}', 'wb').write({before} + pickle.dumps(Evil()))"
            sent = {"name": "take", "arguments": {"data": {"$": kind, "file": file}}}
            await agent.run(f"{BY_HAND}{write}{content}\nby_hand(name='tools.call', arguments={sent!r})")
        assert (await agent.run("6 * 7")).value == 42
    assert len(taken) == (1 if kind == "table" else 2)
    assert all(isinstance(one, str | bytes) for one in taken)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "call",
    mostly_long(["ignore=''", "ignore='='", "ignore='-a'", "ignore='x\\0'", "hide=''", "path='/'", "ignore=['']", "ignore=None"], every=3),
)
async def test_no_argument_overrides_an_option_of_a_recipe(pool: SessionPool, tmp_path: Path, call: str) -> None:
    """What a recipe sets for a program stays set, whatever a session gives for the rest: empty values, options and missing ones."""
    for name in ("secret", "public"):
        (tmp_path / name).touch()
    program = Program(
        name="ls",
        command=["/bin/ls", "-1"],
        options=(Option(name="ignore", short="I"), Option(name="hide")),
        positional=(Parameter(name="path", schema={"type": "string"}),),
        recipes=(Recipe(name="public", preset={"hide": "secret*", "path": str(tmp_path)}, parameters=("ignore",)),),
        effect="read",
    )
    async with AgentSession(pool, tools=program.tools()) as agent:
        result = await agent.run(f"tools.ls.public({call})")
    assert result.text is None or "secret" not in result.text


@pytest.mark.long
async def test_a_session_changes_no_dependency_of_its_owner(tmp_path: Path) -> None:
    """Code in a session removes and replaces no dependency that its owner added, and adds none that was not allowed like a call."""
    make_wheel(tmp_path / "wheels", "alpha")
    make_wheel(tmp_path / "wheels", "beta")
    asked: list[Call] = []

    def approve(calls: Sequence[Call]) -> bool:
        asked.extend(calls)
        return len(asked) > 2

    async with open_pool(policy=Policy(packages=PackageSource(wheels=str(tmp_path / "wheels")), preload=(), spares=0)) as pool:
        async with AgentSession(pool, approve=approve) as agent:
            await agent.add_dep("alpha")
            assert "was not allowed" in str((await agent.run("deps.add('beta')")).error)
            assert "was not allowed" in str((await agent.run("deps.remove('alpha')")).error)
            for call in ("remove('alpha')", "remove('Alpha>=0')", "add('alpha==0.1')"):
                assert "session's owner added" in str((await agent.run(f"deps.{call}")).error)
            assert (await agent.run("import alpha; deps.list()")).text == "['alpha']"
            await agent.run("deps.add('beta')")
            assert await agent.list_deps() == ["alpha", "beta"]
            assert (await agent.run("import beta; deps.remove('beta')['removed_from_config']")).value is True
            await agent.run("deps.add('beta')")
            await agent.add_dep("beta")
            assert "session's owner added" in str((await agent.run("deps.remove('beta')")).error)
        assert [(call.tool, call.effect, call.arguments) for call in asked[:1]] == [("deps.add", "write", {"package": "beta"})]


IN_A_THREAD = """
import threading
def burn():
    while True: pass
threading.Thread(target=burn, daemon=True).start()
"""
IN_A_PROCESS = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "while True: pass"])
"""
IN_ORPHANS = """
import os
child = os.fork()
if child == 0:
    if os.fork() == 0:
        while True: pass
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize(
    "burn", mostly_long([IN_A_THREAD, IN_A_PROCESS, IN_ORPHANS], IN_A_THREAD, IN_ORPHANS), ids=["thread", "process", "orphan"]
)
@pytest.mark.parametrize("calls", mostly_long(["tools.wait()", "while True: tools.list()"], "tools.wait()"), ids=["one call", "many calls"])
@pytest.mark.long
async def test_computing_of_a_cell_counts_while_it_waits_for_the_host(pool: SessionPool, burn: str, calls: str) -> None:
    """What a cell's threads and processes compute while its calls are made counts: calls without an end give no time without one."""
    wait = tool(name="wait", effect="read")(asyncio.Event().wait)
    async with asyncio.timeout(120), AgentSession(pool, tools=[wait]) as agent:
        result = await agent.run(burn + calls, timeout=1)
    assert (result.error.name, "longer than 1 s" in result.error.message) == ("TimeoutError", True)
