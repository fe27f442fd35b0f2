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
from datetime import datetime
from operator import attrgetter
from typing import Any

from .models import CodeError, CodeExecutionResult, Entry, Part, Record, State

_KEPT = 1000  # entries of one ledger
_SENT = 100  # entries in one response
_MAX_DIGITS = 19  # of a position
_UNCHANGED = State()
_EXPIRED = State("lost", "lost", "ended", "expired")


class Ledger:
    """The list of what happened to one session, as entries numbered from 1.

    When there are more than 1,000 entries, one summary entry replaces the older half.
    """

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.position = 0  # of the latest entry
        self.fetched = 0  # the position of clients that name none: the end of the last execution whose result was fetched
        self.cells = 0  # that have begun, without those that clients sent for themselves
        self.checkpoint_numbers = itertools.count(1)  # shared with branches, so that ids are unique among them
        self._entries: list[Entry] = []

    def append(self, kind: Any, **effects: Any) -> Entry:
        """Add an entry about something that happened to the session, and return it.

        `kind` is what happened, such as `reset`. `effects` are the values of other fields of Entry, such as `variables="lost"`.
        """
        self.position += 1
        entry = Entry(self.position, kind, **effects)
        self._entries.append(entry)
        if len(self._entries) > _KEPT:
            self._entries = summarize(self._entries, _KEPT // 2)
        return entry

    def between(self, since: int, until: int) -> State:
        """Return what happened to the session after position `since`, up to position `until`."""
        return _UNCHANGED if since >= self.position else state_between(self._entries_after(since), since, until)

    def record(self, since: int, start: int, end: int) -> Record:
        """Return the entries to send to a client with the result of an execution.

        `since` is the last position that the client has received. Return the entries after it, up to position `end`. Include all entries
        after `start`, where the execution began, even if the client has received them.
        """
        since = min(since, start)
        entries = [entry for entry in self._entries_after(since) if entry.position <= end]
        return Record(self.id, since, start, end, tuple(summarize(entries, _SENT)), self.cells)

    def state_and_record(self, since: str | None, start: int, end: int, *, default: int = 0) -> tuple[State, Record]:
        """Return what happened to the session since a position, and the entries to send to the client with the result of an execution.

        Args:
            since: The last position that the client has received, as `ledger:number`, or None. If it belongs to another ledger, the session
                that the client knew is gone. Then the state is that variables and files were lost, with the reason `expired`.
            start: The position at which the execution began.
            end: The position at which the execution ended.
            default: The position to use if `since` is None.
        """
        known: int | None = default
        if since is not None:
            name, _, number = since.partition(":")
            # A position in another ledger: the session that the caller knew is gone.
            known = int(number) if name == self.id and number.isdecimal() and len(number) < _MAX_DIGITS else None
        if known is not None and known >= self.position == start:  # nothing happened since
            return _UNCHANGED, Record(self.id, start, start, end, cells=self.cells)
        record = self.record(known or 0, start, end)
        return state_between(record.entries, record.since, end, unreported=_EXPIRED if known is None else None), record

    def continues(self, record: Record) -> bool:
        """Return whether this ledger has all that was saved as `record`, so that it need not adopt it."""
        return self.id == record.ledger and self.position >= record.end

    def adopt(self, record: Record, *, fetched: int) -> None:
        """Continue a ledger that another server, or this one before it was restarted, has saved as `record`.

        `fetched` is the position of clients that name none.
        """
        self.id, self.fetched = record.ledger, fetched
        self._entries = [*record.entries]
        self.position, self.cells = record.end, record.cells

    def record_import(self, saved: datetime, *, missing: tuple[str, ...], gone: Collection[str] = ()) -> None:
        """Record that the session began from an exported one, which was written at `saved`.

        `gone` says whether the exported session had lost its `variables` or `files` before. `missing` names what is missing.
        """
        to, cause = -1, "import"  # what happened here before, to another session of this name, does not matter
        if gone:
            cause = "before the export"
            variables: Part = "lost" if "variables" in gone else "kept"
            to = self.append("ended", cause=cause, variables=variables, files="lost" if "files" in gone else "kept").position
        effects: dict[str, Any] = {"variables": "restored", "files": "restored", "processes": "ended"}
        self.append("restored", cause=cause, to=to, missing=missing, saved=saved, **effects)

    def skip_to(self, position: int) -> None:
        """Go on above a position. Do nothing if this ledger is there already.

        Other servers may have gone on after the save. Positions that they sent to clients must not come again for other entries, or a loss
        would look like something that the client knows.
        """
        self.position = max(self.position, position)

    def latest_cause(self, kind: str) -> str | None:
        """Return the cause in the latest entry of this kind, or None."""
        return next((entry.cause for entry in reversed(self._entries) if entry.kind == kind), None)

    def contains(self, kind: str, since: int) -> bool:
        """Return whether there is an entry of this kind after position `since`."""
        return any(entry.kind == kind for entry in self._entries_after(since))

    def _entries_after(self, since: int) -> list[Entry]:
        return self._entries[bisect_right(self._entries, since, key=attrgetter("position")) :]


@dataclass(slots=True)
class CallerPosition:
    """How far one caller has read a session's ledger, the list of what happened to the session.

    When the caller gets the result of an execution, the position moves to the end of that execution.

    Attributes:
        ledger: The id of the ledger, or None if the caller has received no result yet.
        position: The number of the last entry that need not be reported to the caller any more, except for `unreported`.
        unreported: What the next result must report in addition to the entries after `position`. Only a new branch has it: what the
            original session had not reported to its caller when the branch was made. Otherwise it says that nothing was lost.
        requested: The numbers of the entries about resets and rollbacks that the caller asked for. The caller's results do not report them.
        cells: How many cells had begun by the latest result. After a restore, those beyond the save are reported as not saved.
    """

    ledger: str | None = None
    position: int = 0
    unreported: State = field(default_factory=State)
    requested: frozenset[int] = frozenset()
    cells: int = 0
    _cells_before: int = 0  # the result that was delivered last, in case it does not reach the caller

    @classmethod
    def parse(cls, since: str, unreported: State) -> "CallerPosition":
        """Parse a position in the server's format, `ledger:number`. `unreported` is what happened before it and was not reported yet."""
        ledger, _, position = since.partition(":")
        return cls(ledger, int(position), unreported)

    def state_after(self, record: Record) -> State:
        """Return what happened to the session since this position, up to the end of an execution.

        `record` has the ledger's entries for that execution. If the execution began before this position, begin there. If the caller has
        received no result yet, first move this position to the beginning of the record.
        """
        if self.ledger is None:  # nothing was known before the first record
            self.ledger, self.position = record.ledger, record.since
        if record.ledger != self.ledger:  # another server answered: it does not have the session that the caller knew
            return state_between(record.entries, record.since, record.end, unreported=_EXPIRED)
        since = min(self.position, record.start)
        unreported = self.unreported if since == self.position else None
        state = state_between(record.entries, since, record.end, unreported=unreported, requested=self._requested_before(record))
        restored = next((entry for entry in record.entries if entry.cells is not None and entry.position > since), None)
        unsaved = self.cells - restored.cells if restored is not None and restored.cells is not None else 0
        return replace(state, unsaved=unsaved) if unsaved > 0 else state

    def _requested_before(self, record: Record) -> frozenset[int]:
        """Return the positions of the resets and rollbacks that the caller asked for before the execution of a record began.

        Those during the execution are left out, because its result reports them.
        """
        return frozenset(position for position in self.requested if position <= record.start)

    def deliver(self, result: CodeExecutionResult) -> CodeExecutionResult:
        """Return the result with a new `state`: what happened after this position. Move this position to the end of the execution.

        If the result has no record of the ledger, return it unchanged.
        """
        record = result.record
        if record is None:  # no answer came, or one that does not report what happened
            return result
        state, news = _UNCHANGED, record.entries
        if record.entries or record.ledger != self.ledger or self.unreported != _UNCHANGED:
            state = self.state_after(record)
            known = min(self.position, record.start) if record.ledger == self.ledger else record.since
            requested = self._requested_before(record)
            news = tuple(entry for entry in record.entries if entry.position > known and entry.position not in requested)
        self.advance(record)
        if state != result.state or result.error is not None:  # an error of the host has the state in its message
            result = with_state(result, state)
        return result if news == record.entries else replace(result, record=replace(record, entries=news))

    def advance(self, record: Record) -> None:
        """Move this position to the end of a record that the caller has received.

        Within one ledger, never move it back, because results may arrive out of order.
        """
        if record.ledger != self.ledger or record.end >= self.position:
            goes_on = record.ledger == self.ledger and not any(entry.saved and entry.position > self.position for entry in record.entries)
            self._cells_before, self.cells = self.cells, max(record.cells, self.cells if goes_on else 0)
            self.ledger, self.position, self.unreported = record.ledger, record.end, _UNCHANGED
            if self.requested:
                self.requested = frozenset(position for position in self.requested if position > record.end)

    def undo_delivery(self, record: Record) -> None:
        """Move this position back before a record that did not reach the caller, so that the next result reports its entries again."""
        if record.ledger == self.ledger:
            self.position, self.cells = min(self.position, record.since), self._cells_before

    def add_requested(self, ledger: str, position: int) -> None:
        """Remember that the caller asked for the reset or rollback at `position` of a ledger, so that no result reports it."""
        if self.ledger is None:
            self.ledger, self.position = ledger, position
        elif self.ledger == ledger and position > self.position:
            self.requested |= {position}


def format_position(ledger: str, position: int) -> str:
    """Format a position in a ledger as `ledger:number`, as clients send it. `ledger` is the ledger's id."""
    return f"{ledger}:{position}"


def state_between(
    entries: Iterable[Entry], since: int, until: int, *, unreported: State | None = None, requested: Collection[int] = ()
) -> State:
    """Return what happened to a session between two positions of its ledger.

    Args:
        entries: The ledger's entries, in order.
        since: The number of the last entry that the caller has received.
        until: The number of the last entry to include.
        unreported: What happened before `since` and was not reported yet.
        requested: The numbers of resets and rollbacks that the caller asked for. They are left out of the returned state.
    """
    states = [(since, unreported or _UNCHANGED)]
    for entry in entries:
        if since < entry.position <= until:
            states.append((entry.position, _apply_entry(entry, states, entry.position in requested)))
    return states[-1][1]


def with_state(result: CodeExecutionResult, state: State, **others: Any) -> CodeExecutionResult:
    """Return a copy of a result with another `state`, and with the fields in `others` replaced.

    If the host ended the cell, its error message ends with a phrase about the old state. Replace that phrase by one about `state`, also in
    stderr.
    """
    error = result.error
    if error is None or error.traceback or error.name not in ("TimeoutError", "InterpreterDied"):
        return result if state == result.state and not others else replace(result, state=state, **others)
    message = f"{error.message.removesuffix(f'; {result.state.consequence}')}; {state.consequence}"
    updated = CodeError(error.name, message)
    return replace(result, state=state, error=updated, stderr=result.stderr.removesuffix(str(error)) + str(updated), **others)


def _apply_entry(entry: Entry, states: list[tuple[int, State]], requested: bool) -> State:
    """Return the state after one more ledger entry: what happened to the session up to this entry.

    A rollback does not undo a loss of variables or files before its checkpoint: that loss is still reported.

    Args:
        entry: The entry.
        states: For each earlier entry, its number and what had happened by then.
        requested: Whether the caller asked for this reset or rollback. If so, it is left out of the returned state.
    """
    now = states[-1][1]
    past = next((state for position, state in reversed(states) if entry.to is not None and position <= entry.to), _UNCHANGED)
    state = now
    if entry.variables == "rolled_back":
        state = _add_rollback_reason(replace(state, variables=_state_after_rollback(past.variables, requested)), past, entry)
    elif entry.kind == "restored":
        return _state_after_restore(past, entry)
    elif entry.variables != "kept":
        reason = _find_reason_for_files(states) if requested else entry.cause
        state = replace(state, variables="kept" if requested else entry.variables, reason=reason, checkpoint=None)
    if entry.files != "kept":
        files = _state_after_rollback(past.files, requested) if entry.files == "rolled_back" else "kept" if requested else entry.files
        # What happened to the variables is reported first.
        reason = state.reason if state.variables != "kept" else entry.cause
        state = replace(state, files=files, reason=reason)
    if entry.cut_off:
        state = replace(state, cut_off=entry.cut_off)
    if entry.processes != "kept":
        state = replace(state, processes="kept" if requested else entry.processes)
    if entry.missing or entry.saved is not None:  # a rollback to a saved checkpoint, or a summary
        before = past if entry.kind == "rolled_back" else state
        state = replace(state, missing=_join(before.missing, entry.missing), saved=entry.saved)
    return replace(state, reason=None, checkpoint=None) if state.kind == "kept" else state


def _state_after_restore(past: State, entry: Entry) -> State:
    """Return the state after a session was restored. What was lost, rolled back or missing before its state was saved is still so."""
    variables, files = _part_after_restore(past.variables), _part_after_restore(past.files)
    missing = _join(past.missing, entry.missing)
    restored = State(variables, files, entry.processes, entry.cause, cut_off=past.cut_off, missing=missing, saved=entry.saved)
    if "restored" in (variables, files) and "rolled_back" not in (variables, files):
        return restored
    return replace(restored, reason=past.reason, checkpoint=past.checkpoint)


def _part_after_restore(past: Part) -> Part:
    return "restored" if past == "kept" else past


def _join(*names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(itertools.chain(*names)))


def _find_reason_for_files(states: list[tuple[int, State]]) -> str | None:
    """Return the reason that was recorded when the files of a session were lost or rolled back, or None if none was recorded.

    The reason of a state is usually about the variables. This one takes its place if there is nothing to report about the variables.
    """
    reason = None
    for _, state in reversed(states):
        if state.files != states[-1][1].files:
            break
        reason = state.reason
    return reason


def _state_after_rollback(past: Any, requested: bool) -> Any:
    """Return what to report about the variables, or about the files, after a rollback.

    `past` is what had happened to them before the checkpoint: a loss is still reported. `requested` is whether the caller asked for the
    rollback. If so, the rollback itself is not reported.
    """
    return past if past in ("lost", "unknown") else "kept" if requested and past == "kept" else "rolled_back"


def _add_rollback_reason(state: State, past: State, entry: Entry) -> State:
    """Return a copy of `state` with the reason and the checkpoint of the rollback that `entry` records.

    If something was lost before that checkpoint, use the reason and the checkpoint in `past`, the state at that time.
    """
    if past.kind != "kept":
        return replace(state, reason=past.reason, checkpoint=past.checkpoint)
    return replace(state, reason=entry.cause, checkpoint=entry.checkpoint)


def summarize(entries: list[Entry], most: int) -> list[Entry]:
    """Replace all but the last `most` entries by one summary entry with the same effect. Return the shorter list.

    If there are at most `most` entries, return them unchanged.
    """
    if len(entries) <= most:
        return entries
    older, newer = entries[:-most], entries[-most:]
    last = older[-1].position
    state = state_between(older, older[0].position - 1, last)
    summary = Entry(last, "summary", state.reason, state.variables, state.files, state.processes, cut_off=state.cut_off)
    summary = replace(summary, missing=state.missing, saved=state.saved)
    return [summary, *newer]
