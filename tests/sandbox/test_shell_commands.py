"""Test `!` and `%` commands in a cell: pip is refused, and a command that fails at the end of a cell fails the cell.

Also test that an interrupt ends a command.
"""

import asyncio
from tokenize import TokenInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TokenTransformBase, TransformerManager

from aca_sessions import CodeExecutionResult, Policy, Session, open_pool
from aca_sessions.network.rules import Network
from aca_sessions.rendering import render
from aca_sessions.sandbox.guest.notebook import commands
from aca_sessions.sandbox.sandboxes import Sandboxes

from ..conftest import mostly_long, until

# The interrupt arrives when the program has been started, but before its caller knows it.
INTERRUPTED_POPEN = """
import signal, subprocess
class InterruptedPopen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
subprocess.Popen = InterruptedPopen
"""
REFUSAL = "a cell cannot install packages: the host does, between cells"


@pytest.mark.parametrize(
    "line",
    mostly_long(
        [
            "!pip install humanize",
            "!pip3 install -q humanize==4.9.0",
            "%pip install humanize",
            "!python -m pip install -U pip",
            "!uv pip install humanize",
            "%pip install -r requirements.txt",
            "!{__import__('sys').executable} -m pip install humanize",
        ],
        every=3,
    ),
)
async def test_pip_in_a_cell_is_refused_with_one_line(session: Session, line: str) -> None:
    result = await session.run(line)
    assert (result.success, result.error.name) == (False, "CalledProcessError")
    refusal, ended = result.stderr.splitlines()
    assert refusal == REFUSAL
    assert ended == str(result.error)
    assert REFUSAL in render(result)
    assert result.stdout == ""


async def test_programs_that_run_pip_print_the_same_line(session: Session) -> None:
    code = (
        "import subprocess, sys\nran = subprocess.run([sys.executable, '-m', 'pip', 'install', 'humanize'], capture_output=True, text=True)"
    )
    assert (await session.run(code)).success
    assert (await session.run("ran.returncode, ran.stderr.count('\\n')")).text == "(1, 1)"
    assert (await session.run("ran.stderr")).value == f"{REFUSAL}\n"


@pytest.mark.long
async def test_without_namespaces_pip_is_refused_as_well(bare: Session) -> None:
    assert REFUSAL in (await bare.run("!python -m pip install humanize")).stderr


@pytest.mark.long
async def test_pip_is_refused_whatever_the_network_of_the_session() -> None:
    async with open_pool(policy=Policy(network=Network.host(), preload=(), spares=0)) as pool, pool.session() as session:
        assert REFUSAL in (await session.run("%pip install humanize")).stderr


@pytest.mark.long
async def test_an_installed_requirement_is_met_and_the_rest_of_pip_works(session: Session) -> None:
    result = await session.run("!pip install 'ipython>=7' traitlets")
    assert (result.success, result.stderr) == (True, "")
    assert result.stdout == "Requirement already satisfied: ipython>=7\nRequirement already satisfied: traitlets\n"
    assert not (await session.run("!pip install 'ipython<1'")).success
    assert "ipython" in (await session.run("%pip list")).stdout
    assert REFUSAL not in (await session.run("!pip install --no-index --target lib humanize")).stderr
    await session.run("!python -m venv own")
    assert REFUSAL not in (await session.run("!own/bin/pip install --no-index humanize")).stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("!exit 3", "returned non-zero exit status 3."),
        ("x = 1\n!grep nothing /etc/passwd", "returned non-zero exit status 1."),
        ("!kill -9 $$", "died with <Signals.SIGKILL: 9>."),
        ("!nosuchcommand", "returned non-zero exit status 127."),
        ("%ls nothing", "returned non-zero exit status 2."),
        ("%time !exit 3", "returned non-zero exit status 3."),
    ],
)
async def test_a_command_that_fails_as_the_last_statement_fails_the_cell(session: Session, code: str, status: str) -> None:
    result = await session.run(code)
    assert (result.success, result.error.name) == (False, "CalledProcessError")
    assert result.error.message.endswith(status)
    assert status in render(result)
    assert str(result.state) == "kept"


@pytest.mark.parametrize(
    "code",
    [
        "!grep nothing /etc/passwd\n1 + 1",
        "found = !grep nothing /etc/passwd",
        "for word in ('a', 'b'):\n    !grep nothing /etc/passwd",
        "!grep nothing /etc/passwd\n!true",
        "!grep root /etc/passwd",
        "!grep nothing /etc/passwd\n%pwd",
        "!grep nothing /etc/passwd\nget_ipython().run_cell('%pwd');",
    ],
)
async def test_a_command_that_fails_elsewhere_does_not_fail_the_cell(session: Session, code: str) -> None:
    result = await session.run(code)
    assert (result.success, result.stderr) == (True, "")


async def test_a_cell_that_runs_a_command_and_clears_the_history_ends_like_any_other(session: Session) -> None:
    result = await session.run("!false\nget_ipython().reset()")
    assert (result.success, str(result.state)) == (True, "kept")


async def test_the_exit_code_of_a_command_is_set_and_names_are_expanded(session: Session) -> None:
    result = await session.run("x = 5\ndef f(y):\n    !echo {y} $x $$HOME; exit 4\nf(7)")
    assert (result.success, result.stdout) == (True, "7 5 /mnt/data\n")
    assert (await session.run("_exit_code")).value == 4


async def test_a_command_that_is_interrupted_while_it_starts_does_not_run_on(session: Session) -> None:
    await session.run(INTERRUPTED_POPEN)
    interrupted = await session.run("!sleep 1; touch x\nran = True")
    assert interrupted.error.name == "KeyboardInterrupt"
    await until(lambda: has_no_process(session))
    assert (await session.run("import os; os.path.exists('x'), 'ran' in globals()")).text == "(False, False)"


async def test_a_program_that_is_interrupted_while_it_starts_does_not_run_on() -> None:
    async with Sandboxes(Policy(preload=(), spares=0)) as sandboxes:
        sandbox = await sandboxes.open()
        interpreter = await sandbox.interpreter()
        await interpreter.run("1", INTERRUPTED_POPEN, 120)
        interrupted = await interpreter.execute("2", ["sh", "-c", "sleep 1; touch x"], timeout=120)
        assert interrupted.error.name == "KeyboardInterrupt"

        async def has_ended() -> bool:
            return not (await interpreter.run("3", "", 120)).processes

        await until(has_ended)
        assert (await interpreter.run("4", "import os; os.path.exists('x')", 120)).value is False
        await sandbox.close()


async def test_an_interrupted_command_ends_with_the_programs_that_it_started(session: Session) -> None:
    interrupted = await interrupted_when_begun(session, "!touch begun; sleep 600; true")
    assert (interrupted.error.name, str(interrupted.state)) == ("KeyboardInterrupt", "kept")
    await until(lambda: has_no_process(session))


@pytest.mark.parametrize("line", ["out = !{}", "!!{}", "%sx {}", "%%sx\n{}"])
async def test_an_interrupted_command_whose_output_is_read_ends_the_cell(session: Session, line: str) -> None:
    await session.run("x = 5")
    interrupted = await interrupted_when_begun(session, line.format("touch begun; sleep 600; true") + "\nran = True" * ("%%" not in line))
    assert (interrupted.error.name, interrupted.stdout, str(interrupted.state)) == ("KeyboardInterrupt", "", "kept")
    await until(lambda: has_no_process(session))
    assert (await session.run("x, 'ran' in globals(), 'out' in globals()")).text == "(5, False, False)"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("out = !echo one; echo two >&2; exit 3\nout", "['one', 'two']"),
        ("def f(y):\n    out = !echo {y} $x; cat\n    return out.s\nf(7)", "'7 5'"),
        ("%sx echo $x", "['5']"),
        ("!!printf '\\377'", "['\ufffd']"),
        ("get_ipython().getoutput('echo one', split=False)", "'one\\n'"),
        ("out = !false\n'_exit_code' in globals()", "False"),
    ],
)
async def test_the_output_of_a_command_is_read(session: Session, code: str, text: str) -> None:
    await session.run("x = 5")
    result = await session.run(code)
    assert (result.error, result.stdout, result.text) == (None, "", text)


async def test_reading_the_output_of_a_command_fails_as_in_ipython(session: Session) -> None:
    assert (await session.run("out = !sleep 60 &")).error.message == "Background processes not supported."
    await session.run("get_ipython().system_raise_on_error = True")
    result = await session.run("out = !kill -9 $$")
    assert (result.error.name, result.error.message.endswith("died with <Signals.SIGKILL: 9>.")) == ("CalledProcessError", True)
    assert (await session.run("_exit_code")).value == -9


@pytest.mark.parametrize("magic", ["%%bash", "%%bash --no-raise-error --out out", "%%script sh -e"])
async def test_an_interrupted_script_ends_with_the_programs_that_it_started(session: Session, magic: str) -> None:
    await session.run("x = 5")
    interrupted = await interrupted_when_begun(session, f"{magic}\ntouch begun; sleep 600; touch ended")
    assert (interrupted.error.name, interrupted.stdout, str(interrupted.state)) == ("KeyboardInterrupt", "", "kept")
    assert "/.guest" not in interrupted.stderr
    await until(lambda: has_no_process(session))
    assert (await session.run("import os; x, os.path.exists('ended')")).text == "(5, False)"


@pytest.mark.parametrize(
    ("code", "stdout", "stderr"),
    [
        ("%%bash -s one\necho $1 $#; echo two >&2", "one 1\n", "two\n"),
        ("%%bash --out out --err err\necho one; sleep 0.1; echo two; echo three >&2", "", ""),
        ("%%bash --no-raise-error\necho one; exit 3", "one\n", ""),
        ("%%script no-such-program\n1", "Couldn't find program: 'no-such-program'\n", ""),
        ("%%script cat\n" + "é" * 300_000, "é" * 300_000 + "\n", ""),
        ("%%script true\n" + "x" * 300_000, "", ""),
        ("%%bash\nexec >&- 2>&-; sleep 0.1; touch ended", "", ""),
        ("%%bash\nprintf '\\303'; sleep 0.1; printf '\\251\\377'", "é\ufffd", ""),
    ],
)
async def test_scripts_run_as_in_ipython(session: Session, code: str, stdout: str, stderr: str) -> None:
    result = await session.run(code)
    assert (result.error, result.stdout, result.stderr) == (None, stdout, stderr)
    if "--out" in code:
        assert (await session.run("out, err")).text == "('one\\ntwo\\n', 'three\\n')"
    if "ended" in code:
        assert [file.path for file in result.files] == ["ended"]


@pytest.mark.parametrize(
    ("end", "status"), [("exit 3", "returned non-zero exit status 3."), ("kill $$", "died with <Signals.SIGTERM: 15>.")]
)
async def test_a_script_that_fails_fails_the_cell(session: Session, end: str, status: str) -> None:
    result = await session.run(f"%%bash\necho one\n{end}")
    assert (result.stdout, str(result.error)) == ("one\n", f"CalledProcessError: Command 'b'echo one\\n{end}\\n'' {status}")


async def test_scripts_in_the_background_are_those_of_ipython(session: Session) -> None:
    started = await session.run("%%bash --bg --out out --proc process\necho one; exec sleep 600")
    assert (started.success, len(started.processes)) == (True, 1)
    assert (await session.run("await out.readline()")).text == "b'one\\n'"
    assert (await session.run("%killbgscripts")).stdout == "All background processes were killed.\n"
    await until(lambda: has_no_process(session))


async def interrupted_when_begun(session: Session, code: str) -> CodeExecutionResult:
    """Run a cell, interrupt it when its file `begun` exists, and return its result."""
    running = asyncio.create_task(session.run(code))
    await until(session.list_files)
    await session.interrupt()
    return await running


async def has_no_process(session: Session) -> bool:
    return not (await session.run("")).processes


_PIECES = (
    *("x = 1", "%pwd", "!ls", ",f a", ";f a", "/f a", "x?", "?x", "a = !ls", "a = %pwd", "%%time\n", "a % b", "if x:", ">>> ", "In [1]: "),
    *("'''", '"""', "# c", "f(", ")", "\n", "\r\n", "\\\n", "\t", "    ", "\x0c", "\u2028"),
)


@pytest.mark.filterwarnings("ignore:`make_tokens_by_line`")
@given(st.lists(st.sampled_from(_PIECES), max_size=8).map("".join))
@example("x = 1\n  /f a")
@example("# c\u2028,f")
def test_a_cell_is_translated_as_ipython_does_it(cell: str) -> None:
    assert _translated(commands.CellTransformer(), cell) == _translated(TransformerManager(), cell)


def _translated(syntax: TransformerManager, cell: str) -> str:
    try:
        return str(syntax.transform_cell(cell))
    except Exception as error:
        return repr(error)


def test_a_transformer_that_a_cell_adds_is_used() -> None:
    syntax = commands.CellTransformer()
    syntax.token_transformers = [*syntax.token_transformers, _Shout]
    assert syntax.transform_cell("x = 1\n") == "x = 1 # loud\n"


class _Shout(TokenTransformBase):
    """Adds a comment to a line, once."""

    @classmethod
    def find(cls, tokens_by_line: list[list[TokenInfo]]) -> "_Shout | None":
        line = tokens_by_line[0]
        return None if any(token.string == "# loud" for token in line) else cls(line[0].start)

    def transform(self, lines: list[str]) -> list[str]:
        return [lines[0].rstrip("\n") + " # loud\n", *lines[1:]]
