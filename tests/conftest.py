"""Fixtures for all tests. Nothing is mocked: sessions are real, and the server is the emulator."""

import ast
import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import hypothesis
import pytest

from aca_sessions import CodeInterpreter, Policy, Session, SessionPool, open_interpreter, open_pool, open_server
from aca_sessions.errors import ACASessionsError
from aca_sessions.sandbox.environment import worth_preloading
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.limits.cgroup import Groups
from aca_sessions.sandbox.limits.memory import Part
from aca_sessions.sandbox.policy import MB, Limits

from .without_namespaces import BARE, python_for_everybody

hypothesis.settings.register_profile("no time limit", deadline=None)  # pytest-timeout limits each test
hypothesis.settings.load_profile("no time limit")

ROOT = Path(__file__).parent.parent
# `ACA_TEST_IMAGE=… pytest tests/hostile` runs the hostile tests in sessions of an image.
IMAGE = os.environ.get("ACA_TEST_IMAGE")
COMMAND = [sys.executable, "-m", "aca_sessions.cli.main"]
# Code that makes a session wait as long as the host needs before it writes to its other stream.
PATIENT = "from aca_sessions.sandbox.guest import link; link._MOST_WAITING, link._WAITING_SHARE = 60.0, 1e6"

BEGUN = time.monotonic()
pytest_plugins = ["aca_sessions.testing"]


FRAMEWORKS = ("semantic_kernel", "agent_framework", "agents", "langchain_azure_dynamic_sessions", "langchain_core", "openai", "pydantic_ai")
INTEGRATIONS = ("autogen_core", "autogen_ext", "deepagents", "inspect_ai", "smolagents")  # `make test-integrations` has them
PLUGIN = {"PythonCodeInterpreterPlugin", "add_aca_sessions"}  # names of this package that import Semantic Kernel
ABSENT = {name: f"{name} is not installed in this environment (`make test-core` leaves it out, `make test` has it)" for name in FRAMEWORKS}
ABSENT |= {name: f"{name} is not installed in this environment (`make test-integrations` has it)" for name in INTEGRATIONS}
ABSENT = {name: reason for name, reason in ABSENT.items() if find_spec(name) is None}


class _FrameworkTests(pytest.Module):
    """A file of tests, in an environment without frameworks."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        skip_without_frameworks(self.path.read_text())
        return super().collect()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip files of tests that import a framework which is not installed. For single tests there is the marker `needs`."""
    return _FrameworkTests.from_parent(parent, path=module_path) if ABSENT.keys() & {*FRAMEWORKS} else None


def skip_without_frameworks(program: str) -> None:
    """Skip the test of a program, or the file of tests, if it imports a framework which is not installed."""
    for node in ast.parse(program).body if ABSENT else ():
        match node:
            case ast.ImportFrom("aca_sessions", names, 0) if PLUGIN & {alias.name for alias in names}:
                imported = {"semantic_kernel"}
            case ast.ImportFrom(str(name), _, 0):
                imported = {name.partition(".")[0]}
            case ast.Import(names):
                imported = {alias.name.partition(".")[0] for alias in names}
            case _:
                continue
        for name in imported & ABSENT.keys():
            pytest.skip(ABSENT[name], allow_module_level=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose framework is not installed.

    End a run in time: `ACA_TEST_MINUTES=20 make test-long` begins no further test after 20 minutes.
    """
    for name in (name for marker in item.iter_markers("needs") for name in marker.args if name in ABSENT):
        pytest.skip(ABSENT[name])
    if time.monotonic() - BEGUN > 60 * float(os.environ.get("ACA_TEST_MINUTES", "inf")):
        pytest.skip("the minutes of this run are over")


# Settings of light sessions: no library preloaded, no spare kept. With both, a test takes three times the processor time.
LIGHT = {"ACASessions__Sandbox__Preload": "[]", "ACASessions__Sandbox__Spares": "0"}


@pytest.fixture(autouse=True)
def _clean_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the settings of this machine. Sessions are light unless a test is marked `preloaded` or `defaults`."""
    for name in [name for name in os.environ if name.lower().startswith(("acasessions", "aca_", "azure_", "openai_"))]:
        monkeypatch.delenv(name)
    if request.node.get_closest_marker("preloaded"):
        modules = request.getfixturevalue("preloaded_modules")
        monkeypatch.setenv("ACASessions__Sandbox__Preload", json.dumps(modules))
        monkeypatch.setenv("ACASessions__Sandbox__Spares", "0")
    elif not request.node.get_closest_marker("defaults"):
        for name, value in LIGHT.items():
            monkeypatch.setenv(name, value)
    if IMAGE:
        monkeypatch.setenv("ACASessions__ContainerImage", IMAGE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def kept_fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Keep one fork server for the whole run, so that opening a pool takes milliseconds."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))  # packages of this run only
    os.environ.update(LIGHT)  # for fixtures that serve a whole module, and start before those of a test
    server = ForkServer.shared(Policy())
    server.wait_until_ready()
    yield server
    server.release()


@pytest.fixture
def fork_server(kept_fork_server: ForkServer) -> Iterator[ForkServer]:
    """Return the fork server of this run, or another one if an earlier test has killed it."""
    server = ForkServer.shared(Policy())
    server.wait_until_ready()
    yield server
    server.release()


@pytest.fixture(scope="session")
def preloaded_modules(kept_fork_server: ForkServer) -> Iterator[tuple[str, ...]]:
    """Keep a fork server that has numpy, pandas and matplotlib, from the first test that needs it to the end of the run."""
    modules = worth_preloading(sys.executable)
    server = ForkServer.shared(Policy(preload=modules))
    server.wait_until_ready()
    yield modules
    server.release()


@pytest.fixture
async def pool() -> AsyncIterator[SessionPool]:
    async with open_pool() as opened:
        yield opened


@pytest.fixture
async def session(pool: SessionPool) -> AsyncIterator[Session]:
    async with pool.session() as leased:
        yield leased


@pytest.fixture
async def interpreter() -> AsyncIterator[CodeInterpreter]:
    async with open_interpreter() as opened:
        yield opened


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """The service itself, as any HTTP client sees it."""
    policy = Policy(limits=replace(Limits(), disk=16 * MB), image=IMAGE, preload=(), spares=0)
    params = {"api-version": "2025-10-02-preview", "identifier": "test"}
    async with (
        open_server(policy=policy) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", params=params) as client,
    ):
        yield client


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Check that everything the test opened is gone: processes, descriptors, mounts and control groups."""
    wait_for_fork_servers()
    before = settled()
    yield
    gc.collect()
    wait_for_fork_servers()
    deadline = time.monotonic() + 120  # on a busy machine, what this test or the one before it ended may be gone late
    while more := [now - then for now, then in zip(settled(), before, strict=True) if now > then]:
        if time.monotonic() > deadline:
            pytest.fail(f"{more} more than {before} processes, descriptors, mounts and control groups")


def wait_for_fork_servers() -> None:
    """Wait until all fork servers are ready: while one starts, its helpers come and go."""
    for server in [*ForkServer._shared.values()]:
        with contextlib.suppress(ACASessionsError):
            server.wait_until_ready()


def settled() -> tuple[int, int, int, int]:
    """Return the counts once they no longer change: a killed process is gone only a moment later."""
    earlier, now = None, _remains()
    while now != earlier:
        time.sleep(0.05)
        earlier, now = now, _remains()
    return now


def _remains() -> tuple[int, int, int, int]:
    groups = sum(1 for own in Groups._shared.values() for top in own._folders for _ in top.glob("*/"))
    descriptors = len(os.listdir("/proc/self/fd"))
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    return len(descendants(os.getpid())), descriptors, mounts, groups


async def until(check: Callable[[], Awaitable[object]]) -> None:
    """Wait until a check holds, for at most a minute."""
    async with asyncio.timeout(120):
        while not await check():
            await asyncio.sleep(0.02)


async def end_between_cells(session: Session, end: str = "os._exit(1)") -> None:
    """Let the interpreter of a session end, or do something else that ends it, after a cell. Wait until the host knows."""
    later = f"def later():\n    while not os.path.exists('go'): time.sleep(0.01)\n    {end}\n"
    await session.run(f"import os, threading, time\n{later}threading.Thread(target=later).start()")
    server = session._interpreter._http._client._transport.app  # type: ignore[attr-defined]
    interpreter = server._sessions.find(session.session_id)._opening.result().running
    await session.upload_file("go", b"")
    await until(lambda: asyncio.sleep(0, not interpreter.alive))


def mostly_long(cases: Iterable[object], *kept: object, every: int = 0) -> list[object]:
    """Return the cases of a test as parameters: `make test` runs those that are kept and every n-th, and `make test-long` the others."""
    cases = [*cases]
    assert all(case in cases for case in kept)
    kept = (*kept, *(cases[::every] if every else ()))
    return [
        case if case in kept else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long) for case in cases
    ]


def uncharged(parts: Sequence[Part]) -> None:
    """Charge no session for files of a tree that belongs to no session."""


def descendants(pid: int) -> set[int]:
    """Return all descendants of a process."""
    parents = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
        except OSError:
            continue
        parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in {pid, *found}} - found:
        found |= more
    return found


def aca_sessions(*arguments: str, stdin: str = "", **options: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line."""
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=240, check=False, **options)


@pytest.fixture(scope="session")
def public_python() -> Iterator[str]:
    """A Python that sessions with a user of their own may run."""
    with python_for_everybody() as python:
        if python is None:
            pytest.skip("as root sessions have users of their own, who may not read this Python, and there is no other")
        yield python


@pytest.fixture(scope="module")
def bare_policy(public_python: str) -> Iterator[Policy]:
    """A policy without namespaces. Its fork server lives as long as the tests of one file."""
    policy = replace(BARE, python=public_python)
    server = ForkServer.shared(policy)
    server.wait_until_ready()
    yield policy
    server.release()


@pytest.fixture
async def bare_pool(bare_policy: Policy) -> AsyncIterator[SessionPool]:
    """A pool of sessions without namespaces."""
    async with open_pool(policy=bare_policy) as opened:
        yield opened


@pytest.fixture
async def bare(bare_pool: SessionPool) -> AsyncIterator[Session]:
    async with bare_pool.session() as leased:
        yield leased
