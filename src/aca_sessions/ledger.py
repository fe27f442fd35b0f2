"""The ledger of a session: a list of everything that happened to its interpreter and workspace, in order.

The host appends an entry for each start, death, kill, reset, checkpoint, rollback, branch and end. Reading removes no entry. The state in a
result is what happened between two positions: the last position that was delivered to this caller, and the position at the end of the
execution. `state_between` computes it, and no other code computes a state.
"""

import itertools
import uuid
from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from .models import CodeError, CodeExecutionResult, Entry, Record, State

_KEPT = 1000  # entries of one ledger
_SENT = 100  # entries in one response
_MAX_DIGITS = 19  # of a position
_UNCHANGED = State()
_EXPIRED = State("lost", "lost", "ended", "expired")


class Ledger:
    """The entries of one session, numbered from 1. When there are more than 1,000, one summary replaces the older half."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.position = 0  # of the latest entry
        self.fetched = 0  # the position of clients that name none: the end of the last execution whose result was fetched
        self.checkpoint_numbers = itertools.count(1)  # shared with branches, so that ids are unique among them
        self._entries: list[Entry] = []

    def append(self, kind: Any, **effects: Any) -> Entry:
        """Add an entry about something that happened to the session, and return it.

        `kind` names what happened, such as `reset`. `effects` are other fields of Entry.
        """
        self.position += 1
        entry = Entry(self.position, kind, **effects)
        self._entries.append(entry)
        if len(self._entries) > _KEPT:
            self._entries = summarized(self._entries, _KEPT // 2)
        return entry

    def between(self, since: int, until: int) -> State:
        """Return what happened to the session after position `since`, up to position `until`."""
        return _UNCHANGED if since >= self.position else state_between(self._after(since), since, until)

    def record(self, since: int, start: int, end: int) -> Record:
        """Return the entries that a client lacks up to position `end`, if it knows the ledger up to position `since`.

        The execution began at position `start`. Entries after `start` are included even if the client knows them.
        """
        since = min(since, start)
        entries = [entry for entry in self._after(since) if entry.position <= end]
        return Record(self.id, since, start, end, tuple(summarized(entries, _SENT)))

    def seen_from(self, since: str | None, start: int, end: int, *, otherwise: int = 0) -> tuple[State, Record]:
        """Return the state and the record of an execution, for a caller that knows the ledger up to a position.

        Args:
            since: The caller's position, as `ledger:number`, or None. If it is of another ledger, the session that the caller knew is gone.
                Then the state is that variables and files were lost, with the reason `expired`.
            start: The position at which the execution began.
            end: The position at which the execution ended.
            otherwise: The caller's position if `since` is None.
        """
        known: int | None = otherwise
        if since is not None:
            name, _, number = since.partition(":")
            # A position in another ledger: the session that the caller knew is gone.
            known = int(number) if name == self.id and number.isdecimal() and len(number) < _MAX_DIGITS else None
        if known is not None and known >= self.position == start:  # nothing happened since
            return _UNCHANGED, Record(self.id, start, start, end)
        record = self.record(known or 0, start, end)
        return state_between(record.entries, record.since, end, first=_EXPIRED if known is None else None), record

    def contains(self, kind: str, since: int) -> bool:
        """Return whether there is an entry of this kind after position `since`."""
        return any(entry.kind == kind for entry in self._after(since))

    def _after(self, since: int) -> list[Entry]:
        return self._entries[bisect_right(self._entries, since, key=attrgetter("position")) :]


@dataclass(slots=True)
class Delivered:
    """The position up to which one caller knows a session's ledger. Only results that are delivered to the caller move it.

    `asked` are the positions of resets and rollbacks that the caller asked for, which are not reported to it. `first` is a state at
    `position` that was not reported yet. A branch inherits such a state from the session that it continues.
    """

    ledger: str | None = None
    position: int = 0
    first: State = field(default_factory=State)
    asked: frozenset[int] = frozenset()

    @classmethod
    def parsed(cls, since: str, first: State) -> "Delivered":
        """Create the object from a position in the server's format, `ledger:number`. `first` is the unreported state at that position."""
        ledger, _, position = since.partition(":")
        return cls(ledger, int(position), first)

    def state_of(self, record: Record) -> State:
        """Return what happened to the session between this position and the record's end.

        If the execution began before this position, start from where it began instead. If nothing was delivered to the caller yet, first
        move this position to the record's `since`.
        """
        if self.ledger is None:  # nothing was known before the first record
            self.ledger, self.position = record.ledger, record.since
        if record.ledger != self.ledger:  # another server answered: it does not have the session that the caller knew
            return state_between(record.entries, record.since, record.end, first=_EXPIRED)
        since = min(self.position, record.start)
        first = self.first if since == self.position else None
        return state_between(record.entries, since, record.end, first=first, asked=self._asked_before(record))

    def _asked_before(self, record: Record) -> frozenset[int]:
        """Return the positions of the resets and rollbacks that the caller asked for before the record's execution began.

        Those that it asked for during the execution are left out, so that they are reported.
        """
        return frozenset(position for position in self.asked if position <= record.start)

    def deliver(self, result: CodeExecutionResult) -> CodeExecutionResult:
        """Return a result with the state for this caller, and mark its record as known. Return a result without a record unchanged."""
        record = result.record
        if record is None:  # no answer came, or one that does not report what happened
            return result
        state, news = _UNCHANGED, record.entries
        if record.entries or record.ledger != self.ledger or self.first != _UNCHANGED:
            state = self.state_of(record)
            known = min(self.position, record.start) if record.ledger == self.ledger else record.since
            asked = self._asked_before(record)
            news = tuple(entry for entry in record.entries if entry.position > known and entry.position not in asked)
        self.advance(record)
        if state != result.state or result.error is not None:  # an error of the host has the state in its message
            result = with_state(result, state)
        return result if news == record.entries else replace(result, record=replace(record, entries=news))

    def advance(self, record: Record) -> None:
        """Move this position to the end of a delivered record.

        In the same ledger never move it back, because results may arrive out of order.
        """
        if record.ledger != self.ledger or record.end >= self.position:
            self.ledger, self.position, self.first = record.ledger, record.end, _UNCHANGED
            if self.asked:
                self.asked = frozenset(position for position in self.asked if position > record.end)

    def go_back(self, record: Record) -> None:
        """Move this position back to the start of a record that did not reach the caller.

        The next result then reports the entries of the record again.
        """
        if record.ledger == self.ledger:
            self.position = min(self.position, record.since)

    def note_asked(self, ledger: str, position: int) -> None:
        """Record that the caller asked for the entry at a position (a reset or rollback), so that it is not reported to the caller."""
        if self.ledger is None:
            self.ledger, self.position = ledger, position
        elif self.ledger == ledger and position > self.position:
            self.asked |= {position}


def format_position(ledger: str, position: int) -> str:
    """Return a position as `ledger:number`, the format in which clients name it."""
    return f"{ledger}:{position}"


def state_between(entries: Iterable[Entry], since: int, until: int, *, first: State | None = None, asked: Collection[int] = ()) -> State:
    """Return what happened between two positions, seen by a caller who knows the session as it was at `since`.

    Args:
        entries: A ledger's entries, in order.
        since: The position that the caller knows.
        until: The position whose state is returned.
        first: The state at `since` that was not reported yet.
        asked: Positions of entries that the caller asked for: its own resets and rollbacks are not reported to it.
    """
    states = [(since, first or _UNCHANGED)]
    for entry in entries:
        if since < entry.position <= until:
            states.append((entry.position, _after(entry, states, entry.position in asked)))
    return states[-1][1]


def with_state(result: CodeExecutionResult, state: State, **others: Any) -> CodeExecutionResult:
    """Return a result with `state` and the fields in `others`.

    If the host made the cell's error, its message ends with a phrase about the old state. Replace that by the phrase about `state`, also in
    stderr.
    """
    error = result.error
    if error is None or error.traceback or error.name not in ("TimeoutError", "InterpreterDied"):
        return result if state == result.state and not others else replace(result, state=state, **others)
    message = f"{error.message.removesuffix(f'; {result.state.consequence}')}; {state.consequence}"
    updated = CodeError(error.name, message)
    return replace(result, state=state, error=updated, stderr=result.stderr.removesuffix(str(error)) + str(updated), **others)


def _after(entry: Entry, states: list[tuple[int, State]], asked: bool) -> State:
    """Return the state of a session after one more ledger entry.

    A rollback does not undo a loss of variables or files before its checkpoint: that loss is still reported.

    Args:
        entry: The entry.
        states: The earlier states, each with the position at which it began.
        asked: Whether the caller asked for what the entry records, so that it is not reported.
    """
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
    """Return why the files of a session are in their present state, or None if there is no reason.

    This becomes the reason of the whole state if there is nothing to report about the variables.
    """
    reason = None
    for _, state in reversed(states):
        if state.files != states[-1][1].files:
            break
        reason = state.reason
    return reason


def _returned(past: Any, asked: bool) -> Any:
    """Return what to report of the variables, or of the files, after a rollback.

    `past` is their state at the checkpoint: if they were lost by then, they are reported as lost. `asked` is whether the caller asked for
    the rollback.
    """
    return past if past in ("lost", "unknown") else "kept" if asked and past == "kept" else "rolled_back"


def _with_reason(state: State, past: State, entry: Entry) -> State:
    """Return `state`, which is that after a rollback, with a reason and a checkpoint.

    They are those of the rollback's `entry`. But if `past`, the state at the checkpoint, has something to report, they are those of `past`.
    """
    if past.kind != "kept":
        return replace(state, reason=past.reason, checkpoint=past.checkpoint)
    return replace(state, reason=entry.cause, checkpoint=entry.checkpoint)


def summarized(entries: list[Entry], most: int) -> list[Entry]:
    """Return the last `most` entries, preceded by one summary entry that has the same effect as all older ones.

    If there are no older ones, return the entries unchanged.
    """
    if len(entries) <= most:
        return entries
    older, newer = entries[:-most], entries[-most:]
    last = older[-1].position
    state = state_between(older, older[0].position - 1, last)
    summary = Entry(last, "summary", state.reason, state.variables, state.files, state.processes, cut_off=state.cut_off)
    return [summary, *newer]
