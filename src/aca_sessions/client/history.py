"""Record what was done with a session, in order. The history can be written as a notebook, and run again in another session."""

import base64
import contextlib
import hashlib
import io
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..models import CodeExecutionResult, Display
from .arguments import checked_path, checked_requirements

_MOST_STEPS = 1000
_MOST_BYTES = 32 << 20
_LARGEST_FILE = 4 << 20


@dataclass(frozen=True, slots=True)
class CellStep:
    """A step of the history: a cell as it was sent, and its result. The result is None while the cell runs, or if none arrived.

    `rolled_back` means that a rollback undid what the cell did to the variables.
    """

    code: str
    result: CodeExecutionResult | None = None
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class UploadStep:
    """A step of the history: a file that the caller wrote to the session. `content` is None if the file is larger than 4 MB."""

    path: str
    size: int
    sha256: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class DeleteStep:
    """A step of the history: a file that the caller deleted from the session."""

    path: str


@dataclass(frozen=True, slots=True)
class ResetStep:
    """A step of the history: a reset, requested by the caller, which cleared the variables."""


@dataclass(frozen=True, slots=True)
class InstallStep:
    """A step of the history: an installation of packages, with the requirements as the caller wrote them."""

    requirements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VariableStep:
    """A step of the history: a variable that the caller set to a DataFrame, Series or array, which the history does not hold."""

    name: str


Step = CellStep | UploadStep | DeleteStep | ResetStep | InstallStep | VariableStep


class History:
    """The history of a session: its latest cells, uploads, deletions, resets and installations, called steps.

    DataFrames, Series and arrays that the caller passed in are steps without their content.

    At most 1,000 steps and about 32 MB are kept. Older steps are dropped, and `left_out` counts them.
    """

    def __init__(self) -> None:
        self._steps: dict[int, Step] = {}
        self._sizes: dict[int, int] = {}
        self._numbers = itertools.count()
        self._marks: dict[str, int] = {}
        self.left_out = 0

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the steps that were not dropped, the oldest first."""
        return tuple(self._steps.values())

    @property
    def cells(self) -> tuple[CellStep, ...]:
        """Return the cells among the steps, the oldest first."""
        return tuple(step for step in self._steps.values() if isinstance(step, CellStep))

    def add(self, step: Step, number: int | None = None) -> int:
        """Add a step and return its number, or replace the step with the given number. Drop the oldest steps if there are too many."""
        if number is None:
            number = next(self._numbers)
        size = 0
        match step:
            case CellStep(code, result):
                size = len(code)
                if result is not None:
                    size += len(result.stdout) + len(result.stderr) + len(result.text or "")
                    for display in result.displays:
                        size += sum(len(content) for content in display.data.values() if isinstance(content, str))
            case UploadStep(content=bytes(content)):
                size = len(content)
        self._steps[number], self._sizes[number] = step, size
        # One step is always kept, however large.
        while len(self._steps) > _MOST_STEPS or (sum(self._sizes.values()) > _MOST_BYTES and len(self._steps) > 1):
            oldest = next(iter(self._steps))
            del self._steps[oldest], self._sizes[oldest]
            self.left_out += 1
        return number

    def set_result(self, number: int, result: CodeExecutionResult) -> CodeExecutionResult:
        """Store a cell's result in the step with the number `number`, and return the result.

        If the result reports a rollback, mark the cells that the rollback undid.
        """
        known = self._steps.get(number)
        if isinstance(known, CellStep):
            self.add(CellStep(known.code, result, known.rolled_back), number)
        record = result.record
        for entry in record.entries if record is not None else ():
            if entry.variables == "rolled_back":
                # A rollback that happened during this cell undid the cell too.
                own = record is not None and entry.position > record.start
                self._undo_cells(self._marks.get(entry.checkpoint, -1) if entry.checkpoint else number - 1, number + own)
        return result

    def _undo_cells(self, after: int, before: int) -> None:
        for number, step in self._steps.items():
            if after < number < before and isinstance(step, CellStep):
                self._steps[number] = replace(step, rolled_back=True)

    def mark_checkpoint(self, checkpoint: str) -> None:
        """Remember that the checkpoint with the id `checkpoint` was taken after the latest step. Remember at most 1,000 checkpoints."""
        self._marks[checkpoint] = next(self._numbers)
        if len(self._marks) > _MOST_STEPS:
            del self._marks[next(iter(self._marks))]

    def drop_after(self, checkpoint: str) -> None:
        """Drop the steps after the checkpoint with the id `checkpoint`, because a rollback to it undid them.

        If the checkpoint is unknown, because another `Session` object took it, drop all steps and add 1 to `left_out`.
        """
        mark = self._marks.get(checkpoint, -1)
        for number in [number for number in self._steps if number > mark]:
            del self._steps[number], self._sizes[number]
        self.left_out += mark < 0

    def copy(self) -> "History":
        """Return an independent copy of the history, for a new branch of the session."""
        twin = History()
        twin._steps, twin._sizes, twin._marks = self._steps.copy(), self._sizes.copy(), self._marks.copy()
        twin._numbers, twin.left_out = itertools.count(next(self._numbers)), self.left_out
        return twin

    def __len__(self) -> int:
        return len(self._steps)


class RecordingFile(io.FileIO):
    """A file to upload that records the size, the hash and the content (up to 4 MB) of what is read from it.

    The history then has what the session received, even if the file on this machine changes during the upload.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size, self.digest, self.content = 0, hashlib.sha256(), bytearray()

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes and record them."""
        data = super().read(size)
        self.size += len(data)
        self.digest.update(data)
        if self.size <= _LARGEST_FILE:
            self.content += data
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position and discard what was recorded, because httpx seeks to the beginning each time before it sends the file."""
        self.size, self.digest, self.content = 0, hashlib.sha256(), bytearray()
        return super().seek(offset, whence)


def upload_step(path: str, sent: bytes | RecordingFile) -> UploadStep:
    """Create the step of the history for an upload that has ended.

    `sent` is the content, or the RecordingFile that was uploaded: it has recorded what was read from it.
    """
    if isinstance(sent, bytes):
        content: bytes | bytearray = sent
        size, digest = len(sent), hashlib.sha256(sent)
    else:
        content, size, digest = sent.content, sent.size, sent.digest
    return UploadStep(path, size, digest.hexdigest(), bytes(content) if size <= _LARGEST_FILE else None)


_METADATA = "aca_sessions"  # the key of what a notebook's own fields cannot hold
_BINARY = "application/octet-stream"
_LARGEST_NOTEBOOK = 256 << 20
_MOST_CELLS = 10_000
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_MAGIC = re.compile(r"\s*([%!]|\?|[\w.]+\?{1,2}\s*$|\w[\w, ]*=\s*[%!])")

Output = Mapping[str, Any]


def to_notebook(history: History) -> dict[str, Any]:
    """Convert a history to a notebook (nbformat 4) and return the notebook as JSON values."""
    cells, count = [], 0
    for place, step in enumerate(history.steps):
        count += isinstance(step, CellStep)
        cells.append({"id": f"step-{place}", **_cell(step, count)})
    metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}, _METADATA: {"left_out": history.left_out}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def to_script(history: History) -> str:
    """Convert a history to a Python script with `# %%` before each cell.

    Outputs and rolled-back cells are left out. Magics, shell lines and steps that are not cells become comments. An installation becomes
    `# %pip install …`.
    """
    parts = []
    for step in history.steps:
        match step:
            case CellStep(rolled_back=True):
                continue
            case CellStep(code):
                parts.append(f"# %%\n{_as_python(code)}")
            case InstallStep(requirements):
                parts.append(f"# %%\n{_as_python(_pip_install(requirements))}")
            case _:
                parts.append(f"# %% [markdown]\n# {_described(step)}")
    return "\n\n".join(parts) + "\n"


def read_notebook(source: object) -> list[tuple[Step, list[Output]]]:
    """Return the steps of a notebook with their recorded outputs. `source` is a path or parsed JSON.

    Raise InvalidArgumentError if it is not a valid notebook of nbformat 4.
    """
    notebook = _loaded(source)
    match notebook:
        case {"nbformat": 4, "cells": [*cells]} if len(cells) <= _MOST_CELLS:
            return [step for number, cell in enumerate(cells, 1) if (step := _step_at(number, cell)) is not None]
        case {"nbformat": 4, "cells": [*cells]}:
            got = f"{len(cells)} cells: split it"
        case {"nbformat": 4}:
            got = "no list of cells"
        case {"nbformat": version}:
            got = f"nbformat {version!r:.20}: save it with a current Jupyter"
        case _:
            got = "other JSON: give the path of an .ipynb file"
    raise InvalidArgumentError(f"expected a notebook of nbformat 4 with at most {_MOST_CELLS} cells, got {got}")


def _step_at(number: int, cell: object) -> tuple[Step, list[Output]] | None:
    try:
        return _parse_cell(cell)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"cell {number} of the notebook: {error}") from error


def outputs_of(result: CodeExecutionResult, count: int = 1) -> list[dict[str, Any]]:
    """Convert a cell's result to the outputs of a notebook cell (nbformat 4).

    `count` is the number in the notebook cell's prompt, as in `Out[1]`.
    """
    # A notebook has the traceback in an output of its own.
    streams = [("stdout", result.stdout), ("stderr", result.written_to_stderr)]
    outputs: list[dict[str, Any]] = [{"output_type": "stream", "name": name, "text": text} for name, text in streams if text.strip("\n")]
    displays = list(result.displays)
    if result.text is not None:
        # The last display holds the value in all its forms, if it has forms beside the text.
        has_forms = bool(displays) and displays[-1].data.get("text/plain") == result.text
        value = displays.pop() if has_forms else Display({"text/plain": result.text})
    outputs += [{"output_type": "display_data", "data": _bundle(display), "metadata": {}} for display in displays]
    if result.text is not None:
        outputs.append({"output_type": "execute_result", "data": _bundle(value), "metadata": {}, "execution_count": count})
    if (error := result.error) is not None:
        lines = (error.traceback or str(error)).split("\n")
        outputs.append({"output_type": "error", "ename": error.name, "evalue": error.message, "traceback": lines})
    return outputs


def _cell(step: Step, count: int) -> dict[str, Any]:
    match step:
        case CellStep(code=code, result=result):
            count = result.execution_count or count if result is not None else count
            noted: dict[str, object] = {"state": str(result.state)} if result is not None and result.state.kind != "kept" else {}
            noted |= {"rolled_back": True} if step.rolled_back else {}
            metadata = {_METADATA: noted} if noted else {}
            outputs = outputs_of(result, count) if result is not None else []
            ran = count if result is not None else None
            return {"cell_type": "code", "execution_count": ran, "metadata": metadata, "outputs": outputs, "source": code}
        case UploadStep(path, size, sha256, content):
            upload: dict[str, object] = {"upload": path, "size": size, "sha256": sha256}
            attached = {} if content is None else {"attachments": {path: {_BINARY: base64.b64encode(content).decode()}}}
            source = f"{_described(step)} Jupyter does not write it: put it beside this notebook first."
            return {"cell_type": "markdown", "metadata": {_METADATA: upload}, "source": source, **attached}
        case DeleteStep(path):
            return {"cell_type": "markdown", "metadata": {_METADATA: {"delete": path}}, "source": _described(step)}
        case ResetStep():
            return {"cell_type": "markdown", "metadata": {_METADATA: {"reset": True}}, "source": _described(step)}
        case InstallStep(requirements):
            installed: dict[str, object] = {_METADATA: {"install": list(requirements)}}
            source = _pip_install(requirements)  # Jupyter runs it, and a replay reads the metadata
            return {"cell_type": "code", "execution_count": None, "metadata": installed, "outputs": [], "source": source}
        case VariableStep(name):
            return {"cell_type": "markdown", "metadata": {_METADATA: {"variable": name}}, "source": _described(step)}


def _pip_install(requirements: Iterable[str]) -> str:
    return f"%pip install {shlex.join(requirements)}"


def _described(step: Step) -> str:
    match step:
        case UploadStep(path, size, _, content):
            return f"`{_inline(path)}` was uploaded: {size} bytes{'' if content is not None else ', not kept here'}."
        case DeleteStep(path):
            return f"`{_inline(path)}` was deleted."
        case VariableStep(name):
            return f"`{_inline(name)}` was set from outside the session, to data that are not kept here. Set it before the next cell."
    return "The variables were cleared."


def _inline(path: str) -> str:
    return path.replace("`", "'")


def _as_python(code: str) -> str:
    lines = code.strip("\n").split("\n")
    whole = lines[0].startswith("%%")
    return "\n".join(f"# {line}" if whole or _MAGIC.match(line) else line for line in lines)


def _bundle(display: Display) -> dict[str, Any]:
    return {mime: _parsed(mime, content) for mime, content in display.data.items()}


def _parsed(mime: str, content: object) -> Any:
    if mime.endswith("json") and isinstance(content, str):
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return {"text": content}
    return content


def _loaded(source: object) -> object:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | Path):
        raise InvalidArgumentError(f"a notebook must be the path of an .ipynb file or its parsed JSON, got {type(source).__name__}")
    path = Path(source)
    try:
        if (size := path.stat().st_size) > _LARGEST_NOTEBOOK:
            raise InvalidArgumentError(
                f"the notebook {path.name} must be at most {_LARGEST_NOTEBOOK >> 20} MB, got {size / (1 << 20):.1f} MB: split it"
            )
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it must be JSON, as Jupyter saves it in an .ipynb file"
        raise InvalidArgumentError(f"the notebook {path.name} cannot be read: {why}") from error


def _parse_cell(cell: object) -> tuple[Step, list[Output]] | None:
    """Convert a cell of a notebook to a step of the history, and return the step with the cell's outputs.

    Return None for a Markdown or raw cell, unless its metadata describes a step, such as an upload.
    """
    match cell:
        case {"cell_type": "code", "source": source, "outputs": [], "metadata": {"aca_sessions": {"install": requirements}}} if (
            isinstance(step := _step_of_metadata({"install": requirements}, None), InstallStep)
            and _text(source) == _pip_install(step.requirements)  # otherwise the cell was edited
        ):
            return step, []
        case {"cell_type": "code", "source": source, "outputs": [*outputs], **rest}:
            return CellStep(_text(source), rolled_back=_was_rolled_back(rest)), [_output(one) for one in outputs]
        case {"cell_type": "markdown", "metadata": {"aca_sessions": noted}, **rest}:
            return _step_of_metadata(noted, rest.get("attachments")), []
        case {"cell_type": "markdown" | "raw"}:
            return None
    kind = cell.get("cell_type") if isinstance(cell, Mapping) else None
    raise InvalidArgumentError(f"expected code with a source and outputs, Markdown or raw text, got cell_type {kind!r:.40}")


def _was_rolled_back(cell: object) -> bool:
    match cell:
        case {"metadata": {"aca_sessions": {"rolled_back": True}}}:
            return True
    return False


def _step_of_metadata(noted: object, attachments: object) -> Step:
    match noted:
        case {"upload": str(path), "size": int(size), "sha256": str(sha256)}:
            checked_path(path)
            return UploadStep(path, size, sha256, _attached(attachments, path))
        case {"delete": str(path)}:
            checked_path(path)
            return DeleteStep(path)
        case {"reset": True}:
            return ResetStep()
        case {"install": [*requirements]}:
            checked_requirements(tuple(requirements))
            return InstallStep(tuple(requirements))
        case {"variable": str(name)}:
            return VariableStep(name)
    raise InvalidArgumentError(
        f"its metadata {_METADATA!r} must be an upload, a deletion, a reset, an installation or a variable: remove the cell"
    )


def _attached(attachments: object, path: str) -> bytes | None:
    match attachments:
        case None:
            return None
        case {**files} if isinstance(content := files.get(path), Mapping) and isinstance(text := content.get(_BINARY), str):
            with contextlib.suppress(ValueError):
                return base64.b64decode(text, validate=True)
    raise InvalidArgumentError(
        f"the file {path!r:.200} must be attached to it as {_BINARY} in base64: remove the cell, or attach the file again"
    )


def _output(output: object) -> Output:
    match output:
        case {"output_type": "stream", "name": "stdout" | "stderr" as name, "text": text}:
            return {"output_type": "stream", "name": name, "text": _text(text)}
        case {"output_type": "display_data" | "execute_result" as kind, "data": {**data}}:
            return {"output_type": kind, "data": data}
        case {"output_type": "error", "ename": str(name), "evalue": str(value)}:
            return {"output_type": "error", "ename": name, "evalue": value}
    kind = output.get("output_type") if isinstance(output, Mapping) else None
    raise InvalidArgumentError(f"an output must have the shape of nbformat 4, got output_type {kind!r:.40}: clear the cell's outputs")


def _text(source: object) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, Iterable) and all(isinstance(line, str) for line in source):
        return "".join(source)
    raise InvalidArgumentError(f"its texts must be strings or lists of lines, got {type(source).__name__}")
