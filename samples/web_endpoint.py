"""A web endpoint with many users, each in a session of their own: `uvicorn web_endpoint:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aca_sessions import open_pool
from aca_sessions.errors import PoolTimeoutError


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with open_pool(max_concurrent_sessions=50) as app.state.pool:
        yield


async def run(request: Request) -> JSONResponse:
    """The user's name comes from your own sign-in; here a header stands for it."""
    user = request.headers.get("x-user", "anonymous")
    try:
        async with request.app.state.pool.session(f"user-{user}") as session:
            result = await session.run((await request.body()).decode(), timeout=20)
    except PoolTimeoutError as error:
        return JSONResponse({"error": str(error)}, 503)
    return JSONResponse({"output": result.output, "error": str(result.error or ""), "state": str(result.state)})


app = Starlette(routes=[Route("/run", run, methods=["POST"])], lifespan=lifespan)
