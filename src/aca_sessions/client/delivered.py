"""The position of a client object in a session's ledger: at the last result that it delivered to its caller."""

from dataclasses import dataclass, field, replace

from ..ledger import format_position, state_between, with_state
from ..models import CodeExecutionResult, Record, State

_EXPIRED = State("lost", "lost", "ended", "expired")


@dataclass(slots=True)
class Delivered:
    """A position in a ledger, which only delivered results move.

    Entries that the caller `asked` for (resets, rollbacks) are not reported to it.

    `first` is the state at that position that was not reported yet: a branch inherits it from its origin.
    """

    ledger: str | None = None
    position: int = 0
    first: State = field(default_factory=State)
    asked: set[int] = field(default_factory=set)

    @classmethod
    def parsed(cls, since: str, first: State) -> "Delivered":
        """Parse a position as the server writes it, `ledger:number`."""
        ledger, _, position = since.partition(":")
        return cls(ledger, int(position), first)

    def copy(self) -> "Delivered":
        """Return an independent copy at the same position."""
        return replace(self, asked={*self.asked})

    @property
    def since(self) -> str | None:
        """Return the position as requests name it, or None before the first answer."""
        return format_position(self.ledger, self.position) if self.ledger is not None else None

    def meet(self, record: Record) -> None:
        """Start where the first record starts. Nothing was known before it."""
        if self.ledger is None:
            self.ledger, self.position = record.ledger, record.since

    def state_of(self, record: Record) -> State:
        """Return what happened to the session between this position and the record's end.

        Start at the execution's start if that was earlier.
        """
        self.meet(record)
        if record.ledger != self.ledger:  # another server answered: it does not have the session that the caller knew
            return state_between(record.entries, record.since, record.end, first=_EXPIRED)
        since = min(self.position, record.start)
        first = self.first if since == self.position else None
        return state_between(record.entries, since, record.end, first=first, asked=self._asked_before(record))

    def _asked_before(self, record: Record) -> set[int]:
        """Return the entries that the caller asked for before the cell. Those that it asked for while the cell ran are reported."""
        return {position for position in self.asked if position <= record.start}

    def deliver(self, result: CodeExecutionResult) -> CodeExecutionResult:
        """Return the result with the state for its caller, and move the position. What this result reports is not reported again."""
        if result.record is None:  # no answer came, or one that does not report what happened
            return result
        record = result.record
        told = with_state(result, self.state_of(record))
        known = self.position if record.ledger == self.ledger else record.since
        asked = self._asked_before(record)
        self.advance(record)
        if not record.entries:
            return told
        news = tuple(entry for entry in record.entries if entry.position > min(known, record.start) and entry.position not in asked)
        return replace(told, record=replace(record, entries=news))

    def advance(self, record: Record) -> None:
        """Move to the end of a record that was delivered. A record that ends earlier moves nothing: results may arrive out of order."""
        if record.ledger != self.ledger or record.end >= self.position:
            self.ledger, self.position, self.first = record.ledger, record.end, State()
            self.asked = {position for position in self.asked if position > record.end}

    def go_back(self, record: Record) -> None:
        """Take back a delivery whose result the caller did not get, so that it is reported again."""
        if record.ledger == self.ledger:
            self.position = min(self.position, record.since)

    def note_asked(self, ledger: str, position: int) -> None:
        """Note that the entry at a position was made at the caller's request."""
        if self.ledger is None:
            self.ledger, self.position = ledger, position
        elif self.ledger == ledger and position > self.position:
            self.asked.add(position)
