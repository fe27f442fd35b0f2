"""Attack the page that shows results in hosts of MCP Apps, by what code displays."""

import json
from pathlib import Path

import pytest

from aca_sessions.mcp.apps import EXTENSION, KIND, URI

from ..mcp.app_host import app_host
from ..mcp.clients import http_client_session, http_server, run
from ..playground.browser import Browser, needs_chromium
from .test_playground import DISPLAYS, HTML, STEALS, SVG, TEXT

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_chromium]
FIELDS = [{"name": TEXT, "title": HTML, "type": TEXT}, {"name": "__proto__"}, {"name": "constructor", "type": "number"}, {"name": {"a": 1}}]
ROWS = [{TEXT: HTML, "__proto__": {"onload": STEALS}, "constructor": [TEXT]}, {TEXT: SVG}]
DAMAGED = ["{", "null", '"x"', "[" * 5000, {"schema": 5}, {"schema": {"fields": [None]}, "data": [None]}, {"schema": {"fields": {}}}]
HUGE = {"schema": {"fields": [{"name": "a"}] * 4_000}, "data": [{}] * 4_000}
ALLOWED = {*("DETAILS", "DIV", "IMG", "PRE", "SUMMARY"), *("TABLE", "CAPTION", "THEAD", "TBODY", "TR", "TH", "TD")}
# What a script in the page could do, if one came in: each of these is refused.
TRIES = """[() => { main.innerHTML = "<b>x</b>"; }, () => main.setAttribute("onclick", "1"),
  () => { document.createElement("script").textContent = "1"; }, () => open("http://open.outside.example").focus(),
  () => fetch("http://fetch.outside.example"), () => new Worker("http://worker.outside.example")]"""
SENT = {"ui/initialize", "ui/notifications/initialized", "ui/notifications/size-changed"}


async def test_displays_in_an_mcp_app_run_no_script_and_load_nothing(tmp_path: Path) -> None:
    """What a session's code shows runs no script in a host of MCP Apps and loads nothing, even if the host enforces no policy."""
    log = tmp_path / "network.json"
    tables = [json.dumps({"schema": {"fields": FIELDS}, "data": ROWS, "rowCount": TEXT, "columnCount": 99}), *DAMAGED, HUGE]
    shows = f"for table in {tables!r}: display({{'application/vnd.dataresource+json': table, 'text/plain': 'x'}}, raw=True)\n"
    hostile = shows + DISPLAYS.format(text=TEXT, html=HTML, svg=SVG, steals=STEALS)
    with Browser(tmp_path, f"--log-net-log={log}") as browser:
        with http_server() as server:
            async with http_client_session(server, extensions={EXTENSION: {"mimeTypes": [KIND]}}) as client:
                app = (await client.read_resource(URI)).contents[0].text
                result = await run(client, hostile)
        with app_host(browser, app, policy="") as host:
            frame = host.load()
            host.send(result)
            frame.wait("document.images.length >= 1 && document.querySelector('td')")
            assert TEXT in frame.text("pre")
            assert frame.evaluate("document.querySelector('td').textContent") == HTML
            assert set(frame.evaluate("[...main.querySelectorAll('*')].map((one) => one.tagName)")) <= ALLOWED
            attributes = "[...new Set([...main.querySelectorAll('*')].flatMap((one) => one.getAttributeNames()))].sort()"
            assert frame.evaluate(attributes) == ["alt", "class", "open", "src"]
            assert frame.evaluate("[...document.images].every((one) => one.src.startsWith('data:image/'))")
            assert frame.evaluate("[...document.querySelectorAll('table')].map(({ rows }) => [rows.length, rows[0].cells.length])") == [
                [3, 4],
                [201, 50],
            ]

            refused = f"Promise.all({TRIES}.map(async (one) => {{ try {{ await one(); return 'done'; }} catch (error) {{ return ''; }} }}))"
            assert frame.evaluate(refused) == [""] * 6
            frame.evaluate("document.body.append(Object.assign(new Image(), { src: 'http://image.outside.example' }))")
            assert [frame.evaluate("document.title"), host.page.evaluate("document.title")] == ["Output of a cell", "A host"]
            assert host.page.evaluate("typeof taken") == "undefined"
            assert frame.happened("Page.javascriptDialogOpening") + host.page.happened("Page.javascriptDialogOpening") == []
            assert set(host.page.evaluate("received")) == SENT
            with pytest.raises(AssertionError, match="ERR_NAME_NOT_RESOLVED"):
                host.page.go("http://a-name-that-is-looked-up.example")
    assert "a-name-that-is-looked-up.example" in log.read_text()
    assert "outside.example" not in log.read_text()
