"""Encode and decode the extensions: what this project's server offers in addition to Azure's API.

The server names its extensions in a header of every response. Names that client and server share come first in this module; then results,
events, checkpoints and branches, packages, and what a server reports about itself.
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime
from itertools import zip_longest
from typing import Any, cast

from ..errors import ConfigurationError
from ..models import (
    Checkpoint,
    CodeError,
    CodeExecutionResult,
    Display,
    Entry,
    Event,
    FileChange,
    Package,
    Record,
    RunningProcess,
    SavedSession,
    Scalar,
    SessionInfo,
    State,
    VariableChange,
)
from ..network.rules import Network, NetworkLimits, Rule
from .records import IDENTIFIER, Body, RefusedRequests, invalid, is_well_formed, type_name

OFFER_HEADER = "x-aca-sessions-extensions"
OFFERED = (
    *("rich", "interrupt", "reset", "health", "isolation", "ranges", "events", "checkpoint", "packages", "history", "names", "export"),
    "network",
)


def offer(*, stores: bool = False) -> dict[str, str]:
    """Return the header with which a server offers its extensions. `stores` tells whether it has a store of saved sessions."""
    return {OFFER_HEADER: ", ".join((*OFFERED, *(["save"] if stores else [])))}


RICH_REQUEST_HEADER = "x-aca-sessions-rich"
SINCE_HEADER = "x-aca-sessions-since"  # the position in the ledger of the last result that the caller received
ANSWERED_HEADER = "x-aca-sessions-answered"  # the kinds of questions of a cell that its caller answers
TRANSACTIONAL_HEADER = "x-aca-sessions-transactional"
AFTER_SUCCESS_HEADER = "x-aca-sessions-after-success"  # a cell is not run if one fails that it has waited for
GENTLE_HEADER = "x-aca-sessions-gentle"  # no interrupt of this cell, or not this interrupt, kills the interpreter
NUMBER_HEADER = "x-aca-sessions-number"  # of a cell in the history of its session
CAUSE_HEADER = "x-aca-sessions-cause"  # why the caller ends a session
NETWORK_HEADER = "x-aca-sessions-network"  # the version of the network that the caller gave to the session

RICH_MEMBER = "acaSessions"
EVENTS_MEMBER = "events"
NEXT_MEMBER = "after"
EXECUTION_MEMBER = "execution"
INTERRUPTED_MEMBER = "interrupted"  # whether a caller has interrupted the cell
ELAPSED_MEMBER = "elapsed"  # the seconds since a cell began, or null while it waits for its turn

INTERRUPT_PATH = "executions/{id}/interrupt"
INTERRUPT_SESSION_PATH = "session/interrupt"
EVENTS_PATH = "executions/{id}/events"
REPLIES_PATH = "executions/{id}/replies"
RESET_PATH = "session/reset"
CHECKPOINTS_PATH = "session/checkpoints"
CHECKPOINT_PATH = "session/checkpoints/{id}"
ROLLBACK_PATH = "session/rollback"
BRANCHES_PATH = "session/branches"
PACKAGES_PATH = "session/packages"
HISTORY_PATH = "session/history"
NAME_PATH = "session/name"
NETWORK_PATH = "session/network"
SAVE_PATH = "session/save"
SAVED_PATH = "savedSessions"
EXPORT_PATH, IMPORT_PATH = "session/export", "session/import"
HEALTH_PATH = "health"
ISOLATION_PATH = "isolation"

LONGEST_POLL = 25.0  # seconds; proxies close connections that are silent for longer
MAX_INSTALL_SECONDS = 3600.0
QUESTIONS = ("input", "call", "network")
_MOST_BRANCHES = 64
_LONGEST_NAME = 256
_LONGEST_SESSION_NAME = 64
_MOST_RULES, _MOST_SECRETS = 200, 100
_VERSION = re.compile(r"[\w-]{16,64}", re.ASCII)
_RULE_MEMBERS = {"methods": list, "paths": list, "headers": dict, "addresses": list, "requests": int, "megabytes": int, "connections": int}


# --- results ---


def encode_full_result(result: CodeExecutionResult) -> dict[str, object]:
    """Encode all members of a result as JSON: the extended result.

    The server sends it instead of the result in Azure's form. With both, each stream and image would be sent twice.
    """
    value: object = result.value
    if isinstance(value, float) and not math.isfinite(value):
        value = {"float": repr(value)}  # JSON has no number for nan and the infinities
    displays, names = [], []
    for display in result.displays:
        displays.append(dict(display.data))
        names.append(display.name)
    body: dict[str, object] = {
        "executionCount": result.execution_count,
        "duration": result.duration,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "value": value,
        "text": result.text,
        "files": [*map(asdict, result.files)],
        "processes": [*map(asdict, result.processes)],
        "variables": [*map(asdict, result.variables)],
        "displays": displays,
        "displayNames": names,
        "error": asdict(result.error) if result.error is not None else None,
        "state": _encode_state(result.state),
    }
    if result.record is not None:
        body["ledger"] = encode_record(result.record)
    return body


def _encode_state(state: State) -> dict[str, object]:
    # `kind` and `consequence` follow from the rest. They are sent so that pages and other clients need not know how.
    return {**_without_restore(asdict(state)), "kind": state.kind, "consequence": state.consequence}


def _without_restore(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a state or an entry as JSON. Leave out those about a restore if there was none, which older clients expect."""
    optional = {name: fields.pop(name, None) for name in ("missing", "saved", "unsaved", "cells")}
    if saved := optional["saved"]:
        optional["saved"] = saved.isoformat()
    return fields | {name: value for name, value in optional.items() if value or (value == 0 and name == "cells")}


def _decode_restore(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"missing": tuple(body.get("missing", ())), "saved": datetime.fromisoformat(body["saved"]) if body.get("saved") else None}


def decode_full_result(body: Mapping[str, Any], session_id: str = "") -> CodeExecutionResult:
    """Decode a result that `encode_full_result` encoded. The body does not name the session, so the result gets `session_id`."""
    value, state, error, record = body.get("value"), body["state"], body.get("error"), body.get("ledger")
    shown = body.get("displays", ())
    displays, files, processes, variables = [], [], [], []
    for data, name in zip_longest(shown, body.get("displayNames", ())[: len(shown)]):
        displays.append(Display(data, name))
    for file in body.get("files", ()):
        files.append(FileChange(**file))
    for process in body.get("processes", ()):
        processes.append(RunningProcess(**process))
    for variable in body.get("variables", ()):
        shape = variable.get("shape")
        variables.append(VariableChange(**{**variable, "shape": None if shape is None else tuple(shape)}))
    return CodeExecutionResult(
        session_id=session_id,
        stdout=str(body["stdout"]),
        stderr=str(body["stderr"]),
        value=float(value["float"]) if isinstance(value, Mapping) else cast(Scalar, value),
        text=body.get("text"),
        displays=tuple(displays),
        files=tuple(files),
        processes=tuple(processes),
        variables=tuple(variables),
        error=CodeError(**error) if error else None,
        state=_decode_state(state),
        duration=body["duration"],
        execution_count=body.get("executionCount"),
        record=decode_record(record) if record else None,
    )


def _decode_state(body: Mapping[str, Any]) -> State:
    cut_off = tuple(body["cut_off"])
    parts = body["variables"], body["files"], body["processes"]
    unsaved = body.get("unsaved", 0)
    return State(*parts, body["reason"], body["checkpoint"], cut_off, **_decode_restore(body), unsaved=unsaved)


def encode_record(record: Record) -> dict[str, object]:
    """Encode as JSON a record: those entries of a session's ledger (the list of what happened to it) that a response contains."""
    entries = []
    for entry in record.entries:
        entries.append({name: value for name, value in _without_restore(asdict(entry)).items() if value is not None})
    numbers = {"since": record.since, "start": record.start, "end": record.end, "cells": record.cells}
    return {"id": record.ledger, **numbers, "entries": entries}


def decode_record(body: Mapping[str, Any]) -> Record:
    """Decode a record from `encode_record`."""
    entries = []
    for entry in body["entries"]:
        entries.append(Entry(**{**entry, "cut_off": tuple(entry["cut_off"]), **_decode_restore(entry)}))
    return Record(str(body["id"]), body["since"], body["start"], body["end"], tuple(entries), body.get("cells", 0))


def encode_position(ledger: str, position: int) -> dict[str, object]:
    """Encode as JSON where a session's ledger records the requested reset or rollback: the ledger's id, and the position of the entry.

    A ledger is the list of what happened to a session.
    """
    return {"ledger": ledger, "position": position}


def decode_position(body: Mapping[str, Any]) -> tuple[str, int]:
    """Decode the ledger's id and the entry's position from `encode_position`."""
    return str(body["ledger"]), int(body["position"])


# --- events of a running execution: the client reads them by long-poll, and replies to questions of the cell by requests ---


def encode_events(events: list[Event], last: int) -> dict[str, object]:
    """Encode a page of events as JSON. The next page begins after the event with number `last`."""
    return {EVENTS_MEMBER: [_encode_event(event) for event in events], NEXT_MEMBER: last}


def decode_events(body: Body) -> tuple[list[Event], int]:
    """Return the events of a page, and the number of the event after which the next page begins."""
    return [_decode_event(event) for event in cast(list[Body], body[EVENTS_MEMBER])], cast(int, body[NEXT_MEMBER])


def decode_answered_kinds(header: str) -> tuple[str, ...]:
    """Parse the header that lists which questions of a cell the client answers: `input`, `call` and `network`.

    `input` means prompts of `input()`, `call` means host calls (calls of the cell to tools of the host), and `network` means requests that
    the rules of the session's network refuse. Ignore unknown kinds.
    """
    named = {part.strip() for part in header.split(",")}
    return tuple(kind for kind in QUESTIONS if kind in named)


def encode_reply(number: int, text: str | None, *, is_end: bool = False) -> dict[str, object]:
    """Encode as JSON the caller's reply to a question of a cell: a prompt of `input()`, a host call, or a request that was refused.

    `number` is that of the event which contains the question. `text` is None if the caller has no answer.
    `is_end` tells whether that is because the caller's input has ended.
    """
    return {"number": number, "text": text, **({"end": True} if is_end else {})}


def decode_reply(body: object) -> tuple[int, str | None, bool]:
    """Decode a reply from `encode_reply`: return the number of the cell's question, the answer or None, and whether the input has ended.

    Raise ProblemError for any other body.
    """
    match body:
        case {"number": int(number), "text": None | str() as text, **others} if number > 0 and not isinstance(number, bool):
            if text is None or is_well_formed(text):
                return number, text, text is None and others.get("end") is True
    expected = (
        "the reply must be an object with 'number', a whole number above 0, and 'text', which is null or text without lone surrogates"
    )
    raise invalid(f"{expected}, got {_describe_members(body, 'number', 'text')}")


def _encode_event(event: Event) -> dict[str, object]:
    encoded: dict[str, object] = {"kind": event.kind}
    if event.text:
        encoded["text"] = event.text
    if event.number:
        encoded["number"] = event.number
    if event.password:
        encoded["password"] = True
    if event.display is not None:
        encoded["display"] = dict(event.display.data)
        encoded["name"] = event.display.name
        encoded |= {"update": True} if event.update else {}
        encoded |= {"isValue": True} if event.is_value else {}
    return encoded


def _decode_event(body: Body) -> Event:
    shown = body.get("display")
    return Event(
        kind=cast(Any, body["kind"]),
        text=str(body.get("text", "")),
        number=cast(int, body.get("number", 0)),
        password=body.get("password") is True,
        display=Display(cast(Mapping[str, object], shown), cast(str | None, body.get("name"))) if shown is not None else None,
        update=body.get("update") is True,
        is_value=body.get("isValue") is True,
    )


# --- checkpoints and branches ---


def encode_checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    """Encode the description of a checkpoint as JSON."""
    return {
        "id": checkpoint.id,
        "name": checkpoint.name,
        "created": checkpoint.created.isoformat(),
        "size": checkpoint.size,
        "leftBehind": list(checkpoint.left_behind),
        "durable": checkpoint.durable,
    }


def encode_unreported(state: State, record: Record) -> dict[str, object]:
    """Encode as JSON what happened to a session since the position of the caller, for a response that is no result."""
    return {"state": _encode_state(state), "ledger": encode_record(record)}


def decode_checkpoint(body: Body) -> Checkpoint:
    """Decode a checkpoint from `encode_checkpoint`."""
    return Checkpoint(
        id=str(body["id"]),
        name=cast(str | None, body["name"]),
        created=datetime.fromisoformat(str(body["created"])),
        size=cast(int, body["size"]),
        left_behind=tuple(map(str, cast(list[object], body["leftBehind"]))),
        durable=body.get("durable") is True,
    )


def encode_checkpoints(checkpoints: list[Checkpoint]) -> dict[str, object]:
    """Encode the list of a session's checkpoints as JSON, in the given order."""
    return {"value": [encode_checkpoint(checkpoint) for checkpoint in checkpoints]}


def decode_checkpoints(body: Body) -> list[Checkpoint]:
    """Decode the checkpoints from `encode_checkpoints`, in the same order."""
    return [decode_checkpoint(one) for one in cast(list[Body], body["value"])]


def decode_checkpoint_name(body: object, key: str) -> str | None:
    """Return `body[key]`, the name or id of a checkpoint, or None if it is absent or null.

    Raise ProblemError if it is anything else, such as empty text or text of more than 256 characters.
    """
    match body:
        case {**members} if (name := members.get(key)) is None or (is_well_formed(name) and 0 < len(str(name)) <= _LONGEST_NAME):
            return cast(str | None, name)
    value = body.get(key) if isinstance(body, Mapping) else body
    got = f"{len(value)} characters" if isinstance(value, str) else type_name(value)
    raise invalid(f"'{key}' must be null, or text of 1 to {_LONGEST_NAME} characters without lone surrogates, got {got}")


def decode_durable(body: object, *, stores: bool) -> bool:
    """Return `body["durable"]`: whether a checkpoint is also saved. Raise ProblemError if that is invalid, or without a store."""
    durable = body.get("durable", False) if isinstance(body, Mapping) else False
    if not isinstance(durable, bool):
        raise invalid(f"'durable' must be true or false, got {type_name(durable)}")
    if durable and not stores:
        raise invalid("'durable' must be false, because this server has no store: set ACASessions:Durable:Store, or start it with --store")
    return durable


def decode_branch_request(body: object) -> tuple[list[str], bool]:
    """Parse a request to branch a session.

    Return the identifiers of the sessions to create, and whether each of them gets new random seeds. Raise ProblemError for an invalid
    body.
    """
    match body:
        case {"identifiers": [*names], "reseed": bool(reseed)} if 0 < len(names) <= _MOST_BRANCHES and all(map(_is_identifier, names)):
            if len({*names}) == len(names):
                return names, reseed
    expected = f"'identifiers' must be a list of 1 to {_MOST_BRANCHES} different session identifiers, and 'reseed' must be true or false"
    raise invalid(f"{expected}, got {_describe_members(body, 'identifiers', 'reseed')}")


def encode_branch_response(origin: Record, positions: Mapping[str, str]) -> dict[str, object]:
    """Encode the response to a request to branch a session.

    Args:
        origin: The entries of the original session's ledger (the list of what happened to it) that the caller has not received yet.
        positions: For each branch's identifier, the position at which the branch's own ledger begins.
    """
    return {"origin": encode_record(origin), "positions": dict(positions)}


def decode_branch_response(body: Body) -> tuple[Record, dict[str, str]]:
    """Decode what `encode_branch_response` encoded: the entries of the original session's ledger, and where each branch's ledger begins."""
    return decode_record(cast(Body, body["origin"])), cast(dict[str, str], body["positions"])


def _describe_members(body: object, *names: str) -> str:
    """Describe the members `names` of an invalid body for an error message.

    Show numbers by value, and anything else by type only, because the value may be secret.
    """
    if not isinstance(body, Mapping):
        return type_name(body)
    shown = []
    for name in names:
        value = body.get(name)
        if name not in body:
            got = "nothing"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            got = reprlib.repr(value)
        elif isinstance(value, list):
            got = f"a list of {len(value)}"
        else:
            got = type_name(value)
        shown.append(f"{got} for '{name}'")
    return " and ".join(shown)


def decode_session_name(body: object) -> str | None:
    """Return a session's display name from a request's body, without spaces around it, or None to remove the name.

    Raise ProblemError for an invalid name, such as one with line breaks or with marks that change the direction of text. Such a name could
    look like the name of another session.
    """
    match body:
        case {"name": None}:
            return None
        case {"name": str(given)} if (bare := given.strip()) and len(bare) <= _LONGEST_SESSION_NAME and bare.isprintable():
            return bare
    name = body.get("name") if isinstance(body, Mapping) else body
    got = type_name(name) if not isinstance(name, str) else f"{len(name)} characters, of which some cannot be shown"
    if isinstance(name, str) and (name.isprintable() or not name.strip()):
        got = f"{len(name)} characters" if name.strip() else "nothing"
    raise invalid(f"'name' must be null or 1 to {_LONGEST_SESSION_NAME} printable characters, got {got}")


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and IDENTIFIER.fullmatch(name) is not None


# --- the network of a session ---


def encode_network(version: str, network: Network, secrets: Mapping[str, str]) -> dict[str, object]:
    """Encode as JSON a network that a client gives to a session, and the values of its secrets. Its rules have no identities."""
    rules = []
    for rule in network.hosts:
        members = {name: getattr(rule, name) for name in _RULE_MEMBERS} | {"headers": dict(rule.headers)}
        rules.append({"host": rule.host} | {name: value for name, value in members.items() if value})
    limits = {name: value for name, value in asdict(network.limits).items() if value is not None}
    return {"version": version, "kind": network.kind, "rules": rules, "secrets": dict(secrets), "limits": limits}


def decode_network(body: object) -> tuple[str, Network]:
    """Return the version and the network that a client gives to a session. Raise ProblemError for any other body.

    No error shows the value of a header or of a secret.
    """
    match body:
        case {"version": str(version), "kind": "none" | "allow" | "rules" as kind, **others} if _VERSION.fullmatch(version):
            rules, secrets, limits = others.pop("rules", []), others.pop("secrets", {}), others.pop("limits", {})
            if not others and _is_list_of(dict, rules, _MOST_RULES) and isinstance(secrets, dict) and isinstance(limits, dict):
                try:
                    return version, _decode_rules(kind, cast(Any, rules), secrets, limits)
                except ConfigurationError as error:
                    refusal = str(error).removeprefix("ACASessions:Sandbox:Network: ")
                raise invalid(refusal)
    expected = (
        f"the network must have a 'version' of 16 to 64 letters and digits, a 'kind' of none, allow or rules, a list of at most "
        f"{_MOST_RULES} 'rules', and objects 'secrets' and 'limits'"
    )
    raise invalid(f"{expected}, got {_describe_members(body, 'version', 'kind', 'rules', 'secrets', 'limits')}")


def _decode_rules(kind: str, rules: list[dict[str, Any]], secrets: dict[str, Any], limits: dict[str, Any]) -> Network:
    if kind == "none":
        return Network.none()
    for rule in rules:
        if not isinstance(rule.get("host"), str) or not all(_is_member_of_rule(*member) for member in rule.items()):
            raise invalid(f"a rule must have a 'host', and may have {', '.join(_RULE_MEMBERS)}, each with its type")
    if len(secrets) > _MOST_SECRETS or not all(isinstance(value, str) for value in secrets.values()):
        raise invalid(f"'secrets' must be an object with at most {_MOST_SECRETS} texts")
    if unknown := limits.keys() - {field.name for field in fields(NetworkLimits)}:
        raise invalid(f"'limits' may have requests, megabytes and connections, got {min(unknown)!r:.80}")
    made = Network.rules([Rule(**rule) for rule in rules], secrets=secrets, limits=NetworkLimits(**limits))
    return replace(made, kind=cast(Any, kind))


def _is_member_of_rule(name: str, value: object) -> bool:
    if name == "host":
        return True
    kind = _RULE_MEMBERS.get(name)
    if kind is dict:
        return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
    return _is_list_of(str, value, _MOST_RULES) if kind is list else kind is not None and isinstance(value, kind)


def _is_list_of(kind: type, value: object, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(isinstance(one, kind) for one in value)


# --- saved sessions ---


def encode_saved(saved: SavedSession) -> dict[str, object]:
    """Encode a saved session as JSON."""
    return asdict(saved) | {"created": saved.created.isoformat()}


def decode_saved(body: Mapping[str, Any]) -> SavedSession:
    """Decode a saved session from `encode_saved`."""
    return SavedSession(**{**body, "created": datetime.fromisoformat(body["created"])})


def encode_saved_list(saved: Sequence[SavedSession]) -> dict[str, object]:
    """Encode the list of saved sessions as JSON."""
    return {"value": [*map(encode_saved, saved)]}


def decode_saved_list(body: Mapping[str, Any]) -> list[SavedSession]:
    """Decode the list of saved sessions from `encode_saved_list`."""
    return [*map(decode_saved, body["value"])]


def encode_refused(refused: Sequence[RefusedRequests]) -> dict[str, object]:
    """Encode as JSON the requests that the network of a session refused."""
    return {"refused": [asdict(one) | {"latest": one.latest.isoformat()} for one in refused]}


# --- the history of a session ---


def encode_past_cell(number: int, code: str, events: Sequence[Event], *, transactional: bool, interrupted: bool) -> dict[str, object]:
    """Encode a cell of a session's history as JSON. The caller adds the execution with the result.

    `events` are the cell's outputs, in order.
    """
    cell = {"number": number, "code": code, "transactional": transactional, INTERRUPTED_MEMBER: interrupted}
    return cell | {EVENTS_MEMBER: [_encode_event(event) for event in events]}


def encode_history(cells: Sequence[Mapping[str, object]], record: Record, *, accepted: int, gone: int) -> dict[str, object]:
    """Encode a page of a session's history as JSON.

    Args:
        cells: Cells in the order in which they were sent.
        record: The entries of the session's ledger, the list of what happened to it.
        accepted: How many cells have been sent to the session since it began.
        gone: How many of these cells the history does not have any more.
    """
    return {"cells": [*cells], "ledger": encode_record(record), "accepted": accepted, "gone": gone}


def encode_questions(latest: int, open: Sequence[int]) -> dict[str, object]:
    """Encode as JSON which questions (`input()` or host calls) the running cell has asked.

    Args:
        latest: The number of the latest question, or 0.
        open: The numbers of the questions that have no reply yet.
    """
    return {"questions": {"latest": latest, "open": [*open]}}


# --- packages ---


def encode_install_request(requirements: Sequence[str], timeout: float) -> dict[str, object]:
    """Encode a request to install packages. `timeout` is in seconds."""
    return {"requirements": [*requirements], "timeout": timeout}


def decode_install_request(body: object) -> tuple[list[str], float]:
    """Return the requirements and the timeout in seconds of a request to install packages. Raise ProblemError for any other body."""
    match body:
        case {"requirements": [*requirements], "timeout": int() | float() as timeout} if all(isinstance(one, str) for one in requirements):
            if 0 < timeout <= MAX_INSTALL_SECONDS and not isinstance(timeout, bool):
                return requirements, timeout
    timed = f"'timeout' must be a number of seconds above 0 and up to {MAX_INSTALL_SECONDS:g}"
    raise invalid(f"'requirements' must be a list of texts, and {timed}, got {_describe_members(body, 'requirements', 'timeout')}")


def encode_package_result(result: CodeExecutionResult) -> dict[str, object]:
    """Encode the result of installing or uninstalling packages as JSON, as `encode_full_result` does for the result of a cell."""
    return {RICH_MEMBER: encode_full_result(result)}


def decode_package_result(body: Mapping[str, object]) -> CodeExecutionResult:
    """Decode what `encode_package_result` returned: the result of installing or uninstalling packages."""
    return decode_full_result(cast(Mapping[str, object], body[RICH_MEMBER]))


def encode_packages(packages: Sequence[Package]) -> dict[str, object]:
    """Convert the list of packages installed in a session to a JSON object."""
    return {"packages": [{"name": package.name, "version": package.version} for package in packages]}


def decode_packages(body: Mapping[str, object]) -> list[Package]:
    """Decode the packages from `encode_packages`."""
    return [Package(name=one["name"], version=one["version"]) for one in cast(list[dict[str, str]], body["packages"])]


# --- what a server reports of itself and of its sessions ---


def encode_health(sessions: int, capacity: int, *, status: str) -> dict[str, object]:
    """Encode the response to a health check.

    Args:
        sessions: How many sessions the server has now.
        capacity: How many sessions it may have at most.
        status: `healthy` if new sessions can be opened, `unhealthy` if not, or `draining` if the server is about to stop.
    """
    return {"status": status, "sessions": sessions, "maxSessions": capacity}


def encode_isolation(level: str, parts: Mapping[str, str], missing: Mapping[str, str], network: Sequence[str]) -> dict[str, object]:
    """Encode as JSON a report on how sessions are isolated from the host.

    Args:
        level: The isolation that the settings require: `full` or `no-namespaces`.
        parts: The protections that are enforced, such as `network` or `seccomp`. The values say how each was checked.
        missing: The protections that are not enforced. The values say how each was checked.
        network: What sessions can reach: `none`, `host`, or the allowed domains.
    """
    return {"full": not missing, "level": level, "parts": dict(parts), "missing": dict(missing), "network": [*network]}


def decode_isolation(body: Mapping[str, object]) -> dict[str, str]:
    """Decode a report on how sessions are isolated from the host. Return how each protection, such as `network`, was checked.

    The text begins with `NOT ENFORCED: ` if the protection is not enforced. If the server sent which isolation its settings require, this
    is under the key `level`.
    """
    missing = {name: f"NOT ENFORCED: {how}" for name, how in cast(Mapping[str, str], body["missing"]).items()}
    level = {"level": str(body["level"])} if "level" in body else {}
    return {**level, **cast(Mapping[str, str], body["parts"]), **missing}


def encode_activity(session: SessionInfo, idle: float) -> dict[str, object]:
    """Encode as JSON whether a session is active, its memory, the id of the running execution, its display name and its number of cells.

    `idle` is the number of seconds since the session was used last. The server sends this number and not a time, because the clocks of
    client and server may differ.
    """
    live: dict[str, object] = {
        "active": session.is_active,
        "idle": round(max(0.0, idle), 1),
        "memory": session.memory,
        "running": session.running,
    }
    return live | {"name": session.name, "cells": session.cells}


def decode_activity(body: Mapping[str, Any], session: SessionInfo) -> SessionInfo:
    """Return a copy of a session's description, with what `encode_activity` encoded: its activity, memory, execution, name and cells."""
    live = replace(session, is_active=body["active"] is True, memory=body["memory"], running=body["running"])
    return replace(live, name=body.get("name"), cells=body.get("cells"))  # earlier servers send neither
