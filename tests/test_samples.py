"""Run each sample as a reader would."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from aca_sessions import Settings
from aca_sessions.errors import ConfigurationError

from .conftest import ROOT, mostly_long, skip_without_frameworks

pytestmark = [pytest.mark.slow, pytest.mark.defaults]

SAMPLES = ROOT / "samples"
PRINTED = {
    "quickstart.py": "1000 kept\nFalse FileNotFoundError: [Errno 2] No such file or directory: '/etc/shadow'\n",
    "two_agents.py": "bob knows a secret: False\nalice's secret: 'plum'\n",
    "execute_with_files.py": "[stdout]\nSum: 15\n[value]\n10\n",
    "langchain_tool.py": "['code', 'files']\n42\n",
    "openai_agents_tool.py": "42\n",
    "pydantic_ai_tool.py": "42\n",
    "agent_with_tools.py": "May I? remind Ada, remind Mary\n['reminded Ada', 'reminded Mary']\nwho_owes\n['Mary']\n",
}


def run(sample: str) -> str:
    skip_without_frameworks((SAMPLES / sample).read_text())
    done = subprocess.run([sys.executable, str(SAMPLES / sample)], capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("sample", mostly_long(PRINTED))
def test_a_sample_prints_what_it_demonstrates(sample: str) -> None:
    assert run(sample) == PRINTED[sample]


@pytest.mark.long
def test_the_agent_answers_and_draws_a_chart() -> None:
    output = run("semantic_kernel_agent.py")
    assert "The lamp sold best: 435 pieces in all. Month by month, lamps grew by 50%" in output
    assert Path("chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_web_endpoint_separates_its_users() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(SAMPLES), "--port", str(port), "--log-level", "error", "web_endpoint:app"]
    server = subprocess.Popen(command)
    try:
        answer = {user: _post(port, user, f"x = '{user}'") for user in ("alice", "bob")}
        assert answer["bob"] == {"output": "", "error": "", "state": "kept"}
        assert [_post(port, user, "x")["output"] for user in ("alice", "bob")] == ["'alice'", "'bob'"]
    finally:
        server.terminate()
        server.wait(120)


def _post(port: int, user: str, code: str) -> dict:
    deadline = time.monotonic() + 120
    while True:
        try:
            return httpx.post(f"http://127.0.0.1:{port}/run", content=code, headers={"x-user": user}, timeout=120).json()
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_settings_for_azure_name_the_fields_to_fill_in() -> None:
    text = (SAMPLES / "appsettings.azure.json").read_text()
    Path("appsettings.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"SessionsHttpClient:Endpoint.*placeholder"):
        Settings()
    filled = json.loads(text)
    client = filled["ACASessions"]["SessionsHttpClient"]
    for key, value in {"region": "westeurope", "subscription": "s", "resourceGroup": "g", "pool": "p"}.items():
        client["Endpoint"] = client["Endpoint"].replace(f"{{{key}}}", value)
    Path("appsettings.json").write_text(json.dumps(filled))
    assert Settings().SessionsHttpClient.Endpoint.startswith("https://westeurope.dynamicsessions.io/subscriptions/s/")


def test_every_sample_is_tested_here() -> None:
    known = {*PRINTED, "semantic_kernel_agent.py", "web_endpoint.py", "scripted_model.py", "__init__.py"}
    assert {file.name for file in SAMPLES.glob("*.py")} == known
