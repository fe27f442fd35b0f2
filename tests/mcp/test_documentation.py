"""Run the session documentation's examples with their calls as written. Only their data comes from another source: loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mcp import ClientSession

from ..wheels import make_wheel
from . import documented
from .clients import stdio_client_session

pytestmark = pytest.mark.slow

SOURCE = """
import json, random, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
rows = [{"col_a": random.random(), "col_b": i, "col_c": i % 7, "target": "yes" if i % 2 else "no"} for i in range(60)]
class Data(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(rows + [{"col_a": None, "col_b": 0, "col_c": 0, "target": "no"}]).encode())
    def log_message(self, *_): ...
server = HTTPServer(("127.0.0.1", 8099), Data)
threading.Thread(target=server.serve_forever, daemon=True).start()
"""


class Result(NamedTuple):
    data: dict[str, Any]
    text: str


class Documented:
    """The client of the page, which returns results with `.data`."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> Result:
        result = await self._session.call_tool(name, arguments)
        text = result.content[0].text
        assert not result.isError, text
        assert result.structuredContent.get("success", True), text
        return Result(result.structuredContent, text)


@asynccontextmanager
async def documented_client(wheels: Path | None = None) -> AsyncIterator[Documented]:
    settings = {"ACASessions__Packages__WheelFolder": str(wheels)} if wheels else {}
    async with stdio_client_session(environment=settings) as session:
        yield Documented(session)


async def run(client: Documented, code: str) -> str:
    return (await client.call_tool("run_python_code", {"code": code})).text


@pytest.mark.long
async def test_sessions_are_isolated() -> None:
    async with documented_client() as client:
        await documented.session_isolation(client)
        assert await run(client, "'x' in globals()") == "False"
        await client.call_tool("switch_session", {"session_id": "data_analysis"})
        assert await run(client, "x") == "100"


@pytest.mark.long
async def test_sessions_are_created_listed_switched_and_deleted(capsys) -> None:
    async with documented_client() as client:
        await documented.creating_sessions(client)
        await documented.session_information(client)
        await documented.switching(client)
        await documented.cleaning_up(client)
        told = capsys.readouterr().out
        assert "Active: default\nTotal: 3" in told
        assert "- ml_pipeline: Machine learning training pipeline" in told
        assert "Switched from default to ml_pipeline" in told


@pytest.mark.long
async def test_a_pipeline_passes_its_files_from_session_to_session(capsys) -> None:
    async with documented_client() as client:
        await with_source(client, documented.data_pipeline_workflow)
        assert (await run(client, "accuracy")).startswith(("0.", "1."))
        await documented.parallel_experiments(client)
        shown = await run(client, "sorted(results_df['experiment_id'])")
        assert shown == "['gradient_boost', 'linear_model', 'neural_net', 'random_forest']"
        await documented.monitor_session_health(client)
        told = capsys.readouterr().out
        assert told.count("Responsive: True") == told.count("Status: healthy") == 9
        assert "needs attention" not in told
        await documented.cleanup_idle_sessions(client)


async def with_source(client: Documented, example: Any) -> None:
    """Give the example's first session its source of data before the example's first cell."""

    class Prepared:
        async def call_tool(self, name: str, arguments: dict[str, Any]) -> Result:
            if "requests.get" in arguments.get("code", ""):
                await client.call_tool("run_python_code", {"code": SOURCE})
            return await client.call_tool(name, arguments)

    await example(Prepared())


@pytest.mark.long
async def test_packages_are_installed_and_a_saved_script_is_imported_and_run(tmp_path) -> None:
    make_wheel(tmp_path / "wheels", "seaborn", files={"seaborn.py": "def set_palette(name): ...\n"})
    make_wheel(tmp_path / "wheels", "jupyter")
    async with documented_client(tmp_path / "wheels") as client:
        await documented.interactive_development(client)
        await run(client, "import sys; sys.path.append('scripts'); import analysis_utils")
        assert await run(client, "analysis_utils.data_summary(pd.DataFrame({'a': [1]}))['shape']") == "(1, 1)"
        ran = await client.call_tool("run_script", {"path": "analysis_utils"})
    assert ran.data["returncode"] == 0
