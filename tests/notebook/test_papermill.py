"""Test papermill, which runs notebooks without a page. `make test-long` installs it in an environment of its own."""

import os
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from ..conftest import ROOT
from .kernels import kernel_environment

PAPERMILL = ROOT / ".venv-others" / "bin" / "papermill"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PAPERMILL.exists(), reason="needs papermill in .venv-others: make test-long installs it"),
]


def test_a_notebook_gets_parameters_and_stops_at_the_first_error(tmp_path: Path) -> None:
    cells = [
        new_code_cell("%load_ext aca_sessions"),
        new_code_cell("number = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("%%session -i number -o answer\nanswer = number * 2\nprint(answer)"),
        new_code_cell("answer + 1"),
        new_code_cell("%%session\n1 / 0"),
        new_code_cell("'not reached'"),
    ]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), tmp_path / "in.ipynb")
    command = [PAPERMILL, "in.ipynb", "out.ipynb", "-p", "number", "21"]
    environment = os.environ | kernel_environment(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode != 0
    assert "ZeroDivisionError: division by zero" in done.stderr
    ran = [cell for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if cell.cell_type == "code"]
    outputs = {cell.source: cell.outputs for cell in ran}
    assert outputs[cells[2].source][0]["text"] == "42\n"
    assert outputs["answer + 1"][0]["data"]["text/plain"] == "43"
    assert ran[-1].execution_count is None
