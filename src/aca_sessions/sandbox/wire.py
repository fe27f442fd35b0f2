"""Encode and decode the messages between host and guest. Uses only the standard library.

A frame is a length and a payload. A payload is a JSON header, followed by the message's long texts as plain UTF-8. A frame from the guest
is hostile until `decode` has accepted it: its message must be of an expected class and have exactly the fields of that class, with their
declared types. The header may refer to each long text at most once, so the work of reading a frame grows only with the frame's size.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import repeat
from typing import Any, Literal, Optional, TypeVar, Union, cast, get_args, get_origin

MAX_FROM_GUEST = 32 << 20
BROKEN_EXIT = 71  # exit code of an interpreter whose own loop failed
REPORT = struct.Struct("<ii")  # by a session's first process: the number in the session of a process that ended, and its wait status
ALLOCATION = struct.Struct("<qq")  # to the first process: where a part starts in the file that is sent with it, and its length
RECORD = struct.Struct("<IQ")  # begins a record of a saved state: the lengths of its header, which is JSON, and of its payload
MOST_PARTS = 200  # in one request: the kernel sends at most 253 descriptors with a message
_MAX_HEADER = 512 << 10  # an honest one has at most 400 KB: 1,000 files, 4,096 processes and 200 variables
_LENGTH = struct.Struct("<I")
_IN_THE_HEADER = 128  # characters; a longer text goes behind it
_ESCAPED = 6  # characters that JSON needs for one that is not ASCII

SUPPLY = "/.ipython"  # where an image that has no IPython finds the host's
SUPPLY_NEEDS = ".needs"  # a file in it: the oldest Python that it is for
# The guests' Python may be 3.9. There, `X | Y` cannot be used for a type that is evaluated, as in fields of dataclasses.
Scalar = Union[str, int, float, bool, None]
FileChangeKind = Literal["created", "changed", "deleted"]
VariableChangeKind = Literal["added", "changed", "deleted"]
FileRow = tuple[FileChangeKind, int, str]  # its size, its path
ProcessRow = tuple[int, str]  # its pid, its name
VariableRow = tuple[VariableChangeKind, int, list[int], str, str]  # its size, its shape, its type, its name
MOST_FILES, MOST_PROCESSES, MOST_VARIABLES = 1000, 4096, 200  # in one result
Expected = TypeVar("Expected", bound="Message")
_Shape = tuple[Any, tuple[Any, ...]]  # of a field: see `_shape_of`


class WireError(Exception):
    """Raised for a frame that is malformed or not allowed."""


@dataclass(frozen=True)
class Message:
    """The base class of all messages. A frame carries one message."""


# --- host → zygote (the guest half of the fork server), each answered by Done, Refused or what is named here ---


@dataclass(frozen=True)
class Plan(Message):
    """The first message to the zygote (the guest's half of the fork server): the root file system, the uids and the modules of sessions.

    Attributes:
        roots: Files and folders that sessions see: a dict from each path in a session to its path on the host.
        first_uid: The first of the uids for the fork server and its sessions.
        uid_count: How many uids there are.
        mounts: Folders that sessions see in addition, in a dict like `roots`.
        writable: Those paths in `mounts` to which sessions may write.
        preload: Modules to import before the first session.
        processes: How many processes all sessions may have together.
        base: The folder on the host for the files of sessions without namespaces, or "".
        image: The folder on the host with a container image's root file system, or "" if sessions see the host's /usr.
        python: The path of the interpreter in the image. It is "" if there is no image, or if the zygote has to find the interpreter.
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
    """A request to make the workspace with the number `tree`, for user number `owner`.

    The answer `Done` comes with a descriptor of the workspace's folder.
    """

    tree: int
    owner: int
    size: int
    inodes: int


@dataclass(frozen=True)
class DropTree(Message):
    """A request to remove the workspace with the number `tree`. Its memory is freed when no process uses the workspace any more."""

    tree: int


@dataclass(frozen=True)
class ShowTree(Message):
    """A request to mount the workspace with the number `tree` at /mnt/data of a session.

    It comes with a pidfd of the session's first process.
    """

    tree: int


@dataclass(frozen=True)
class Spawn(Message):
    """A request to start a session in the workspace with the number `tree`.

    It comes with the session's ends of two sockets: one for requests such as cells, and one on which the session's first process reports
    that an interpreter has died. The answer `Done` comes with a pidfd of the session's first process. `authority` is a certificate in PEM
    format that the session trusts, or "".
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
    authority: str
    no_proxy: str


@dataclass(frozen=True)
class Done(Message):
    """The answer to a request that succeeded."""


@dataclass(frozen=True)
class Refused(Message):
    """The answer to a request that failed, for example because this host cannot provide a part of the isolation."""

    part: str
    errno: int
    message: str


# --- guest → host ---


@dataclass(frozen=True)
class Ready(Message):
    """The message that the interpreter is confined and waits for cells.

    It comes with file descriptors in this order: the interpreter's pidfd; the read ends of its pipes for frames, stdout and stderr; with
    namespaces, the session's /proc; if the session has a proxy, its listening sockets for requests to a proxy and for connections to the
    ports 443 and 80, and its socket for DNS queries; a socket for listing the session's sockets, if the host counts the memory that they
    use.
    """

    landlock: int


@dataclass(frozen=True)
class Started(Message):
    """The message that a cell has started. From now on, a SIGINT interrupts it."""

    execution: str


@dataclass(frozen=True)
class Shown(Message):
    """A display of a cell. `data` is a dict from MIME type to the content in this format.

    If `update` is true, this display replaces the earlier one of the same `name`. `name` is None if the cell cannot replace it later.
    If `is_value` is true, it shows the value of the cell's last expression.
    """

    execution: str
    data: dict[str, str]
    name: Optional[str] = None
    update: bool = False
    is_value: bool = False


@dataclass(frozen=True)
class Cleared(Message):
    """The message that a cell removes everything that it displayed so far: now, or if `wait` is true, when it prints or displays more."""

    execution: str
    wait: bool = False


@dataclass(frozen=True)
class Asked(Message):
    """A question from a cell to the host. The cell waits for the `Answer` with the same `number`.

    `about` is `input` for a call of `input()`, `password` for `getpass()`, or `call` for a call of one of the host's tools.
    """

    execution: str
    number: int
    about: str
    text: str


@dataclass(frozen=True)
class Finished(Message):
    """The result of a cell, or of another request such as `Fork`.

    For a cell, `text` is the value of the last expression as IPython formats it, or None if there is no value.
    """

    execution: str
    value: Scalar
    text: Optional[str]
    error_name: Optional[str]
    error_message: str
    error_traceback: str
    files: list[FileRow]
    processes: list[ProcessRow]
    variables: list[VariableRow] = field(default_factory=list)
    value_is_none: bool = False  # the last expression is not a call, and its value is None
    count: int = 0  # the cell's number in IPython, as in `Cell In[3]`, or 0 if it has none


# --- host → guest ---


@dataclass(frozen=True)
class Run(Message):
    """A request to run a cell. `answered` lists which questions of the cell the host can answer: `input`, `call`, both or none."""

    execution: str
    code: str
    answered: list[str]


@dataclass(frozen=True)
class Fork(Message):
    """A request to fork the interpreter.

    It comes with file descriptors for the fork: its end of a socket to the host, and the write ends of its pipes for frames, stdout and
    stderr. In the answer `Finished`, the value is the fork's pid in the session. The text lists what the fork lacks or shares with its
    parent (such as child processes, open files), a line for each.
    """

    execution: str
    reseed: bool


@dataclass(frozen=True)
class Answer(Message):
    """The host's answer to a question of a cell (`Asked`). If `given` is False, there is no answer, and `text` is the reason."""

    number: int
    given: bool
    text: str


@dataclass(frozen=True)
class Command(Message):
    """A request to run a program instead of a cell. In the result, the value is the program's exit code."""

    execution: str
    arguments: list[str]
    stdin: str


@dataclass(frozen=True)
class WarmUp(Message):
    """A request to touch the memory that cells need, so that the first cell is fast. The answer is `Finished`."""

    execution: str


@dataclass(frozen=True)
class Ping(Message):
    """A request to do nothing. Its answer, `Finished` from an interpreter or `Done` from the zygote, proves that the receiver works."""

    execution: str


@dataclass(frozen=True)
class Extend(Message):
    """A request to make the packages in the folders `paths` importable. They replace the packages of an earlier request.

    The answer is `Finished`. `replaced` are the modules whose version changes. If one of them is imported already, nothing changes and the
    answer has an error.
    """

    execution: str
    paths: list[str]
    replaced: list[str]


@dataclass(frozen=True)
class Save(Message):
    """A request to write the state of the interpreter to the pipe that comes with it.

    In the answer `Finished`, the value is the pid in the session of the fork that writes. If `background` is true, cells may run while it
    writes: the answer comes once the fork has read the files, and the state is refused if a large one changes before it is written.
    """

    execution: str
    background: bool = False


@dataclass(frozen=True)
class Restore(Message):
    """A request to restore the state in the pipe that comes with it.

    In the answer `Finished`, the text is JSON: a dict of what could not be restored, with the reasons.
    """

    execution: str


def encode(message: Message) -> bytes:
    """Return the payload that carries a message."""
    texts: list[bytes] = []
    content: dict[str, object] = {"kind": type(message).__name__}
    for name, value in vars(message).items():
        content[name] = _without_long_texts(value, texts) if value else value
    content["texts"] = [*map(len, texts)]
    header = json.dumps(content, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(header)), header, *texts))


def decode(payload: bytes, *expected: type[Expected]) -> Expected:
    """Return the message in a payload. Raise WireError if it is malformed, or of a class that is not in `expected`."""
    try:
        (length,) = _LENGTH.unpack_from(payload)
        if length > _MAX_HEADER:
            raise WireError(f"a header must have at most {_MAX_HEADER} bytes, got {length}")
        start = _LENGTH.size + length
        content: dict[str, object] = json.loads(payload[_LENGTH.size : start].decode("utf-8"))
        texts: dict[int, bytes] = {}
        for size in cast("list[object]", content.pop("texts")):
            if type(size) is not int or size < 0:
                raise WireError("the size of a text must be a number that is not negative")
            texts[len(texts)] = payload[start : start + size]
            start += size
        kind = content.pop("kind")
    except (ValueError, RecursionError, struct.error, AttributeError, KeyError, TypeError):
        raise WireError(
            "a frame must begin with a header: its length, and JSON with a kind and the sizes of the texts"
        ) from None  # unchained: the cause would hold data of the guest
    if start != len(payload):
        raise WireError(f"a frame must have the length that its header says, got {len(payload)} bytes")
    for candidate in expected:
        if candidate.__name__ == kind:
            shapes = _shapes(candidate)  # type: ignore[arg-type]  # classes are hashable
            if content.keys() != shapes.keys():
                raise WireError(f"expected exactly the fields {', '.join(shapes)} in {candidate.__name__}")
            for name, shape in shapes.items():
                content[name] = _checked(content[name], shape, texts)
            return candidate(**content)
    raise WireError(f"expected a frame of the kind {' or '.join(one.__name__ for one in expected)}")


def frame(message: Message) -> bytes:
    """Return the frame that carries a message: the length of the payload, then the payload."""
    payload = encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """A parser that splits a stream of frames into payloads. Its time grows only linearly with the length of the stream."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Append received bytes, and yield each payload that is complete. Raise WireError if a payload is larger than the limit."""
        self.rest += data
        start = 0
        try:
            while len(self.rest) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self.rest, start)
                if length > self.limit:
                    raise WireError(f"a frame must have at most {self.limit} bytes, got {length}")
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
    """Return a copy of a value in which each long text is replaced by a reference, such as {"text": 0}. Append the text to `texts`."""
    if isinstance(value, str) and len(value) > (_IN_THE_HEADER if value.isascii() else _IN_THE_HEADER // _ESCAPED):
        texts.append(value.encode("utf-8", "backslashreplace"))
        return {"text": len(texts) - 1}
    if isinstance(value, dict):
        return {key: _without_long_texts(item, texts) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_long_texts(item, texts) for item in value]
    return value


@cache
def _shapes(kind: type[Any]) -> dict[str, _Shape]:
    """Return a dict from the name of each field of a message class to the shape of the field's values (see `_shape_of`)."""
    return {declared.name: _shape_of(declared.type) for declared in fields(kind)}


def _shape_of(declared: object) -> _Shape:
    """Convert a field's declared type to a shape: a pair `(kind, parts)` that `_checked` uses to check a value.

    For example, `list[str]` becomes `(list, ((None, (str,)),))`. What `parts` holds depends on the kind:

    - `list` and `dict`: one shape, which every item or every value must fit.
    - `tuple`: one shape for each item.
    - `Literal`: the allowed words.
    - `None`, the kind of plain types: the allowed types, such as `str` and `int`.
    """
    origin, parts = get_origin(declared), get_args(declared)
    if origin in (dict, list):
        return origin, (_shape_of(parts[-1]),)
    if origin is tuple:
        return tuple, tuple(map(_shape_of, parts))
    if origin is Literal:
        return Literal, parts
    return None, parts or (declared,)


def _checked(value: Any, shape: _Shape, texts: dict[int, bytes]) -> object:
    """Return a value from a frame's header, after checking that it fits a shape. Raise WireError if it does not.

    If the value or a part of it refers to a long text in `texts`, put the text in its place and remove it from `texts`.
    """
    container, parts = shape
    if container is None:
        if type(value) is dict:
            value = _long_text(value, texts)
        if type(value) not in parts:  # not isinstance: a bool is an int
            raise WireError(f"expected a value of the type {' or '.join(one.__name__ for one in parts)}, got {type(value).__name__}")
        return value if type(value) is not str or value.isascii() else _well_formed(value)
    if container is Literal:
        if type(value) is not str or value not in parts:
            raise WireError(f"expected one of the words {', '.join(parts)}")
        return value
    if container is dict and type(value) is dict:
        return dict(zip(map(_well_formed, value), map(_checked, value.values(), repeat(parts[0]), repeat(texts))))
    if type(value) is not list or container is dict or (container is tuple and len(value) != len(parts)):
        raise WireError(f"expected a value of the shape {container.__name__}, got {type(value).__name__} or another length")
    return cast("object", container(map(_checked, value, parts if container is tuple else repeat(parts[0]), repeat(texts))))


def _long_text(place: dict[str, object], texts: dict[int, bytes]) -> str:
    """Remove a text from `texts` and return it. `place` is the reference to it, such as {"text": 0}. Raise WireError if it is missing."""
    index = place.get("text")
    if len(place) != 1 or type(index) is not int or index not in texts:
        raise WireError("a reference to a text must be the index of a text that is not used yet")
    try:
        # Each text can be used once: a header that refers to one a thousand times would make a frame a thousand times its size.
        return texts.pop(index).decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("a text must be UTF-8") from None  # unchained: the cause would hold data of the guest


def _well_formed(text: str) -> str:
    """Return the text with lone surrogates escaped, because UTF-8 cannot encode them."""
    return text.encode("utf-8", "backslashreplace").decode()
