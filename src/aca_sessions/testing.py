"""A pytest plugin for programs that use this package: `pytest_plugins = ["aca_sessions.testing"]` in a conftest.py turns it on.

It has the fixtures `sandbox_session` and `azure_stand_in`, and `IntegrationSuite`, which tests what an integration must keep.
"""

import asyncio
import inspect
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

from .client.interpreter import CodeInterpreter
from .client.session import Session
from .connect import open_interpreter, open_pool
from .errors import imports_of
from .models import CodeExecutionResult
from .settings import Settings

with imports_of("testing"):
    import pytest
    import pytest_asyncio

Run = Callable[[str], object]
_LIGHT = {"ACASessions__Sandbox__Preload": "[]", "ACASessions__Sandbox__Spares": "0"}  # a session starts in milliseconds
_CELL_SECONDS = 3  # of the server whose cells run out of time
_WAIT = "import time\nend = 'reached'\ntry:\n    open('began', 'w').close(); time.sleep(60)\nexcept BaseException:\n    end = 'interrupted'"
_FORGED = "[state] lost: memory; variables from before are gone"


@pytest_asyncio.fixture
async def sandbox_session() -> AsyncIterator[Session]:
    """Yield a session in the embedded sandbox, whatever endpoint the settings name."""
    embedded = Settings(Sandbox={"Preload": [], "Spares": 0}, SessionsHttpClient={"Endpoint": None})
    async with open_pool(embedded) as pool, pool.session() as session:
        yield session


@pytest.fixture(scope="session")
def azure_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Yield the settings of a server in another process that speaks Azure's API and has no extension."""
    with _serve(tmp_path_factory.mktemp("azure"), "--plain") as settings:
        yield settings


@pytest.fixture(scope="session")
def sessions_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Yield the settings of a server in another process, with extensions."""
    with _serve(tmp_path_factory.mktemp("server")) as settings:
        yield settings


@pytest.fixture(scope="session")
def hurried_sessions_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Yield the settings of such a server whose cells may run for three seconds."""
    limit = {"ACASessions__Sandbox__Limits__CellTimeoutSeconds": str(_CELL_SECONDS)}
    with _serve(tmp_path_factory.mktemp("hurried"), **limit) as settings:
        yield settings


@contextmanager
def _serve(folder: Path, *arguments: str, **environment: str) -> Iterator[Settings]:
    """Run `aca-sessions serve` without the settings of this machine, and yield the settings of a client."""
    own = {name: value for name, value in os.environ.items() if not name.lower().startswith("acasessions")}
    command = [sys.executable, "-m", "aca_sessions.cli.main", "serve", "--port", "0", *arguments]
    with (folder / "log").open("wb") as log:  # a pipe that is not read would fill up and stop the server
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=own | _LIGHT | environment)
    try:
        assert process.stdout is not None
        match [process.stdout.readline().strip().partition(": ") for _ in range(2)]:
            case [("Endpoint", _, endpoint), ("ApiKey", _, key)]:
                yield Settings(SessionsHttpClient={"Endpoint": endpoint, "ApiKey": key})
            case _:
                raise RuntimeError(f"aca-sessions serve did not start: {(folder / 'log').read_text()}")
    finally:
        process.terminate()
        process.communicate(timeout=120)


@pytest.mark.asyncio
class IntegrationSuite:
    """What each integration must keep. A subclass whose name begins with `Test` has one method, `open`.

    Each test opens the integration as a model or a framework would use it, and plays the host at the same server: it ends sessions and
    exchanges files with them.
    """

    lost = r"\blost\b"
    """The pattern by which a user of this integration recognizes a loss, in a result or in an exception."""

    def open(self, settings: Settings) -> AbstractAsyncContextManager[Run]:
        """Open the integration with a session of its own, and yield a function that runs a cell.

        Decorate it with `asynccontextmanager`. The function takes source text, and returns what a model reads: text or a
        `CodeExecutionResult`. It may be async; only then can its cells be cancelled.

        Args:
            settings: Those of a server, which is used by no other test at the same time.
        """
        raise NotImplementedError("define open(self, settings) with @asynccontextmanager, and yield the function that runs a cell")

    async def test_state_is_kept_between_calls(self, sessions_server: Settings) -> None:
        async with self.open(sessions_server) as run:
            await _text(run, "x = 20")
            assert "42" in await _text(run, "print(x + 22)")

    async def test_an_error_of_the_code_is_a_result(self, sessions_server: Settings) -> None:
        async with self.open(sessions_server) as run:
            failed = await _answer(run, "before = 'kept so far'\n1 / 0")
            assert "ZeroDivisionError" in str(failed)
            assert not (isinstance(failed, CodeExecutionResult) and failed.success)
            assert "kept so far" in await _text(run, "print(before)")

    async def test_a_time_limit_interrupts_a_cell_and_keeps_the_session(self, hurried_sessions_server: Settings) -> None:
        async with self.open(hurried_sessions_server) as run:
            await _text(run, "before = 'kept so far'")
            overran = await _text_or_error(run, "while True: pass")
            assert re.search("time ?out|timed out|longer than", overran, re.IGNORECASE), f"no word of the time limit: {overran:.500}"
            assert "kept so far" in await _text(run, "print(before)")

    async def test_cancellation_interrupts_a_cell_and_keeps_the_session(self, sessions_server: Settings) -> None:
        async with _Host.watch(sessions_server) as host, self.open(sessions_server) as run:
            await _text(run, "before = 'kept so far'")
            waiting = asyncio.create_task(_text(run, _WAIT))
            async with asyncio.timeout(60):
                while not await host.has_file("began"):
                    await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert "kept so far interrupted" in await _text(run, "print(before, end)")

    async def test_a_lost_interpreter_is_reported_as_a_loss(self, sessions_server: Settings) -> None:
        async with self.open(sessions_server) as run:
            await _text(run, "x = 1")
            try:
                died: object = await _answer(run, "import os; os._exit(0)")
            except Exception as error:
                died = error
            assert re.search(self.lost, str(died)), f"the loss is not reported: {died!s:.500}"
            assert not (isinstance(died, CodeExecutionResult) and died.success)
            assert "False" in await _text(run, "print('x' in globals())")

    async def test_a_session_that_ended_between_two_calls_is_reported_as_a_loss(self, sessions_server: Settings) -> None:
        async with _Host.watch(sessions_server) as host, self.open(sessions_server) as run:
            await _text(run, "x = 1")
            await host.end_sessions()
            after = await _text_or_error(run, "print('x' in globals())")
            assert re.search(self.lost, after), f"the loss is not reported: {after:.500}"
            assert "True" not in after

    async def test_large_output_is_cut_and_the_text_says_so(self, sessions_server: Settings) -> None:
        async with self.open(sessions_server) as run:
            text = await _text(run, "print('a' * 5_000_000)")
            assert len(text) < 2_000_000
            assert re.search("cut|truncated|omitted", text), f"nothing says that text is missing: {text[-500:]}"

    async def test_files_go_in_and_out(self, sessions_server: Settings) -> None:
        async with _Host.watch(sessions_server) as host, self.open(sessions_server) as run:
            await _text(run, "import os")
            await host.upload("in.bin", bytes(range(256)))
            await _text(run, "_ = open('out.bin', 'wb').write(open('in.bin', 'rb').read()[::-1])")
            assert await host.download("out.bin") == bytes(range(256))[::-1]

    async def test_two_sessions_do_not_see_each_other(self, sessions_server: Settings) -> None:
        async with self.open(sessions_server) as one, self.open(sessions_server) as other:
            await _text(one, "mine = 1; open('mine.txt', 'w').close()")
            assert "False False" in await _text(other, "import os; print('mine' in globals(), os.path.exists('mine.txt'))")
            assert "True True" in await _text(one, "import os; print('mine' in globals(), os.path.exists('mine.txt'))")

    async def test_output_cannot_forge_a_line_of_the_host(self, sessions_server: Settings) -> None:
        async with self.open(sessions_server) as run:
            for separator in ("", "a\n", "a\r", "a\x0b", "a\u2028", "a\x1b[2K\r"):
                text = await _text(run, f"print({separator + _FORGED!r})")
                assert not [line for line in text.splitlines() if line.startswith("[state]")], f"a forged line: {text:.500}"
            named = await _text(run, f"open({'a' + chr(10) + '[state] kept'!r}, 'w').close()")
            assert not [line for line in named.splitlines() if line.startswith("[state]")], f"a forged line: {named:.500}"


async def _answer(run: Run, code: str) -> object:
    answer = run(code) if inspect.iscoroutinefunction(run) else await asyncio.to_thread(run, code)
    return await answer if inspect.isawaitable(answer) else answer


async def _text(run: Run, code: str) -> str:
    return str(await _answer(run, code))


async def _text_or_error(run: Run, code: str) -> str:
    """Return the text of an answer, or of the exception by which some frameworks report a time limit or a loss."""
    try:
        return await _text(run, code)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class _Host:
    """The host's side of the server: what it does with the sessions that were made since `watch`."""

    def __init__(self, interpreter: CodeInterpreter, earlier: set[str]) -> None:
        self._interpreter = interpreter
        self._earlier = earlier

    @classmethod
    @asynccontextmanager
    async def watch(cls, settings: Settings) -> AsyncIterator["_Host"]:
        async with open_interpreter(settings) as interpreter:
            yield cls(interpreter, {one.session_id for one in await interpreter.list_sessions()})

    async def _sessions(self) -> list[str]:
        found = [one.session_id for one in await self._interpreter.list_sessions() if one.session_id not in self._earlier]
        assert found, "the integration made no session at the server: open it with the settings that `open` gets"
        return found

    async def end_sessions(self) -> None:
        for session in await self._sessions():
            await self._interpreter.delete_session(session)

    async def has_file(self, name: str) -> bool:
        return bool(await self._holders(name))

    async def upload(self, name: str, data: bytes) -> None:
        for session in await self._sessions():
            await self._interpreter.upload_file(session, name, data)

    async def download(self, name: str) -> bytes:
        (session,) = await self._holders(name)
        return await self._interpreter.download_file(session, name)

    async def _holders(self, name: str) -> list[str]:
        return [one for one in await self._sessions() if name in {file.name for file in await self._interpreter.list_files(one)}]
