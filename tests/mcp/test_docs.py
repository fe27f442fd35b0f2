"""Test that docs/mcp.md agrees with the server."""

import re

from aca_sessions.mcp.clients import Options
from aca_sessions.mcp.server import _tools
from aca_sessions.models import Access
from aca_sessions.settings import McpSettings

from ..conftest import ROOT

PAGE = (ROOT / "docs" / "mcp.md").read_text()


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


def test_the_page_and_the_readme_have_the_current_defaults() -> None:
    options = Options.of(McpSettings())
    assert f"`Mcp:SessionsPerClient` ({options.sessions_per_client})" in PAGE
    assert f"`Mcp:Clients` ({options.clients})" in PAGE
    assert f"`Mcp:ClientIdleMinutes` ({options.idle_seconds / 60:g})" in PAGE
    assert f"`Mcp:OutputsMegabytes` ({options.outputs_size >> 20})" in PAGE
    assert f"| {options.sessions_per_client}, {options.clients}, {options.idle_seconds / 60:g} |" in (ROOT / "README.md").read_text()
