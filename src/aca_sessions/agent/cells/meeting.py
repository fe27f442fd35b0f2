"""The place in a session where the host's executions meet a cell that runs in a thread: answers come in, calls and the result go out.

A question that is asked again gets the same answer, so a lost reply loses nothing and no cell runs twice.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from typing import Any

from ...sandbox.guest import bridge, calls
from ...sandbox.guest.place import DATA, place
from .diverted import write_past
from .threaded import ThreadedCell

_LONGEST_LINE = 3000  # characters; every service keeps at least that much of an output
_changed = threading.Condition()
_numbers = itertools.count(1)


class _Meeting:
    """The cell that runs, or that ran last, and its open calls."""

    def __init__(self) -> None:
        self.id = ""
        self.cell: ThreadedCell | None = None
        self.interrupted = False
        self.open: dict[int, str] = {}
        self.answers: dict[int, str] = {}
        self.file = ""
        self.computed_before = 0.0


_now = _Meeting()


def meet(marker: str, said: str) -> None:
    """Write one line: the marker, then the report of a cell as JSON, or the name of a file with the report."""
    if _now.file:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(place.data, _now.file))
        _now.file = ""
    place.data = DATA if os.path.isdir(DATA) else os.path.expanduser("~")
    line = json.dumps(_met(**json.loads(calls.unpacked(json.loads(said)))))
    if len(line) > _LONGEST_LINE:
        _now.file = calls.written(line.encode())
        line = json.dumps({"file": _now.file})
    write_past(f"\n{marker}{line}\n")


def _met(cell: str, begin: str | None, answers: dict[str, str], known: list[int], interrupt: bool, wait: float) -> dict[str, Any]:
    if begin is not None and cell != _now.id:
        _begin(cell, begin)
    running = _now.cell
    if running is None or cell != _now.id:
        return {"cell": "unknown"}
    with _changed:
        _now.answers.update({int(number): answer for number, answer in answers.items() if int(number) in _now.open})
        _now.interrupted = _now.interrupted or interrupt
        _changed.notify_all()
    if interrupt:
        running.interrupt()
    started = time.perf_counter()
    with _changed:
        _changed.wait_for(lambda: running.told is not None or any(number not in known for number in _asked()), wait)
        if running.told is not None:
            return {"cell": "over", "result": running.told}
        calls = [[number, _now.open[number]] for number in _asked()]
        return {"cell": "runs", "calls": calls, "waited": time.perf_counter() - started, "computed": _computed() - _now.computed_before}


def _begin(id: str, code: str) -> None:
    shell = sys.modules["IPython"].get_ipython()
    if _now.cell is not None:
        _now.cell.leave()
    transformers: list[Any] = []
    bridge.begin(transformers, _ask)
    _now.cell, _now.computed_before = ThreadedCell(shell, code, transformers, _wake), _computed()
    _now.id, _now.interrupted, _now.open, _now.answers = id, False, {}, {}
    _now.cell.start()


def _computed() -> float:
    """Return the processor time of this process and of children that ended, without that of this thread, in which meetings run."""
    times = os.times()
    return time.process_time() - time.thread_time() + times.children_user + times.children_system


def _asked() -> list[int]:
    return [number for number in _now.open if number not in _now.answers]


def _ask(text: str) -> str:
    """Send a call of the cell to the host and return the answer. It can be called from any thread."""
    with _changed:
        cell, number = _now.cell, next(_numbers)
        if cell is None or not _is_answered(cell):
            return calls.nobody(text)
        _now.open[number] = text
        _changed.notify_all()
        try:
            _changed.wait_for(lambda: number in _now.answers or not _is_answered(cell))
            if number not in _now.answers:
                raise calls.ToolError("the cell was over before this call was answered")
            return _now.answers.pop(number)
        finally:
            _now.open.pop(number, None)


def _is_answered(cell: ThreadedCell) -> bool:
    return cell is _now.cell and cell.told is None and not _now.interrupted


def _wake() -> None:
    with _changed:
        _changed.notify_all()
