"""Test the code executor for AutoGen: by the tests of AutoGen's own executors and of its agent that uses one, and by what can be lost."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("autogen_core", reason="make test-integrations installs it")

from autogen_core import CancellationToken
from autogen_core.code_executor import CodeBlock, CodeExecutor
from autogen_ext.tools.code_execution import CodeExecutionInput, PythonCodeExecutionTool

from aca_sessions import open_pool
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.integrations.autogen import SessionCodeExecutor, SessionCodeResult

from .pages import run_example
from .sources import load_tests

pytestmark = pytest.mark.long

_EXECUTORS = load_tests("autogen-ext", "tests/code_executors/test_jupyter_code_executor.py")
_EXECUTORS.JupyterCodeExecutor, _EXECUTORS.JupyterCodeResult = SessionCodeExecutor, SessionCodeResult
_AGENTS = load_tests("autogen-agentchat", "tests/test_code_executor_agent.py")


@pytest.fixture
async def executor() -> AsyncIterator[SessionCodeExecutor]:
    async with SessionCodeExecutor() as executor:
        yield executor


class _Suite:
    """Tests of AutoGen, which are functions of a module."""

    @classmethod
    def of(cls, module: object) -> type:
        tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
        return type("Tests", (), {name: staticmethod(test) for name, test in tests.items()})


TestExecutorsOfAutoGen = _Suite.of(_EXECUTORS)


@pytest.mark.filterwarnings("ignore:No approval function set")  # most of AutoGen's tests set none
class TestAgentOfAutoGen(_Suite.of(_AGENTS)):
    @pytest.fixture(autouse=True)
    async def _started(self, executor: SessionCodeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give the tests an executor of ours: they create one without starting it."""
        monkeypatch.setattr(_AGENTS, "LocalCommandLineCodeExecutor", lambda: executor)


async def run(executor: CodeExecutor, *blocks: tuple[str, str]) -> SessionCodeResult:
    return await executor.execute_code_blocks([CodeBlock(code, language) for language, code in blocks], CancellationToken())


def test_the_example_of_the_page_prints_its_output(tmp_path: Path) -> None:
    code = "numbers = [n for n in range(2, 100) if all(n % d for d in range(2, n))]\nprint(sum(numbers))"
    run_example("autogen.md", [f"I compute it.\n```python\n{code}\n```", "The sum is 1060."], tmp_path)


async def test_shell_and_python_share_files_and_the_first_failure_ends_the_blocks(executor: SessionCodeExecutor) -> None:
    done = await run(
        executor, ("sh", "echo hello > file.txt"), ("py", "print(open('file.txt').read())"), ("bash", "cat $((1+1)).txt; exit 7")
    )
    assert done.exit_code == 7
    assert done.output.splitlines() == ["", "hello", "", "", "cat: 2.txt: No such file or directory"]
    assert (await run(executor, ("bash", "false"), ("python", "print('not run')"))) == SessionCodeResult(1, "")
    assert (await run(executor, ("bash", "kill -TERM $$"))).exit_code == 143


async def test_an_unknown_language_fails(executor: SessionCodeExecutor) -> None:
    assert await run(executor, ("ruby", "puts 1")) == SessionCodeResult(1, "unknown language 'ruby': use python, bash or sh")


@pytest.mark.parametrize(("language", "code"), [("python", "import time; time.sleep(600)"), ("bash", "sleep 600")])
async def test_a_block_that_is_cancelled_or_too_slow_is_ended_and_variables_are_kept(language: str, code: str) -> None:
    async with SessionCodeExecutor(timeout=1) as executor:
        await run(executor, ("python", "x = 5"))
        with pytest.raises(TimeoutError, match="ran longer than 1 s"):
            await run(executor, (language, code))
        token = CancellationToken()
        task = asyncio.ensure_future(executor.execute_code_blocks([CodeBlock(code, language)], token))
        await asyncio.sleep(0.2)
        token.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await run(executor, ("python", "x"), ("bash", "pgrep -c sleep"))).output == "5\n0\n"


async def test_an_error_named_timeout_error_is_an_error_of_the_code(executor: SessionCodeExecutor) -> None:
    done = await run(executor, ("python", "raise TimeoutError('mine')"))
    assert done.exit_code == 1
    assert "TimeoutError: mine" in done.output


async def test_a_lost_session_is_told(executor: SessionCodeExecutor) -> None:
    told = "[state] lost: exit; variables from before are gone, files are kept"
    done = await run(executor, ("python", "import os; os._exit(3)"))
    assert done.exit_code == 1
    assert done.output.endswith(told)
    assert (await run(executor, ("python", f"print({told!r})"))).output != f"{told}\n"


async def test_a_loss_between_two_blocks_is_told() -> None:
    async with open_pool() as pool, SessionCodeExecutor(pool, "alice") as executor:
        await run(executor, ("python", "x = 1"))
        await pool.terminate("alice")
        assert "[state] lost: terminated" in (await run(executor, ("bash", "echo"))).output


async def test_a_restart_clears_variables_and_keeps_files(executor: SessionCodeExecutor) -> None:
    await run(executor, ("python", "x = 1; open('file.txt', 'w').close()"))
    await executor.restart()
    assert (await run(executor, ("python", "'x' in globals()"), ("bash", "ls"))).output == "False\nfile.txt\n"


async def test_an_executor_can_be_stopped_twice_and_started_again() -> None:
    executor = SessionCodeExecutor()
    await asyncio.gather(executor.start(), executor.start())
    await run(executor, ("python", "x = 1"))
    await asyncio.gather(executor.stop(), executor.stop())
    async with executor:
        assert (await run(executor, ("python", "'x' in globals()"))).output == "False"


async def test_the_tool_of_autogen_runs_code_in_a_session(executor: SessionCodeExecutor) -> None:
    tool = PythonCodeExecutionTool(executor)
    await tool.run(CodeExecutionInput(code="x = 41"), CancellationToken())
    answer = await tool.run(CodeExecutionInput(code="x + 1"), CancellationToken())
    assert (answer.success, answer.output) == (True, "42")


async def test_an_executor_with_a_pool_cannot_be_stored() -> None:
    async with open_pool() as pool:
        with pytest.raises(InvalidArgumentError, match="can be stored only without pool"):
            SessionCodeExecutor(pool).dump_component()
