"""How routes are written down, and what every answer has whatever its route."""

import logging
import time
import traceback
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..contract.records import DRAINING, TOO_MANY_STARTING, MalformedBodyError, encode_problem
from ..telemetry import hashed
from .journal import Journal
from .problems import problem_of

Handler = Callable[[Request], Awaitable[Response]]
Named = tuple[str, str, Handler]  # path, method, handler
Routes = list[Named]

_logger = logging.getLogger("aca_sessions")
_access = logging.getLogger("aca_sessions.access")


def answering(route: Named, headers: dict[str, str], journal: Journal) -> Route:
    """A route whose handler's exceptions become answers, each with the server's headers and its session's."""

    path, method, handler = route

    async def answer(request: Request) -> Response:
        started = time.perf_counter()
        try:
            response = await handler(request)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception as error:
            problem = problem_of(error)
            journal.refused(problem, f"{method} {path}", request.query_params.get("identifier"))
            response = problem_answer(error)
        response.headers.update(headers)
        if (session := getattr(request.state, "session", None)) is not None:
            response.headers.update(session.take_headers())
        seconds = time.perf_counter() - started
        _note(request, seconds, journal)
        _log_access(request, path, response.status_code, seconds)
        return response

    return Route(f"/{path}", answer, methods=[method])


def note(request: Request, event: str, **fields: object) -> None:
    """What the journal is to say of a request that succeeds."""
    request.state.noted = (event, fields)


def _note(request: Request, seconds: float, journal: Journal) -> None:
    noted, session = getattr(request.state, "noted", None), getattr(request.state, "session", None)
    if noted is not None and session is not None:
        journal.noted(noted[0], session.identifier, seconds, noted[1])


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
    asked_later = {"retry-after": "1"} if problem.status == 429 or problem.code in (DRAINING, TOO_MANY_STARTING) else {}
    if isinstance(problem, MalformedBodyError):  # refused before the service itself, which alone names a code
        body = encode_problem(problem)
        _logger.debug("a body was refused as malformed, trace %s", body["traceId"])
        return JSONResponse(body, problem.status, media_type="application/problem+json")
    return JSONResponse(encode_problem(problem), problem.status, headers={"x-ms-error-code": problem.code} | asked_later)
