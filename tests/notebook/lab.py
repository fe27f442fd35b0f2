"""JupyterLab, opened with a notebook in a browser. `make test-long` installs it in an environment of its own."""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from ..conftest import ROOT
from ..playground.browser import Browser, Page

LAB = ROOT / ".venv-others" / "bin" / "jupyter-lab"
needs_jupyterlab = pytest.mark.skipif(not LAB.exists(), reason="needs JupyterLab in .venv-others: make test-long installs it")


@contextlib.contextmanager
def open_notebook(folder: Path, sources: Sequence[str], kernel: str, environment: Mapping[str, str]) -> Iterator[Page]:
    """Open a notebook with cells in JupyterLab, and wait until its kernel is idle."""
    work = folder / "work"
    work.mkdir()
    cells = [new_code_cell(source) for source in sources]
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    (work / "session.ipynb").write_text(json.dumps(new_notebook(cells=cells, metadata=metadata)))
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
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([LAB, *options], env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
    try:
        with Browser(folder) as browser:
            wait_for(port, server)
            page = browser.open(f"http://127.0.0.1:{port}/lab/tree/session.ipynb?token=t", width=1000, height=1500)
            until(page, f"!!window.jupyterapp && document.querySelectorAll('.jp-Notebook .jp-CodeCell').length >= {len(cells)}")
            until(page, "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'")
            yield page
    finally:
        server.terminate()
        server.wait(240)


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 240
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    pytest.fail(f"JupyterLab does not listen: it {'runs' if server.poll() is None else 'has ended'}")


def until(page: Page, condition: str, seconds: int = 240) -> None:
    """Wait until some JavaScript is true: on a busy machine JupyterLab takes minutes to start."""
    for _ in range(seconds):
        if page.evaluate(condition):
            return
        time.sleep(1)
    pytest.fail(f"not so within {seconds} s: {condition}\n{page.text('body')[-2000:]}")


def run_all(page: Page) -> None:
    """Run all cells. JupyterLab ignores the command while another part of the page has the focus, so repeat it until a cell has begun."""
    begun = "[...document.querySelectorAll('.jp-InputPrompt')].some((one) => /[0-9*]/.test(one.innerText))"
    for _ in range(8):
        page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        with contextlib.suppress(pytest.fail.Exception):
            return until(page, begun, 30)
    return until(page, begun, 1)
