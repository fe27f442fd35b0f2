"""Keep one session per chat user in FastAPI.

Name each user's session after the user: the same name continues the same variables and files. `session_name` makes a name from an id of
your sign-in and a secret, so that others cannot guess it. The pool ends a session that was idle for 30 minutes (`SessionTimeoutMinutes`);
the next result then says `lost: expired`. If no lease becomes free within 60 seconds, callers get `PoolTimeoutError`. The code is
Starlette, which comes with the package. In FastAPI, write `FastAPI(lifespan=lifespan)` and `@app.post("/run")`. An embedded pool needs one
worker process, because each would have sessions of its own.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from aca_sessions import open_pool, session_name
from aca_sessions.errors import PoolTimeoutError

SECRET = "at least 16 characters, from your secret store"


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with open_pool(max_concurrent_sessions=50) as app.state.pool:
        yield


async def run(request: Request) -> JSONResponse:
    user = request.headers["x-user"]  # stands for the user of your sign-in
    try:
        async with request.app.state.pool.session(session_name(user, salt=SECRET)) as session:
            result = await session.run((await request.body()).decode(), timeout=20)
    except PoolTimeoutError as error:
        return JSONResponse({"error": str(error)}, 503)
    return JSONResponse({"output": result.output, "error": result.error and str(result.error), "state": str(result.state)})


app = Starlette(routes=[Route("/run", run, methods=["POST"])], lifespan=lifespan)

with TestClient(app) as browser:  # instead of `uvicorn session_per_user:app`
    browser.post("/run", content="x = 20", headers={"x-user": "ann"})
    print(browser.post("/run", content="x + 22", headers={"x-user": "ann"}).json())
    print(browser.post("/run", content="x + 22", headers={"x-user": "bob"}).json()["error"])

# prints:
# {'output': '42', 'error': None, 'state': 'kept'}
# NameError: name 'x' is not defined
