"""The data that is sent to a session and returned from it. All objects are frozen, and the same for every integration and endpoint."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from .errors import ExecutionError

Scalar = str | int | float | bool | None
Part = Literal["kept", "restored", "rolled_back", "unknown", "lost"]
_CONSEQUENCES: dict[Part, str] = {
    "kept": "are kept",
    "restored": "were restored from a saved state",
    "unknown": "may have changed: look at one before you rely on it",
    "lost": "from before are gone",
}
_MOST_NAMED = 20  # things that a restored session lacks
_MOST_IN_REPR = 80  # characters of a display's content
_WORST_LAST: tuple[Part, ...] = ("kept", "restored", "rolled_back", "unknown", "lost")


@dataclass(frozen=True, slots=True)
class State:
    """What happened to a session's variables, files and processes since the last result that this caller received.

    Resets and rollbacks that the caller asked for do not count, except rollbacks to a saved checkpoint. Some endpoints, such as Azure's,
    have no ledger (a list of what happened to the session). There, `processes` and `cut_off` are not known, and `kept` means only that no
    loss was seen.

    Attributes:
        variables: What happened to the variables.
        files: What happened to the files in /mnt/data.
        processes: What happened to processes that earlier cells left running.
        reason: Why the state was not kept, or None. For a loss: `exit`, `crash`, `killed`, `memory`, `reset`, `expired`, `terminated` or
            `restore failed`. For a rollback: `rollback`, or the reason of a death followed by ", to the last checkpoint" or
            ", to an earlier checkpoint". For `unknown`: `no reply`, `still running`, `not undone` and others.
        checkpoint: The id of the checkpoint that variables were rolled back to; None if a transactional cell failed and was undone.
        cut_off: After a rollback, files that the session's code still has open but that are no longer in /mnt/data: what is written to them
            is lost. If the host cannot find out which files these are, one entry says so.
        missing: After the session was restored, or rolled back to a saved checkpoint: the names of what could not be saved or restored.
        saved: After that: when the state was saved.
        unsaved: After the session was restored: how many cells began after its state was saved, as far as the results that this caller
            received tell.
    """

    variables: Part = "kept"
    files: Part = "kept"
    processes: Literal["kept", "ended", "unknown"] = "kept"
    reason: str | None = None
    checkpoint: str | None = None
    cut_off: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    saved: datetime | None = None
    unsaved: int = 0

    @property
    @lru_cache(256)  # noqa: B019 - a state is small. Each result asks for these texts several times, and most states are equal
    def kind(self) -> Part:
        """Return the worse of `variables` and `files`. From good to bad: `kept`, `restored`, `rolled_back`, `unknown`, `lost`."""
        return max(self.variables, self.files, key=_WORST_LAST.index)

    @property
    @lru_cache(256)  # noqa: B019
    def consequence(self) -> str:
        """Return what a person or a model can still rely on in the session, such as `variables from before are gone, files are kept`."""
        if (self.reason or "").endswith("to the last checkpoint"):
            returned = "are as at the last checkpoint"
        elif self.checkpoint:
            returned = "are as at an earlier checkpoint"
        else:
            returned = "are as before the cell that failed" if self.variables == "rolled_back" else "are as at an earlier moment"
        words = {**_CONSEQUENCES, "rolled_back": returned}
        variables, files = words[self.variables], words[self.files]
        text = f"variables and files {files}" if self.variables == self.files else f"variables {variables}, files {files}"
        if self.saved is not None:
            text += f" of {self.saved.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        if self.unsaved:
            text += f", before {self.unsaved} later cells" if self.unsaved > 1 else ", before one later cell"
        if self.missing:
            more = f" and {len(self.missing) - _MOST_NAMED} more" if len(self.missing) > _MOST_NAMED else ""
            text += f", without {', '.join(self.missing[:_MOST_NAMED])}{more}"
        if self.processes == "ended" and self.kind in ("kept", "rolled_back"):
            text += "; background processes were ended"
        if self.cut_off:
            text += f"; open files were cut off: {', '.join(self.cut_off)}"
        return text

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason and self.kind != "kept" else self.kind


NO_REPLY = State("unknown", "unknown", "unknown", "no reply")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a session's ledger: something that happened, and how it affected variables, files and processes.

    If the entry is a rollback or a restore, `to` is the position in the ledger at which the checkpoint or the saved state was taken. If it
    is a restore, `cells` is how many cells had begun by then.
    """

    position: int
    kind: Literal[
        "started", "died", "killed", "reset", "checkpoint", "rolled_back", "not_undone", "branched", "ended", "restored", "summary"
    ]
    cause: str | None = None
    variables: Part = "kept"
    files: Part = "kept"
    processes: Literal["kept", "ended", "unknown"] = "kept"
    to: int | None = None
    checkpoint: str | None = None
    cut_off: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    saved: datetime | None = None
    cells: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """The entries of a session's ledger that come with a result: those after position `since`, up to position `end`.

    The execution began at position `start`. The ledger lists everything that happened to the session. `cells` is how many cells have begun.
    """

    ledger: str
    since: int
    start: int
    end: int
    entries: tuple[Entry, ...] = ()
    cells: int = 0


def _shorten(content: object) -> object:
    """Return what a display has for a MIME type, or its beginning and length if it is a long text."""
    is_long = isinstance(content, str) and len(content) > _MOST_IN_REPR
    return f"{str(content)[:_MOST_IN_REPR]}… ({len(str(content))} characters)" if is_long else content


@dataclass(frozen=True, slots=True)
class Display:
    """One thing that a cell displayed.

    Attributes:
        data: Its content by MIME type: binary types as base64, JSON types as JSON text.
        name: A name, or None. A later display of the same name replaces this one.
    """

    data: Mapping[str, object]
    name: str | None = None

    def __repr__(self) -> str:
        """Return the types with the beginning of each content, because images and charts are long."""
        shown = {mime: _shorten(content) for mime, content in self.data.items()}
        return f"Display(data={shown!r}, name={self.name!r})"

    @property
    def png(self) -> bytes | None:
        """Return the PNG image, or None if there is none or it is not valid base64."""
        encoded = self.data.get("image/png")
        try:
            return base64.b64decode(encoded) if isinstance(encoded, str) else None
        except ValueError:
            return None  # code in the session may display anything under this name


@dataclass(frozen=True, slots=True)
class FileChange:
    """A change of a file by a cell.

    Attributes:
        path: The path, relative to /mnt/data.
        kind: What the cell did with the file.
        size: The size after the cell, in bytes. 0 for a deleted file.
    """

    path: str
    kind: Literal["created", "changed", "deleted"]
    size: int = 0


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process that was still running when a cell ended. A reset or rollback of the session ends it.

    Attributes:
        pid: Its process id in the session.
        name: The name of its program.
    """

    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class VariableChange:
    """A change of a variable by a cell. A change in place that keeps the length or shape is not detected.

    Attributes:
        name: The name of the variable.
        kind: What happened. `changed` means that it is bound to another object, or that its length or shape differs.
        type: The name of its type after the cell.
        shape: Its shape or length after the cell, or None.
        size: Its size after the cell, in bytes.
    """

    name: str
    kind: Literal["added", "changed", "deleted"]
    type: str = ""
    shape: tuple[int, ...] | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class CodeError:
    """The exception that ended a cell.

    Attributes:
        name: The class of the exception, or a name that the host sets, such as `InterpreterDied`.
        message: The text of the exception.
        traceback: The traceback, or '' if there is none, for example because the host ended the cell.
    """

    name: str
    message: str
    traceback: str = field(default="", repr=False)  # long, and a result has it in its `stderr` too

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeExecutionResult:
    """The result of an execution. Failed code is a result, never an exception.

    Attributes:
        session_id: The identifier of the session.
        stdout: What the cell wrote to stdout.
        stderr: What the cell wrote to stderr, with the traceback if it failed.
        value: The value of the last expression, if it is text, a number, a bool or None.
        text: The value of the last expression as IPython prints it, or None if there is none.
        displays: What the cell displayed.
        files: The files that the cell changed, at most 1,000. Empty if /mnt/data has more than 2,000 files.
        processes: The processes that still ran when the cell ended, at most 100. This cell or an earlier one started them.
        variables: The variables that the cell changed, at most 200.
        error: The exception that ended the cell, or None.
        state: What happened to the session since the last result that this caller received.
        duration: How long the cell ran, in seconds.
        record: The part of the session's ledger that `state` was computed from.
        max_output: The approximate limit of `str(result)`, in characters.
        hint: Advice for the caller if the cell lacked a package or the network, otherwise ''. Tools for models and the command line add it;
            endpoints do not send it.
        value_is_none: Whether the last expression is not a call and its value is None. Azure's API encodes that differently from a cell
            without a value.
        execution_count: The number of the cell in the session, as in `Cell In[3]` of tracebacks. None if the cell is empty or has not
            ended, and at endpoints that do not tell it, such as Azure.
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
    hint: str = field(default="", repr=False, compare=False)
    value_is_none: bool = field(default=False, repr=False, compare=False)
    execution_count: int | None = field(default=None, repr=False, compare=False)

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
    def written_to_stderr(self) -> str:
        """Return what the cell itself wrote to stderr, which is `stderr` without the error at its end."""
        if self.error is None:
            return self.stderr
        return self.stderr.removesuffix(self.error.traceback or str(self.error))

    @property
    def images(self) -> tuple[bytes, ...]:
        """Return the PNG images among the displays, in their order."""
        return tuple(png for display in self.displays if (png := display.png) is not None)

    def raise_for_error(self) -> "CodeExecutionResult":
        """Raise ExecutionError if the cell failed. Return the result otherwise."""
        if self.error is not None:
            raise ExecutionError(self.error.traceback or str(self.error))
        return self

    def __str__(self) -> str:
        """Return the text of the result for a model: compact, within about `max_output` characters, without image data."""
        from .rendering import render

        return render(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """Return the result for a notebook to show, by MIME type."""
        from .rendering import mimebundle

        return mimebundle(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of an execution, such as output that it wrote. Events are in order, and the last event of an execution has its result.

    Attributes:
        kind: What happened. `clear` removes the displays so far from the result. If the cell failed, `error` comes right before `result`,
            at every endpoint. The events of `stderr` never contain the error.
        text: For `stdout` and `stderr` what was written, for `input` the prompt, for `call` the host call in JSON, for `skipped` a
            description of the output that was dropped before it was read, for `network` a connection or request that the rules of the
            session's network refuse, in JSON, and for `decision` the decision about it: `once`, `always` or `refuse`.
        number: The number of a question (`input`, `call` or `network`), which the reply must name, or the question of a `decision`.
        display: What is displayed. It replaces an earlier display of the same name in this cell.
        error: The exception that ended the cell.
        result: The result, in the last event.
        password: Whether an `input` comes from `getpass()`: the answer must not be shown, and the cell has not printed the prompt.
        update: Whether the cell asked to replace the displays of this name, also those of earlier cells.
        is_value: Whether the display shows the value of the last expression. False at endpoints that do not tell it.
    """

    kind: Literal["stdout", "stderr", "display", "clear", "input", "call", "network", "decision", "skipped", "error", "result"]
    text: str = ""
    number: int = 0
    display: Display | None = None
    error: CodeError | None = None
    result: CodeExecutionResult | None = None
    password: bool = False
    update: bool = False
    is_value: bool = False

    @property
    def prompt(self) -> "Prompt":
        """Return the prompt of an `input` event, as it is passed to a function that answers `input()`, with its `password` flag."""
        prompt = Prompt(self.text)
        prompt.password = self.password
        return prompt


class Prompt(str):
    """The prompt of a cell that waits for a line, as text.

    Attributes:
        password: Whether the cell calls `getpass()`. If so, show the prompt, because the cell has not printed it, and hide the answer.
    """

    password: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeExecutionRequest:
    """A request to run a cell in a session.

    Attributes:
        session_id: The identifier of the session.
        code: The source text.
        sanitize_input: Whether to remove Markdown fences around the code first.
        timeout: The time limit in seconds, or None for the default.
        transactional: Whether to undo a cell completely if it fails.
    """

    session_id: str
    code: str
    sanitize_input: bool = True
    timeout: float | None = None
    transactional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUploadRequest:
    """A request to write a file into a session's /mnt/data.

    Attributes:
        session_id: The identifier of the session.
        file_name: The path of the file, relative to /mnt/data.
        file_content: The content of the file.
    """

    session_id: str
    file_name: str
    file_content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file or folder in a session's /mnt/data.

    Attributes:
        name: The name, without the folder.
        size: The size in bytes.
        modified: When it was changed last.
        directory: The folder that it is in, relative to /mnt/data.
        is_directory: Whether it is a folder.
        content_type: The MIME type, if the endpoint reports one.
    """

    name: str
    size: int
    modified: datetime
    directory: str = ""
    is_directory: bool = False
    content_type: str = "application/octet-stream"

    @property
    def full_path(self) -> str:
        """Return the absolute path of the file in the session."""
        return "/".join(part for part in ("/mnt/data", self.directory, self.name) if part)


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What is known of a file, folder or link anywhere in a session.

    Attributes:
        path: The absolute path.
        kind: `other` is a pipe, socket or device.
        size: The size in bytes.
        mode: The permissions, such as 0o644.
        modified: When it was changed last.
        target: Where a link leads to.
    """

    path: str
    kind: Literal["file", "folder", "link", "other"]
    size: int
    mode: int
    modified: datetime
    target: str = ""

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class TextMatch:
    """A line of a file in which a text was found.

    Attributes:
        path: The absolute path of the file.
        line: The number of the line, counted from 1.
        text: The line, or its first 2,000 characters.
    """

    path: str
    line: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a session.

    Attributes:
        id: The id, which is unique in the session.
        name: The name, or None. Several checkpoints may have the same name; the name then means the latest of them.
        created: When it was taken.
        size: The size of its files in bytes.
        left_behind: What could not be saved, such as open sockets.
        durable: Whether it is in the store of saved sessions, too, so that it is found after a restart.
    """

    id: str
    name: str | None
    created: datetime
    size: int = 0
    left_behind: tuple[str, ...] = ()
    durable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """The result of a command.

    Attributes:
        exit_code: The exit code. If a signal ended the command, minus the number of the signal.
        stdout: What the command wrote to stdout. Bytes that are not UTF-8 are replaced.
        stderr: What the command wrote to stderr.
        timed_out: Whether the command ran too long and was killed, with the processes that it had started.
        truncated: Whether more was written to one of the streams than is kept. The beginning is kept.
        raw_stdout: The same as `stdout`, as bytes.
        raw_stderr: The same as `stderr`, as bytes.
        state: What happened to the session's variables, files and processes since the last result that its caller received.
    """

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool = False
    truncated: bool = False
    raw_stdout: bytes = field(default=b"", repr=False)
    raw_stderr: bytes = field(default=b"", repr=False)
    state: State = State()

    @property
    def success(self) -> bool:
        """Return whether the command ended with exit code 0."""
        return self.exit_code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable of a session.

    Attributes:
        name: The name.
        type: The name of its type.
        shape: The shape or length, or None if it has neither.
        size: The size in bytes.
        text: The value as text, for plain values such as numbers; otherwise ''.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None = None
    size: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """The texts that complete a word.

    Attributes:
        matches: The texts.
        start: The position of the first character that a text replaces.
        end: The position after the last character that a text replaces.
    """

    matches: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that a session installed in addition to those of its environment.

    Attributes:
        name: The name of the package.
        version: The installed version.
    """

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHealth:
    """The health of a session.

    If it is not `responsive`, it may be busy with a cell, and at most `response_time` and `isolation` are known.

    Attributes:
        responsive: Whether it answered.
        response_time: How long the answer took, in seconds.
        python: The version of its Python.
        memory: The memory that it uses, in bytes. 0 if the session runs without Linux namespaces, because it does not see its own process
            then.
        uptime: How long it has run, in seconds. 0 in the same case as `memory`.
        threads: The number of its threads.
        cpu: The processor time that it has used, in seconds.
        isolation: The evidence for each part of its isolation, as `CodeInterpreter.isolation` returns it.
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
class Access:
    """What a pool's sessions can reach, install and use, as far as the program that opened the pool knows.

    Attributes:
        network: `("none",)` for no network, `("host",)` for the network of the host, or the allowed domains and what is allowed there. None
            if it is not known, because the sessions are at an endpoint.
        can_install: Whether tools for models offer to install packages, unless their own arguments say otherwise.
        limits: The limits of each session, or None if they are not known.
        mounts: The folders of the host that sessions see: the path in the session, and `read-only` or `writable`. Empty if not known.
    """

    network: tuple[str, ...] | None = None
    can_install: bool = False
    limits: "AccessLimits | None" = None
    mounts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLimits:
    """The limits of a session that its cells can run into.

    Attributes:
        memory: How many bytes of memory each of its processes may use.
        disk: How many bytes of files /mnt/data may have.
        files: How many files and folders /mnt/data may have.
        temporary: How many bytes of files /tmp and /dev/shm may each have.
        processes: How many processes and threads it may have.
        cell_timeout: How many seconds a cell may run if its caller does not set a timeout.
    """

    memory: int
    disk: int
    files: int
    temporary: int
    processes: int
    cell_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSession:
    """A saved session: its state in a store, from which it is restored when it is used again.

    Attributes:
        session_id: The identifier of the session.
        created: When it was saved.
        variables: How many variables were saved.
        lost: The names of variables, files and settings that cannot be saved, with the reasons.
        size: The size of the saved state in bytes.
        python: The version of Python that the session had.
        cells: How many cells had begun in the session when it was saved.
        seconds: How long the save took; 0 in a list of saved sessions.
    """

    session_id: str
    created: datetime
    variables: int
    lost: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    python: str = ""
    cells: int = 0
    seconds: float = 0.0


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
        name: The title that a user of the playground gave it. Known only from servers with extensions.
        cells: How many cells it was sent. Known only from servers with extensions.
    """

    session_id: str
    created: datetime
    last_used: datetime
    expires: datetime | None = None
    is_active: bool = False
    leased_since: datetime | None = None
    memory: int | None = None
    running: str | None = None
    name: str | None = None
    cells: int | None = None
