"""Format tracebacks of the user's code: name the cells, shorten long tracebacks, and leave out frames of IPython and this package."""

from __future__ import annotations

import builtins
import os
import traceback as standard
from collections import Counter
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import IPython
from IPython.core import ultratb
from IPython.core.compilerop import CachingCompiler
from stack_data.core import RepeatedFrames

from ..folders import DATA, session_folders

_HERE = os.path.dirname(__file__)
# The folder `aca_sessions`, which holds the bridge as well. Modules that are sent as text are all in one folder.
_OWN_CODE = _HERE + "/" if _HERE.startswith("<") else _HERE.rpartition("/sandbox/guest/")[0] + "/"
_GROUP = getattr(builtins, "BaseExceptionGroup", ())  # from Python 3.11 on
_IPYTHON = os.path.dirname(IPython.__file__) + os.sep


_FRAME_INFO: Any = vars(ultratb)["FrameInfo"]
_MOST_FRAMES = 40  # formatted frames: IPython searches all modules for each frame, which takes a millisecond or more
_MOST_NAMED = 3
_MOST_CHAINED = 8


class Compiler(CachingCompiler):
    """The compiler of cells. It chooses the file name that tracebacks and warnings show for a cell."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._compiled = 0

    def begin_cell(self) -> None:
        """Make `get_code_name` number the sources of a new cell from 1.

        Source 1 is the cell itself, named `<Cell In[3]>` for example. Source 2 is the first text that the cell runs by `run_cell`, named
        `<Cell In[3], 2>`.
        """
        self._compiled = 0

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """Return a file name for a source, such as `<Cell In[3]>`. The angle brackets tell debuggers that it is not a file."""
        self._compiled += 1
        return f"<Cell In[{number}]>" if self._compiled == 1 else f"<Cell In[{number}], {self._compiled}>"


class SkippedFrames(RepeatedFrames):
    """Consecutive frames that a shortened traceback leaves out. IPython shows a description in their place."""

    @property
    def description(self) -> str:
        """Describe the frames: the function and line of the three most frequent ones, and the number of others."""
        counts = Counter((code.co_name, line) for code, line in self.frame_keys).most_common()
        named = [f"{name} at line {line} ({count} times)" for (name, line), count in counts[:_MOST_NAMED]]
        rest = sum(count for _, count in counts[_MOST_NAMED:])
        return ", ".join(named) + (f" and {rest} more" if rest else "")


class NotShownError(Exception):
    """Stands for the errors that are not shown, in the middle of a long chain of exceptions."""


def shorten_tracebacks(formatting: Any) -> None:
    """Change IPython's traceback formatter `formatting`, so that it shortens tracebacks of over 40 frames and long chains of errors.

    Of the frames at one line, it keeps the first two and the last. If more than 40 frames are left, it keeps the first 20 and the last 20.
    It leaves out errors in the middle of a chain. The caller must set the counter `formatting.chained` to 0 before each traceback.
    """
    records_of, cause_of = formatting.get_records, formatting.get_parts_of_chained_exception

    def get_records(traceback: TracebackType, *options: Any) -> list[Any]:
        short, skipped = _shortened(traceback)
        found = []
        for record in records_of(short, *options):
            found.append(record)
            if (left_out := skipped.pop(record.frame, None)) is not None:
                found.append(_FRAME_INFO._from_stack_data_FrameInfo(left_out))
        return found

    def get_cause(error: BaseException) -> Any:
        cause = cause_of(error)
        formatting.chained += 1
        if formatting.chained != _MOST_CHAINED or cause is None:
            return cause
        rest = list(walk_chain(cause[1]))
        if len(rest) == 1:
            return cause
        left_out = NotShownError(f"{len(rest) - 1} more errors are not shown here, each raised while another was handled")
        left_out.__context__ = rest[-1]
        return type(left_out), left_out, None

    formatting.chained = 0
    formatting.get_records, formatting.get_parts_of_chained_exception = get_records, get_cause


def _shortened(traceback: TracebackType) -> tuple[TracebackType, dict[FrameType, SkippedFrames]]:
    """Return a copy of a traceback with at most 40 frames, and a dict from a kept frame to the frames left out after it."""
    steps: list[TracebackType] = []
    step: TracebackType | None = traceback
    while step is not None:
        steps.append(step)
        step = step.tb_next
    if len(steps) <= _MOST_FRAMES:
        return traceback, {}
    keys = [(step.tb_frame.f_code, step.tb_lineno) for step in steps]
    indexes: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        indexes.setdefault(key, []).append(index)
    kept = sorted({number for found in indexes.values() for number in (*found[:2], found[-1])})
    if len(kept) > _MOST_FRAMES:
        kept = kept[: _MOST_FRAMES // 2] + kept[-_MOST_FRAMES // 2 :]
    short, skipped = None, {}
    for number, following in zip(reversed(kept), reversed([*kept[1:], len(steps)])):
        step = steps[number]
        if following > number + 1:
            skipped[step.tb_frame] = SkippedFrames([one.tb_frame for one in steps[number + 1 : following]], keys[number + 1 : following])
        short = TracebackType(short, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return short or traceback, skipped


def cut_own_frames(traceback: TracebackType | None) -> None:
    """Remove the frames of this package at the end of a traceback, in place. Do nothing if all frames are of this package."""
    last_of_others = None
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_OWN_CODE):
            last_of_others = traceback
        traceback = traceback.tb_next
    if last_of_others is not None:
        last_of_others.tb_next = None


def explain_missing_folder(error: BaseException) -> None:
    """Add a note to an error about a path in /mnt/data, if this session has no such folder: the note names the folder to use."""
    # Without a mount namespace there is no /mnt/data. Paths are not translated: C libraries would not see the translation.
    sought = str(getattr(error, "filename", None) or "")
    if session_folders.data != DATA and (sought == DATA or sought.startswith(f"{DATA}/")):
        error.add_note(
            f"There is no {DATA} in this session: its files are in the working directory, {session_folders.data}. Use relative names."
        )


def has_group(error: BaseException | None) -> bool:
    """Return whether an error, or one in its chain of causes and contexts, is an exception group.

    IPython prints such a chain without calling the shell's methods.
    """
    return any(isinstance(one, _GROUP) for one in walk_chain(error))


def is_long_chain(error: BaseException | None) -> bool:
    """Return whether the chain of an error has more errors than `shorten_tracebacks` shows."""
    return any(number >= _MOST_CHAINED for number, _ in enumerate(walk_chain(error)))


def walk_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then its cause or context, and so on along the chain, but no error twice."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def format_natively(error: BaseException, traceback: TracebackType | None) -> str:
    """Format an error as Python itself does, beginning with the first frame of the user's code."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith((_IPYTHON, _OWN_CODE)):
        traceback = traceback.tb_next
    return "".join(standard.format_exception(type(error), error, traceback)).rstrip("\n")
