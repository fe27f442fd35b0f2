"""Test the magics and the kernel in JupyterLab, in a browser.

`NOTEBOOK_PICTURE=FOLDER` writes pictures of the page to a folder, in light and dark.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import COMMAND
from ..playground.browser import Page, needs_chromium
from .kernels import kernel_environment
from .lab import needs_jupyterlab, open_notebook, run_all, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500), needs_chromium, needs_jupyterlab]

CELLS = (
    "%load_ext aca_sessions",
    "%%session\nimport pandas as pd\n"
    "sales = pd.DataFrame({'month': ['2026-01', '2026-02'], 'lamps': [120, 135], 'chairs': [80, 95]})\nsales",
    "%%session\nfrom IPython.display import Markdown\nMarkdown(r'**Growth** of the lamps: $\\frac{135}{120} - 1 = 12.5\\,\\%$')",
    "%%session -o total\nfrom tqdm import tqdm\ntotal = sum(int(sales.lamps[row]) for row in tqdm(range(2)))\ntotal",
    "total * 2",
    "%%session\n# this must not change the page\nfrom IPython.display import HTML, Latex, Markdown\n"
    "bad = '<img src=x onerror=\"document.title=1\"><script>document.title=2</script><iframe srcdoc=x></iframe>'\n"
    "display(HTML(bad + r'$\\href{javascript:document.title=3}{x}$'))\n"
    "display(Markdown(bad + r'[a](javascript:x) $\\href{javascript:x}{y}$'))\n"
    "display(Latex(r'$\\href{javascript:x}{z} \\def\\frac{w}$'))\nopen('nothing.csv')",
    "'not reached'",
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Open the notebook in JupyterLab and run all cells."""
    folder = tmp_path_factory.mktemp("lab")
    with open_notebook(folder, CELLS, "python3", kernel_environment(folder)) as page:
        run_all(page)
        until(page, "document.body.innerText.includes('FileNotFoundError: ')")
        yield page


def test_a_notebook_shows_tables_formulas_and_errors_and_nothing_harmful(opened: Page) -> None:
    assert opened.evaluate("document.querySelectorAll('.jp-RenderedHTMLCommon table td').length") == 6
    widths = opened.evaluate(
        "(() => { const box = document.querySelector('.jp-RenderedHTMLCommon .mathjax_ignore'); "
        "return [box.offsetWidth, box.querySelector('table').offsetWidth, box.parentElement.offsetWidth]; })()"
    )
    assert widths[1] <= widths[0] < widths[2] / 2  # the frame fits the table
    assert opened.evaluate("getComputedStyle(document.querySelector('.jp-RenderedHTMLCommon td')).textAlign") == "right"
    assert opened.evaluate("document.querySelectorAll('math mfrac').length") == 1
    text = opened.text(".jp-Notebook")
    assert "100%" in text
    assert "510" in text
    assert "not reached" not in text.replace("'not reached'", "")
    assert opened.evaluate("document.title").startswith("session")
    outputs = "'.jp-OutputArea-output'"
    harmful = "'a[href], script, iframe, mjx-container, [onerror], img[src]'"
    found = f"[...document.querySelectorAll({outputs})].flatMap((one) => [...one.querySelectorAll({harmful})].map((two) => two.outerHTML))"
    assert opened.evaluate(found) == []
    assert "\\href{javascript:document.title=3}{x}" in opened.text(".jp-Notebook")


@pytest.mark.skipif("NOTEBOOK_PICTURE" not in os.environ, reason="NOTEBOOK_PICTURE names no folder")
def test_the_picture(opened: Page) -> None:
    opened.evaluate("void jupyterapp.commands.execute('application:toggle-left-area')")
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        opened.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{ theme: '{theme}' }}).then(() => null)")
        opened.evaluate("new Promise((go) => setTimeout(go, 3000))")
        Path(os.environ["NOTEBOOK_PICTURE"], f"{theme.split()[1]}.png").write_bytes(opened.picture())


def test_a_notebook_that_is_typed_runs_in_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = kernel_environment(tmp_path)
    monkeypatch.setenv("JUPYTER_DATA_DIR", environment["JUPYTER_DATA_DIR"])
    subprocess.run([*COMMAND, "kernel", "install"], check=True)
    with open_notebook(tmp_path, [""], "aca-sessions", environment) as page:

        def run(code: str, shown: str) -> None:
            """Type a cell below the last one, run it and wait until the page shows a text."""
            page.evaluate("document.querySelector('.jp-Notebook .jp-CodeCell:last-of-type .cm-content').focus()")
            page.write(code)
            page.press("Shift+Enter")
            until(page, f"document.body.innerText.includes({json.dumps(shown)})")
            until(page, "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'")

        until(page, "document.body.innerText.includes('Python in a session | Idle')")
        title = page.evaluate("document.title")
        page.click(".jp-Notebook .jp-CodeCell .cm-content")
        run("numbers = [20, 22]\nsum(numbers)", "[1]:\n42")
        run("display({'text/html': '<b id=bad>bold</b><img src=x onerror=\"document.title=1\">'}, raw=True)", "bold")
        assert page.evaluate("[document.title, document.querySelectorAll('[onerror], #bad').length]") == [title, 0]
        page.write("name = input('Name? ')\nname.upper()")
        page.press("Shift+Enter")
        until(page, "!!document.querySelector('.jp-Stdin-input')")
        page.evaluate("document.querySelector('.jp-Stdin-input').focus()")
        page.write("Ada")
        page.press("Enter")
        until(page, "document.body.innerText.includes(\"'ADA'\")")
        page.click(".jp-Notebook .jp-CodeCell:last-of-type .cm-content")
        page.write("import time\nprint('be' + 'gun')\ntime.sleep(600)")
        page.press("Shift+Enter")
        until(page, "document.body.innerText.includes('begun')")
        page.evaluate("void jupyterapp.commands.execute('notebook:interrupt-kernel')")
        until(page, "document.body.innerText.includes('KeyboardInterrupt')")
        page.click(".jp-Notebook .jp-CodeCell:last-of-type .cm-content")
        run("import os; os._exit(3)", "[session state lost: exit; variables from before are gone, files are kept]")
