"""Run the blocks of the session documentation as they are written, with the clients of FastMCP 2 and later and of both MCP SDKs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aca_sessions.mcp.sdk import HAS_STATELESS

from ..conftest import COMMAND, LIGHT, ROOT
from ..wheels import make_wheel
from .clients import http_server

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("documentation_client.py")
LATEST = ROOT / ".venv-others"  # FastMCP 4 or later, with the SDK 2
SECOND = LATEST / "fastmcp2"  # FastMCP 2, with the SDK 1


def client_of(environment: Path, library: str) -> "pytest.param":
    there = [*environment.glob(f"lib/python3*/site-packages/{library}")]
    needs = pytest.mark.skipif(not there, reason=f"needs {environment.relative_to(ROOT)}: make test-long installs it")
    name = f"{library}-of-{environment.name.removeprefix('.venv-')}"
    return pytest.param(environment / "bin" / "python", library, marks=(needs, pytest.mark.long), id=name)


@pytest.mark.parametrize(
    ("python", "library"),
    [
        client_of(LATEST, "fastmcp"),
        client_of(SECOND, "fastmcp"),
        client_of(LATEST, "mcp"),
        pytest.param(Path(sys.executable), "mcp", marks=pytest.mark.long, id="mcp-of-this-environment"),
    ],
)
def test_each_block_of_the_page_runs_as_it_is_written(python: Path, library: str, tmp_path: Path) -> None:
    seen = run_blocks(python, library, command=COMMAND[0], args=[*COMMAND[1:], "mcp"], env=environment(tmp_path))
    check(seen)


@pytest.mark.parametrize(("python", "library"), [client_of(LATEST, "fastmcp")])
def test_each_block_of_the_page_runs_over_http(python: Path, library: str, tmp_path: Path) -> None:
    # At 2026-07-28, which FastMCP 4 and a server of version 2 would choose, no session is active over HTTP.
    mode = "legacy" if HAS_STATELESS else "auto"
    with http_server(**environment(tmp_path)) as server:
        check(run_blocks(python, library, url=server.address, key=server.key, mode=mode))


def environment(folder: Path) -> dict[str, str]:
    """Return the settings of a server that installs the packages of the page from a folder."""
    make_wheel(folder / "wheels", "seaborn", files={"seaborn.py": "def set_palette(name): ...\n"})
    make_wheel(folder / "wheels", "jupyter")
    inherited = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PYTHONPATH") if name in os.environ}
    return LIGHT | inherited | {"ACASessions__Packages__WheelFolder": str(folder / "wheels")}


def run_blocks(python: Path, library: str, **server: object) -> dict[str, object]:
    command = [python, PROGRAM, library, json.dumps(server)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr
    assert "Error parsing structured content" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(seen: dict[str, object]) -> None:
    isolation, creating, listing, switching, ending, *_, health, _ = printed = seen["printed"]
    assert len(printed) == 10
    assert not isolation + creating + ending
    assert listing.startswith("Active: modeling\nTotal: 5\n")
    assert "- ml_pipeline: Machine learning training pipeline" in listing
    assert switching == "Switched from modeling to ml_pipeline\n"
    assert health.count("Responsive: True") == health.count("Status: healthy") == len(seen["sessions"]) == 13
    assert "needs attention" not in health
    assert "experiment_1" not in seen["sessions"]
    assert seen["isolated"] == ["False", "100"]
    assert seen["accuracy"].startswith(("0.", "1."))
    assert seen["experiments"] == "['gradient_boost', 'linear_model', 'neural_net', 'random_forest']"
    assert seen["script"] == "(1, 1)"
    assert seen["ran"] == "(no output)"
