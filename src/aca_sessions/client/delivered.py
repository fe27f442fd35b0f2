"""Where a client object is in the ledger of a session: at the last answer that it delivered to its caller."""

from dataclasses import dataclass, field, replace

from ..ledger import format_position, state_between, with_state
from ..models import CodeExecutionResult, Record, State

_EXPIRED = State("lost", "lost", "ended", "expired")


@dataclass(slots=True)
class Delivered:
    """Hold a position, which only results move. Entries that the caller `asked` for (its resets and rollbacks) are not reported to it.

    `first` is what had happened before the position and was not reported: a branch inherits it.
    """

    ledger: str | None = None
    position: int = 0
    first: State = field(default_factory=State)
    asked: set[int] = field(default_factory=set)

    @classmethod
    def parsed(cls, since: str, first: State) -> "Delivered":
        """Return the position that a text names."""
        ledger, _, position = since.partition(":")
        return cls(ledger, int(position), first)

    def copy(self) -> "Delivered":
        """Return another one at the same position."""
        return replace(self, asked={*self.asked})

    @property
    def since(self) -> str | None:
        """Return the position as requests name it; None before the first answer."""
        return format_position(self.ledger, self.position) if self.ledger is not None else None

    def meet(self, record: Record) -> None:
        """Start where a first answer's record starts: nothing was known before it."""
        if self.ledger is None:
            self.ledger, self.position = record.ledger, record.since

    def state_of(self, record: Record) -> State:
        """Return what happened to the session from this position, or from the execution's start if that was earlier, to its end."""
        self.meet(record)
        if record.ledger != self.ledger:  # a server that does not know the session the caller knew
            return state_between(record.entries, record.since, record.end, first=_EXPIRED)
        since = min(self.position, record.start)
        first = self.first if since == self.position else None
        return state_between(record.entries, since, record.end, first=first, asked=self._asked_before(record))

    def _asked_before(self, record: Record) -> set[int]:
        """Return which entries the caller asked for before the cell. Those that it asked for while the cell ran are reported."""
        return {position for position in self.asked if position <= record.start}

    def deliver(self, result: CodeExecutionResult) -> CodeExecutionResult:
        """Return the result with the state for its caller, and move the position: what it reports is not reported again."""
        if result.record is None:  # there was no answer, or none that says what happened
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
        """Move to the end of an answer that was delivered."""
        if record.ledger != self.ledger or record.end >= self.position:
            self.ledger, self.position, self.first = record.ledger, record.end, State()
            self.asked = {position for position in self.asked if position > record.end}

    def go_back(self, record: Record) -> None:
        """Take back a delivery whose result the caller did not get."""
        if record.ledger == self.ledger:
            self.position = min(self.position, record.since)

    def note_asked(self, ledger: str, position: int) -> None:
        """Note that the entry at a position was made at the caller's request."""
        if self.ledger is None:
            self.ledger, self.position = ledger, position
        elif self.ledger == ledger and position > self.position:
            self.asked.add(position)
