"""Test the systemd unit: its command, and what systemd itself says of the file."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from aca_sessions.cli.commands import build_parser

from ..conftest import ROOT

UNIT = ROOT / "deploy" / "aca-sessions.service"
OPTIONS = "--allowed-host sessions.example.org --trusted-proxy 127.0.0.1"


@pytest.fixture
def script() -> str:
    """The script of ExecStart as its shell gets it: systemd joins lines and makes one $ of two (systemd.service(5))."""
    text = UNIT.read_text().replace("\\\n", " ")
    shell, flag, script = shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1])
    assert (shell, flag) == ("/bin/sh", "-c")
    return script.replace("$$", "$")


def test_the_unit_starts_a_server_in_a_control_group_that_may_have_limited_ones_below_it(script: str, tmp_path: Path) -> None:
    own = re.search(r"^(?:0::)(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    group = Path(f"{tmp_path}{own[1] if own else ''}")
    group.mkdir(parents=True, exist_ok=True)
    faked = script.replace("/sys/fs/cgroup", str(tmp_path)).replace("/opt/aca-sessions/bin/aca-sessions", "echo")
    environment = os.environ | {"ACA_SESSIONS_OPTIONS": OPTIONS}
    run = subprocess.run(["/bin/sh", "-c", faked], capture_output=True, text=True, check=True, env=environment)
    assert (group / "cgroup.subtree_control").read_text() == "+memory +pids +cpu\n"
    assert (group / "server" / "cgroup.procs").read_text().strip().isdecimal()
    options = build_parser().parse_args(shlex.split(run.stdout))
    unit = configparser.RawConfigParser(strict=False)
    unit.read_string(UNIT.read_text())
    assert (options.allowed_host, options.trusted_proxy) == (["sessions.example.org"], ["127.0.0.1/32"])
    assert options.drain_seconds < float(unit["Service"]["TimeoutStopSec"])
    assert unit["Service"]["Type"] == "notify"
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["Service"]["RestartPreventExitStatus"] == "2"
    assert str(options.audit).startswith(f"/var/log/{unit['Service']['LogsDirectory']}/")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_systemd_accepts_the_unit() -> None:
    run = subprocess.run(["systemd-analyze", "verify", "--man=no", str(UNIT)], capture_output=True, text=True, check=False)
    unknown = [line for line in run.stderr.splitlines() if UNIT.name in line and "is not executable" not in line]
    assert unknown == []


def test_the_commands_for_operators_have_options_that_exist() -> None:
    text = "\n".join((ROOT / "docs" / "guides" / name).read_text() for name in ("operating.md", "upgrading.md", "scaling.md"))
    commands = re.findall(r"^\$ .*\baca-sessions ((?:serve|doctor)\b[^#\n]*)", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["doctor", "serve", "serve"]
    for command in commands:
        build_parser().parse_args(shlex.split(command))
    assert f"ACA_SESSIONS_OPTIONS={OPTIONS}\n" in text
    for options in re.findall(r"^ACA_SESSIONS_OPTIONS=(.*)$", text, re.MULTILINE):
        build_parser().parse_args(["serve", *shlex.split(options)])
