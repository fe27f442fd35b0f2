"""Show results of the MCP server in a host of MCP Apps."""

import json
from pathlib import Path

import pytest

from aca_sessions.mcp.apps import EXTENSION, KIND, URI

from ..playground.browser import Browser, needs_chromium
from .app_host import app_host
from .clients import http_client_session, http_server, run

pytestmark = [pytest.mark.long, pytest.mark.slow, needs_chromium]

FIGURES = """
import matplotlib.pyplot as plt, pandas as pd
from IPython.display import SVG
print("printed")
plt.plot([1, 3, 2]); plt.title("people"); plt.show()
display(pd.DataFrame({"city": [f"<b>{number}</b>" for number in range(30)], "people": [None, *range(29)]}))
SVG('<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><rect width="30" height="20" fill="red"/></svg>')
"""
TEXT = "print('<i>only text</i>')"
FAILS = "display(pd.DataFrame({'a': [1]}))\n1 / 0"
ALONE = "plt.plot([1]); plt.show()"


async def test_a_host_shows_figures_and_tables(tmp_path: Path) -> None:
    with http_server() as server, Browser(tmp_path) as browser:
        async with http_client_session(server, extensions={EXTENSION: {"mimeTypes": [KIND]}}) as client:
            app = (await client.read_resource(URI)).contents[0].text
            figures, text, failed, alone = [await run(client, code) for code in (FIGURES, TEXT, FAILS, ALONE)]
            refused = await client.call_tool("run_python_code", {"code": 5})
        with app_host(browser, app) as host:
            frame = host.load('{theme: "dark", styles: {variables: {"--color-text-primary": "rgb(1, 2, 3)"}}}')
            assert frame.text("main") == "Running …"
            host.send(figures)
            frame.wait("[...document.images].length === 2 && [...document.images].every((one) => one.naturalWidth)")
            shown = "[...document.querySelector('main').children].map((one) => one.firstChild?.tagName ?? one.alt)"
            assert frame.evaluate(shown) == ["Figure people", "TABLE", "Image", "SUMMARY"]
            assert frame.evaluate("[...document.images].map((one) => [one.naturalWidth > 300, one.src.slice(0, 15)])") == [
                [True, "data:image/png;"],
                [False, "data:image/svg+"],
            ]
            rows = frame.evaluate("[...document.querySelectorAll('tr')].map((row) => [...row.cells].map((cell) => cell.textContent))")
            assert (rows[0], rows[1], rows[-1], len(rows)) == (
                ["index", "city", "people"],
                ["0", "<b>0</b>", ""],
                ["19", "<b>19</b>", "18"],
                21,
            )
            assert frame.text("caption") == "the first 20 of 30 rows"
            assert frame.evaluate("[document.querySelector('details').open, document.querySelector('pre').textContent]")[0] is False
            assert "printed" in frame.evaluate("document.querySelector('pre').textContent")
            style = "getComputedStyle(document.documentElement)"
            assert frame.evaluate(f"[{style}.colorScheme, {style}.color]") == ["dark", "rgb(1, 2, 3)"]
            host.page.wait("frame.clientHeight > 600")  # as high as what it shows
            host.page.evaluate('bridge.setHostContext({theme: "light"})')
            frame.wait(f"{style}.colorScheme === 'light'")

            for result, expected in ((text, "<i>only text</i>"), (failed, "ZeroDivisionError"), (refused, "the arguments are invalid")):
                host.send(result)
                frame.wait(f"document.querySelector('main').innerText.includes({json.dumps(expected)})")
            host.page.wait("frame.clientHeight < 200")
            host.send(alone)
            frame.wait("document.images.length === 1 && main.children.length === 1")
            host.page.evaluate("bridge.sendToolCancelled({reason: 'x'})")
            frame.wait("document.querySelector('main').innerText === 'The call was cancelled.'")
            assert host.page.evaluate("bridge.teardownResource({})") == {}
            assert frame.happened("Log.entryAdded") == []  # no part of the page violates a policy
