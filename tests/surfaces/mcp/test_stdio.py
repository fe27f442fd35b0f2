"""The server as a process of its own, driven by the protocol's own client."""

from .clients import stdio_client_session


async def test_a_session_keeps_its_variables_between_calls() -> None:
    async with stdio_client_session() as client:
        await client.call_tool("run_python_code", {"code": "x = 20"})
        result = await client.call_tool("run_python_code", {"code": "x + 22"})
    assert result.content[0].text == "42"
    assert result.structuredContent["results"] == ["42"]
