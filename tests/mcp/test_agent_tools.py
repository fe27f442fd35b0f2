"""Test the MCP tools of an agent, which are a client of either version of the SDK."""

import pytest

from aca_sessions.agent.tools.mcp import McpServer
from aca_sessions.bridge.host import ToolFailedError

from ..conftest import COMMAND, LIGHT

pytestmark = pytest.mark.slow


async def test_an_agent_calls_the_tools_of_this_server() -> None:
    server = McpServer("python", command=[*COMMAND, "mcp"], environment=LIGHT)
    try:
        tools = {tool.name: tool for tool in await server.open()}
        run = tools["python.run_python_code"]
        assert (run.effect, tools["python.list_sessions"].effect) == ("irreversible", "read")
        assert "code" in str(run.parameters)
        assert await run.act({"code": "6 * 7"}) == "42"
        with pytest.raises(ToolFailedError, match="the arguments are invalid: code: Field required"):
            await run.act({})
    finally:
        await server.close()
