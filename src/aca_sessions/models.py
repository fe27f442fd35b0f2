"""The data that goes into a session and comes out of it: frozen, and the same for every integration and endpoint."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from .errors import ExecutionError

Scalar = str | int | float | bool | None
Part = Literal["kept", "restored", "rolled_back", "unknown", "lost"]
_WORST_LAST: tuple[Part, ...] = ("kept", "restored", "rolled_back", "unknown", "lost")


@dataclass(frozen=True, slots=True)
class State:
    """What happened to a session's variables, files and processes since the last result that this caller received.

    Resets and rollbacks that the caller asked for do not count. Without a ledger (at Azure's endpoints, for example) `processes` and
    `cut_off` are not known, and `kept` means only that no loss was seen.

    Attributes:
        variables: What happened to the variables.
        files: What happened to the files in /mnt/data.
        processes: What happened to processes that earlier cells left running.
        reason: Why, or None: `exit`, `crash`, `killed`, `memory`, `reset`, `expired` or `terminated` for a loss; `rollback`, or such a
            reason and "to the last checkpoint", for a rollback; `no reply`, `still running`, `not undone` and others for `unknown`.
        checkpoint: The id of the checkpoint that variables were rolled back to; None if a transactional cell failed and was undone.
        cut_off: Files that the session's code has open and that a rollback could not bring back, since they had been deleted: what is
            written to them is in no file. An entry states it if the host cannot find out which files these are.
    """

    variables: Part = "kept"
    files: Part = "kept"
    processes: Literal["kept", "ended", "unknown"] = "kept"
    reason: str | None = None
    checkpoint: str | None = None
    cut_off: tuple[str, ...] = ()

    @property
    def kind(self) -> Part:
        """Return the worse of what happened to variables and to files."""
        return max(self.variables, self.files, key=_WORST_LAST.index)

    @property
    def consequence(self) -> str:
        """Return what the caller can rely on now, in words for people and models."""
        ended = "; background processes were ended" if self.kind in ("kept", "rolled_back") and self.processes == "ended" else ""
        ended += f"; open files were cut off: {', '.join(self.cut_off)}" if self.cut_off else ""
        if self.variables == self.files:
            return f"variables and files {self._fate(self.files)}{ended}"
        return f"variables {self._fate(self.variables)}, files {self._fate(self.files)}{ended}"

    def _fate(self, part: Part) -> str:
        match part:
            case "kept":
                return "are kept"
            case "restored":
                return "were restored from a saved state"
            case "rolled_back":
                return self._returned_to
            case "lost":
                return "from before are gone"
        return "may have changed: look at one before you rely on it"

    @property
    def _returned_to(self) -> str:
        if (self.reason or "").endswith("to the last checkpoint"):
            return "are as at the last checkpoint"
        if self.checkpoint:
            return "are as at an earlier checkpoint"
        return "are as before the cell that failed" if self.variables == "rolled_back" else "are as at an earlier moment"

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason and self.kind != "kept" else self.kind


NO_REPLY = State("unknown", "unknown", "unknown", "no reply")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to a session's interpreter or workspace, and what it did to variables, files and processes.

    `to` is the position whose state a rollback returned to.
    """

    position: int
    kind: Literal["started", "died", "killed", "reset", "checkpoint", "rolled_back", "not_undone", "branched", "ended", "summary"]
    cause: str | None = None
    variables: Part = "kept"
    files: Part = "kept"
    processes: Literal["kept", "ended", "unknown"] = "kept"
    to: int | None = None
    checkpoint: str | None = None
    cut_off: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """The part of a session's ledger that a response carries: all entries after `since` up to `end`. The execution began at `start`."""

    ledger: str
    since: int
    start: int
    end: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Display:
    """One display by MIME type: binary types as base64, JSON types as JSON text. A later display of the same `name` updates it."""

    data: Mapping[str, object]
    name: str | None = None

    @property
    def png(self) -> bytes | None:
        """Return the PNG image, or None."""
        encoded = self.data.get("image/png")
        try:
            return base64.b64decode(encoded) if isinstance(encoded, str) else None
        except ValueError:
            return None  # code in the session may display anything under this name


@dataclass(frozen=True, slots=True)
class FileChange:
    """What a cell did to a file. The path is relative to /mnt/data."""

    path: str
    kind: Literal["created", "changed", "deleted"]
    size: int = 0


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process that a cell left running. A reset or rollback of the session ends it. `pid` is its number inside the session."""

    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class VariableChange:
    """What a cell did to a variable. `changed` means bound to another object, or to one of another length or shape.

    A change in place that keeps the shape is not detected. `type`, `shape` and `size` (in bytes) are those after the cell.
    """

    name: str
    kind: Literal["added", "changed", "deleted"]
    type: str = ""
    shape: tuple[int, ...] | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class CodeError:
    """The exception that ended a cell."""

    name: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeExecutionResult:
    """The result of an execution. Failed code is a result, never an exception.

    Attributes:
        session_id: The identifier of the session.
        stdout: What the cell wrote to stdout.
        stderr: What the cell wrote to stderr, with the traceback if it failed.
        value: The last value, if it is a plain one: text, a number, a bool or None.
        text: The last value in IPython's layout, or None if there is none.
        displays: What the cell displayed.
        files: The files that it changed, at most 1,000. None are listed if /mnt/data has more than 2,000 files.
        processes: The processes that it left running, at most 100.
        variables: The variables that it changed, at most 200.
        error: The exception that ended it, or None.
        state: What happened to the session since the last result that this caller received.
        duration: How long it ran, in seconds.
        record: The part of the session's ledger that `state` was computed from.
        max_output: About how many characters `str(result)` has at most.
    """

    session_id: str = ""
    stdout: str = ""
    stderr: str = ""
    value: Scalar = None
    text: str | None = None
    displays: tuple[Display, ...] = ()
    files: tuple[FileChange, ...] = ()
    processes: tuple[RunningProcess, ...] = ()
    variables: tuple[VariableChange, ...] = ()
    error: CodeError | None = None
    state: State = State()
    duration: float = 0.0
    record: Record | None = field(default=None, repr=False, compare=False)
    max_output: int = field(default=10_000, repr=False, compare=False)
    # Whether the last expression is not a call and its value is None. Azure's API encodes that differently from a cell without a value.
    value_is_none: bool = field(default=False, repr=False, compare=False)

    @property
    def success(self) -> bool:
        """Return whether the cell ended without an error."""
        return self.error is None

    @property
    def is_ok(self) -> bool:
        """Return the same as `success`."""
        return self.success

    @property
    def exit_code(self) -> int:
        """Return 0, or 1 if the cell failed."""
        return 0 if self.success else 1

    @property
    def output(self) -> str:
        """Return what a notebook shows under the cell: stdout, then the last value."""
        if not self.text:
            return self.stdout
        separator = "\n" if self.stdout and not self.stdout.endswith("\n") else ""
        return f"{self.stdout}{separator}{self.text}"

    @property
    def images(self) -> tuple[bytes, ...]:
        """Return the PNG images among the displays."""
        return tuple(png for display in self.displays if (png := display.png) is not None)

    def raise_for_error(self) -> "CodeExecutionResult":
        """Raise ExecutionError if the cell failed. Return the result otherwise."""
        if self.error is not None:
            raise ExecutionError(self.error.traceback or str(self.error))
        return self

    def __str__(self) -> str:
        """Return what a model reads: compact, within about `max_output` characters, without image data."""
        from .rendering import render

        return render(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """Return what a notebook shows."""
        from .rendering import mimebundle

        return mimebundle(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that an execution did while it ran. Events are in order, and the last one of an execution is its `result`.

    Attributes:
        kind: What happened. After `clear`, the displays so far are not part of the result any more.
        text: For `stdout` and `stderr` what was written, for `input` the prompt, for `call` the host call in JSON, for `skipped` what was
            dropped before it was read, in words.
        number: The number of a question (`input` or `call`), which the reply must name.
        display: What is displayed. It replaces an earlier display of the same name.
        result: The result.
    """

    kind: Literal["stdout", "stderr", "display", "clear", "input", "call", "skipped", "result"]
    text: str = ""
    number: int = 0
    display: Display | None = None
    result: CodeExecutionResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeExecutionRequest:
    """A cell for a session.

    Attributes:
        session_id: The identifier of the session.
        code: The source text.
        sanitize_input: Whether to take the code out of Markdown fences first.
        timeout: The time limit in seconds, or None for the default.
        transactional: Whether a cell that fails is undone completely.
    """

    session_id: str
    code: str
    sanitize_input: bool = True
    timeout: float | None = None
    transactional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUploadRequest:
    """A file to write to a session's /mnt/data."""

    session_id: str
    file_name: str
    file_content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file or folder in a session's /mnt/data. `directory` is relative to /mnt/data."""

    name: str
    size: int
    modified: datetime
    directory: str = ""
    is_directory: bool = False
    content_type: str = "application/octet-stream"

    @property
    def full_path(self) -> str:
        """Return the absolute path at which code in the session finds it."""
        return "/".join(part for part in ("/mnt/data", self.directory, self.name) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a session. `left_behind` lists what could not be kept. `size` is that of its files, in bytes.

    A name can be used again. It then means the latest checkpoint of that name. Ids are unique in a session.
    """

    id: str
    name: str | None
    created: datetime
    size: int = 0
    left_behind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """The result of a shell command. A negative exit code is the number of a signal."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def success(self) -> bool:
        """Return whether the command ended with exit code 0."""
        return self.exit_code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable of a session.

    `text` is set for plain values only. `shape` is set for values with dimensions or a length. `size` is in bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None = None
    size: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """The texts that can replace the characters from `start` to `end`, before or at the cursor."""

    matches: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that a session installed in addition to those of its environment."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHealth:
    """The state of a session. If it is not `responsive`, it may be busy with a cell, and nothing else is known of it.

    Attributes:
        responsive: Whether it answered.
        response_time: How long the answer took, in seconds.
        python: The version of its Python.
        memory: The memory that it uses, in bytes. 0 without namespaces, because a session does not see its own process then.
        uptime: How long it has run, in seconds. 0 without namespaces, for the same reason.
        threads: The number of its threads.
        cpu: The processor time that it has used, in seconds.
        isolation: What separates it from its host: each part with the way in which that was found. None if the endpoint does not report it.
    """

    responsive: bool
    response_time: float
    python: str = ""
    memory: int = 0
    uptime: float = 0.0
    threads: int = 0
    cpu: float = 0.0
    isolation: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session that a pool or a server keeps alive.

    Attributes:
        session_id: Its identifier.
        created: When it was created.
        last_used: When it was used last.
        expires: When it expires if it is not used again, or None if it does not expire by itself.
        is_active: Whether it is in use: in a pool it is leased, on a server a cell or a request uses it.
        leased_since: When its current lease began.
        memory: The bytes of memory that it and its branches use together. Known only from servers with extensions.
        running: The id of the execution that runs in it. Known only from servers with extensions.
    """

    session_id: str
    created: datetime
    last_used: datetime
    expires: datetime | None = None
    is_active: bool = False
    leased_since: datetime | None = None
    memory: int | None = None
    running: str | None = None
