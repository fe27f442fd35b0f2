"""Test that a cell has the same events at every endpoint: embedded, served on a port and on a socket file, and without live events."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from aca_sessions import Event, InteractiveSession, Session, Settings, open_interpreter, open_pool
from aca_sessions.models import NO_REPLY

from ..cli.test_cli import Server
from ..conftest import mostly_long
from .faults import FaultyProxy

pytestmark = pytest.mark.slow

ENDPOINTS = {"embedded": None, "served": ("--port", "0"), "plain": ("--port", "0", "--plain"), "socket": ("--socket", "{folder}/socket")}
WRITE = "import sys\nprint('out', flush=True); print('err', file=sys.stderr, flush=True)\n"
BOTH = {"stdout": "out\n", "stderr": "err\n"}
# The code of a cell, what it writes, and the name of its error.
CELLS = {
    "success": (WRITE + "6 * 7", BOTH, None),
    "exception": (WRITE + "1 / 0", BOTH, "ZeroDivisionError"),
    "two exceptions": (WRITE + "try:\n    1 / 0\nexcept Exception as error:\n    raise KeyError('a: b') from error", BOTH, "KeyError"),
    "syntax": ("1 +", {}, "SyntaxError"),
    "own exception": ("class OwnError(Exception): pass\nraise OwnError", {}, "OwnError"),
    "several lines": ("raise ValueError('a\\nb: c\\nd')", {}, "ValueError"),
    "exit": ("import os\nprint('out', flush=True); os._exit(3)", {"stdout": "out\n"}, "InterpreterDied"),
    "kill": ("import os\nprint('out', flush=True); os.kill(os.getpid(), 9)", {"stdout": "out\n"}, "InterpreterDied"),
    "timeout": ("import time\nprint('out', flush=True); time.sleep(60)", {"stdout": "out\n"}, "TimeoutError"),
    "no text": ("\ud800", {}, "ValueError"),
}


@pytest.fixture(scope="module", params=mostly_long([*ENDPOINTS], "embedded"))
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    arguments = ENDPOINTS[request.param]
    if arguments is None:
        yield None
        return
    key = () if request.param == "socket" else ("--api-key", "key")
    folder = str(tmp_path_factory.mktemp("s"))
    with Server(*(argument.format(folder=folder) for argument in arguments), *key) as server:
        yield server.endpoint


@asynccontextmanager
async def session_at(endpoint: str | None) -> AsyncIterator[Session]:
    settings = Settings() if endpoint is None else settings_for(endpoint)
    async with open_pool(settings) as pool, pool.session() as session:
        yield session


def settings_for(endpoint: str) -> Settings:
    key = {} if endpoint.startswith("unix://") else {"ApiKey": "key"}
    return Settings(SessionsHttpClient={"Endpoint": endpoint, "PatienceSeconds": 1, **key})


def written(events: list[Event]) -> dict[str, str]:
    """Return the text of each kind of event. A stream comes in pieces of any size, and the order of two streams is not known."""
    texts: dict[str, str] = {}
    for event in events:
        texts[event.kind] = texts.get(event.kind, "") + event.text
    return texts


def end_of(events: list[Event]) -> list[tuple[str, str | None]]:
    return [(event.kind, event.error and event.error.name) for event in events if event.kind in ("error", "result")]


async def test_a_cell_has_the_same_events_at_every_endpoint(endpoint: str | None) -> None:
    async with session_at(endpoint) as session:
        for name, (code, texts, error) in CELLS.items():
            events = [event async for event in session.stream(code, timeout=5 if name == "timeout" else None)]
            end = [("error", error)] * (error is not None) + [("result", None)]
            assert (name, end_of(events[-len(end) :])) == (name, end)
            assert (name, written(events[: -len(end)])) == (name, texts)
            assert events[-1].result is not None
            assert (name, events[-1].result.error) == (name, events[-2].error)
            if name == "several lines":
                assert events[-2].error is not None
                assert events[-2].error.message == "a\nb: c\nd"


@pytest.mark.long
def test_without_await_the_error_comes_before_the_result_and_not_on_stderr(endpoint: str | None) -> None:
    seen: list[str] = []
    with InteractiveSession(Settings() if endpoint is None else settings_for(endpoint)) as session:
        events = [*session.stream("print('out'); 1 / 0")]
        result = session.run("import sys\nprint('err', file=sys.stderr); 1 / 0", on_stderr=seen.append)
    assert written(events) == {"stdout": "out\n", "error": "", "result": ""}
    assert end_of(events) == [("error", "ZeroDivisionError"), ("result", None)]
    assert ("".join(seen), result.written_to_stderr) == ("err\n", "err\n")
    assert result.error is not None
    assert result.error.traceback.startswith("-----")


@pytest.mark.long
@pytest.mark.parametrize("plain", [pytest.param(False, marks=pytest.mark.long), True])
async def test_a_lost_connection_is_the_same_error_with_and_without_live_events(plain: bool) -> None:
    with Server("--port", "0", "--api-key", "key", *(["--plain"] if plain else [])) as server:
        port = int(server.endpoint.rpartition(":")[2])
        faults = ["drop before"] * 200
        target = "/executions" if plain else "GET /executions"
        proxy = FaultyProxy(port, target, faults)
        async with proxy.listening() as endpoint, open_interpreter(settings_for(endpoint)) as interpreter:
            execution = await interpreter.start("lost", "print('out')")
            events = [event async for event in execution.events()]
    assert end_of(events) == [("error", "ConnectionError"), ("result", None)]
    assert events[-1].result is not None
    assert events[-1].result.state == NO_REPLY
