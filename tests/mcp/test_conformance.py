"""Run the conformance suite of MCP against the server, with the version of the SDK that is installed.

The scenarios that fail are exactly those in the files beside this one, which have the reason for each.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aca_sessions.mcp.sdk import HAS_STATELESS

from ..conftest import ROOT

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.skipif(shutil.which("npx") is None, reason="npx is missing: install Node.js")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, HERE / "conformance_server.py"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(120)
    process.stdout.close()


@pytest.mark.parametrize(
    ("version", "revision", "chosen"),
    [
        ("0.1.16", "2025-11-25", ("--suite", "all")),
        pytest.param(
            "0.2.0-alpha.12",  # the first versions with scenarios of this revision
            "2026-07-28",
            ("--requirements", "2026-07-28"),
            marks=pytest.mark.skipif(not HAS_STATELESS, reason="version 1 of the SDK does not speak this revision"),
        ),
    ],
)
def test_the_suite_of_a_revision_passes(address: str, tmp_path: Path, version: str, revision: str, chosen: tuple[str, str]) -> None:
    done = conformance(version, tmp_path, "--url", address, *chosen, "--expected-failures", str(HERE / f"conformance-{revision}.yml"))
    assert "✓ tools-call-error" in done


@pytest.mark.skipif(not HAS_STATELESS, reason="version 1 of the SDK does not speak this revision")
@pytest.mark.parametrize(
    "scenario",
    [
        "lifecycle",
        "capability-negotiation",
        "wire-fields",
        "request-state-removal",
        "mrtr-input",
        "request-headers",
        "dispatch-and-envelope",
        "required-task-error",
        "mrtr-composition",
    ],
)
def test_a_scenario_of_the_extension_for_tasks_passes(address: str, tmp_path: Path, scenario: str) -> None:
    expected = ("--expected-failures", str(HERE / "conformance-2026-07-28.yml"))
    done = conformance("0.2.0-alpha.12", tmp_path, "--url", address, "--scenario", f"tasks-{scenario}", *expected)
    assert "Baseline check passed" in done


def conformance(version: str, folder: Path, *arguments: str) -> str:
    """Run the suite against a server and return what it printed. Fail if it does."""
    packages = ("-p", "node@22", "-p", f"@modelcontextprotocol/conformance@{version}")  # which needs Node.js 22
    command = ["npx", "-y", *packages, "--", "conformance", "server", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout
