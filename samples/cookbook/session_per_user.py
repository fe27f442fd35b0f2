"""Keep one session per chat user in FastAPI.

Name each user's session after the user: the same name continues the same variables
and files. `session_name` makes a name from an id of your sign-in and a secret, so
that others cannot guess it. The pool ends a session that was idle for 30 minutes
(`SessionTimeoutMinutes`); the next result then says `lost: expired`. If no lease
becomes free within 60 seconds, callers get `PoolTimeoutError`. The code is
Starlette, which comes with the package. In FastAPI, write
`FastAPI(lifespan=lifespan)` and `@app.post("/run")`. An embedded pool needs one
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
        name = session_name(user, salt=SECRET)
        async with request.app.state.pool.session(name) as session:
            result = await session.run((await request.body()).decode(), timeout=20)
    except PoolTimeoutError as error:
        return JSONResponse({"error": str(error)}, 503)
    error = str(result.error or "")
    return JSONResponse({"output": result.output, "error": error})


app = Starlette(routes=[Route("/run", run, methods=["POST"])], lifespan=lifespan)

with TestClient(app) as browser:  # instead of `uvicorn session_per_user:app`
    for user, code in (("ann", "x = 20"), ("ann", "x + 22"), ("bob", "x + 22")):
        reply = browser.post("/run", content=code, headers={"x-user": user})
        print(user, reply.json())

# prints:
# ann {'output': '', 'error': ''}
# ann {'output': '42', 'error': ''}
# bob {'output': '', 'error': "NameError: name 'x' is not defined"}
