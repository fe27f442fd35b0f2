"""Test the pool's own MCP endpoint, called as its documentation shows and by the MCP SDK's client."""

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from ..cli.test_cli import Server
from .test_versions import speaking

VERSION = "2025-10-02-preview"


async def called(http, tool: str, **arguments: object) -> dict:
    body = {"jsonrpc": "2.0", "id": "1", "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    return (await http.post("/mcp", json=body)).json()["result"]


async def test_it_answers_initialize_without_parameters() -> None:
    async with speaking(VERSION) as http:
        answer = (await http.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "initialize"})).json()
        assert (answer["id"], answer["result"]["serverInfo"]["name"]) == (1, "Microsoft Container Apps MCP Server")
        assert (await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})).status_code == 202


async def test_an_environment_keeps_variables_and_files() -> None:
    async with speaking(VERSION, plain=True) as http:
        launched = (await called(http, "launchShell"))["structuredContent"]
        await called(http, "runPythonCodeInRemoteEnvironment", pythonCode="x = 20; print(x, file=open('x.txt', 'w'))", **launched)
        told = await called(http, "runPythonCodeInRemoteEnvironment", pythonCode="print('out'); x + 22", **launched)
        assert told["structuredContent"] == {"stdout": "out\n", "stderr": "", "executionResult": 42}
        assert told["content"] == [{"type": "text", "text": "out\n42"}]
        listed = await called(http, "runShellCommandInRemoteEnvironment", shellCommand="cat x.txt; exit 2", **launched)
        assert listed["structuredContent"] == {"stdout": "20\n", "stderr": "", "exitCode": 2}


async def test_a_loss_that_it_reported_is_not_reported_again_over_http() -> None:
    async with speaking(VERSION) as http:
        launched = (await called(http, "launchPythonEnvironment"))["structuredContent"]
        died = await called(http, "runPythonCodeInRemoteEnvironment", pythonCode="import os; os._exit(1)", **launched)
        assert (died["isError"], died["structuredContent"]["stderr"]) == (True, "Execution aborted")
        params = {"identifier": launched["environmentId"]}
        ran = await http.post("/executions", json={"code": "1"}, headers={"x-aca-sessions-rich": "1"}, params=params)
        assert ran.json()["acaSessions"]["state"]["variables"] == "kept"


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("runPythonCodeInRemoteEnvironment", {"pythonCode": "1"}),
        ("runPythonCodeInRemoteEnvironment", {"pythonCode": "1", "environmentId": "never launched"}),
        ("runPythonCodeInRemoteEnvironment", {"pythonCode": 1, "environmentId": "{launched}"}),
        ("runShellCommandInRemoteEnvironment", {"environmentId": "{launched}"}),
        ("runPythonCodeInRemoteEnvironment", {"pythonCode": "1 / 0", "environmentId": "{launched}"}),
    ],
)
async def test_a_failure_is_reported_to_the_model(tool: str, arguments: dict) -> None:
    async with speaking(VERSION) as http:
        launched = (await called(http, "launchPythonEnvironment"))["structuredContent"]["environmentId"]
        if "environmentId" in arguments:
            arguments = arguments | {"environmentId": arguments["environmentId"].format(launched=launched)}
        told = await called(http, tool, **arguments)
        assert told["isError"]
        assert told["content"][0]["text"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"id": 1, "method": "no/method"}, -32601),
        ({"id": 1, "method": "tools/call"}, -32602),
        ({"id": 1, "method": "tools/call", "params": {"name": "rm"}}, -32602),
        ({"id": 1, "method": "tools/call", "params": {"name": "launchShell", "arguments": 1}}, -32602),
        ([], -32600),
        ({"id": 1, "method": 1}, -32600),
    ],
)
async def test_a_malformed_request_is_refused(body: object, code: int) -> None:
    async with speaking(VERSION) as http:
        assert (await http.post("/mcp", json=body)).json()["error"]["code"] == code


@pytest.mark.long
@pytest.mark.slow
async def test_the_sdks_client_finds_and_uses_the_tools() -> None:
    with Server("--port", "0", "--api-key", "key") as server:
        async with (
            httpx.AsyncClient(headers={"x-ms-apikey": "key"}, timeout=120) as http,
            streamable_http_client(f"{server.endpoint}/mcp", http_client=http) as (read, write, _),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            assert (await client.list_tools()).tools[0].name == "launchShell"
            launched = (await client.call_tool("launchShell", {})).structuredContent
            ran = await client.call_tool("runPythonCodeInRemoteEnvironment", {"pythonCode": "6 * 7", **launched})
            assert ran.structuredContent["executionResult"] == 42


@pytest.mark.slow
@pytest.mark.long
async def test_a_key_in_azures_own_header_is_accepted_on_every_path_and_a_wrong_one_on_none() -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    with Server("--port", "0", "--api-key", "key") as server:
        for method, path in (("POST", "/mcp"), ("GET", "/listSessions?api-version=2025-10-02-preview")):
            for header, status in (("key", 200), ("other", 401), ("ke", 401), ("", 401), ("k\u00e9y", 401)):
                headers = {"x-ms-apikey": header.encode()}
                assert httpx.request(method, server.endpoint + path, json=body, headers=headers, timeout=120).status_code == status
            headers = {"x-ms-apikey": "key", "authorization": "Bearer a-token-of-azure"}
            assert httpx.request(method, server.endpoint + path, json=body, headers=headers, timeout=120).status_code == 200
