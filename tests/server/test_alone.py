"""Test that several workers are refused however they are requested, since each would have sessions of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from aca_sessions import open_pool, open_server

from ..conftest import aca_sessions

APP = """
from aca_sessions import open_server
opened = open_server()
async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    try:
        await opened.__aenter__()
        await send({"type": "lifespan.startup.complete"})
    except Exception as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
"""


@pytest.mark.long
@pytest.mark.slow
def test_serve_refuses_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    run = aca_sessions("serve", "--port", "0")
    assert run.returncode == 2
    assert "WEB_CONCURRENCY must be 1, got 3" in run.stderr


@pytest.mark.long
@pytest.mark.slow
def test_serve_has_no_option_for_workers() -> None:
    run = aca_sessions("serve", "--workers", "3")
    assert (run.returncode, "--workers" in run.stderr) == (2, True)


@pytest.mark.long
def test_uvicorn_with_several_workers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(APP)
    command = [sys.executable, "-m", "uvicorn", "mine:app", "--workers", "2", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        said = next((line for line in run.stderr if "workers" in line), "")
        run.terminate()
        run.stderr.read()
    assert "--workers must be 1, got 2: each worker would have sessions of its own" in said


OPEN = """
import asyncio
from aca_sessions import open_server
async def main():
    async with open_server():
        pass
asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.parametrize("arguments", [["-w", "4", "mine:app"], ["--workers=4"], ["-w4"]])
def test_gunicorn_with_several_workers_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    program = tmp_path / "gunicorn"
    program.write_text(OPEN)
    run = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, check=False)
    assert "ConfigurationError: --workers must be 1, got 4" in run.stderr


@pytest.mark.parametrize("count", ["1", "", "many"])
async def test_one_worker_is_served(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", count)
    async with open_server() as app:
        assert app.session_count == 0


async def test_an_embedded_pool_ignores_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    async with open_pool() as pool, pool.session() as session:
        assert (await session.run("6 * 7")).value == 42
