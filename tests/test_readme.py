"""Test that the README and the pages of docs/ show what a reader gets."""

import json
import os
import re
import shlex
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from samples.scripted_model import ScriptedModel

import aca_sessions

from .conftest import COMMAND, LIGHT, ROOT, skip_without_frameworks
from .wheels import make_wheel

pytestmark = pytest.mark.slow

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "SECURITY.md")
}
README, PLUGIN_PAGE = PAGES["README.md"], PAGES["docs/guides/semantic-kernel.md"]
# The code blocks of this page are the cells of one notebook. Those of all other pages are programs.
NOTEBOOK = "docs/guides/notebooks.md"
BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>.+?) -->\s+)?```(?P<kind>python|console|bash)\n"
    r"(?P<code>.*?)^ *```(?:\n+ *```text\n(?P<output>.*?)^ *```)?",
    re.DOTALL | re.MULTILINE,
)


def snippets(kinds: tuple[str, ...]) -> Iterator[object]:
    """Yield each snippet of the pages, and the output below it, which is empty if the page shows none."""
    for name, page in PAGES.items():
        blocks = [
            (dedent(found["code"]), dedent(found["output"] or ""))
            for found in BLOCK.finditer(page)
            if found["kind"] in kinds and found["reason"] is None
        ]
        if name == NOTEBOOK and "python" in kinds:
            blocks = [("".join(code for code, _ in blocks), "")]
        for number, (code, output) in enumerate(blocks, 1):
            marks = [pytest.mark.defaults] if page in (README, PLUGIN_PAGE) else []
            yield pytest.param(code, output, id=f"{name}-{number}", marks=marks if page == README else [*marks, pytest.mark.long])


# What a model does with the question of the README: it calls the tool, and answers with what it read.
PRIMES = "numbers = [n for n in range(2, 8000) if all(n % d for d in range(2, int(n**0.5) + 1))]\nsum(numbers[:1000])"


@pytest.fixture
def _reader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give programs what a reader has: the command `aca-sessions` on PATH, a model, and an index that has the packages of the pages."""
    command = tmp_path / "bin" / "aca-sessions"
    command.parent.mkdir()
    light = shlex.join(f"{name}={value}" for name, value in LIGHT.items())
    source = shlex.quote(str(Path(aca_sessions.__file__).parent.parent))
    command.write_text(f'#!/bin/sh\nexec env PYTHONPATH={source} {light} {shlex.join(COMMAND)} "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    make_wheel(tmp_path / "wheels", "humanize", "4.9.0", files={"humanize.py": "def intcomma(number): return f'{number:,}'\n"})
    make_wheel(tmp_path / "wheels", "tabulate")
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))
    (tmp_path / "sales.csv").write_text("month,sold\n2026-01,120\n2026-02,135\n")
    (tmp_path / "analyse.py").write_text("open('report.csv', 'w').write('255')\n")
    tool = "execute_python" if "agent_framework" in request.getfixturevalue("code") else "PythonInterpreter-execute_python"
    with ScriptedModel([[(tool, {"code": PRIMES})], lambda messages: messages[-1]["content"]]) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "scripted")
        yield


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize(("code", "output"), [*snippets(("python",))])
def test_an_example_is_a_program_that_prints_the_output_on_the_page(tmp_path: Path, code: str, output: str) -> None:
    skip_without_frameworks(code)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout == output or not output


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize(("code", "output"), [*snippets(("console", "bash"))])
def test_the_commands_on_a_page_succeed(tmp_path: Path, code: str, output: str) -> None:
    commands = re.sub(r"^(?!\$ ).*\n", "", code, flags=re.MULTILINE).replace("$ ", "") if code.startswith("$ ") else code
    run = subprocess.run(["bash", "-euc", commands], capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout == output or not output


def test_each_snippet_that_is_not_run_has_a_reason() -> None:
    for name, page in PAGES.items():
        marked = [found["reason"] for found in BLOCK.finditer(page) if found["reason"]]
        assert page.count("<!-- not run: ") == len(marked), name


@pytest.mark.defaults
@pytest.mark.long
def test_the_first_example_works_after_a_plain_installation(tmp_path: Path) -> None:
    """Without the extra `data`: sessions have no pandas, and nobody sees if a result failed that is not printed."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT], check=True, timeout=580)
    assert subprocess.run([python, "-c", "import pandas"], capture_output=True, timeout=240).returncode == 1
    code, output = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", README, re.DOTALL)[0]
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert run.stdout == output


def test_the_comparison_of_the_readme_is_the_one_of_its_page() -> None:
    [table] = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert table in PAGES["docs/start/compare.md"]


def test_the_first_console_block_holds_the_two_commands() -> None:
    first = README.partition("```console\n")[2].partition("```")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["$ make demo", "$ make test"]


@pytest.mark.needs("semantic_kernel")
def test_the_schema_on_the_page_is_the_one_a_model_sees() -> None:
    from semantic_kernel import Kernel
    from semantic_kernel.connectors.ai.function_calling_utils import kernel_function_metadata_to_function_call_format

    from aca_sessions import PythonCodeInterpreterPlugin

    functions = Kernel().add_plugin(PythonCodeInterpreterPlugin(), "PythonInterpreter").functions.values()
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PLUGIN_PAGE, re.DOTALL) if '"parameters"' in block]
    assert shown == [kernel_function_metadata_to_function_call_format(one.metadata)["function"] for one in functions]
