"""Let cells call an HTTP API, and hide its key from them.

`HttpApi` makes each endpoint that you list a tool. Your program sends the request
and adds the headers, so the session needs no network and never sees the key. Code
can call only the listed endpoints, with the listed parameters. Redirects are not
followed. Give endpoints that change something `effect="write"` and an `approve`
function. The response is JSON or text; an HTTP error raises `ToolError` in the
cell.
"""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from aca_sessions import AgentSession
from aca_sessions.agent.tools.http import Endpoint, HttpApi


class Weather(BaseHTTPRequestHandler):
    """Stand for the API of another service."""

    def do_GET(self) -> None:
        self.send_response(200 if self.headers["x-api-key"] == "SECRET" else 401)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"path": self.path, "degrees": 7}).encode())

    def log_message(self, *_: object) -> None: ...


async def main(url: str) -> None:
    today = Endpoint(name="today", path="/cities/{city}", effect="read")
    api = HttpApi("weather", url, [today], headers={"x-api-key": "SECRET"})
    async with AgentSession(tools=[api]) as agent:
        print(await agent.run("tools.weather.today(city='Oslo')"))


server = HTTPServer(("127.0.0.1", 0), Weather)
threading.Thread(target=server.serve_forever, daemon=True).start()
asyncio.run(main(f"http://127.0.0.1:{server.server_port}"))

# prints:
# {'path': '/cities/Oslo', 'degrees': 7}
