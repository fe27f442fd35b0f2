"""Frames between host and guest. Pure data, standard library only.

A frame is a length, then a payload: a small JSON header, and behind it the longer texts as they are. What comes from a guest is hostile
until `decode` has let it through: one of the expected kinds, exactly its fields, each of its type, nothing nested, no text named twice. So
the size of a frame bounds what reading it costs."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Optional, TypeVar, Union, get_args, get_origin

MAX_FROM_GUEST = 32 << 20
BROKEN_EXIT = 71  # an interpreter whose own loop failed
REPORT = struct.Struct("<ii")  # from a session's first process: a process's number in the session, and its wait status
ALLOCATION = struct.Struct("<qq")  # to it: where a part starts in the file that is sent with it, and its length
MOST_PARTS = 200  # in one request: the kernel sends at most 253 descriptors with a message
_MAX_HEADER = 256 << 10
_LENGTH = struct.Struct("<I")
_IN_THE_HEADER = 128  # characters; a longer text goes behind it

# The guests' Python may be 3.9, which knows no `X | Y` where a type is a value, as in fields of dataclasses.
SUPPLY = "/.ipython"  # where an image that has no IPython finds the host's
SUPPLY_NEEDS = ".needs"  # a file in it: the oldest Python that it is for
Scalar = Union[str, int, float, bool, None]
Expected = TypeVar("Expected", bound="Message")


class WireError(Exception):
    """A frame that is not one of ours."""


@dataclass(frozen=True)
class Message:
    """The content of a frame."""


# --- host → zygote, each answered by Done, Refused or what is named here ---


@dataclass(frozen=True)
class Plan(Message):
    """What the template root holds (mounts by their place in it) and which uids its sessions get; the first thing a zygote hears.

    A base is the folder of sessions that have no namespaces, and so no root; "" where they have. An image is the folder of a root of its
    own, and a python the path of its interpreter in it; "" is this host's, or to be found."""

    roots: dict[str, str]
    first_uid: int
    uid_count: int
    mounts: dict[str, str]
    writable: list[str]
    preload: list[str]
    processes: int
    base: str
    image: str
    python: str


@dataclass(frozen=True)
class MakeTree(Message):
    """A session's /mnt/data; Done brings a descriptor of it. The owner is the session whose user it belongs to."""

    tree: int
    owner: int
    size: int
    inodes: int


@dataclass(frozen=True)
class DropTree(Message):
    """Lets go of a tree; its memory is free when its last user is gone."""

    tree: int


@dataclass(frozen=True)
class ShowTree(Message):
    """A tree takes the place of /mnt/data in a session; comes with a pidfd of its init."""

    tree: int


@dataclass(frozen=True)
class Spawn(Message):
    """One live interpreter on a tree; comes with its socket and its report pipe, Done brings a pidfd of its init."""

    tree: int
    owner: int
    address_space: int
    processes: int
    open_files: int
    file_size: int
    temporary: int
    network: str
    memory_is_counted: bool
    history: int


@dataclass(frozen=True)
class Done(Message):
    """The request was carried out."""


@dataclass(frozen=True)
class Refused(Message):
    """This host cannot give a part of the isolation."""

    part: str
    errno: int
    message: str


# --- guest → host ---


@dataclass(frozen=True)
class Ready(Message):
    """The interpreter is confined and waits for cells; brings its pidfd, the read ends of its further frames, its stdout and its stderr,
    and the socket on which it expects a proxy, if it may have one."""

    landlock: int


@dataclass(frozen=True)
class Started(Message):
    """From here on a SIGINT reaches the cell."""

    execution: str


@dataclass(frozen=True)
class Shown(Message):
    """A cell displayed something, under a name if it is to change; an update is another state of what has that name."""

    execution: str
    data: dict[str, str]
    name: Optional[str] = None
    update: bool = False


@dataclass(frozen=True)
class Cleared(Message):
    """A cell took back what it displayed so far."""

    execution: str


@dataclass(frozen=True)
class Asked(Message):
    """Code in the session waits for an answer from outside; `number` is its own, for the answer."""

    execution: str
    number: int
    about: str
    text: str


@dataclass(frozen=True)
class Finished(Message):
    """What became of a cell. `text` is None where nothing was shown last; `files` are `kind size path`, `processes` are `pid name`,
    `variables` are `kind size shape type name`, the shape as `2x3` or `-`, the type without blanks."""

    execution: str
    value: Scalar
    text: Optional[str]
    error_name: Optional[str]
    error_message: str
    error_traceback: str
    files: list[str]
    processes: list[str]
    variables: list[str] = field(default_factory=list)
    value_is_none: bool = False  # its last expression is no call, and its value is None


# --- host → guest ---


@dataclass(frozen=True)
class Run(Message):
    """A cell to run; `answered` says what of its questions somebody is there to answer: `input`, `call`."""

    execution: str
    code: str
    answered: list[str]


@dataclass(frozen=True)
class Fork(Message):
    """Another interpreter with the same variables; brings the ends it is to have: its socket, its frames' pipe, its stdout and stderr.

    Answered like a cell, with its number in the session as the value, and a line for each thing that it could not take along."""

    execution: str
    reseed: bool


@dataclass(frozen=True)
class Answer(Message):
    """What was asked for; `given` is false where the text says why there is no answer."""

    number: int
    given: bool
    text: str


@dataclass(frozen=True)
class Command(Message):
    """A program to run in the place of a cell; its exit code is the value."""

    execution: str
    arguments: list[str]
    stdin: str


@dataclass(frozen=True)
class WarmUp(Message):
    """Touch what a cell needs, ahead of the first one; answered like a cell."""

    execution: str


@dataclass(frozen=True)
class Ping(Message):
    """Do nothing; answered like a cell, which proves that the interpreter can answer."""

    execution: str


@dataclass(frozen=True)
class Extend(Message):
    """The folders of installed packages that the session finds from now on, and no others, unless one of the modules is loaded: the name
    of a module that comes in another version. Answered like a cell."""

    execution: str
    paths: list[str]
    replaced: list[str]


def encode(message: Message) -> bytes:
    """One message as a payload."""
    texts: list[bytes] = []
    content = {field.name: _without_long_texts(getattr(message, field.name), texts) for field in fields(message)}
    header = json.dumps({"kind": type(message).__name__, "texts": [len(text) for text in texts], **content}, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(header)), header, *texts))


def decode(payload: bytes, *expected: type[Expected]) -> Expected:
    """The message in a payload; WireError unless it is one of the expected kinds, well formed."""
    content, texts = _split(payload)
    kind = content.pop("kind", None)
    for candidate in expected:
        if candidate.__name__ == kind:
            return _build(candidate, content, dict(enumerate(texts)))
    raise WireError("a frame of an unexpected kind")


def frame(message: Message) -> bytes:
    """A message's payload with its length in front."""
    payload = encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Cut a byte stream into payloads, each of a limited size, in a time that grows with the stream and not with its square."""

    def __init__(self, limit: int) -> None:
        """Start with nothing read."""
        self.limit = limit
        self.rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the payloads that are complete with this data."""
        self.rest += data
        start = 0
        try:
            while len(self.rest) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self.rest, start)
                if length > self.limit:
                    raise WireError("a frame over the size limit")
                end = start + _LENGTH.size + length
                if len(self.rest) < end:
                    return
                payload, start = bytes(memoryview(self.rest)[start + _LENGTH.size : end]), end
                if 2 * start > len(self.rest):  # after each payload, it could copy a long rest each time
                    del self.rest[:start]
                    start = 0
                yield payload
        finally:
            del self.rest[:start]


def _without_long_texts(value: object, texts: list[bytes]) -> object:
    """The value with each long text in it replaced by its place in the list of them."""
    if isinstance(value, str) and len(value) > _IN_THE_HEADER:
        texts.append(value.encode("utf-8", "backslashreplace"))
        return {"text": len(texts) - 1}
    if isinstance(value, dict):
        return {key: _without_long_texts(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_long_texts(item, texts) for item in value]
    return value


def _split(payload: bytes) -> tuple[dict[str, object], list[bytes]]:
    """The header's content, and the texts behind it."""
    try:
        (length,) = _LENGTH.unpack_from(payload)
        if length > _MAX_HEADER:
            raise WireError("a header over the size limit")
        content = json.loads(payload[_LENGTH.size : _LENGTH.size + length].decode("utf-8"))
        sizes, texts, start = content.pop("texts"), [], _LENGTH.size + length
        for size in sizes:
            if type(size) is not int or size < 0:
                raise WireError("a text without a size")
            texts.append(payload[start : start + size])
            start += size
    except (ValueError, RecursionError, struct.error, AttributeError, KeyError, TypeError):
        raise WireError("a frame without a header") from None
    if start != len(payload):
        raise WireError("a frame of another length than its header says")
    return content, texts


def _build(kind: type[Expected], content: dict[str, object], texts: dict[int, bytes]) -> Expected:
    declared = _declared(kind)  # type: ignore[arg-type]  # classes are hashable
    if content.keys() != declared.keys():
        raise WireError("a frame with other fields than its kind has")
    return kind(**{name: _value(content[name], *declared[name], texts) for name in declared})


@cache
def _declared(kind: type[Any]) -> dict[str, tuple[object, tuple[object, ...]]]:
    """The fields of a kind, by their names: of a dict or list what it is and the kinds of its values, of a scalar None and its kinds."""
    found: dict[str, tuple[object, tuple[object, ...]]] = {}
    for declared in fields(kind):
        origin, parts = get_origin(declared.type), get_args(declared.type)
        found[declared.name] = (origin, parts[-1:]) if origin in (dict, list) else (None, parts or (declared.type,))
    return found


def _value(value: object, origin: object, kinds: tuple[object, ...], texts: dict[int, bytes]) -> object:
    """A field's value, if it is of its type: a scalar, or a flat dict or list of them."""
    if origin is dict and isinstance(value, dict):
        return {_well_formed(key): _scalar(item, kinds, texts) for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_scalar(item, kinds, texts) for item in value]
    return _scalar(value, kinds, texts)


def _scalar(value: object, kinds: tuple[object, ...], texts: dict[int, bytes]) -> object:
    if isinstance(value, dict):
        value = _long_text(value, texts)
    if not any(isinstance(kind, type) and isinstance(value, kind) for kind in kinds):
        raise WireError("a frame with a value of another type")
    return _well_formed(value) if isinstance(value, str) else value


def _long_text(place: dict[str, object], texts: dict[int, bytes]) -> str:
    """Each text can be had once: a header that names one a thousand times would make a frame a thousand times its size."""
    index = place.get("text")
    if len(place) != 1 or type(index) is not int or index not in texts:
        raise WireError("a frame with a text that is not there")
    try:
        return texts.pop(index).decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("a frame with a text that is not UTF-8") from None


def _well_formed(text: str) -> str:
    """The text with lone surrogates spelled out: nothing further along could encode them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
