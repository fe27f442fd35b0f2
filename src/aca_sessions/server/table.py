"""How routes are written down, and what every answer has whatever its route."""

import logging
import time
import traceback
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..contract.records import DRAINING, encode_problem
from ..telemetry import hashed
from .problems import problem_of

Handler = Callable[[Request], Awaitable[Response]]
Routes = list[tuple[str, str, Handler]]  # path, method, handler

_logger = logging.getLogger("aca_sessions")
_access = logging.getLogger("aca_sessions.access")


def answering(path: str, method: str, handler: Handler, headers: dict[str, str]) -> Route:
    """A route whose handler's exceptions become answers, each with the server's headers and its session's."""

    async def answer(request: Request) -> Response:
        started = time.perf_counter()
        try:
            response = await handler(request)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception as error:
            response = problem_answer(error)
        response.headers.update(headers)
        if (session := getattr(request.state, "session", None)) is not None:
            response.headers.update(session.take_headers())
        _log_access(request, path, response.status_code, time.perf_counter() - started)
        return response

    return Route(f"/{path}", answer, methods=[method])


def _log_access(request: Request, path: str, status: int, seconds: float) -> None:
    """The route's pattern and never its path: identifiers are secrets, and so may names of files be."""
    if _access.isEnabledFor(logging.DEBUG):
        name = request.query_params.get("identifier")
        session = hashed(name) if name else "-"
        _access.debug("%s /%s %s session %s %.0f ms", request.method, path, status, session, seconds * 1000)


def problem_answer(error: Exception) -> Response:
    """Azure's form for an exception that a handler let through."""
    problem = problem_of(error)
    if problem.status == 500:
        where = traceback.extract_tb(error.__traceback__)[-1]
        _logger.error("a request failed: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
    asked_later = {"retry-after": "1"} if problem.code == DRAINING else {}
    return JSONResponse(encode_problem(problem), problem.status, headers={"x-ms-error-code": problem.code} | asked_later)
