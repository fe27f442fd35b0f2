"""Test many sessions that are opened at once, beside one that exists already."""

import asyncio
import contextlib
import itertools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from aca_sessions import CodeInterpreter, Policy, open_server
from aca_sessions.client.http import SessionsHttpClient
from aca_sessions.contract.records import TOO_MANY_STARTING
from aca_sessions.hosting import Hosting
from aca_sessions.sandbox.forkserver import ForkServer

from ..conftest import descendants

pytestmark = pytest.mark.slow
PENDING = 60  # more than anyio has threads
MOST = Hosting().max_starting


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    policy, hosting = Policy(preload=("netrc",), spares=0), Hosting(max_sessions=200)
    async with open_server(policy=policy, hosting=hosting) as app:
        params = {"api-version": "2025-10-02-preview"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", params=params, timeout=100) as client:
            yield client


def stopped_fork_server() -> contextlib.AbstractContextManager[None]:
    """Stop the fork server from answering, while the sessions that it has forked continue."""
    server = next(server for key, server in ForkServer._shared.items() if key.preload == ("netrc",))
    return stopped({server.process.pid, *descendants(server.process.pid)})


@contextlib.contextmanager
def stopped(processes: set[int]) -> Iterator[None]:
    """Stop the fork servers among the given processes, and none of their sessions, which are one pid namespace deeper."""
    pids = [pid for pid in processes if depth(pid) <= depth(os.getpid()) + 1]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def depth(pid: int) -> int:
    """Return how many pid namespaces a process is in."""
    told = Path(f"/proc/{pid}/status").read_text(errors="replace")
    return len(told.partition("NSpid:")[2].splitlines()[0].split())


async def run(http: httpx.AsyncClient, identifier: str, code: str) -> httpx.Response:
    return await http.post("/executions", json={"code": code}, params={"identifier": identifier})


@pytest.mark.long
async def test_sessions_that_wait_to_be_opened_do_not_block_others(http: httpx.AsyncClient) -> None:
    assert (await run(http, "old", "x = 20")).status_code == 200
    with stopped_fork_server():
        pending = [asyncio.create_task(run(http, f"new-{number}", "6 * 7")) for number in range(PENDING)]
        await asyncio.sleep(0.5)
        async with asyncio.timeout(120):
            assert (await run(http, "old", "x + 22")).json()["result"]["executionResult"] == 42
            uploaded = await http.post("/files", files={"file": ("a.txt", b"hello")}, params={"identifier": "old"})
            listed = await http.get("/files", params={"identifier": "old"})
        assert (uploaded.status_code, [file["name"] for file in listed.json()["value"]]) == (200, ["a.txt"])
        assert not any(task.done() for task in pending)
    answers = await asyncio.gather(*pending)
    assert {answer.json()["result"]["executionResult"] for answer in answers} == {42}


@pytest.mark.long
async def test_new_sessions_are_refused_while_too_many_wait_to_start(http: httpx.AsyncClient) -> None:
    assert (await run(http, "old", "x = 20")).status_code == 200
    with stopped_fork_server():
        pending = [asyncio.create_task(run(http, f"new-{number}", "6 * 7")) for number in range(100)]
        async with asyncio.timeout(120):
            refused = [await first for first in itertools.islice(asyncio.as_completed(pending), 100 - MOST)]
            assert (await run(http, "old", "x + 22")).json()["result"]["executionResult"] == 42
        told = {(answer.status_code, answer.headers["retry-after"], answer.json()["error"]["code"]) for answer in refused}
        assert told == {(503, "1", TOO_MANY_STARTING)}
        assert sum(task.done() for task in pending) == 100 - MOST
        again = asyncio.create_task(run(http, "new-0", "6 * 7"))  # a second request of a waiting session does not count again
        async with asyncio.timeout(120):
            assert (await run(http, "one-more", "1")).status_code == 503
        assert not again.done()
    answers = await asyncio.gather(*pending, again)
    assert sum(answer.status_code == 200 for answer in answers) == MOST + 1
    assert (await run(http, "one-more", "6 * 7")).json()["result"]["executionResult"] == 42


async def test_sessions_that_are_deleted_while_they_wait_to_start_still_count(http: httpx.AsyncClient) -> None:
    with stopped_fork_server():
        pending = [asyncio.create_task(run(http, f"new-{number}", "1")) for number in range(MOST)]
        while len((await http.get("/listSessions")).json()["sessions"]) < MOST:
            await asyncio.sleep(0)
        deleted = [asyncio.create_task(http.delete("/session", params={"identifier": f"new-{number}"})) for number in range(MOST)]
        while (await http.get("/listSessions")).json()["sessions"]:
            await asyncio.sleep(0)
        async with asyncio.timeout(120):
            assert (await run(http, "one-more", "1")).status_code == 503
    await asyncio.gather(*pending, *deleted)
    assert (await run(http, "one-more", "6 * 7")).json()["result"]["executionResult"] == 42


@pytest.mark.long
async def test_a_client_waits_until_a_new_session_can_start() -> None:
    policy, hosting = Policy(preload=(), spares=0), Hosting(max_starting=1)
    async with open_server(policy=policy, hosting=hosting) as app:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with CodeInterpreter(SessionsHttpClient(http, patience=60)) as interpreter:
            calls = [interpreter.execute(f"new-{number}", "n = globals().get('n', 0) + 1; n") for number in range(3)]
            results = await asyncio.gather(*calls)
    assert [(result.value, str(result.state)) for result in results] == [(1, "kept")] * 3


@pytest.mark.long
async def test_an_existing_session_goes_first_while_100_are_opened(http: httpx.AsyncClient) -> None:
    assert (await run(http, "old", "x = 20")).status_code == 200
    pending = [asyncio.create_task(run(http, f"new-{number}", "6 * 7")) for number in range(100)]
    for number in range(5):
        assert (await run(http, "old", "x + 22")).json()["result"]["executionResult"] == 42
        if number == 0:
            assert sum(task.done() for task in pending) < 100
    assert Counter(answer.status_code for answer in await asyncio.gather(*pending)) == {200: MOST, 503: 100 - MOST}
