"""Spans and metrics through opentelemetry-api. Names of sessions are hashed; code and contents are never recorded."""

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Histogram, Observation
from opentelemetry.trace import Span

from .models import CodeExecutionResult, State

_tracer = trace.get_tracer("aca_sessions")
_meter = metrics.get_meter("aca_sessions")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 240)


def _create_histogram(name: str, description: str) -> Histogram:
    return _meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS)


_executions = _meter.create_counter("aca_sessions.executions", description="Cells, by success and state")
_execution_seconds = _create_histogram("aca_sessions.execution.duration", "How long cells took, as their callers see it")
acquire_seconds = _create_histogram("aca_sessions.acquire.duration", "How long callers waited for a session")
leases = _meter.create_up_down_counter("aca_sessions.leases", description="Leases of sessions now")

_live = _meter.create_up_down_counter("aca_sessions.server.sessions", "{session}", "Sessions that live in this process")
_active = _meter.create_up_down_counter("aca_sessions.server.active_executions", "{execution}", "Cells that run now")
_start_seconds = _create_histogram("aca_sessions.server.start.duration", "How long sessions waited for an interpreter")
_cell_seconds = _create_histogram("aca_sessions.server.execution.duration", "How long cells ran, by how they ended")
_losses = _meter.create_counter(
    "aca_sessions.server.losses", "{loss}", "Deaths of interpreters, and sessions that a server ended, by the reason"
)
_refusals = _meter.create_counter("aca_sessions.server.refusals", "{request}", "Requests that a limit or a check refused, by the reason")
_fork_server_deaths = _meter.create_counter(
    "aca_sessions.server.fork_server.deaths", "{process}", "Fork servers that died, each with all its sessions"
)
_unusable_key_files = _meter.create_up_down_counter(
    "aca_sessions.server.key_file.unusable", "{file}", "Key files that cannot be read, so that earlier keys stay accepted"
)
_network_requests = _meter.create_counter(
    "aca_sessions.server.network.requests", "{request}", "Requests of sessions, and connections that are not inspected, by decision"
)
_network_traffic = _meter.create_counter(
    "aca_sessions.server.network.traffic", "By", "Bytes that sessions sent and received on the network, by decision"
)
_audit_lost = _meter.create_counter("aca_sessions.server.audit.lost", "{event}", "Events that the audit log could not take")

Outcome = Literal["succeeded", "failed", "interrupted", "timed_out"]
REFUSALS = (
    "SessionsCountExceedsLimit",
    "TooManySessionsStarting",
    "RequestTooLarge",
    "SessionStorageFull",
    "Unauthorized",
    "HostNotAllowed",
    "OriginNotAllowed",
)
NETWORK_DECISIONS = ("allowed", "approved", "refused")  # by a rule, by a person, or refused
_ENDINGS = ("expired", "evicted")  # by the server: its cool-down was over, or it was full and needed the place
_LOSS_REASONS = ("memory", "killed", "exit", "crash", *_ENDINGS)


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of a resource a server uses now, and its limit."""

    used: int
    limit: int


class MeasuredServer(Protocol):
    """A server that the metrics can measure: it reports how much of its limits it uses."""

    def session_usage(self) -> Usage: ...  # noqa: D102
    # Sessions whose first interpreter has not started yet.
    def starting_usage(self) -> Usage: ...  # noqa: D102
    # Bytes of all sessions and their files.
    def memory_usage(self) -> Usage: ...  # noqa: D102
    # File descriptors of this process.
    def descriptor_usage(self) -> Usage: ...  # noqa: D102
    # Return whether the server refuses new sessions because it is about to stop.
    @property
    def draining(self) -> bool: ...  # noqa: D102


_servers: "weakref.WeakSet[MeasuredServer]" = weakref.WeakSet()


def hash_name(name: str) -> str:
    """Return the first 12 hex digits of a session name's SHA-256. The name itself is secret, because it gives access to the session."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@contextmanager
def span(step: str, session_id: str | None = None, **attributes: int | float | str) -> Iterator[Span]:
    """Open a span for a `with` block, as a child of the current span. If the block raises, record the exception's type, not its message."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # no program has set up tracing
        yield trace.INVALID_SPAN
        return
    known = {"session.hash": hash_name(session_id)} if session_id is not None else {}
    with _tracer.start_as_current_span(
        f"aca_sessions.{step}", attributes={**known, **attributes}, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            raise


def record_client_execution(current: Span, result: CodeExecutionResult) -> None:
    """Record how an execution ended, in the metrics and on the span `current`: success, state, duration and sizes of the output.

    The result's state must contain only what this caller has not received before: otherwise a loss of variables is counted twice.
    """
    verdict = {"success": result.error is None, "state": result.state.kind}
    _executions.add(1, verdict)
    _execution_seconds.record(result.duration, verdict)
    sizes = {"stdout.length": len(result.stdout), "stderr.length": len(result.stderr), "displays": len(result.displays)}
    current.set_attributes({**verdict, **sizes, "duration": result.duration, "state.reason": result.state.reason or ""})


def observe_server(server: MeasuredServer) -> None:
    """Add a server's use and limits to the metrics, for as long as the server object exists.

    Also add 0 to the counters, so that exporters show them before the first event.
    """
    _servers.add(server)
    _audit_lost.add(0)
    _fork_server_deaths.add(0)
    _unusable_key_files.add(0)
    for reason in _LOSS_REASONS:
        _losses.add(0, {"reason": reason})
    for code in REFUSALS:
        _refusals.add(0, {"error.type": code})
    for decision in NETWORK_DECISIONS:
        count_network_use(decision, 0, 0, requests=0)


def _observe(read: Callable[[MeasuredServer], int], _: CallbackOptions) -> Iterable[Observation]:
    return [Observation(sum(read(server) for server in list(_servers)))]


def _observe_process(read: Callable[[MeasuredServer], int], _: CallbackOptions) -> Iterable[Observation]:
    # All servers of a process share its descriptors.
    return [Observation(max((read(server) for server in list(_servers)), default=0))]


def _create_gauge(
    name: str, unit: str, description: str, read: Callable[[MeasuredServer], int], observe: Callable[..., Iterable[Observation]]
) -> None:
    _meter.create_observable_gauge(f"aca_sessions.server.{name}", [partial(observe, read)], unit, description)


_create_gauge("sessions.limit", "{session}", "The most sessions that may live", lambda server: server.session_usage().limit, _observe)
_create_gauge(
    "starting.usage", "{session}", "Sessions that wait for their first interpreter", lambda server: server.starting_usage().used, _observe
)
_create_gauge(
    "starting.limit", "{session}", "The most sessions that may wait for it", lambda server: server.starting_usage().limit, _observe
)
_create_gauge("memory.usage", "By", "Memory of all sessions and their files", lambda server: server.memory_usage().used, _observe)
_create_gauge(
    "memory.limit", "By", "The most memory of all sessions together", lambda server: server.memory_usage().limit, _observe_process
)
_create_gauge("descriptors.usage", "{descriptor}", "Open descriptors", lambda server: server.descriptor_usage().used, _observe_process)
_create_gauge("descriptors.limit", "{descriptor}", "The most descriptors", lambda server: server.descriptor_usage().limit, _observe_process)
_create_gauge(
    "draining", "{server}", "Servers that refuse new sessions because they are about to stop", lambda server: server.draining, _observe
)


def count_session_start() -> None:
    """Count a session that a server has started."""
    _live.add(1)


def count_session_end(reason: str) -> None:
    """Count a session that a server has ended. If it expired or was evicted, also count a loss of variables and files."""
    _live.add(-1)
    if reason in _ENDINGS:
        _losses.add(1, {"reason": reason})


def record_interpreter_start(start: Literal["warm", "cold"], seconds: float) -> None:
    """Record how many seconds a session waited for its interpreter.

    If `start` is `warm`, the interpreter was ready before. If it is `cold`, it was forked when the session needed it.
    """
    _start_seconds.record(seconds, {"start": start})


@contextmanager
def count_active_cell() -> Iterator[None]:
    """Count one more running cell during a `with` block."""
    _active.add(1)
    try:
        yield
    finally:
        _active.add(-1)


def record_server_execution(result: CodeExecutionResult) -> None:
    """Record on the server how an execution ended and how long it took."""
    _cell_seconds.record(
        result.duration, {"outcome": "succeeded" if result.error is None else outcome_of(result), "state": result.state.kind}
    )


def count_loss(state: State) -> None:
    """If the interpreter of a session died, count a loss of variables, even if a checkpoint restored them.

    `state` is what happened to the session since the last call for it.
    """
    reason = (state.reason or "").partition(",")[0]
    # `count_session_end` counts sessions that the server ended.
    if reason in _LOSS_REASONS and reason not in _ENDINGS:
        _losses.add(1, {"reason": reason})


def outcome_of(result: CodeExecutionResult) -> Outcome:
    """Return how an execution ended: `succeeded`, `failed`, `interrupted` or `timed_out`."""
    if result.error is None:
        return "succeeded"
    # The sandbox's time-out has no traceback. A TimeoutError that the code raised has one.
    if result.error.name == "TimeoutError" and not result.error.traceback:
        return "timed_out"
    return "interrupted" if result.error.name == "KeyboardInterrupt" else "failed"


def count_refusal(code: str) -> None:
    """Count a request that the server refused. `code` is one of `REFUSALS`."""
    _refusals.add(1, {"error.type": code})


def count_network_use(decision: str, sent: int, received: int, *, requests: int = 1) -> None:
    """Count requests of a session, and their bytes. `decision` is one of `NETWORK_DECISIONS`."""
    _network_requests.add(requests, {"decision": decision})
    _network_traffic.add(sent, {"decision": decision, "direction": "sent"})
    _network_traffic.add(received, {"decision": decision, "direction": "received"})


def count_fork_server_death() -> None:
    """Count a fork server that died."""
    _fork_server_deaths.add(1)


def count_unusable_key_file(change: int) -> None:
    """Count a key file that became unusable (1) or usable again (-1)."""
    _unusable_key_files.add(change)


def count_lost_audit_event() -> None:
    """Count an event that the audit log could not write."""
    _audit_lost.add(1)
