"""The table of routes, and what every response has, whatever its route."""

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
    """Build a route from a handler. Its exceptions become responses; each response has the server's headers and those of its session.

    Args:
        route: The path, the method and the handler.
        headers: The server's headers.
        journal: Records problems, and what the handler notes.
    """

    path, method, handler = route

    async def answer(request: Request) -> Response:
        started = time.perf_counter()
        try:
            response = await handler(request)
        except ClientDisconnect:
            response = Response(status_code=400)  # the client has gone and does not read it
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
    """Note what the journal records of a request, if the request succeeds."""
    request.state.noted = (event, fields)


def _note(request: Request, seconds: float, journal: Journal) -> None:
    noted, session = getattr(request.state, "noted", None), getattr(request.state, "session", None)
    if noted is not None and session is not None:
        journal.noted(noted[0], session.identifier, seconds, noted[1])


def _log_access(request: Request, path: str, status: int, seconds: float) -> None:
    """Log a request, with the pattern of its route but not its path: identifiers are secrets, and names of files may be."""
    if _access.isEnabledFor(logging.DEBUG):
        name = request.query_params.get("identifier")
        session = hashed(name) if name else "-"
        _access.debug("%s /%s %s session %s %.0f ms", request.method, path, status, session, seconds * 1000)


def problem_answer(error: Exception) -> Response:
    """Return the response for an exception that a handler raised, in Azure's format."""
    problem = problem_of(error)
    if problem.status == 500:
        where = traceback.extract_tb(error.__traceback__)[-1]
        _logger.error("a request failed: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
    asked_later = {"retry-after": "1"} if problem.status == 429 or problem.code in (DRAINING, TOO_MANY_STARTING) else {}
    if isinstance(problem, MalformedBodyError):  # Azure refuses these before the service, so they have no error code
        body = encode_problem(problem)
        _logger.debug("a body was refused as malformed, trace %s", body["traceId"])
        return JSONResponse(body, problem.status, media_type="application/problem+json")
    return JSONResponse(encode_problem(problem), problem.status, headers={"x-ms-error-code": problem.code} | asked_later)
