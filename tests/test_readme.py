"""Test that the README shows what a reader gets."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from .conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.defaults]

README = (ROOT / "README.md").read_text()
PLUGIN_PAGE = (ROOT / "docs" / "semantic-kernel.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", README + PLUGIN_PAGE, re.DOTALL)


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_an_example_prints_the_output_on_the_page(code: str, output: str) -> None:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert run.stdout == output


def test_the_example_of_streaming_runs_as_it_is_on_the_page() -> None:
    (code,) = re.findall(r"```python\n([^`]*session\.stream[^`]*)```", (ROOT / "docs" / "interactive.md").read_text())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert run.stdout.splitlines()[-1] == "42 42"


def test_the_example_of_installing_is_a_program() -> None:
    """It needs a package index, so it is only compiled here."""
    compile((ROOT / "docs" / "packages.md").read_text().partition("```python\n")[2].partition("```")[0], "packages.md", "exec")


@pytest.mark.long
def test_the_first_example_works_after_a_plain_installation(tmp_path: Path) -> None:
    """Without the extra `data`: sessions have no pandas, and nobody sees if a result failed that is not printed."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT], check=True, timeout=580)
    assert subprocess.run([python, "-c", "import pandas"], capture_output=True, timeout=240).returncode == 1
    code, output = EXAMPLES[0]
    assert code in README
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert run.stdout == output


def test_every_python_block_is_a_tested_example() -> None:
    assert len(EXAMPLES) == (README + PLUGIN_PAGE).count("```python\n") == 3


def test_the_first_console_block_holds_the_two_commands() -> None:
    first = README.partition("```console\n")[2].partition("```")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["$ make demo", "$ make test"]


@pytest.mark.parametrize("page", [README, PLUGIN_PAGE], ids=["README", "plugin page"])
def test_the_schema_on_the_page_is_the_one_a_model_sees(page: str) -> None:
    from semantic_kernel import Kernel
    from semantic_kernel.connectors.ai.function_calling_utils import kernel_function_metadata_to_function_call_format

    from aca_sessions import PythonCodeInterpreterPlugin

    functions = Kernel().add_plugin(PythonCodeInterpreterPlugin(), "PythonInterpreter").functions.values()
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if '"parameters"' in block]
    assert shown == [kernel_function_metadata_to_function_call_format(one.metadata)["function"] for one in functions]
