"""Test the magics in JupyterLab, in a browser. `make test-long` installs JupyterLab in an environment of its own.

`NOTEBOOK_PICTURE=FOLDER` writes pictures of the page to a folder, in light and dark.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from ..conftest import ROOT
from ..playground.browser import Browser, Page, needs_chromium
from .kernels import kernel_environment

LAB = ROOT / ".venv-others" / "bin" / "jupyter-lab"
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    needs_chromium,
    pytest.mark.skipif(not LAB.exists(), reason="needs JupyterLab in .venv-others: make test-long installs it"),
]

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
    work = folder / "work"
    work.mkdir()
    cells = [new_code_cell(source) for source in CELLS]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    (work / "session.ipynb").write_text(json.dumps(notebook))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=t",
        "--expose-app-in-browser",
        f"--notebook-dir={work}",
    ]
    environment = os.environ | kernel_environment(folder)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([LAB, *options], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        with Browser(folder) as browser:
            _wait_for(port, server)
            page = browser.open(f"http://127.0.0.1:{port}/lab/tree/session.ipynb?token=t", width=1000, height=1500)
            _until(page, "!!window.jupyterapp && document.querySelectorAll('.jp-Notebook .jp-CodeCell').length > 6")
            _until(page, "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'")
            _run_all(page)
            _until(page, "document.body.innerText.includes('FileNotFoundError: ')")
            yield page
    finally:
        server.terminate()
        server.wait(240)


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 240
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    pytest.fail(f"JupyterLab does not listen: it {'runs' if server.poll() is None else 'has ended'}")


def _until(page: Page, condition: str, seconds: int = 240) -> None:
    """Wait until some JavaScript is true: on a busy machine JupyterLab takes minutes to start."""
    for _ in range(seconds):
        if page.evaluate(condition):
            return
        time.sleep(1)
    pytest.fail(f"not so within {seconds} s: {condition}\n{page.text('body')[-2000:]}")


def _run_all(page: Page) -> None:
    """Run all cells. JupyterLab ignores the command while another part of the page has the focus, so repeat it until a cell has begun."""
    begun = "[...document.querySelectorAll('.jp-InputPrompt')].some((one) => /[0-9*]/.test(one.innerText))"
    for _ in range(8):
        page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        with contextlib.suppress(pytest.fail.Exception):
            return _until(page, begun, 30)
    return _until(page, begun, 1)


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
