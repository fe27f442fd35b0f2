"""The frames between host and guest. Pure data, standard library only.

A frame is a length, then a payload: a small JSON header, and behind it the longer texts as they are. A frame of the guest is hostile until
`decode` has accepted it: one of the expected kinds, with exactly its fields, each of its type, nothing nested, no text named twice. So the
size of a frame bounds the cost of reading it.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Optional, TypeVar, Union, get_args, get_origin

MAX_FROM_GUEST = 32 << 20
BROKEN_EXIT = 71  # exit code of an interpreter whose own loop failed
REPORT = struct.Struct("<ii")  # by a session's first process: the number in the session of a process that ended, and its wait status
ALLOCATION = struct.Struct("<qq")  # to the first process: where a part starts in the file that is sent with it, and its length
MOST_PARTS = 200  # in one request: the kernel sends at most 253 descriptors with a message
_MAX_HEADER = 256 << 10
_LENGTH = struct.Struct("<I")
_IN_THE_HEADER = 128  # characters; a longer text goes behind it

SUPPLY = "/.ipython"  # where an image that has no IPython finds the host's
SUPPLY_NEEDS = ".needs"  # a file in it: the oldest Python that it is for
# The guests' Python may be 3.9. There, `X | Y` cannot be used for a type that is evaluated, as in fields of dataclasses.
Scalar = Union[str, int, float, bool, None]
Expected = TypeVar("Expected", bound="Message")


class WireError(Exception):
    """A frame that this module does not allow."""


@dataclass(frozen=True)
class Message:
    """The content of a frame."""


# --- host → zygote (the guest half of the fork server), each answered by Done, Refused or what is named here ---


@dataclass(frozen=True)
class Plan(Message):
    """The first message to a zygote: what the template root holds, and which uids its sessions get.

    `mounts` are by their path in the root. `base` is the folder of sessions without namespaces, which have no root; with namespaces it is
    "". `image` is the folder of an image that replaces the host's system, and `python` the path of its interpreter in it. "" is this host's
    system, and an interpreter that is to be found.
    """

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
    """A request to make a workspace. Done brings a descriptor of it. `owner` is the number of the session whose user it belongs to."""

    tree: int
    owner: int
    size: int
    inodes: int


@dataclass(frozen=True)
class DropTree(Message):
    """A request to let go of a workspace. Its memory is free when its last user is gone."""

    tree: int


@dataclass(frozen=True)
class ShowTree(Message):
    """A request to put a workspace into a session's /mnt/data. It brings a pidfd of the session's first process."""

    tree: int


@dataclass(frozen=True)
class Spawn(Message):
    """A request to start an interpreter on a workspace. It brings the session's socket and report socket.

    Done brings a pidfd of its first process.
    """

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
    """This host cannot provide a part of the isolation."""

    part: str
    errno: int
    message: str


# --- guest → host ---


@dataclass(frozen=True)
class Ready(Message):
    """The interpreter is confined and waits for cells.

    It brings its pidfd, the read end of its further frames, its stdout and its stderr. With namespaces, the session's /proc follows; then
    the socket on which it expects a proxy, if it may have one, and the socket that lists its sockets, if they are counted that way.
    """

    landlock: int


@dataclass(frozen=True)
class Started(Message):
    """The cell has started: from now on a SIGINT reaches it."""

    execution: str


@dataclass(frozen=True)
class Shown(Message):
    """A cell displayed something. `name` is set if it may change later; an `update` replaces what has that name."""

    execution: str
    data: dict[str, str]
    name: Optional[str] = None
    update: bool = False


@dataclass(frozen=True)
class Cleared(Message):
    """A cell took back everything that it has displayed so far."""

    execution: str


@dataclass(frozen=True)
class Asked(Message):
    """Code in the session waits for an answer from the host. `number` is the question's own, and the answer repeats it."""

    execution: str
    number: int
    about: str
    text: str


@dataclass(frozen=True)
class Finished(Message):
    """The result of a cell. `text` is None if the last expression showed nothing.

    `files` are `kind size path`. `processes` are `pid name`. `variables` are `kind size shape type name`, the shape as `2x3` or `-`, the
    type without blanks.
    """

    execution: str
    value: Scalar
    text: Optional[str]
    error_name: Optional[str]
    error_message: str
    error_traceback: str
    files: list[str]
    processes: list[str]
    variables: list[str] = field(default_factory=list)
    value_is_none: bool = False  # the last expression is not a call, and its value is None


# --- host → guest ---


@dataclass(frozen=True)
class Run(Message):
    """A cell to run. `answered` lists the kinds of questions that the host can answer: `input`, `call`."""

    execution: str
    code: str
    answered: list[str]


@dataclass(frozen=True)
class Fork(Message):
    """A request for another interpreter with the same variables.

    It brings the fork's ends: its socket, its frames' pipe, its stdout and stderr.

    It is answered like a cell. The value is the fork's number in the session, and the text has a line for each thing that it could not take
    along.
    """

    execution: str
    reseed: bool


@dataclass(frozen=True)
class Answer(Message):
    """The answer to a question. If `given` is False, the text has the reason why there is none."""

    number: int
    given: bool
    text: str


@dataclass(frozen=True)
class Command(Message):
    """A program to run in the place of a cell. Its exit code is the value."""

    execution: str
    arguments: list[str]
    stdin: str


@dataclass(frozen=True)
class WarmUp(Message):
    """A request to touch the memory that a cell needs, before the first one. It is answered like a cell."""

    execution: str


@dataclass(frozen=True)
class Ping(Message):
    """A request to do nothing. It is answered like a cell, which proves that the interpreter can answer."""

    execution: str


@dataclass(frozen=True)
class Extend(Message):
    """The folders of installed packages that the session finds from now on, and no others. It is answered like a cell.

    `replaced` are modules that come in another version. If one of them is loaded, nothing changes.
    """

    execution: str
    paths: list[str]
    replaced: list[str]


def encode(message: Message) -> bytes:
    """Return a message as a payload."""
    texts: list[bytes] = []
    content = {name: _without_long_texts(getattr(message, name), texts) for name in _declared(type(message))}  # type: ignore[arg-type]  # classes are hashable
    header = json.dumps({"kind": type(message).__name__, "texts": [len(text) for text in texts], **content}, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(header)), header, *texts))


def decode(payload: bytes, *expected: type[Expected]) -> Expected:
    """Return the message in a payload. Raise WireError unless it is well formed and one of the expected kinds."""
    content, texts = _split(payload)
    kind = content.pop("kind", None)
    for candidate in expected:
        if candidate.__name__ == kind:
            return _build(candidate, content, dict(enumerate(texts)))
    raise WireError("a frame of an unexpected kind")


def frame(message: Message) -> bytes:
    """Return a message's payload with its length in front."""
    payload = encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """A splitter of a byte stream into payloads, each of a limited size.

    Its time grows with the stream and not with the stream's square.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the payloads that are complete with this data. Raise WireError if one is larger than the limit."""
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
                if 2 * start > len(self.rest):  # not after each payload: that could copy a long rest each time
                    del self.rest[:start]
                    start = 0
                yield payload
        finally:
            del self.rest[:start]


def _without_long_texts(value: object, texts: list[bytes]) -> object:
    """Return the value, with each long text in it replaced by its index in `texts`, to which the text is added."""
    if isinstance(value, str) and len(value) > _IN_THE_HEADER:
        texts.append(value.encode("utf-8", "backslashreplace"))
        return {"text": len(texts) - 1}
    if isinstance(value, dict):
        return {key: _without_long_texts(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_long_texts(item, texts) for item in value]
    return value


def _split(payload: bytes) -> tuple[dict[str, object], list[bytes]]:
    """Return the content of the header, and the texts behind it."""
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
    return kind(*[_value(content[name], *declared[name], texts) for name in declared])


@cache
def _declared(kind: type[Any]) -> dict[str, tuple[object, tuple[object, ...]]]:
    """Return the fields of a kind by their names.

    For a dict or list, a field is its type and the types of its values. For a scalar, it is None and its types.
    """
    found: dict[str, tuple[object, tuple[object, ...]]] = {}
    for declared in fields(kind):
        origin, parts = get_origin(declared.type), get_args(declared.type)
        found[declared.name] = (origin, parts[-1:]) if origin in (dict, list) else (None, parts or (declared.type,))
    return found


def _value(value: object, origin: object, kinds: tuple[object, ...], texts: dict[int, bytes]) -> object:
    """Return a field's value, checked against its type: a scalar, or a flat dict or list of scalars."""
    if origin is dict and isinstance(value, dict):
        return {_well_formed(key): _scalar(item, kinds, texts) for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_scalar(item, kinds, texts) for item in value]
    if origin is not None:
        raise WireError("a frame with a scalar in the place of a dict or list")
    return _scalar(value, kinds, texts)


def _scalar(value: object, kinds: tuple[object, ...], texts: dict[int, bytes]) -> object:
    if isinstance(value, dict):
        value = _long_text(value, texts)
    if type(value) not in kinds:  # not isinstance: a bool is an int
        raise WireError("a frame with a value of another type")
    return _well_formed(value) if isinstance(value, str) else value


def _long_text(place: dict[str, object], texts: dict[int, bytes]) -> str:
    """Return a text that a header refers to, and remove it from `texts`."""
    index = place.get("text")
    if len(place) != 1 or type(index) is not int or index not in texts:
        raise WireError("a frame with a text that is not there")
    try:
        # Each text can be used once: a header that refers to one a thousand times would make a frame a thousand times its size.
        return texts.pop(index).decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("a frame with a text that is not UTF-8") from None


def _well_formed(text: str) -> str:
    """Return the text with lone surrogates escaped, since later code could not encode them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
