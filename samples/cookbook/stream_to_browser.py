"""Stream a cell's output to a browser with server-sent events.

`session.stream(code)` yields events while the cell runs: `stdout`, `stderr`,
`display`, and the `result` at the end. Send each as a server-sent event, which `new
EventSource("/run?code=…")` receives in the browser. If the browser goes away,
leaving the loop interrupts the cell. Show the text with `textContent`, never as
HTML, because code in the session chose it. At Azure all events arrive when the cell
has ended.
"""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from aca_sessions import open_pool


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with open_pool() as app.state.pool:
        yield


async def run(request: Request) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        async with request.app.state.pool.session() as session:
            async with aclosing(session.stream(request.query_params["code"])) as stream:
                async for event in stream:
                    text = event.result.output if event.result else event.text
                    yield f"event: {event.kind}\ndata: {json.dumps(text)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(routes=[Route("/run", run)], lifespan=lifespan)

with TestClient(app) as browser:  # instead of `uvicorn stream_to_browser:app`
    code = "import time\nprint('step 0')\ntime.sleep(0.5)\nprint('step 1')\n'done'"
    print(browser.get("/run", params={"code": code}).text.strip())

# prints:
# event: stdout
# data: "step 0\n"
#
# event: stdout
# data: "step 1\n"
#
# event: result
# data: "step 0\nstep 1\n'done'"
