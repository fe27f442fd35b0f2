"""Run a notebook again in a session, and report the cells whose outputs differ from the recorded ones.

For each cell, stdout, stderr, the text of the value and of each display, and the name and message of the error are compared. Addresses of
objects and the numbers of cells are ignored. Two images are equal if they have the same type and, if they are PNG, the same size in pixels.
If a display has text and no image, only its text is compared. Measured times (`%%timeit`) count as a difference.
"""

import asyncio
import base64
import contextlib
import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ACASessionsError, InvalidArgumentError, NotFoundError, NotSupportedError
from .history import CellStep, DeleteStep, InstallStep, Output, ResetStep, Step, UploadStep, VariableStep, outputs_of, read_notebook
from .session import Session

_VARYING = (  # what differs between two runs and means nothing: addresses of objects, names of cells in tracebacks
    (re.compile(r"\b0x[0-9a-fA-F]{6,16}\b"), "0x…"),
    (re.compile(r"<ipython-input-\d+-[0-9a-f]+>|<Cell In\[\d+\](?:, \d+)?>|\bCell In ?\[\d+\]"), "<cell>"),
)
_IMAGES = ("image/png", "image/jpeg", "image/svg+xml", "image/gif")
_SHOWN = 60
_PNG = b"\x89PNG\r\n\x1a\n"

Verdict = Literal["same", "output differs", "error differs", "not run"]
Outcome = dict[str, object]


@dataclass(frozen=True, slots=True)
class ReplayedCell:
    """The comparison of one code cell's new outputs with the outputs in the notebook.

    Attributes:
        number: The number of the code cell, from 1, without those that `write_notebook` made for installations.
        verdict: What the comparison found.
        differences: A text for each part that differs (`stdout was 'a', is 'b'`), or the reason why the cell was not run.
    """

    number: int
    verdict: Verdict
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([f"cell {self.number}: {self.verdict}", *self.differences])


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The comparisons of all code cells of a replayed notebook.

    Attributes:
        cells: A comparison for each cell, in order.
        missing: Packages that could not be installed, and uploads and variables without content in the notebook.
    """

    cells: tuple[ReplayedCell, ...]
    missing: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Return whether all cells had the outputs that the notebook records, and nothing is in `missing`."""
        return not self.missing and all(cell.verdict == "same" for cell in self.cells)

    def __str__(self) -> str:
        others = [str(cell) for cell in self.cells if cell.verdict != "same"]
        missing = [f"not restored: {what}" for what in self.missing]
        return "\n".join([f"{len(self.cells) - len(others)} of {len(self.cells)} cells came out the same", *others, *missing])


async def replay(notebook: str | Path | Mapping[str, Any], session: Session, *, timeout: float | None = None) -> ReplayReport:
    """Run a notebook's cells in order in a session, with the uploads, installations and resets between them, and return the report.

    A cell that fails does not stop the replay. If the session can no longer be reached, the remaining cells are reported as `not run`.

    Args:
        notebook: The path of an .ipynb file, or its parsed JSON.
        session: The session to run it in.
        timeout: The time limit of each cell in seconds, by default the endpoint's.
    """
    steps = await asyncio.to_thread(read_notebook, notebook)
    cells: list[ReplayedCell] = []
    missing: list[str] = []
    for place, (step, outputs) in enumerate(steps):
        try:
            if isinstance(step, CellStep):
                cells.append(await _replay_cell(step, outputs, len(cells) + 1, session=session, timeout=timeout))
            else:
                missing += await _repeat_step(step, session)
        except ACASessionsError as error:
            cells += _not_run((step for step, _ in steps[place:]), len(cells), str(error))
            break
    return ReplayReport(tuple(cells), tuple(missing))


async def _repeat_step(step: UploadStep | DeleteStep | ResetStep | InstallStep | VariableStep, session: Session) -> list[str]:
    """Repeat an upload, a deletion, a reset or an installation. Return descriptions of what could not be repeated."""
    match step:
        case UploadStep(path, _, sha256, content):
            if content is None or hashlib.sha256(content).hexdigest() != sha256:
                return [f"{path}, which the notebook does not hold"]
            await session.upload_file(path, content)
        case DeleteStep(path):
            with contextlib.suppress(NotFoundError):
                await session.delete_file(path)
        case ResetStep():
            await session.reset()
        case InstallStep(requirements):
            return await _repeat_installation(requirements, session)
        case VariableStep(name):
            return [f"{name:.200}, whose data the notebook does not hold"]
    return []


async def _repeat_installation(requirements: tuple[str, ...], session: Session) -> list[str]:
    """Install the packages that a step of the history installed. If that fails, return the requirements and the error as text.

    The replay continues, because cells that need the packages will fail themselves.
    """
    try:
        result = await session.install(*requirements)
    except (InvalidArgumentError, NotSupportedError) as error:
        return [f"{' '.join(requirements)}: {error}"]
    return [] if result.success else [f"{' '.join(requirements)}: {result.error}"]


async def _replay_cell(step: CellStep, outputs: list[Output], number: int, *, session: Session, timeout: float | None) -> ReplayedCell:
    if step.rolled_back:
        return ReplayedCell(number, "same", ("it was rolled back, and is not run again",))
    if not step.code.strip():
        return ReplayedCell(number, "same")
    result = await session.run(step.code, timeout=timeout, sanitize=False)
    before, after = _comparable_parts(outputs), _comparable_parts(outputs_of(result))
    differences = tuple(f"{part} was {_short(before[part])}, is {_short(after[part])}" for part in before if before[part] != after[part])
    verdict: Verdict = "same" if not differences else "error differs" if before["error"] != after["error"] else "output differs"
    return ReplayedCell(number, verdict, differences)


def _not_run(steps: Iterable[Step], done: int, why: str) -> list[ReplayedCell]:
    cells = [step for step in steps if isinstance(step, CellStep)]
    return [ReplayedCell(done + place, "not run", (why,)) for place, _ in enumerate(cells, 1)]


def _comparable_parts(outputs: Iterable[Output]) -> Outcome:
    """Convert a cell's outputs to the parts that a replay compares.

    `stdout` and `stderr` are texts, `shown` is a list of the value and the displays, and `error` is the error's name and message, or None.
    """
    written = {"stdout": "", "stderr": ""}
    shown: list[object] = []
    error = None
    for output in outputs:
        match output:
            case {"output_type": "stream", "name": str(name), "text": str(text)}:
                written[name] += _mask_varying_text(text)
            case {"output_type": "error", "ename": name, "evalue": value}:
                error = f"{name}: {_mask_varying_text(value)}"
            case {"data": data}:
                shown.append(_describe_output(data))
    return {**{name: text.strip("\n") for name, text in written.items()}, "shown": shown, "error": error}


def _describe_output(data: Mapping[str, Any]) -> str:
    for mime in _IMAGES:
        if mime in data:
            return f"{mime} {_png_size(data[mime])}".rstrip()
    contents = {mime: _as_text(mime, content) for mime, content in data.items()}
    return _mask_varying_text(contents.get("text/plain") or " ".join(f"{mime} {contents[mime]}" for mime in sorted(contents)))


def _as_text(mime: str, content: object) -> str:
    """Return the content of a display as a string. Join a list of lines, which nbformat allows, unless the type is JSON."""
    return "".join(map(str, content)) if isinstance(content, list) and not mime.endswith("json") else str(content)


def _png_size(content: object) -> str:
    """Return the size of a base64-encoded PNG in pixels, as `640x480`, or '' for anything else."""
    try:
        # The first 24 bytes of a PNG are its signature and the header chunk with width and height (PNG specification, 5.2 and 11.2.2).
        head = base64.b64decode("".join(str(part) for part in content) if isinstance(content, list) else str(content))[:24]
    except ValueError:
        return ""
    return "{}x{}".format(*struct.unpack(">II", head[16:])) if head.startswith(_PNG) and len(head) == 24 else ""


def _mask_varying_text(text: str) -> str:
    """Replace the addresses of objects and the names of cells in tracebacks, which differ in every run, by fixed texts."""
    for pattern, instead in _VARYING:
        text = pattern.sub(instead, text)
    return text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
