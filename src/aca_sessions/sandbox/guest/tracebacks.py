"""Tracebacks of the user's code: without the frames of what runs it."""

from __future__ import annotations

import builtins
import os
import traceback as standard
from types import TracebackType

import IPython

from .place import DATA, place

_OWN_CODE = os.path.join(os.path.dirname(__file__), "")
_GROUP = getattr(builtins, "BaseExceptionGroup", ())  # from Python 3.11 on
_IPYTHON = os.path.dirname(IPython.__file__) + os.sep


def cut_own(traceback: TracebackType | None) -> None:
    """Ends it at the last frame that is not ours."""
    last_of_others = None
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_OWN_CODE):
            last_of_others = traceback
        traceback = traceback.tb_next
    if last_of_others is not None:
        last_of_others.tb_next = None


def explain(error: BaseException) -> None:
    """Without a root of its own a session has no /mnt/data. Nothing pretends that it had: who looks for it is told where its files are."""
    sought = str(getattr(error, "filename", None) or "")
    if place.data != DATA and (sought == DATA or sought.startswith(f"{DATA}/")):
        error.add_note(f"There is no {DATA} in this session: its files are in the working directory, {place.data}. Use relative names.")


def holds_group(error: BaseException | None) -> bool:
    """Whether an exception group is in its chain: IPython leaves those to Python's own layout, and prints them past us."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, _GROUP):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def native(error: BaseException, traceback: TracebackType | None) -> str:
    """Python's own layout, from the user's first frame on."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith((_IPYTHON, _OWN_CODE)):
        traceback = traceback.tb_next
    return "".join(standard.format_exception(type(error), error, traceback)).rstrip("\n")
