"""Each sample runs, as a reader would run it."""

import os
import subprocess
import sys
from pathlib import Path

from .conftest import ROOT


def run(sample: str) -> str:
    command = [sys.executable, str(ROOT / "samples" / sample)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart() -> None:
    output = run("quickstart.py")
    assert output.splitlines()[0] == "1000 kept"
    assert "FileNotFoundError" in output


def test_the_agent_answers_and_draws_a_chart() -> None:
    output = run("semantic_kernel_agent.py")
    assert "The lamp sold best: 435 pieces in all. Month by month, lamps grew by 50%" in output
    assert Path("chart.png").read_bytes().startswith(b"\x89PNG")
