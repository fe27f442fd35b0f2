"""The route GET /metrics: the metrics of this process. No name of a session is in them."""

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from ..contract.records import ProblemError
from ..hosting import Hosting
from .sessions import Sessions
from .table import Routes

PATH = "metrics"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class MetricsRoute:
    """The handler of the metrics, if the server was started with them. `hosting.metrics` returns them in Prometheus's text format."""

    def __init__(self, _sessions: Sessions, hosting: Hosting) -> None:
        self._numbers = hosting.metrics

    def table(self) -> Routes:
        """Return the one route, or none without metrics."""
        return [(PATH, "GET", self.metrics)] if self._numbers is not None else []

    async def metrics(self, _request: Request) -> Response:
        """Return all metrics as they are now."""
        if self._numbers is None:
            raise ProblemError(404, "NotFound", "this server was started without --metrics")
        return Response(await to_thread.run_sync(self._numbers), media_type=_TEXT)
