"""The ledger of a session: everything that happened to its interpreter and workspace, in order.

The host appends an entry for each start, death, kill, reset, checkpoint, rollback, branch and end. Nothing is consumed by reading.
The state that a result reports is the difference between two positions: the last one delivered to this caller, and the one at the
result's end. `state_between` computes it, and nothing else produces a verdict.
"""

import itertools
import uuid
from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import replace
from operator import attrgetter
from typing import Any

from .models import CodeError, CodeExecutionResult, Entry, Record, State

_KEPT = 1000
_SENT = 100
_MAX_DIGITS = 19
_UNCHANGED = State()


class Ledger:
    """The entries of one session, numbered from 1. Old ones are folded into a summary, so the size is bounded."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.fetched = 0  # the position of clients that name none: the end of the last execution whose result was fetched
        self.checkpoint_numbers = itertools.count(1)  # shared with branches, so that ids are unique among them
        self._entries: list[Entry] = []

    @property
    def position(self) -> int:
        """Return the position of the latest entry, or 0."""
        return self._entries[-1].position if self._entries else 0

    def append(self, kind: Any, **effects: Any) -> Entry:
        """Add what happened and return its entry."""
        entry = Entry(self.position + 1, kind, **effects)
        self._entries.append(entry)
        if len(self._entries) > _KEPT:
            self._entries = summarized(self._entries, _KEPT // 2)
        return entry

    def between(self, since: int, until: int) -> State:
        """Return what happened to the session between two positions."""
        return state_between(self._after(since), since, until)

    def record(self, since: int, start: int, end: int) -> Record:
        """Return the part of the ledger that a response carries to a client at position `since`."""
        since = min(since, start)
        entries = [entry for entry in self._after(since) if entry.position <= end]
        return Record(self.id, since, start, end, tuple(summarized(entries, _SENT)))

    def seen_from(self, since: str | None, start: int, end: int, *, otherwise: int = 0) -> tuple[State, Record]:
        """Return the state and the record of an execution for a caller that names its position, or is at `otherwise`."""
        known = otherwise if since is None else parse_position(since, self.id)
        first = State("lost", "lost", "ended", "expired") if known is None else None
        record = self.record(known or 0, start, end)
        return state_between(record.entries, record.since, end, first=first), record

    def contains(self, kind: str, since: int) -> bool:
        """Return whether there is an entry of a kind behind a position."""
        return any(entry.kind == kind for entry in self._after(since))

    def _after(self, since: int) -> list[Entry]:
        return self._entries[bisect_right(self._entries, since, key=attrgetter("position")) :]


def format_position(ledger: str, position: int) -> str:
    """Return a position in the format in which clients name it."""
    return f"{ledger}:{position}"


def parse_position(text: str, ledger: str) -> int | None:
    """Return the number of a position. Return None if it belongs to another ledger: the session that the caller knew is gone."""
    name, _, number = text.partition(":")
    return int(number) if name == ledger and number.isdecimal() and len(number) < _MAX_DIGITS else None


def state_between(entries: Iterable[Entry], since: int, until: int, *, first: State | None = None, asked: Collection[int] = ()) -> State:
    """Return what happened between two positions, seen by a caller who knows the session as it was at `since`.

    Args:
        entries: A ledger's entries, in order.
        since: The position that the caller knows.
        until: The position to look at.
        first: What had happened at `since` already and was not reported.
        asked: Positions of entries that the caller asked for: its own resets and rollbacks are not news.
    """
    states = [(since, first or _UNCHANGED)]
    for entry in entries:
        if since < entry.position <= until:
            states.append((entry.position, _after(entry, states, entry.position in asked)))
    return states[-1][1]


def with_state(result: CodeExecutionResult, state: State, **others: Any) -> CodeExecutionResult:
    """Return the result with a state and other changes. An error of the host describes the state in its message, so update that, too."""
    error = result.error
    if error is None or error.traceback or error.name not in ("TimeoutError", "InterpreterDied"):
        return result if state == result.state and not others else replace(result, state=state, **others)
    message = f"{error.message.removesuffix(f'; {result.state.consequence}')}; {state.consequence}"
    told = CodeError(error.name, message)
    return replace(result, state=state, error=told, stderr=result.stderr.removesuffix(str(error)) + str(told), **others)


def _after(entry: Entry, states: list[tuple[int, State]], asked: bool) -> State:
    """Apply one entry. A rollback brings back the state at its checkpoint, including a loss that happened before that."""
    now = states[-1][1]
    past = next((state for position, state in reversed(states) if entry.to is not None and position <= entry.to), _UNCHANGED)
    state = now
    if entry.variables == "rolled_back":
        state = _with_reason(replace(state, variables=_returned(past.variables, asked)), past, entry)
    elif entry.variables != "kept":
        reason = _reason_for_files(states) if asked else entry.cause
        state = replace(state, variables="kept" if asked else entry.variables, reason=reason, checkpoint=None)
    if entry.files != "kept":
        files = _returned(past.files, asked) if entry.files == "rolled_back" else "kept" if asked else entry.files
        # What happened to the variables is reported first.
        reason = state.reason if state.variables != "kept" else entry.cause
        state = replace(state, files=files, reason=reason)
    if entry.cut_off:
        state = replace(state, cut_off=entry.cut_off)
    if entry.processes != "kept":
        state = replace(state, processes="kept" if asked else entry.processes)
    return replace(state, reason=None, checkpoint=None) if state.kind == "kept" else state


def _reason_for_files(states: list[tuple[int, State]]) -> str | None:
    """Return why the files are as they are now. It is the state's reason once nothing is left to report of the variables."""
    reason = None
    for _, state in reversed(states):
        if state.files != states[-1][1].files:
            break
        reason = state.reason
    return reason


def _returned(past: Any, asked: bool) -> Any:
    """Return what a part is after a rollback to a state in which it was `past`."""
    return past if past in ("lost", "unknown") else "kept" if asked and past == "kept" else "rolled_back"


def _with_reason(state: State, past: State, entry: Entry) -> State:
    """Set the reason after a rollback. A loss from before the checkpoint that was not reported yet is still the reason."""
    if past.kind != "kept":
        return replace(state, reason=past.reason, checkpoint=past.checkpoint)
    return replace(state, reason=entry.cause, checkpoint=entry.checkpoint)


def summarized(entries: list[Entry], most: int) -> list[Entry]:
    """Return at most so many entries: the older ones become one, which has the effect of all of them."""
    if len(entries) <= most:
        return entries
    older, newer = entries[:-most], entries[-most:]
    last = older[-1].position
    state = state_between(older, older[0].position - 1, last)
    summary = Entry(last, "summary", state.reason, state.variables, state.files, state.processes, cut_off=state.cut_off)
    return [summary, *newer]
