"""Test that the caller of a cell decides about what the rules of its session's network refuse."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from aca_sessions import CodeExecutionResult, Denial, InteractiveSession, Network, Policy, Session, SessionPool, open_pool
from aca_sessions.client.http import EMBEDDED, EmbeddedTransport, SessionsHttpClient
from aca_sessions.client.interpreter import CodeInterpreter
from aca_sessions.errors import ACASessionsError
from aca_sessions.hosting import Hosting
from aca_sessions.network.denials import Answer, OnDenied, decide
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.proxy.addresses import Dialer
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session import interpreter as interpreters
from aca_sessions.server.app import Service
from aca_sessions.server.sessions import Sessions

from ..sandbox.test_network import target

pytestmark = pytest.mark.slow
__all__ = ["target"]  # a fixture
POLICY = Policy(network=Network.allow("target.test"), preload=(), spares=0)
# 403 if it is refused, 200 if it is allowed.
FETCH = """
import urllib.request, urllib.error
def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
"""


@pytest.fixture(scope="module", autouse=True)
def _fork_server_for_domains(kept_fork_server: ForkServer) -> Iterator[None]:
    server = ForkServer.shared(POLICY)
    yield
    server.release()


class Counting(EmbeddedTransport):
    """Counts the requests of a client."""

    requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return await super().handle_async_request(request)


@pytest.fixture
async def transport(target: int) -> AsyncIterator[Counting]:
    """A server whose sessions look up every name as the address of the target."""

    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.215.14"]

    async def connect(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", target)

    hosting = Hosting(evicts=False, cooldown=None)
    async with Sandboxes(POLICY, Dialer(resolve=resolve, connect=connect)) as sandboxes:
        await sandboxes.wait_until_ready()
        async with Sessions(sandboxes, hosting, default_timeout=100.0) as sessions:
            yield Counting(Service(sessions, hosting))


@pytest.fixture
async def pool(transport: Counting) -> AsyncIterator[SessionPool]:
    client = SessionsHttpClient(httpx.AsyncClient(transport=transport, base_url=EMBEDDED), api_version="2025-10-02-preview")
    async with CodeInterpreter(client) as interpreter, SessionPool(interpreter) as opened:
        yield opened


class Person:
    """Gives the same decision about each denial, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Denial] = []

    def __call__(self, denial: Denial) -> Answer:
        self.asked.append(denial)
        return self.answer


class Thinking:
    """Decides when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Denial] = []
        self.began = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def __call__(self, denial: Denial) -> Answer:
        self.asked.append(denial)
        self.began.set()
        await self.may_answer.wait()
        return "once"


async def value(session: Session, code: str, **options: object) -> object:
    result = await session.run(FETCH + code, **options)  # type: ignore[arg-type]
    assert result.error is None, result.error
    return result.value


async def test_a_request_is_allowed_once(pool: SessionPool) -> None:
    person = Person("once")
    async with pool.session("alice", on_denied=person) as session:
        assert await value(session, "fetch('http://unknown.test/secret?key=1')") == 200
        assert person.asked == [Denial(host="unknown.test", port=80, allowed="the hosts target.test", session_id="alice")]
        assert await value(session, "fetch('http://unknown.test/')") == 200
        assert await value(session, "fetch('http://target.test/')") == 200
        assert len(person.asked) == 2


async def test_a_request_is_allowed_from_now_on(pool: SessionPool) -> None:
    person = Person("always")
    async with pool.session(on_denied=person) as session:
        for _ in range(2):
            assert await value(session, "[fetch('http://unknown.test/') for _ in range(3)] == [200] * 3") is True
        assert await value(session, "fetch('http://other.test/')") == 200
    assert [denial.host for denial in person.asked] == ["unknown.test", "other.test"]


async def test_a_refusal_holds_until_the_next_cell(pool: SessionPool) -> None:
    person = Person(None)
    async with pool.session(on_denied=person) as session:
        for _ in range(2):
            assert await value(session, "[fetch('http://unknown.test/') for _ in range(3)] == [403] * 3") is True
    assert len(person.asked) == 2


@pytest.mark.parametrize(
    ("answer", "decision"),
    [("once", "once"), ("always", "always"), (True, "once"), (False, "refuse"), (None, "refuse"), ("yes", "refuse"), (1, "refuse")],
)
async def test_only_these_values_allow(answer: Answer, decision: str) -> None:
    denial = Denial(host="unknown.test", port=443)

    async def later(_: Denial) -> Answer:
        return answer

    assert await decide(lambda _: answer, denial) == await decide(later, denial) == decision


def test_both_halves_of_a_denial_agree() -> None:
    denial = Denial(host="a.test", port=443, method="POST", path="/\x1b\ufffd", allowed="GET /**", headers=("authorization",))
    assert Denial.from_json(denial.to_json(), "") == denial


async def test_without_a_caller_who_decides_it_is_refused_at_once(pool: SessionPool) -> None:
    async with pool.session("alice") as session, pool.session("alice", on_denied=Person("always")) as other:
        assert await value(session, "fetch('http://unknown.test/')") == 403
        assert await value(other, "fetch('http://unknown.test/')") == 200
        assert await value(session, "fetch('http://unknown.test/')") == 200  # by the decision for the session
        assert await value(session, "fetch('http://other.test/')", on_denied=Person("once")) == 200
        result = await other.execute_command(["curl", "-sx", "http://127.0.0.1:3128", "-o", "/dev/null", "-w%{http_code}", "other.test"])
        assert result.stdout == "403"


async def test_an_exception_refuses_and_is_raised_to_the_caller(pool: SessionPool) -> None:
    def fail(_: Denial) -> Answer:
        raise ValueError("nobody is there")

    async with pool.session() as session:
        with pytest.raises(ValueError, match="nobody is there"):
            await session.run(f"{FETCH}\nx = 1\nfetch('http://unknown.test/')\nwhile True: pass", on_denied=fail)
        assert await value(session, "x") == 1  # the cell was interrupted, and the variables are kept
        assert await value(session, "fetch('http://unknown.test/')") == 403


async def test_a_session_without_denials_sends_one_request_for_a_cell(pool: SessionPool, transport: Counting) -> None:
    async with pool.session(on_denied=Person(None)) as session:
        await session.run("1")
        before = transport.requests
        assert (await session.run("print('x')\n2")).output == "x\n2"
        assert transport.requests == before + 1


async def test_output_events_and_decisions_come_in_order(pool: SessionPool) -> None:
    async with pool.session(on_denied=Person("once")) as session:
        code = f"{FETCH}\nprint('before')\nfetch('http://unknown.test/')\nprint('after')"
        events = [event async for event in session.stream(code)]
    assert [event.kind for event in events] == ["stdout", "network", "decision", "stdout", "result"]
    assert (events[1].number, events[2].text) == (events[2].number, "once")
    assert json.loads(events[1].text)["host"] == "unknown.test"


async def test_a_cell_with_other_questions_gets_each_answer(pool: SessionPool) -> None:
    code = """
from threading import Thread
found = []
thread = Thread(target=lambda: found.append(fetch('http://unknown.test/')))
thread.start()
names = [input('a'), input('b')]
thread.join()
(names, found)
"""
    async with pool.session() as session:
        execution = await session.start(FETCH + code, on_input=lambda prompt: prompt * 2, on_denied=Person("once"))
        assert (await execution.wait()).text == "(['aa', 'bb'], [200])"


async def test_another_reader_is_not_asked_again(pool: SessionPool) -> None:
    late = Person("always")
    async with pool.session(on_denied=Person("once")) as session:
        execution = await session.start(f"{FETCH}\nfetch('http://unknown.test/')")
        assert (await execution.wait()).value == 200
        assert (await session.execution(execution.id, on_denied=late).wait()).value == 200
    assert late.asked == []


async def test_a_client_that_comes_back_decides(pool: SessionPool) -> None:
    async with pool.session() as session:
        started = await session.start(f"{FETCH}\nfetch('http://unknown.test/')", on_denied=Person(None))
        assert (await session.execution(started.id, on_denied=Person("once")).wait()).value == 200


async def test_of_two_readers_the_first_decision_counts(pool: SessionPool) -> None:
    slow, quick = Thinking(), Person("once")
    async with pool.session() as session:
        started = await session.start(f"{FETCH}\nfetch('http://unknown.test/')", on_denied=slow)
        waiting = asyncio.create_task(started.wait())
        await slow.began.wait()
        assert (await session.execution(started.id, on_denied=quick).wait()).value == 200
        slow.may_answer.set()
        assert (await waiting).value == 200
        assert await value(session, "fetch('http://unknown.test/')") == 403


async def test_a_cancelled_call_refuses_and_interrupts_the_cell(pool: SessionPool) -> None:
    person = Thinking()
    async with pool.session(on_denied=person) as session:
        await session.run("x = 1")
        running = asyncio.create_task(session.run(f"{FETCH}\nx = 2\nstatus = fetch('http://unknown.test/')\nwhile True: pass"))
        await person.began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await session.run("x")).value == 2


async def test_a_decision_after_the_end_of_the_cell_allows_nothing(pool: SessionPool) -> None:
    person = Thinking()
    async with pool.session(on_denied=person) as session:
        await session.run("1")
        running = asyncio.create_task(session.run(f"{FETCH}\nfetch('http://unknown.test/')"))
        await person.began.wait()
        await session.interrupt()
        next_one = await session.run("2", on_denied=Person(None))  # it runs after the interrupted cell has ended
        person.may_answer.set()
        interrupted = await running
        assert (interrupted.error and interrupted.error.name, next_one.value) == ("KeyboardInterrupt", 2)
        assert await value(session, "fetch('http://unknown.test/')", on_denied=Person(None)) == 403


async def test_an_interpreter_that_dies_leaves_no_question(pool: SessionPool) -> None:
    person = Thinking()
    code = "import os, threading, time\nthreading.Thread(target=fetch, args=('http://unknown.test/',)).start()\n"
    code += "while not os.path.exists('/mnt/data/go'): time.sleep(0.01)\nos._exit(1)"
    async with pool.session(on_denied=person) as session:
        running = asyncio.create_task(session.run(FETCH + code))
        await person.began.wait()
        await session.upload_file("go", b"")
        person.may_answer.set()
        result: CodeExecutionResult = await running
        assert result.state.variables == "lost"
        assert await value(session, "fetch('http://unknown.test/')", on_denied=Person("once")) == 200


async def test_a_reset_while_a_person_thinks_ends_the_question(pool: SessionPool) -> None:
    person = Thinking()
    async with pool.session(on_denied=person) as session:
        running = asyncio.create_task(session.run(f"{FETCH}\nfetch('http://unknown.test/')"))
        await person.began.wait()
        await session.reset()
        person.may_answer.set()
        assert (await running).error is not None
        assert await value(session, "fetch('http://unknown.test/')", on_denied=Person("once")) == 200


async def test_a_process_between_two_cells_is_refused_at_once(pool: SessionPool) -> None:
    person = Person("once")
    program = f"""{FETCH}
import os, time
while not os.path.exists('/mnt/data/go'): time.sleep(0.01)
print(fetch('http://unknown.test/'), file=open('/mnt/data/status', 'w'))
"""
    async with pool.session(on_denied=person) as session:
        await session.run(f"import subprocess, sys\nprocess = subprocess.Popen([sys.executable, '-c', {program!r}])")
        await session.upload_file("go", b"")
        while not any(file.name == "status" and file.size for file in await session.list_files()):
            await asyncio.sleep(0.02)
        assert await session.download_file("status") == b"403\n"
        assert person.asked == []


async def test_a_branch_asks_the_same_caller(pool: SessionPool) -> None:
    person = Person("once")
    async with pool.session("alice", on_denied=person) as session:
        await session.run("1")
        (branch,) = await session.branch()
        async with branch:
            assert await value(branch, "fetch('http://unknown.test/')") == 200
        assert await value(session, "fetch('http://unknown.test/')") == 200
    assert [denial.session_id for denial in person.asked] == [branch.session_id, "alice"]


async def test_a_branch_that_was_reset_does_not_ask_the_caller_of_another_cell(pool: SessionPool) -> None:
    """It has a proxy listener of its own, and shares the rules with the session."""
    person, other = Person("once"), Person("always")
    async with pool.session("alice", on_denied=other) as session:
        await session.run("1")
        (branch,) = await session.branch()
        async with branch:
            await branch.reset()
            wait = "import os, time\nwhile not os.path.exists('/mnt/data/go'): time.sleep(0.01)"
            running = await session.start(f"{FETCH}{wait}\nfetch('http://unknown.test/')")
            assert await value(branch, "fetch('http://unknown.test/')", on_denied=person) == 200
            assert (await branch.run(f"{FETCH}\nfetch('http://unknown.test/')", on_denied=Person(None))).value == 403
            await session.upload_file("go", b"")
            assert (await running.wait()).value == 200
    assert [denial.session_id for denial in person.asked + other.asked] == [branch.session_id, "alice"]


async def test_at_most_sixteen_requests_wait_for_a_person(pool: SessionPool) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor, as_completed
with ThreadPoolExecutor(24) as threads:
    for done in as_completed([threads.submit(fetch, f'http://unknown{n}.test/') for n in range(24)]):
        print(done.result(), flush=True)
"""
    person = Thinking()
    async with pool.session() as session:
        started = await session.start(FETCH + code, on_denied=person)
        waiting, text = asyncio.create_task(started.wait()), ""
        async for event in session.execution(started.id).events():
            text += event.text if event.kind == "stdout" else ""
            if text == "403\n" * 8:
                person.may_answer.set()
        assert (await waiting).stdout == "403\n" * 8 + "200\n" * 16


async def test_a_person_who_does_not_answer_in_time_refuses(pool: SessionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "ANSWER_SECONDS", 0.5)
    person = Thinking()
    async with pool.session() as session:
        started = await session.start(f"{FETCH}\nfetch('http://unknown.test/')", on_denied=person, timeout=0.4)
        reading = asyncio.create_task(started.wait())
        await person.began.wait()  # the clock of the cell stands still
        found = await session.execution(started.id).wait()
        assert found.value == 403
        person.may_answer.set()
        assert (await reading).value == 403


async def test_a_decision_that_is_no_word_of_the_protocol_refuses(pool: SessionPool) -> None:
    async with pool.session() as session:
        started = await session.start(f"{FETCH}\nfetch('http://unknown.test/')", on_denied=Person(None))
        async for event in session.execution(started.id).events():
            if event.kind == "network":
                await started.reply(event, "certainly")
        assert event.result is not None
        assert event.result.value == 403


async def test_a_function_for_all_sessions_of_a_pool(target: int) -> None:
    person = Person(None)
    async with open_pool(policy=POLICY, on_denied=person) as pool:
        session = await pool.get_or_create("alice")
        assert await value(session, "fetch('http://unknown.test/')") == 403
        other = await pool.get_or_create("bob", on_denied=Person(None))
        assert await value(other, "fetch('http://unknown.test/')") == 403
    assert [denial.session_id for denial in person.asked] == ["alice"]


def opened(on_denied: OnDenied) -> InteractiveSession:
    return InteractiveSession(policy=POLICY, session_id="alice", on_denied=on_denied)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_live", [False, True])
def test_without_await_the_function_is_called_in_the_callers_thread(is_live: bool, is_async: bool) -> None:
    threads = []

    def decide(denial: Denial) -> Any:
        threads.append((threading.get_ident(), denial.session_id))
        return later() if is_async else "once"

    async def later() -> Answer:
        return "once"

    options: dict[str, Any] = {"on_stdout": lambda _: None} if is_live else {}
    with opened(decide) as session:
        assert session.run(f"{FETCH}\nfetch('http://unknown.invalid/')", **options).value == 502  # allowed, and not to be found
        (branch,) = session.branch()
        with branch:
            assert branch.run(f"{FETCH}\nfetch('http://unknown.invalid/')", **options).value == 502
    assert [thread for thread, _ in threads] == [threading.get_ident()] * 2
    assert threads[0][1] == "alice" != threads[1][1]


@pytest.mark.parametrize("is_live", [False, True])
def test_without_await_an_exception_or_ctrl_c_in_the_function_refuses(is_live: bool) -> None:
    errors: list[BaseException] = [ValueError("x"), KeyboardInterrupt(), SystemExit(3)]

    def fail(_: Denial) -> Answer:
        raise errors[0]

    options: dict[str, Any] = {"on_stdout": lambda _: None} if is_live else {}
    with opened(fail) as session:
        while errors:
            with pytest.raises(type(errors[0])):
                session.run(f"{FETCH}\nx = 1\nfetch('http://unknown.invalid/')\nwhile True: pass", **options)
            errors.pop(0)
        assert session.run("x").value == 1


def test_a_session_that_is_closed_while_a_person_thinks_ends_the_call() -> None:
    began, may_answer = threading.Event(), threading.Event()

    def think(_: Denial) -> Answer:
        began.set()
        may_answer.wait()
        return "once"

    with ThreadPoolExecutor(1) as threads, opened(think) as session:
        running = threads.submit(session.run, f"{FETCH}\nfetch('http://unknown.invalid/')")
        began.wait()
        session.close()
        may_answer.set()
        with pytest.raises(ACASessionsError, match="the session was closed"):
            running.result()
