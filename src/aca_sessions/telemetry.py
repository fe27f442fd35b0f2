"""Spans and metrics through opentelemetry-api. Names are hashed; code and contents never get here."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import metrics, trace
from opentelemetry.trace import Span

from .models import CodeExecutionResult

_tracer = trace.get_tracer("aca_sessions")
_meter = metrics.get_meter("aca_sessions")
_executions = _meter.create_counter("aca_sessions.executions", description="Cells, by what became of them")
_execution_seconds = _meter.create_histogram("aca_sessions.execution.duration", "s", "How long cells took")
_acquire_seconds = _meter.create_histogram("aca_sessions.acquire.duration", "s", "How long callers waited for a session")
_leases = _meter.create_up_down_counter("aca_sessions.leases", description="Sessions held now")


def hashed(name: str) -> str:
    """What may be written of a session's name: whoever has the name itself owns the session."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@contextmanager
def span(step: str, session_id: str | None = None, **attributes: int | float | str) -> Iterator[Span]:
    """A span of ours below whatever span the caller is in. What an exception says is left out, its type is not."""
    known = {"session.hash": hashed(session_id)} if session_id is not None else {}
    with _tracer.start_as_current_span(
        f"aca_sessions.{step}", attributes={**known, **attributes}, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            raise


@contextmanager
def acquiring(session_id: str | None) -> Iterator[None]:
    """The wait for a lease."""
    started = time.perf_counter()
    with span("acquire", session_id):
        yield
    _acquire_seconds.record(time.perf_counter() - started)
    _leases.add(1)


def released() -> None:
    """A lease ended."""
    _leases.add(-1)


def executed(current: Span, result: CodeExecutionResult) -> None:
    """What became of a cell."""
    verdict = {"success": result.success, "state": result.state.kind}
    _executions.add(1, verdict)
    _execution_seconds.record(result.duration, verdict)
    sizes = {"stdout.length": len(result.stdout), "stderr.length": len(result.stderr), "displays": len(result.displays)}
    current.set_attributes({**verdict, **sizes, "duration": result.duration, "state.reason": result.state.reason or ""})
