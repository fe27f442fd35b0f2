"""Run the conformance suite of Inspect for sandboxes, unmodified, and an evaluation with a scripted model."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

inspect_ai = pytest.importorskip("inspect_ai", reason="make test-integrations installs it")

from inspect_ai.util import OutputLimitExceededError, SandboxUnavailableError, SandboxUserUnsupportedError  # noqa: E402
from inspect_ai.util._sandbox.limits import override_max_exec_output_size  # noqa: E402
from inspect_ai.util._sandbox.self_check import *  # noqa: E402, F403

from aca_sessions.errors import ConfigurationError  # noqa: E402
from aca_sessions.integrations.inspect_sandbox import SessionSandbox  # noqa: E402

from ..conftest import ROOT  # noqa: E402

pytestmark = pytest.mark.long
NOT_SUPPORTED = {"test_exec_as_user": "a session has one user, and no root who could add others"}


@pytest.fixture
async def sandbox_env(request: pytest.FixtureRequest) -> AsyncIterator[SessionSandbox]:
    if (reason := NOT_SUPPORTED.get(request.node.originalname)) is not None:
        request.node.add_marker(pytest.mark.xfail(reason=reason, raises=SandboxUserUnsupportedError, strict=True))
    sandboxes = await SessionSandbox.sample_init("task", None, {})
    (sandbox,) = sandboxes.values()
    yield sandbox
    await SessionSandbox.sample_cleanup("task", None, sandboxes, False)


async def test_the_session_has_one_user(sandbox_env: SessionSandbox) -> None:
    assert (await sandbox_env.exec(["id", "-un"], user="user")).stdout == "user\n"
    assert (await sandbox_env.exec(["id", "-u"], user="1000")).stdout == "1000\n"
    with pytest.raises(SandboxUserUnsupportedError, match="cannot run as 'root'"):
        await sandbox_env.exec(["id"], user="root")


async def test_too_much_output_is_an_error_with_its_beginning(sandbox_env: SessionSandbox) -> None:
    with override_max_exec_output_size(1000), pytest.raises(OutputLimitExceededError) as raised:
        await sandbox_env.exec(["sh", "-c", "yes begun | head -n 1000"])
    assert raised.value.truncated_output.startswith("begun\nbegun\n")


async def test_a_lost_sandbox_stays_unusable(sandbox_env: SessionSandbox) -> None:
    await sandbox_env.write_file("input.txt", "of the sample")
    await sandbox_env._session._interpreter.delete_session(sandbox_env._session.session_id)
    with pytest.raises(SandboxUnavailableError, match=r"has lost the files of the sample \[session state lost"):
        await sandbox_env.read_file("input.txt")
    with pytest.raises(SandboxUnavailableError, match="session state lost"):
        await sandbox_env.exec(["true"])


async def test_a_command_in_a_fresh_session_does_not_count(sandbox_env: SessionSandbox) -> None:
    await sandbox_env.exec(["true"])
    await sandbox_env._session._interpreter.delete_session(sandbox_env._session.session_id)
    for _ in range(2):
        with pytest.raises(SandboxUnavailableError, match="session state lost"):
            await sandbox_env.exec(["true"])


async def test_a_dead_interpreter_is_reported_once_and_keeps_the_files(sandbox_env: SessionSandbox) -> None:
    await sandbox_env.write_file("input.txt", "of the sample")
    with pytest.raises(SandboxUnavailableError, match="ended"):
        await sandbox_env.exec(["sh", "-c", "kill -9 $PPID; sleep 600"])
    assert await sandbox_env.read_file("input.txt") == "of the sample"
    assert (await sandbox_env.exec(["cat", "input.txt"])).stderr.startswith("[session state lost: ")
    assert (await sandbox_env.exec(["cat", "input.txt"])).stderr == ""


async def test_a_configuration_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="got 'compose"):
        await SessionSandbox.sample_init("task", "compose.yaml", {})


def test_inspect_finds_the_sandbox_by_its_entry_point() -> None:
    (found,) = [one for one in entry_points(group="inspect_ai") if one.name == "aca_sessions"]
    assert found.value == "aca_sessions.integrations.inspect_sandbox"


def test_the_example_of_the_page_evaluates_a_sample(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "integrations" / "inspect.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == "success 1.0\n", ran.stderr
