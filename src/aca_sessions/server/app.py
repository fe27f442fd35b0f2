"""The ASGI application: it routes requests to handlers, at the root and below Azure's base path."""

import argparse
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from ..contract import extensions
from ..contract.records import ProblemError
from ..contract.versions import VERSIONS
from ..errors import ConfigurationError
from ..hosting import Hosting
from ..lifetime import OwnerProcess
from .cell_routes import CellRoutes
from .file_routes import FileRoutes
from .guard import Guard
from .journal import current_request
from .mcp_route import McpRoute
from .page_routes import page_routes
from .routing import build_route, log_access, problem_response
from .session_routes import LIVE_PATH, READY_PATH, CheckpointRoutes, NetworkRoutes, PackageRoutes, SaveRoutes, SessionRoutes
from .sessions import Sessions


def check_single_worker() -> None:
    """Raise ConfigurationError if this process is one of several workers, because each would have sessions of its own.

    The number of workers is in WEB_CONCURRENCY, or in the option `--workers` of uvicorn or gunicorn.
    """
    asked = {"WEB_CONCURRENCY": os.environ.get("WEB_CONCURRENCY", ""), "--workers": _read_worker_count(sys.argv)}
    for name, count in asked.items():
        if count.isdecimal() and int(count) > 1:
            raise ConfigurationError(
                f"{name} must be 1, got {count}: each worker would have sessions of its own. Run one worker, or several servers behind a "
                "proxy that sends each session to its server (docs/guides/scaling.md)"
            )


def _read_worker_count(command: list[str]) -> str:
    """Return the number of workers in the command line of a process that uvicorn or gunicorn started as a worker.

    Return "" if the command line has no number, or if this process is not a worker. A worker has the same arguments as its parent, because
    gunicorn forks workers and uvicorn spawns them with the same command line.
    """
    program = Path(command[0]).parts[-2:] if command else ()
    if "gunicorn" not in program and ("uvicorn" not in program or multiprocessing.parent_process() is None):
        return ""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-w", "--workers", default="")
    return str(parser.parse_known_args(command[1:])[0].workers)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SUPPORTED = {"api-supported-versions": ", ".join(VERSIONS)}
_AZURE_BASE = "/subscriptions/{subscription}/resourceGroups/{group}/sessionPools/{pool}"


class Service:
    """The ASGI application of one server. The caller that created `sessions` must close them."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._owner = OwnerProcess("the server")
        self._headers = SUPPORTED if hosting.plain else SUPPORTED | extensions.offer(stores=sessions.saved is not None)
        subjects = (CellRoutes, SessionRoutes, CheckpointRoutes, FileRoutes, NetworkRoutes, PackageRoutes, SaveRoutes, McpRoute)
        named = [route for subject in subjects for route in subject(sessions, hosting).routes()]
        routes = [build_route(route, self._headers, sessions.journal) for route in named]
        page = [build_route(route, self._headers, sessions.journal) for route in (page_routes(hosting.max_upload) if hosting.page else [])]
        problems: Any = {HTTPException: self._respond_to_http_exception}
        app = Starlette(routes=[*routes, Mount(_AZURE_BASE, routes=routes), *page], exception_handlers=problems)
        guarded = hosting.accepted_keys or hosting.allowed_hosts
        # The health check and the page hold no data, so they need no key.
        open_paths = frozenset({f"/{extensions.HEALTH_PATH}", *(route.path for route in page)})
        probe_paths = frozenset({f"/{LIVE_PATH}", f"/{READY_PATH}"})
        self._app: ASGIApp = Guard(app, hosting, refuse=self._refuse, open_paths=open_paths, probe_paths=probe_paths) if guarded else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one ASGI request. Raise ForkedProcessError in a process that was forked from the server."""
        self._owner.check()
        await self._app(scope, receive, send)

    def refuse_new_sessions(self) -> None:
        """Refuse requests that would open a new session, from now on. Existing sessions are still served."""
        self._sessions.draining = True

    async def examine_host(self) -> tuple[str, list[str], tuple[int, str] | None]:
        """Check what this host enforces, and how many sessions fit on it.

        Return the level of isolation (`full` or `no-namespaces`), the names of those protections that this host does not enforce, and how
        many sessions fit, with a text about each resource. The last is None if no session could be opened.

        The first call checks the host. Later calls return the same result.
        """
        report = await self._sessions.isolation()
        room = (report.capacity.sessions + self.session_count, report.capacity.reasons) if report.capacity else None
        return report.level, [finding.name for finding in report.findings if not finding.enforced], room

    @property
    def session_count(self) -> int:
        """Return how many sessions there are."""
        return len(self._sessions)

    async def drain(self, within: float) -> None:
        """Wait until running cells have ended, at most `within` seconds, then end all sessions.

        A cell that still runs then is stopped, and its result gives the reason.
        """
        self.refuse_new_sessions()
        await self._sessions.finish(within)
        await self._sessions.close()

    def _refuse(self, problem: ProblemError, scope: Scope) -> Response:
        token = current_request.set(scope)
        self._sessions.journal.record_refusal(problem, "any")
        response = problem_response(problem)
        response.headers.update(self._headers)
        log_access(scope["method"] if scope["method"] in _METHODS else "-", "any", response.status_code, "-", 0.0)
        current_request.reset(token)
        return response

    async def _respond_to_http_exception(self, _request: Request, error: HTTPException) -> Response:
        response = problem_response(error)
        response.headers.update(self._headers)
        return response
