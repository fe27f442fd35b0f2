"""Test that docs/guides/mcp.md agrees with the server."""

import json
import os
import re

import pytest

from aca_sessions.mcp.clients import Options
from aca_sessions.mcp.server import _tools
from aca_sessions.models import Access
from aca_sessions.settings import McpSettings

from ..conftest import ROOT
from .clients import run, stdio_client_session, text_of

PAGE = (ROOT / "docs" / "guides" / "mcp.md").read_text()


def test_the_page_lists_every_tool_with_its_arguments() -> None:
    rows = {name: set(re.findall(r"`(\w+\??)`", given)) for name, given in re.findall(r"^\| `(\w+)` \|(.*?)\|", PAGE, re.MULTILINE)}
    tools = [tool.listed for tool in _tools("all", Access()).values()]
    assert rows == {
        tool.name: {
            name if name in tool.inputSchema.get("required", []) else f"{name}?"
            for name in tool.inputSchema["properties"]
            if name != "session_id" or name in tool.inputSchema.get("required", []) or tool.name == "create_session"
        }
        for tool in tools
    }


def test_the_page_has_the_current_defaults() -> None:
    options = Options.of(McpSettings())
    assert f"`Mcp:SessionsPerClient` ({options.sessions_per_client})" in PAGE
    assert f"`Mcp:Clients` ({options.clients})" in PAGE
    assert f"`Mcp:ClientIdleMinutes` ({options.idle_seconds / 60:g})" in PAGE
    assert f"`Mcp:OutputsMegabytes` ({options.outputs_size >> 20})" in PAGE


@pytest.mark.long
@pytest.mark.slow
async def test_the_settings_of_the_page_reach_sessions_when_they_are_pasted() -> None:
    (snippet,) = (found for found in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL) if '"env"' in found)
    started = json.loads(snippet)["mcpServers"]["python"]
    assert started["args"][0] == "mcp"
    async with stdio_client_session(*started["args"][1:], environment=started["env"]) as client:
        (tool,) = [tool for tool in (await client.list_tools()).tools if tool.name == "run_python_code"]
        found = text_of(await run(client, "import os; sorted(os.listdir('/mnt/srv'))"))
    assert found == str(sorted(os.listdir("/srv")))
    network, mounts = tool.description.split(". ")[-2:]
    assert network.endswith("only these domains, by HTTP and HTTPS: api.github.com, raw.githubusercontent.com")
    assert mounts == "Code sees these folders of the host: /mnt/srv (read-only)."
    assert tool.inputSchema["properties"]["timeout"]["description"].endswith("By default 200.")
