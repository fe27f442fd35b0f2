"""Test tool calls that run as tasks, with the clients of both versions of the SDK at each revision that they speak."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from aca_sessions import Settings, open_pool
from aca_sessions.mcp.clients import Options, SharedState
from aca_sessions.mcp.sdk import HAS_STATELESS
from aca_sessions.mcp.server import SessionServer

from ..conftest import descendants
from . import task_clients
from .clients import ProtocolError, Running, answer_of, http_client_session, http_server, stdio_client_session, text_of
from .task_clients import Connected, elicitation, in_process

if HAS_STATELESS:
    from .stateless import http_client, stdio_client

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The experimental tasks API:DeprecationWarning")]
ALICE, BOB = "the-key-of-alice", "the-key-of-bob"
ERAS = ["connected", "stateless"] if HAS_STATELESS else ["connected"]
UNKNOWN = "taskId must be that of a task of yours whose result is still kept"
ENDLESS = "x = 1\nprint('begun')\nwhile True: pass"
Connect = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"{ALICE}\n{BOB}\n")
    keys.chmod(0o600)
    with http_server("--api-key-file", str(keys)) as running:
        yield running


@asynccontextmanager
async def over_http(
    server: Running, era: str, key: str = ALICE, answer: Callable[[str], str | None] = lambda _: None
) -> AsyncIterator[Any]:
    if era == "connected":
        async with http_client_session(server._replace(key=key), elicitation_callback=elicitation(answer)) as session:
            yield Connected(session)
    else:
        extension = task_clients.Extension(answer)
        options = {"extensions": [extension], "elicitation_callback": elicitation(answer)}
        async with http_client(server.address, key, **options) as client:
            yield task_clients.Stateless(client, extension)


@asynccontextmanager
async def over_stdio(era: str, answer: Callable[[str], str | None] = lambda _: None) -> AsyncIterator[Any]:
    if era == "connected":
        async with stdio_client_session(elicitation_callback=elicitation(answer)) as session:
            yield Connected(session)
    else:
        extension = task_clients.Extension(answer)
        async with stdio_client(extensions=[extension], elicitation_callback=elicitation(answer)) as client:
            yield task_clients.Stateless(client, extension)


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[pytest.param("stdio", marks=pytest.mark.long), "http"])
def connect(request: pytest.FixtureRequest, era: str) -> Connect:
    """Connect to a server, over each transport and at each revision."""
    if request.param == "stdio":
        return lambda **options: over_stdio(era, **options)
    return lambda **options: over_http(request.getfixturevalue("server"), era, **options)


@asynccontextmanager
async def keeping(seconds: float, era: str) -> AsyncIterator[Any]:
    """Connect to a server that keeps results of tasks for a time."""
    async with open_pool() as pool:
        options = replace(Options.of(Settings().Mcp), task_seconds=seconds)
        async with in_process(SessionServer(SharedState(pool, options)).service.build(), era) as client:
            yield client


async def status(client: Any, task: str, *wanted: str) -> dict[str, Any]:
    """Wait until a task has one of some statuses, and return it."""
    async with asyncio.timeout(120):
        while (state := await client.get(task))["status"] not in wanted:
            await asyncio.sleep(0.05)
    return state


async def test_a_task_reports_its_latest_output_and_its_result_is_that_of_the_call(connect: Connect) -> None:
    async with connect() as client:
        code = f"print('hello')\nimport time; time.sleep({client.unfinished})\n6 * 7"
        task = await client.begin("run_python_code", code=code)
        async with asyncio.timeout(120):
            while (await client.get(task)).get("statusMessage") != "latest output: hello\n":
                await asyncio.sleep(0.05)
        both = await asyncio.gather(client.result(task), client.result(task))
        again = await client.result(task)
        assert text_of(again) == "[stdout]\nhello\n[value]\n42"
        assert again == both[0] == both[1]
        assert (answer_of(again)["success"], answer_of(again)["state"]) == (True, "kept")
        assert (await client.get(task))["status"] == "completed"


async def test_a_cancelled_task_interrupts_its_cell_and_keeps_the_variables(connect: Connect, era: str) -> None:
    async with connect() as client:
        task = await client.begin("run_python_code", code=ENDLESS)
        async with asyncio.timeout(120):
            while "statusMessage" not in await client.get(task):
                await asyncio.sleep(0.05)
        await client.cancel(task)
        if era == "connected":
            with pytest.raises(ProtocolError, match="the task cannot be cancelled, because it is cancelled"):
                await client.cancel(task)
            result = await client.result(task)
            assert (result.isError, text_of(result).startswith("the task was cancelled.")) == (True, True)
        else:
            await client.cancel(task)
        assert (await client.get(task))["status"] == "cancelled"
        assert await client.read("run_python_code", code="x") == "1"


@pytest.mark.long
async def test_cancelling_a_task_while_it_ends_leaves_one_outcome(era: str, server: Running) -> None:
    async with over_http(server, era) as client:
        for delay in range(0, 60, 6 if era == "connected" else 20):
            if era == "connected":
                task = await client.begin("run_python_code", code=f"x = {delay}")
                await asyncio.sleep(delay / 1000)
            else:
                task = await client.begin("run_python_code", code=f"import time; time.sleep(3.0{delay:02})")
            with contextlib.suppress(ProtocolError):
                await client.cancel(task)
            first = await status(client, task, "cancelled", "completed")
            assert await client.read("run_python_code", code="6 * 7") == "42"
            assert (await client.get(task))["status"] == first["status"]


async def test_the_task_of_another_client_is_refused_like_one_that_does_not_exist(era: str, server: Running) -> None:
    async with over_http(server, era, ALICE) as alice, over_http(server, era, BOB) as bob:
        task = await alice.begin("run_python_code", code=ENDLESS)
        for ask in (bob.get, bob.cancel, bob.result):
            refused = []
            for one in (task, task[:-1], ""):
                with pytest.raises(ProtocolError, match=UNKNOWN) as caught:
                    await ask(one)
                refused.append(caught.value.error)
            assert refused[0] == refused[1] == refused[2]
        assert (await alice.get(task))["status"] == "working"
        if era == "connected":
            assert (await alice.list(), await bob.list()) == ([task], [])
        await alice.cancel(task)


async def test_input_in_a_task_asks_the_user_as_often_as_the_cell_asks(connect: Connect, era: str) -> None:
    asked: list[str] = []

    def answer(message: str) -> str:
        asked.append(message)
        return f"line {len(asked)}"

    async with connect(answer=answer) as client:
        task = await client.begin("run_python_code", code="input('one?') + input('two?')")
        state = await status(client, task, "input_required")
        assert state["statusMessage"] == "The code asks: one?"
        waiting = 2 if era == "connected" else 1  # at 2026-07-28 a client answers what it has answered already if it does not remember it
        results = await asyncio.gather(*(client.result(task) for _ in range(waiting)))
        assert [text_of(one).endswith("'line 1line 2'") for one in results] == [True] * waiting
    assert asked == ["The code asks: one?", "The code asks: two?"]


@pytest.mark.long
async def test_input_in_a_task_raises_if_the_user_declines(connect: Connect) -> None:
    async with connect(answer=lambda _: None) as client:
        assert "EOFError" in text_of(await client.result(await client.begin("run_python_code", code="input('?')")))


@pytest.mark.long
async def test_scripts_and_installations_run_as_tasks(connect: Connect) -> None:
    async with connect() as client:
        await client.read("save_script", name="slow", content=f"import time; time.sleep({client.unfinished}); print('done')")
        task = await client.begin("run_script", path="slow")
        assert "done" in text_of(await client.result(task))
        assert await client.read("install_dependencies", packages=["pip"]) != ""


@pytest.mark.long
async def test_a_task_whose_session_is_deleted_ends(connect: Connect) -> None:
    async with connect() as client:
        made = (await client.session.call_tool("create_session", {"session_id": "work"})).structuredContent["session_id"]
        task = await client.begin("run_python_code", code=ENDLESS, session_id=made)
        await client.read("delete_session", session_id=made)
        text = text_of(await client.result(task))
        assert "the session was deleted before the code ran" in text or "the session was ended" in text or "lost" in text


@pytest.mark.long
async def test_a_result_is_dropped_after_its_time_and_what_it_reported_is_reported_again(era: str) -> None:
    async with keeping(0, era) as client:
        await client.read("run_python_code", code="x = 1")
        code = f"import os, time; time.sleep({client.unfinished}); os._exit(1)"
        task = await client.begin("run_python_code", code=code)
        with pytest.raises(ProtocolError, match=UNKNOWN):
            await status(client, task)
        assert "lost" in await client.read("run_python_code", code="1")
        assert "lost" not in await client.read("run_python_code", code="1")


@pytest.mark.long
async def test_a_client_has_a_limited_number_of_tasks(server: Running) -> None:
    async with over_http(server, "connected") as client:
        tasks = [await client.begin("run_python_code", code=ENDLESS) for _ in range(20)]
        with pytest.raises(ProtocolError, match="a client can have at most 20 tasks that run"):
            await client.begin("run_python_code", code="1")
        for task in tasks[:2]:
            await client.cancel(task)
        tasks.append(await client.begin("run_python_code", code="1"))
        assert await client.list() == tasks[1:]
        for task in tasks[2:-1]:
            await client.cancel(task)
        assert text_of(await client.result(tasks[-1])) == "1"


@pytest.mark.long
async def test_only_tools_that_may_take_long_run_as_tasks(server: Running) -> None:
    async with over_http(server, "connected") as client:
        listed = {one.name: one.execution for one in (await client.session.list_tools()).tools}
        assert {name for name, one in listed.items() if one} == {"run_python_code", "run_script", "install_dependencies"}
        with pytest.raises(ProtocolError, match="the tool list_sessions cannot run as a task"):
            await client.begin("list_sessions")
        invalid = await client.begin("run_python_code")
        assert (await status(client, invalid, "failed"), (await client.result(invalid)).isError)[1]


@pytest.mark.long
async def test_a_client_that_leaves_ends_its_tasks(server: Running) -> None:
    with http_server("--api-key", ALICE) as own:
        async with over_http(own, "connected") as client:
            before = descendants(own.pid)
            task = await client.begin("run_python_code", code=ENDLESS)
            async with asyncio.timeout(120):
                while "statusMessage" not in await client.get(task):
                    await asyncio.sleep(0.05)
            assert descendants(own.pid) - before
        async with asyncio.timeout(120):
            while descendants(own.pid) - before:
                await asyncio.sleep(0.05)


@pytest.mark.long
async def test_a_server_stops_while_a_task_runs(era: str) -> None:
    with http_server("--api-key", ALICE) as own:
        async with over_http(own, era) as client:
            assert await client.begin("run_python_code", code=ENDLESS)
            below = descendants(own.pid)
    assert below
    assert not below & descendants(own.pid)


if HAS_STATELESS:

    async def test_a_client_finds_its_task_after_it_has_left(server: Running) -> None:
        async with over_http(server, "stateless") as client:
            task = await client.begin("run_python_code", code="import time; time.sleep(5); 6 * 7")
        async with over_http(server, "stateless") as client:
            assert text_of(await client.result(task)) == "42"

    async def test_a_short_call_is_not_a_task_and_a_cancelled_one_is_interrupted(server: Running) -> None:
        async with over_http(server, "stateless") as client:
            assert text_of(await client.session.call_tool("run_python_code", {"code": "6 * 7"}, allow_claimed=True)) == "42"
            waiting = asyncio.create_task(client.begin("run_python_code", code="y = 1\nwhile True: pass"))
            await asyncio.sleep(1)
            waiting.cancel()
            assert await client.read("run_python_code", code="y") == "1"

    async def test_a_client_without_the_extension_gets_no_task(server: Running) -> None:
        async with http_client(server.address, ALICE) as client:
            result = await client.call_tool("run_python_code", {"code": "import time; time.sleep(5); 6 * 7"})
            assert text_of(result) == "42"
            for method in ("tasks/get", "tasks/cancel", "tasks/update"):
                with pytest.raises(ProtocolError, match="needs the extension") as caught:
                    await task_clients.send(client.session, method, "unknown")
                assert caught.value.error.code == -32021
            for method in ("tasks/result", "tasks/list"):
                with pytest.raises(ProtocolError, match="is not part of this revision") as caught:
                    await task_clients.send(client.session, method, "unknown")
                assert caught.value.error.code == -32601

    async def test_an_answer_to_another_question_is_ignored(server: Running) -> None:
        async with over_http(server, "stateless") as client:
            task = await client.begin("run_python_code", code="input('?')")
            accepted = {"action": "accept", "content": {"answer": "x"}}
            for answers in ({"other": accepted}, {"question-1": "x"}, {}):
                await task_clients.send(client.session, "tasks/update", task, input_responses=answers)
                assert list((await client.get(task))["inputRequests"]) == ["question-1"]
            for given in (accepted, {"action": "decline"}):  # the second is too late
                await task_clients.send(client.session, "tasks/update", task, input_responses={"question-1": given})
            assert text_of(await client.result(task)).endswith("'x'")
