"""Test the server with sessions at an endpoint that has Azure's API and no extensions."""

import pytest

from .clients import run, stdio_client_session, text_of

pytestmark = pytest.mark.slow


@pytest.mark.long
async def test_cells_images_files_and_scripts_work_as_in_process(plain_endpoint: dict[str, str]) -> None:
    async with stdio_client_session("--tools", "all", environment=plain_endpoint) as client:
        await client.call_tool("save_script", {"name": "hello", "content": "import sys; print('hello', sys.argv[1])"})
        plot = await run(client, "x = 1; import matplotlib.pyplot as plt; plt.plot([1, 2]);")
        assert "image" in [block.type for block in plot.content]
        assert text_of(await run(client, "x + 1")) == "2"
        script = await client.call_tool("run_script", {"path": "hello", "args": ["you"]})
        assert text_of(script) == "hello you"
        names = (await client.call_tool("list_variables", {})).structuredContent["variables"]
        assert "x" in [variable["name"] for variable in names]
        assert (await client.call_tool("get_kernel_health", {})).structuredContent["status"] == "healthy"


@pytest.mark.long
async def test_the_state_of_the_variables_is_reported_as_far_as_it_is_known(plain_endpoint: dict[str, str]) -> None:
    async with stdio_client_session("--tools", "all", environment=plain_endpoint) as client:
        await run(client, "x = 1")
        assert "[state] unknown" in text_of(await run(client, "import time; time.sleep(30)", timeout=0.5))
        assert "[state] lost" in text_of(await run(client, "import os; os._exit(3)"))
        assert "NameError" in text_of(await run(client, "x"))


@pytest.mark.long
async def test_an_operation_that_an_endpoint_does_not_support_is_reported(plain_endpoint: dict[str, str]) -> None:
    async with stdio_client_session("--tools", "all", environment=plain_endpoint) as client:
        await run(client, "x = 1")
        for tool in ("checkpoint", "rollback", "branch", "interrupt"):
            told = await client.call_tool(tool, {})
            assert told.isError
            assert "use the embedded default or `aca-sessions serve`" in text_of(told)
        assert text_of(await run(client, "x")) == "1"
