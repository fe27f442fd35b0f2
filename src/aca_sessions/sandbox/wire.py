"""Frames between host and guest: a length, then one JSON object. Pure data, standard library only.

What comes from a guest is hostile until `decode` has let it through: one of the expected kinds, exactly its fields, each of its type.
"""

import json
import math
import struct
from dataclasses import asdict, dataclass, fields
from typing import TypeVar, get_args, get_origin

MAX_FRAME = 64 << 20
BROKEN_EXIT = 71  # an interpreter whose own loop failed
_LENGTH = struct.Struct("<I")
_UNENCODABLE = (b"\\ud", b"\\uD", b"NaN", b"Infinity")

Scalar = str | int | float | bool | None


Expected = TypeVar("Expected", bound="Message")


class WireError(Exception):
    """A frame that is not one of ours."""


@dataclass(frozen=True, slots=True)
class Message:
    """The content of a frame."""


# --- host → zygote, each answered by Done, Refused or what is named here ---


@dataclass(frozen=True, slots=True)
class Plan(Message):
    """What the template root holds and which uids its sessions get; the first thing a zygote hears."""

    roots: dict[str, str]
    first_uid: int
    uid_count: int
    preload: list[str]


@dataclass(frozen=True, slots=True)
class MakeTree(Message):
    """A session's /mnt/data; Done brings a descriptor of it."""

    tree: int
    size: int
    inodes: int


@dataclass(frozen=True, slots=True)
class DropTree(Message):
    """Lets go of a tree; its memory is free when its last user is gone."""

    tree: int


@dataclass(frozen=True, slots=True)
class Spawn(Message):
    """One live interpreter on a tree; comes with its socket and its report pipe, Done brings a pidfd of its init."""

    tree: int
    address_space: int
    processes: int
    open_files: int
    file_size: int
    temporary: int


@dataclass(frozen=True, slots=True)
class Done(Message):
    """The request was carried out."""


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """This host cannot give a part of the isolation."""

    part: str
    errno: int
    message: str


# --- guest → host ---


@dataclass(frozen=True, slots=True)
class Ready(Message):
    """The interpreter is confined and waits for cells; brings its pidfd and the read ends of its stdout and stderr."""

    landlock: int


@dataclass(frozen=True, slots=True)
class Started(Message):
    """From here on a SIGINT reaches the cell."""

    execution: str


@dataclass(frozen=True, slots=True)
class Shown(Message):
    """A cell displayed something."""

    execution: str
    data: dict[str, object]


@dataclass(frozen=True, slots=True)
class Finished(Message):
    """What became of a cell. `text` is None where its last expression showed nothing."""

    execution: str
    value: str | int | float | bool | None
    text: str | None
    error_name: str | None
    error_message: str
    error_traceback: str
    files: list[list[object]]


# --- host → guest ---


@dataclass(frozen=True, slots=True)
class Run(Message):
    """A cell to run."""

    execution: str
    code: str


def encode(message: Message) -> bytes:
    """One message as JSON."""
    content = {"kind": type(message).__name__, **asdict(message)}
    return json.dumps(content, separators=(",", ":")).encode()


def decode(payload: bytes, *expected: type[Expected]) -> Expected:
    """The message in a payload; WireError unless it is one of the expected kinds, well formed."""
    content = _parse(payload)
    kind = content.pop("kind", None)
    for candidate in expected:
        if candidate.__name__ == kind:
            return _build(candidate, content)
    raise WireError("a frame of an unexpected kind")


def frame(message: Message) -> bytes:
    """A message with its length in front."""
    payload = encode(message)
    if len(payload) > MAX_FRAME:
        raise WireError("a frame over the size limit")
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Cuts a byte stream into payloads."""

    def __init__(self) -> None:
        """Starts with nothing read."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete with this data."""
        self._buffer += data
        payloads = []
        while (end := self._end()) is not None and len(self._buffer) >= end:
            payloads.append(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
        return payloads

    def _end(self) -> int | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME:
            raise WireError("a frame over the size limit")
        return _LENGTH.size + int(length)


def _parse(payload: bytes) -> dict[str, object]:
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        raise WireError("a frame that is not JSON") from None
    if not isinstance(content, dict):
        raise WireError("a frame that is not an object")
    if any(mark in payload for mark in _UNENCODABLE):
        return {_well_formed_text(name): value if isinstance(value, float) else _well_formed(value) for name, value in content.items()}
    return content


def _well_formed(value: object) -> object:
    """The value without what nothing further along could encode: lone surrogates are spelled out, nan and infinity are null."""
    match value:
        case str():
            return _well_formed_text(value)
        case float() if not math.isfinite(value):
            return None
        case list():
            return [_well_formed(item) for item in value]
        case dict():
            return {_well_formed_text(name): _well_formed(item) for name, item in value.items()}
    return value


def _well_formed_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _build(kind: type[Expected], content: dict[str, object]) -> Expected:
    declared = fields(kind)
    if content.keys() != {field.name for field in declared}:
        raise WireError("a frame with other fields than its kind has")
    for field in declared:
        if not isinstance(content[field.name], _runtime_types(field.type)):
            raise WireError(f"a frame whose {field.name} is of another type")
    return kind(**content)


def _runtime_types(annotation: object) -> tuple[type, ...]:
    origin = get_origin(annotation)
    if isinstance(origin, type) and origin in (dict, list):
        return (origin,)
    options = get_args(annotation) or (annotation,)
    return tuple(option for option in options if isinstance(option, type))
