"""Checkpoints and branches over HTTP, an extension. Both the client's and the server's half."""

from collections.abc import Mapping
from datetime import datetime
from typing import cast

from ..models import Checkpoint, Record
from .extensions import decode_record, encode_record
from .records import IDENTIFIER
from .values import Body, invalid, is_well_formed

CHECKPOINTS_PATH = "session/checkpoints"
CHECKPOINT_PATH = "session/checkpoints/{id}"
ROLLBACK_PATH = "session/rollback"
BRANCHES_PATH = "session/branches"
TRANSACTIONAL_HEADER = "x-aca-sessions-transactional"
_MOST_BRANCHES = 64
_LONGEST_NAME = 256


def encode_checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    """Return the description of a checkpoint."""
    return {
        "id": checkpoint.id,
        "name": checkpoint.name,
        "created": checkpoint.created.isoformat(),
        "size": checkpoint.size,
        "leftBehind": list(checkpoint.left_behind),
    }


def decode_checkpoint(body: Body) -> Checkpoint:
    """Return the checkpoint of a response."""
    return Checkpoint(
        id=str(body["id"]),
        name=cast(str | None, body["name"]),
        created=datetime.fromisoformat(str(body["created"])),
        size=cast(int, body["size"]),
        left_behind=tuple(map(str, cast(list[object], body["leftBehind"]))),
    )


def encode_checkpoints(checkpoints: list[Checkpoint]) -> dict[str, object]:
    """Return the checkpoints of a session, the oldest first."""
    return {"value": [encode_checkpoint(checkpoint) for checkpoint in checkpoints]}


def decode_checkpoints(body: Body) -> list[Checkpoint]:
    """Return the checkpoints of a response, the oldest first."""
    return [decode_checkpoint(one) for one in cast(list[Body], body["value"])]


def decode_name(body: object, key: str) -> str | None:
    """Return the name or id of a checkpoint in a request, or None if it is absent. Raise ProblemError if it is not valid.

    Args:
        body: The parsed JSON of the request.
        key: The member that holds it.
    """
    match body:
        case {**members} if (name := members.get(key)) is None or (is_well_formed(name) and 0 < len(str(name)) <= _LONGEST_NAME):
            return cast(str | None, name)
    raise invalid(f"'{key}' is text of 1 to {_LONGEST_NAME} characters, or null")


def decode_branches(body: object) -> tuple[list[str], bool]:
    """Return the identifiers of the requested branches, and whether they draw random numbers of their own.

    Raise ProblemError for an invalid body.
    """
    match body:
        case {"identifiers": [*names], "reseed": bool(reseed)} if 0 < len(names) <= _MOST_BRANCHES and all(map(_is_identifier, names)):
            if len({*names}) == len(names):
                return names, reseed
    raise invalid(f"'identifiers' are 1 to {_MOST_BRANCHES} different identifiers, and 'reseed' is true or false")


def encode_branched(origin: Record, positions: Mapping[str, str]) -> dict[str, object]:
    """Return where each branch's ledger begins, and the entries of the origin's ledger that its caller has not received."""
    return {"origin": encode_record(origin), "positions": dict(positions)}


def decode_branched(body: Body) -> tuple[Record, dict[str, str]]:
    """Return the record of the origin, and where each branch's ledger begins."""
    return decode_record(cast(Body, body["origin"])), cast(dict[str, str], body["positions"])


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and IDENTIFIER.fullmatch(name) is not None
