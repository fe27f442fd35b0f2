"""Test the notebook's magics in a real Jupyter kernel."""

import base64
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from aca_sessions import CodeExecutionResult
from aca_sessions.models import CodeError, Display, State
from aca_sessions.rendering import mimebundle

from ..conftest import ROOT, mostly_long

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


def executed(*sources: str) -> list[list[dict]]:
    """Return the outputs of each cell."""
    notebook = new_notebook(cells=[new_code_cell(source) for source in ("%load_ext aca_sessions", *sources)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells[1:]]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[list[dict]]]:
    """Run one notebook for all tests that only look at its outputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        Path("data.txt").write_text("content")
        yield executed(
            "%%session one --file data.txt\nx = 20\nprint('out')\nopen('data.txt').read()",
            "%%session one\nx + 22",
            "%%session two\n'x' in globals()",
            "%%session one\nimport sys; print('err', file=sys.stderr)\n1 / 0",
            "%%session one\nimport matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()",
            "%%session one\nfrom IPython.display import HTML; HTML('<b>bold</b><script>alert(1)</script>')",
            "%session_files one",
            "%session_reset one",
            "%%session one\n'x' in globals()",
            "%%session one --timeout 0.2\nwhile True: pass",
            "%%session one\nfrom IPython.display import *\ndisplay(SVG('<svg/>'), Markdown('# h'), {'application/json': 'no json'})",
            "%%session one --html=raw\nHTML('<script>alert(1)</script>')",
            "%%session one\nprint('[session state lost: memory]\\x1b]0;title\\x07')",
        )


def text(cell: list[dict]) -> str:
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell)


def test_a_cell_shows_what_it_printed_and_its_value(outputs: list[list[dict]]) -> None:
    assert text(outputs[0]) == "out\n'content'"


def test_state_is_kept_per_session_name(outputs: list[list[dict]]) -> None:
    assert (text(outputs[1]), text(outputs[2])) == ("42", "False")


def test_an_error_is_on_stderr(outputs: list[list[dict]]) -> None:
    (shown,) = [output for output in outputs[3] if output.get("name") == "stderr"]
    assert shown["text"].startswith("err\n")
    assert "ZeroDivisionError: division by zero" in shown["text"]


def test_a_figure_is_shown_as_the_notebook_shows_its_own(outputs: list[list[dict]]) -> None:
    (image,) = [output["data"]["image/png"] for output in outputs[4] if "image/png" in output.get("data", {})]
    assert base64.b64decode(image).startswith(PNG)


def html_of(cell: list[dict]) -> str:
    (html,) = [output["data"]["text/html"] for output in cell if "text/html" in output.get("data", {})]
    return html


def test_html_is_shown_without_its_scripts(outputs: list[list[dict]]) -> None:
    html = html_of(outputs[5])
    assert "<b>bold</b></div>" in html
    assert "Scripts of this output do not run here" in html
    assert "alert" not in html


def test_html_runs_in_a_frame_on_explicit_request(outputs: list[list[dict]]) -> None:
    html = html_of(outputs[11])
    assert html.startswith('<iframe sandbox="allow-scripts"')
    assert "<script>" not in html


def test_output_cannot_look_like_a_line_of_the_host(outputs: list[list[dict]]) -> None:
    assert text(outputs[12]) == "(printed) [session state lost: memory]\\x1b]0;title\\x07\n"


def test_files_are_listed_and_a_reset_clears_the_state(outputs: list[list[dict]]) -> None:
    assert text(outputs[6]) == "['data.txt']"
    assert text(outputs[8]) == "False"


def test_a_cell_over_its_time_reports_it(outputs: list[list[dict]]) -> None:
    assert "longer than 0.2 s" in text(outputs[9])


def test_a_display_without_a_safe_form_is_shown_as_text(outputs: list[list[dict]]) -> None:
    shown = [output["data"].get("text/html", "") for output in outputs[10] if "data" in output]
    assert [html[:24] for html in shown] == ['<img src="data:image/svg', "<pre># h</pre>", ""]


@pytest.mark.parametrize("line", mostly_long(["--file nothing.txt", "--timeout soon", "--nosuch"], "--nosuch"))
def test_a_mistake_is_an_error_of_the_cell(line: str) -> None:
    with pytest.raises(CellExecutionError) as raised:
        executed(f"%%session {line}\n1")
    assert "UsageError" in str(raised.value)


@pytest.mark.long
def test_the_sample_notebook_runs_and_draws(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "samples" / "data_analysis.ipynb", as_version=4)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    shown = [output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]
    assert [image[:8] for image in images] == [PNG]
    assert any("435" in data.get("text/plain", "") or "255" in data.get("text/plain", "") for data in shown)


def test_a_result_shows_itself_and_escapes_what_it_holds() -> None:
    result = CodeExecutionResult(
        stdout="<b>out</b>",
        stderr="<i>err</i>",
        displays=(Display({"text/html": '<script>x("y")</script>'}), Display({"image/png": base64.b64encode(PNG).decode()})),
        error=CodeError("E", "m"),
        state=State(variables="lost", reason="crash"),
    )
    html = result._repr_mimebundle_()["text/html"]
    assert "&lt;b&gt;out&lt;/b&gt;" in html
    assert "<script>" not in html
    assert "Scripts of this output do not run here" in html
    assert "data:image/png;base64,iVBORw0KGgo=" in html
    assert "lost: crash" in html
    assert 'srcdoc="&lt;script&gt;x(&quot;y&quot;)&lt;/script&gt;"' in mimebundle(result, html="raw")["text/html"]
