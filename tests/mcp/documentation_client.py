"""Run the blocks of session_management.md as they are written, with the client of one of three libraries. Print what came of it as JSON.

This is a program for the Python of an environment that has the library, which is not that of the tests: `python documentation_client.py
LIBRARY SERVER`, where SERVER is JSON with the command or the URL of the server.
"""

import ast
import asyncio
import contextlib
import io
import json
import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("session_management.md")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
# The only thing that the page needs from elsewhere: the data of its pipeline, here from loopback.
SOURCE = """
import json, random, threading, requests
from http.server import BaseHTTPRequestHandler, HTTPServer
rows = [{"col_a": random.random(), "col_b": i, "col_c": i % 7, "target": "yes" if i % 2 else "no"} for i in range(60)]
class Data(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(rows + [{"col_a": None, "col_b": 0, "col_c": 0, "target": "no"}]).encode())
    def log_message(self, *_): ...
server = HTTPServer(("127.0.0.1", 0), Data)
threading.Thread(target=server.serve_forever, daemon=True).start()
get = requests.get
requests.get = lambda address: get(address.replace("https://api.example.com", f"http://127.0.0.1:{server.server_port}"))
"""


def fastmcp_client(server):
    """Return the client of FastMCP, which is the one that the page uses."""
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

    class Prepared(Client):
        async def call_tool(self, name, arguments=None, **more):
            if "requests.get" in (arguments or {}).get("code", ""):
                await super().call_tool("run_python_code", {"code": SOURCE})
            return await super().call_tool(name, arguments, **more)

    if "url" in server:
        return Prepared(StreamableHttpTransport(server["url"], auth=server["key"]), mode=server["mode"])
    return Prepared(StdioTransport(**server))


@contextlib.asynccontextmanager
async def sdk_client(server):
    """Yield the client of the MCP SDK. It has no `.data`, so the structured content is put in its place."""
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    class Prepared(ClientSession):
        async def call_tool(self, name, arguments=None, **more):
            if "requests.get" in (arguments or {}).get("code", ""):
                await super().call_tool("run_python_code", {"code": SOURCE})
            result = await super().call_tool(name, arguments, **more)
            content = result.structured_content if hasattr(result, "structured_content") else result.structuredContent
            object.__setattr__(result, "data", content)
            return result

    async with stdio_client(StdioServerParameters(**server)) as streams, Prepared(*streams) as client:
        await client.initialize()
        yield client


async def run_block(block, client):
    """Run a block. If it defines a function, call that too."""
    scope = {"client": client}
    waiting = eval(compile(block, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
    if waiting is not None:
        await waiting
    for name in re.findall(r"^async def (\w+)\(\):", block, re.MULTILINE):
        await scope[name]()


async def main(library, server):
    """Run all blocks on one connection. Print what each printed, and what cells show afterwards."""
    async with (fastmcp_client if library == "fastmcp" else sdk_client)(server) as client:

        async def text(code, session):
            return (await client.call_tool("run_python_code", {"code": code, "session_id": session})).content[0].text

        printed = []
        for block in BLOCKS:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                await run_block(block, client)
            printed.append(out.getvalue())
        shown = {
            "isolated": [await text("'x' in globals()", "modeling"), await text("x", "data_analysis")],
            "accuracy": await text("accuracy", "model_training"),
            "experiments": await text("sorted(results_df['experiment_id'])", "results_analysis"),
            "script": await text("from scripts.analysis_utils import *; data_summary(pd.DataFrame({'b': [1]}))['shape']", "dev_session"),
        }
        ran = await client.call_tool("run_script", {"path": "analysis_utils", "session_id": "dev_session"})
        listed = await client.call_tool("list_sessions")
        print(json.dumps({**shown, "printed": printed, "ran": ran.content[0].text, "sessions": [*listed.data["sessions"]]}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
