"""Test what clients that show MCP Apps get, and that other clients get nothing of it. test_app_host.py shows the page in a host."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from aca_sessions.mcp.apps import DISPLAYS_KEY, EXTENSION, KIND, URI, for_page
from aca_sessions.mcp.sdk import HAS_STATELESS
from aca_sessions.mcp.tool import ANSWER_KEY
from aca_sessions.models import Display

from .clients import Running, http_client_session, http_server, run

SHOWS = {EXTENSION: {"mimeTypes": [KIND]}}
TABLE = "application/vnd.dataresource+json"
CELL = f"""
import base64
png = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
display({{"{TABLE}": '{{"a": 1}}', "text/plain": "a table"}}, raw=True)
display({{"image/png": base64.b64encode(png).decode(), "text/plain": "Figure people"}}, raw=True)
display({{"image/svg+xml": "<svg/>", "text/plain": "a drawing"}}, raw=True)
display({{"text/html": "<b>bold</b>", "text/plain": "a page"}}, raw=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with http_server("--tools", "all") as running:
        yield running


def listed(result: Any) -> dict[str, Any]:
    return {tool.name: tool.model_dump(by_alias=True, exclude_none=True) for tool in result.tools}


def check_page(result: Any) -> None:
    (content,) = result.contents
    assert (str(content.uri), content.mimeType, content.meta) == (URI, KIND, {"ui": {"prefersBorder": True}})
    assert len(content.text) < 10_000


@pytest.mark.slow
async def test_only_clients_that_show_apps_get_the_page_and_its_data(server: Running) -> None:
    async with (
        http_client_session(server, extensions=SHOWS) as host,
        http_client_session(server) as plain,
        http_client_session(server, extensions={EXTENSION: {"mimeTypes": ["text/html"]}}) as other,
    ):
        tools, without = listed(await host.list_tools()), listed(await plain.list_tools())
        linked = {name: tool.pop("_meta")["ui"] for name, tool in tools.items()}
        assert {name for name, one in linked.items() if one == {"resourceUri": URI, "visibility": ["model"]}} == {"run_python_code"}
        assert all(one["visibility"] == ["model"] for one in linked.values())
        assert tools == without == listed(await other.list_tools())
        check_page(await host.read_resource(URI))

        shown, not_shown, not_either = [await run(client, CELL) for client in (host, plain, other)]
        assert shown.meta[DISPLAYS_KEY] == [{"table": '{"a": 1}'}, {"title": "Figure people"}, {"svg": "<svg/>"}]
        assert [block.type for block in shown.content] == [block.type for block in not_shown.content]
        assert shown.content[0] == not_shown.content[0]
        assert [*not_shown.meta] == [*not_either.meta] == [ANSWER_KEY]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_STATELESS, reason="needs version 2 of the SDK: tests/mcp/test_version_2.py runs this test")
async def test_a_client_without_a_connection_gets_the_page_and_its_data(server: Running) -> None:
    from mcp.client import advertise

    from .stateless import http_client

    async with (
        http_client(server.address, server.key, extensions=[advertise(EXTENSION, SHOWS[EXTENSION])]) as host,
        http_client(server.address, server.key) as plain,
    ):
        assert host.server_capabilities.extensions[EXTENSION] == {}
        tools, without = listed(await host.list_tools()), listed(await plain.list_tools())
        assert [name for name in tools if "resourceUri" in tools[name]["_meta"]["ui"]] == ["run_python_code"]
        assert not any("_meta" in tool for tool in without.values())
        check_page(await host.read_resource(URI))
        shown, not_shown = [await client.call_tool("run_python_code", {"code": CELL}) for client in (host, plain)]
        assert [*shown.meta[DISPLAYS_KEY]] == [{"table": '{"a": 1}'}, {"title": "Figure people"}, {"svg": "<svg/>"}]
        assert DISPLAYS_KEY not in not_shown.meta


def test_the_data_for_the_page_has_a_limit() -> None:
    small, large = Display({TABLE: {"a": "é"}}), Display({"image/svg+xml": '"' * 100_001})
    assert for_page([(large, False), (small, False), (small, False)]) == [{"table": json.dumps({"a": "é"})}] * 2
    many = for_page([(Display({"image/svg+xml": "x" * 9_000}), False)] * 200)
    assert 150_000 < len(json.dumps(many)) < 210_000
    assert len(for_page([(small, True)] * 200)) == 100
