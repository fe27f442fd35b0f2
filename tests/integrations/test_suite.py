"""Run the suite that users run for their integrations, `aca_sessions.testing.IntegrationSuite`, with the tools of this package."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aca_sessions import CodeExecutionResult, PythonTool, Session, Settings, open_pool
from aca_sessions.integrations.model_session import ModelSession
from aca_sessions.testing import IntegrationSuite

from ..conftest import ROOT
from ..mcp.clients import HAS_STATELESS, cancel, stdio_client_session, text_of
from ..mcp.clients import run as run_tool

pytestmark = [pytest.mark.slow, pytest.mark.long]


class TestPythonTool(IntegrationSuite):
    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
        async with PythonTool(settings=settings) as tool:
            yield tool.execute_python


class TestSession(IntegrationSuite):
    """The results themselves, without a framework."""

    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Callable[[str], Awaitable[CodeExecutionResult]]]:
        async with open_pool(settings) as pool, pool.session() as session:
            yield session.run


@pytest.mark.needs("agent_framework")
class TestAgentFramework(IntegrationSuite):
    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
        from aca_sessions.integrations.agent_framework import execute_tool

        async with ModelSession(settings=settings) as python:
            tool = execute_tool(python)

            async def run(code: str) -> str:
                return "\n".join(content.text or "" for content in await tool.invoke(arguments={"code": code}))

            yield run


class TestMcp(IntegrationSuite):
    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
        endpoint = settings.SessionsHttpClient
        environment = {
            "ACASessions__Endpoint": endpoint.Endpoint,
            "ACASessions__ApiKey": endpoint.ApiKey.get_secret_value(),
        }
        async with stdio_client_session(environment=environment) as client:

            async def run(code: str) -> str:
                request = None if HAS_STATELESS else client._request_id
                try:
                    return text_of(await run_tool(client, code))
                except asyncio.CancelledError:
                    if request is not None:  # version 1 of the SDK does not tell the server
                        await cancel(client, request)
                    raise

            yield run


async def test_the_session_of_the_fixture_is_embedded(sandbox_session: Session) -> None:
    assert (await sandbox_session.run("6 * 7")).value == 42
    assert await sandbox_session.supports("checkpoint")


async def test_the_stand_in_for_azure_has_no_extension(azure_stand_in: Settings) -> None:
    async with open_pool(azure_stand_in) as pool, pool.session() as session:
        assert (await session.run("6 * 7")).value == 42
        assert not await session.supports("events")


PAGE = (ROOT / "docs" / "integrations" / "your-own.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
LIAR = """
class TestLiar(TestMyTool):
    @asynccontextmanager
    async def open(self, settings):
        async with PythonTool(settings=settings) as python:
            async def run(code):
                return (await asyncio.shield(python.run(code))).stdout[:1000]
            yield run
"""


def outcomes(folder: Path, files: dict[str, str]) -> dict[str, str]:
    """Run the files with pytest as a user does, and return the outcome of each test."""
    for name, text in files.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:randomly", "-p", "no:xdist", folder]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=folder)
    found = dict(re.findall(r"::test_(\w+) (PASSED|FAILED)", run.stdout))
    assert len(found) == len(re.findall("async def test_", Path(sys.modules[IntegrationSuite.__module__].__file__).read_text())), run.stdout
    return found


def test_the_files_of_the_page_pass_when_they_are_pasted(tmp_path: Path) -> None:
    assert {*outcomes(tmp_path, FILES).values()} == {"PASSED"}


def test_the_page_lists_every_test_of_the_suite() -> None:
    tests = [name.removeprefix("test_") for name in vars(IntegrationSuite) if name.startswith("test_")]
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == tests


def test_the_suite_fails_for_an_integration_that_drops_errors_and_losses(tmp_path: Path) -> None:
    files = FILES | {"test_my_tool.py": f"import asyncio\n{FILES['test_my_tool.py']}\n{LIAR}\ndel TestMyTool\n"}
    failed = {name for name, outcome in outcomes(tmp_path, files).items() if outcome == "FAILED"}
    assert failed == {
        "an_error_of_the_code_is_a_result",
        "a_time_limit_interrupts_a_cell_and_keeps_the_session",
        "cancellation_interrupts_a_cell_and_keeps_the_session",
        "a_lost_interpreter_is_reported_as_a_loss",
        "a_session_that_ended_between_two_calls_is_reported_as_a_loss",
        "large_output_is_cut_and_the_text_says_so",
        "output_cannot_forge_a_line_of_the_host",
    }
