"""Run the suite of Jupyter for kernels, jupyter-kernel-test, unmodified on the kernel whose cells run in a session.

Its test of the message `iopub_welcome` is not run: ipykernel sends that only if it is told to.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

jupyter_kernel_test = pytest.importorskip("jupyter_kernel_test", reason="make test-integrations installs it")

from ..conftest import COMMAND, ROOT  # noqa: E402

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    data = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(data))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(data / "runtime"))
        subprocess.run([*COMMAND, "kernel", "install"], check=True, stdout=subprocess.DEVNULL)
        yield data


class TestTheSuiteForKernels(jupyter_kernel_test.KernelTests):
    kernel_name = "aca-sessions"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = (
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
        {"code": "from IPython.display import HTML; HTML('<b>test</b>')", "mime": "text/html"},
    )
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
        # Formulas are drawn by the host, as HTML: a page that draws LaTeX itself would follow the links in it.
        {"code": "from IPython.display import Math, display; display(Math('\\frac{1}{2}'))", "mime": "text/html"},
    )
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "integrations" / "jupyter.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    printed = []
    exec(compile(program, "jupyter.md", "exec"), {"print": printed.append})
    assert printed == ["42"]
