"""Test what network faults do to a cell: how often it ran, and what its caller gets."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from aca_sessions import CodeInterpreter, Settings, open_interpreter, open_pool
from aca_sessions.contract.records import UNBEGUN
from aca_sessions.errors import ACASessionsError, AuthenticationError, RateLimitedError, ServiceError, ServiceUnavailableError

from ..cli.test_cli import Server
from ..conftest import mostly_long
from ..scaling.cluster import free_port
from .faults import FaultyProxy

pytestmark = pytest.mark.slow
COUNT = "n = globals().get('n', 0) + 1; n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with Server("--port", "0", "--api-key", "key") as server:
        yield int(server.endpoint.rpartition(":")[2])


@pytest.fixture(scope="module")
def plain_port() -> Iterator[int]:
    with Server("--port", "0", "--api-key", "key", "--plain") as server:
        yield int(server.endpoint.rpartition(":")[2])


async def through(port: int, session: str, faults: list[str], *, target: str = "POST /executions", **options: object) -> tuple[object, int]:
    """Return what the caller got for one cell, and how often the cell ran."""
    proxy = FaultyProxy(port, target, faults)
    async with proxy.listening() as endpoint, open_interpreter(_settings(endpoint, **options)) as interpreter:
        try:
            got: object = await interpreter.execute(session, COUNT)
        except ACASessionsError as error:
            got = error
    async with open_interpreter(_settings(f"http://127.0.0.1:{port}")) as interpreter:
        return got, await _times_run(interpreter, session)


def _settings(endpoint: str, **options: object) -> Settings:
    return Settings(SessionsHttpClient={"Endpoint": endpoint, "ApiKey": "key", **options})


async def _times_run(interpreter: CodeInterpreter, session: str) -> int:
    return (await interpreter.execute(session, "globals().get('n', 0)")).value


@pytest.mark.parametrize(
    ("faults", "ran"),
    mostly_long(
        [(["drop after"], 1), (["half"], 1), (["slow"], 1), (["delay"], 1), (["429"], 1), (["429", "429", "429"], 1), (["pass"], 1)],
        every=2,
    ),
    ids=str,
)
async def test_a_cell_whose_answer_can_be_recovered_is_answered(port: int, faults: list[str], ran: int) -> None:
    got, count = await through(port, f"answered-{'-'.join(faults)}".replace(" ", "-"), faults)
    assert got.value == 1
    assert str(got.state) == "kept"
    assert count == ran


@pytest.mark.parametrize("code", mostly_long(UNBEGUN, UNBEGUN[0]))
async def test_a_cell_is_sent_again_after_a_refusal_that_says_it_was_not_begun(port: int, code: str) -> None:
    got, count = await through(port, f"unbegun-{code}", [code, code])
    assert (got.value, count) == (1, 1)


@pytest.mark.long
async def test_an_endpoint_that_has_answered_before_is_waited_for(port: int) -> None:
    proxy, number = FaultyProxy(port, "", []), free_port()
    async with open_interpreter(_settings(f"http://127.0.0.1:{number}", PatienceSeconds=120)) as interpreter:
        async with proxy.listening(number):
            await interpreter.execute("waited-for", "x = 41")
        running = asyncio.create_task(interpreter.execute("waited-for", "x + 1"))
        await asyncio.wait({running}, timeout=1)  # three attempts end earlier
        assert not running.done()
        async with proxy.listening(number):
            result = await running
    assert (result.value, str(result.state)) == (42, "kept")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("401", AuthenticationError), ("500", ServiceError), ("503", ServiceError), ("html", ServiceUnavailableError)],
)
async def test_an_answer_that_refuses_the_cell_is_reported_and_nothing_ran(port: int, fault: str, kind: type) -> None:
    got, count = await through(port, f"refused-{fault}", [fault])
    assert isinstance(got, kind)
    assert count == 0


async def test_after_a_connection_dropped_before_the_request_it_is_unknown_whether_the_cell_ran(port: int) -> None:
    got, count = await through(port, "dropped-before", ["drop before"])
    assert (got.success, str(got.state)) == (False, "unknown: no reply")
    assert count == 0


async def test_repeated_429_answers_end_with_the_time_budget(port: int) -> None:
    got, count = await through(port, "storm", ["429"] * 200, PatienceSeconds=1)
    assert isinstance(got, RateLimitedError)
    assert count == 0


async def test_a_wait_longer_than_the_time_budget_is_not_started(port: int) -> None:
    proxy = FaultyProxy(port, "POST /executions", ["429 for long"])
    async with proxy.listening() as endpoint, open_interpreter(_settings(endpoint)) as interpreter:
        with pytest.raises(RateLimitedError) as refused:
            await interpreter.execute("for-long", "1")
    assert refused.value.retry_after == 3600
    assert sum(line.startswith("POST") for line in proxy.seen) == 1


async def test_lost_reads_are_repeated(port: int) -> None:
    proxy = FaultyProxy(port, "GET /executions", ["drop before", "drop after", "503", "half"])
    async with proxy.listening() as endpoint, open_interpreter(_settings(endpoint)) as interpreter:
        result = await interpreter.execute("lost-reads", COUNT, timeout=300)  # too long for one answer, so the result is read
        assert (result.value, await _times_run(interpreter, "lost-reads")) == (1, 1)
    assert sum(line.startswith("GET /executions") for line in proxy.seen) > 4


async def test_a_history_has_the_file_that_was_sent_when_it_was_sent_twice(port: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "data.bin").write_bytes(content)
    proxy = FaultyProxy(port, "POST /files", ["429"])
    async with proxy.listening() as endpoint, open_pool(_settings(endpoint)) as pool, pool.session() as session:
        await session.upload_file("data.bin", tmp_path / "data.bin")
        (tmp_path / "data.bin").write_bytes(b"changed")
        assert [line for line in proxy.seen if line.startswith("POST /files")] == [proxy.seen[-1]] * 2
        (step,) = session.history.steps
        assert (step.content, step.sha256) == (content, hashlib.sha256(content).hexdigest())
        assert await session.download_file("data.bin") == content


async def test_after_a_lost_answer_of_the_older_api_the_outcome_is_unknown(port: int) -> None:
    got, count = await through(port, "older-lost", ["drop after"], target="POST /code/execute", ApiVersion="2024-02-02-preview")
    assert (got.success, str(got.state)) == (False, "unknown: no reply")
    assert count == 1


@pytest.mark.long
async def test_a_lost_answer_is_fetched_at_a_plain_endpoint_too(plain_port: int) -> None:
    got, count = await through(plain_port, "plain-lost", ["drop after"])
    assert (got.value, count) == (1, 1)


@pytest.mark.long
@pytest.mark.parametrize(
    "version", mostly_long(["2024-02-02-preview", "2024-10-02-preview", "2025-02-02-preview", "2025-10-02-preview"], "2025-02-02-preview")
)
async def test_every_api_version_of_our_client_works_at_a_plain_endpoint(plain_port: int, version: str) -> None:
    session = f"version-{version}"
    async with open_interpreter(_settings(f"http://127.0.0.1:{plain_port}", ApiVersion=version)) as interpreter:
        assert (await interpreter.execute(session, "x = 20; x + 22")).value == 42
        assert (await interpreter.execute(session, "1 / 0")).error.name == "ZeroDivisionError"
        assert len((await interpreter.execute(session, "import matplotlib.pyplot as plt; plt.plot([1]); plt.show()")).images) == 1
        await interpreter.upload_file(session, "a b.txt", b"hello")
        assert [file.name for file in await interpreter.list_files(session)] == ["a b.txt"]
        assert await interpreter.download_file(session, "a b.txt") == b"hello"
        await interpreter.delete_file(session, "a b.txt")
        assert await interpreter.list_files(session) == []


@pytest.mark.long
async def test_many_parallel_clients_get_their_own_answers(port: int) -> None:
    async def client(number: int) -> None:
        async with open_interpreter(_settings(f"http://127.0.0.1:{port}")) as interpreter:
            for round in range(5):
                result = await interpreter.execute(f"many-{number}", f"({number}, {round})")
                assert result.text == f"({number}, {round})"

    await asyncio.gather(*(client(number) for number in range(12)))
