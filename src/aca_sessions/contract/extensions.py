"""Extensions: what this project's server offers beyond Azure's API. It names them in a header of every response.

These are rich results on request, interrupt, reset, health, isolation and packages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any, cast

from ..models import (
    CodeError,
    CodeExecutionResult,
    Display,
    Entry,
    FileChange,
    Package,
    Record,
    RunningProcess,
    Scalar,
    SessionInfo,
    State,
    VariableChange,
)
from .records import ProblemError

RICH_REQUEST_HEADER = "x-aca-sessions-rich"
SINCE_HEADER = "x-aca-sessions-since"  # the position in the ledger of the last result that the caller received
CAUSE_HEADER = "x-aca-sessions-cause"  # why the caller ends a session
OFFER_HEADER = "x-aca-sessions-extensions"
OFFERED = ("rich", "interrupt", "reset", "health", "isolation", "ranges", "events", "checkpoint", "packages")
OFFER = {OFFER_HEADER: ", ".join(OFFERED)}
RICH_MEMBER = "acaSessions"

INTERRUPT_PATH = "executions/{id}/interrupt"
INTERRUPT_SESSION_PATH = "session/interrupt"
RESET_PATH = "session/reset"
HEALTH_PATH = "health"
ISOLATION_PATH = "isolation"
PACKAGES_PATH = "session/packages"
MAX_INSTALL_SECONDS = 3600.0


def encode_rich(result: CodeExecutionResult) -> dict[str, object]:
    """Return a whole result. It replaces the one in Azure's form, so no stream or image is sent twice."""
    return {
        "duration": result.duration,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "value": _encode_scalar(result.value),
        "text": result.text,
        "files": [{"path": file.path, "kind": file.kind, "size": file.size} for file in result.files],
        "processes": [{"pid": process.pid, "name": process.name} for process in result.processes],
        "variables": [_encode_variable(variable) for variable in result.variables],
        "displays": [dict(display.data) for display in result.displays],
        "displayNames": [display.name for display in result.displays],
        "error": _encode_error(result.error),
        "state": _encode_state(result.state),
        **({"ledger": encode_record(result.record)} if result.record is not None else {}),
    }


def decode_rich(body: Mapping[str, object], session_id: str = "") -> CodeExecutionResult:
    """Return the result that `encode_rich` encoded."""
    error, record = body.get("error"), cast(Mapping[str, Any] | None, body.get("ledger"))
    return CodeExecutionResult(
        session_id=session_id,
        stdout=str(body["stdout"]),
        stderr=str(body["stderr"]),
        value=_decode_scalar(body.get("value")),
        text=cast(str | None, body.get("text")),
        displays=_decode_displays(body),
        files=tuple(FileChange(**file) for file in cast(list[dict[str, Any]], body.get("files", []))),
        processes=tuple(RunningProcess(**process) for process in cast(list[dict[str, Any]], body.get("processes", []))),
        variables=tuple(map(_decode_variable, cast(list[dict[str, Any]], body.get("variables", [])))),
        error=CodeError(**cast(dict[str, str], error)) if error else None,
        state=_decode_state(cast(Mapping[str, Any], body["state"])),
        duration=cast(float, body["duration"]),
        record=decode_record(record) if record else None,
    )


def encode_record(record: Record) -> dict[str, object]:
    """Return the part of a ledger that a response carries."""
    return {
        "id": record.ledger,
        "since": record.since,
        "start": record.start,
        "end": record.end,
        "entries": [{name: value for name, value in asdict(entry).items() if value is not None} for entry in record.entries],
    }


def decode_record(body: Mapping[str, Any]) -> Record:
    """Return the record that a response carries."""
    entries = tuple(Entry(**{**entry, "cut_off": tuple(entry["cut_off"])}) for entry in body["entries"])
    return Record(str(body["id"]), body["since"], body["start"], body["end"], entries)


def encode_position(ledger: str, position: int) -> dict[str, object]:
    """Return the position in a ledger of the entry that a request made."""
    return {"ledger": ledger, "position": position}


def decode_position(body: Mapping[str, Any]) -> tuple[str, int]:
    """Return the id of a ledger and the position in it."""
    return str(body["ledger"]), int(body["position"])


def _encode_state(state: State) -> dict[str, object]:
    """Return a state with `kind` and `consequence`, which follow from the rest. So pages and other clients need not know how."""
    return {
        "kind": state.kind,
        "variables": state.variables,
        "files": state.files,
        "processes": state.processes,
        "reason": state.reason,
        "checkpoint": state.checkpoint,
        "cut_off": list(state.cut_off),
        "consequence": state.consequence,
    }


def _decode_state(body: Mapping[str, Any]) -> State:
    named = {name: body[name] for name in ("variables", "files", "processes", "reason", "checkpoint")}
    return State(**named, cut_off=tuple(body["cut_off"]))


def encode_health(sessions: int, capacity: int, *, status: str) -> dict[str, object]:
    """Return the server's state for load balancers and operators."""
    return {"status": status, "sessions": sessions, "maxSessions": capacity}


def encode_isolation(level: str, parts: Mapping[str, str], missing: Mapping[str, str]) -> dict[str, object]:
    """Return what separates sessions from their host.

    Args:
        level: The level of isolation that the settings name.
        parts: The parts that are enforced, each with how that was found out.
        missing: The parts that are not, each with how that was found out.
    """
    return {"full": not missing, "level": level, "parts": dict(parts), "missing": dict(missing)}


def decode_isolation(body: Mapping[str, object]) -> dict[str, str]:
    """Return the level, and each part with how it was found out. Missing parts are marked as `NOT ENFORCED`."""
    missing = {name: f"NOT ENFORCED: {how}" for name, how in cast(Mapping[str, str], body["missing"]).items()}
    level = {"level": str(body["level"])} if "level" in body else {}
    return {**level, **cast(Mapping[str, str], body["parts"]), **missing}


def encode_installation(requirements: Sequence[str], timeout: float) -> dict[str, object]:
    """Return a request to install packages within a time in seconds."""
    return {"requirements": [*requirements], "timeout": timeout}


def decode_installation(body: object) -> tuple[list[str], float]:
    """Return the requirements and the timeout of a request to install. Raise ProblemError for any other body."""
    match body:
        case {"requirements": [*requirements], "timeout": int() | float() as timeout} if _are_texts(requirements):
            if 0 < timeout <= MAX_INSTALL_SECONDS and not isinstance(timeout, bool):
                return requirements, timeout
    said = f"'requirements' is a list of texts, 'timeout' a number of seconds up to {MAX_INSTALL_SECONDS:g}"
    raise ProblemError(400, "SessionRequestValidationFailed", said)


def encode_live(session: SessionInfo, idle: float) -> dict[str, object]:
    """Return a session's current activity. `idle` is in seconds: a time would depend on the client's clock."""
    return {"active": session.is_active, "idle": round(max(0.0, idle), 1), "memory": session.memory, "running": session.running}


def decode_live(body: Mapping[str, Any], session: SessionInfo) -> SessionInfo:
    """Return a session with the activity that `encode_live` added."""
    return replace(session, is_active=body["active"] is True, memory=body["memory"], running=body["running"])


def encode_outcome(result: CodeExecutionResult) -> dict[str, object]:
    """Return the result of installing or uninstalling, in the form of a cell's result."""
    return {RICH_MEMBER: encode_rich(result)}


def decode_outcome(body: Mapping[str, object]) -> CodeExecutionResult:
    """Return the result of installing or uninstalling."""
    return decode_rich(cast(Mapping[str, object], body[RICH_MEMBER]))


def encode_packages(packages: Sequence[Package]) -> dict[str, object]:
    """Return the packages that a session has beyond its environment."""
    return {"packages": [{"name": package.name, "version": package.version} for package in packages]}


def decode_packages(body: Mapping[str, object]) -> list[Package]:
    """Return the packages of a response."""
    return [Package(name=one["name"], version=one["version"]) for one in cast(list[dict[str, str]], body["packages"])]


def _are_texts(values: list[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _encode_error(error: CodeError | None) -> dict[str, str] | None:
    return {"name": error.name, "message": error.message, "traceback": error.traceback} if error else None


def _decode_displays(body: Mapping[str, object]) -> tuple[Display, ...]:
    shown = cast(list[dict[str, object]], body.get("displays", []))
    names = cast(list[str | None], body.get("displayNames", []))
    return tuple(Display(data, name) for data, name in zip_longest(shown, names[: len(shown)]))


def _encode_variable(variable: VariableChange) -> dict[str, object]:
    shape = None if variable.shape is None else list(variable.shape)
    return {"name": variable.name, "kind": variable.kind, "type": variable.type, "shape": shape, "size": variable.size}


def _decode_variable(body: Mapping[str, Any]) -> VariableChange:
    shape = body.get("shape")
    return VariableChange(**{**body, "shape": None if shape is None else tuple(shape)})


def _encode_scalar(value: Scalar) -> object:
    """Return a value for JSON, which has no number for nan and the infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _decode_scalar(value: object) -> Scalar:
    if isinstance(value, Mapping):
        return float(str(value["float"]))
    return cast(Scalar, value)
