"""What the server knows of a session without asking it: its names, how many cells it ran and how they ended. Nothing here awaits."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ...models import CodeExecutionResult, Display

_KEPT_RESTARTS = 20
_KEPT_DISPLAYS = 50
_KEPT_DISPLAY_CHARACTERS = 16 << 20


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class NamedSession:
    """A session as clients name it. `id` is its name in the pool, which no client learns."""

    name: str
    description: str = ""
    shared: bool = False
    id: str = field(default_factory=lambda: f"mcp-{uuid.uuid4()}", repr=False)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    begun: bool = False
    executions: int = 0
    seconds: float = 0.0
    last_execution: datetime | None = None
    last_error: str | None = None
    restarts: list[str] = field(default_factory=list)
    displays: dict[int, Display] = field(default_factory=dict)
    displayed: int = 0
    _running: list[float] = field(default_factory=list)

    @property
    def uptime(self) -> float:
        """Return the seconds since it was created."""
        return (datetime.now(UTC) - self.created).total_seconds()

    @property
    def busy_for(self) -> float | None:
        """Return the seconds since the oldest of its unfinished cells was sent, or None if there are none."""
        return time.monotonic() - self._running[0] if self._running else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a cell as running for the block."""
        started = time.monotonic()
        self._running.append(started)
        try:
            yield
        finally:
            self._running.remove(started)
            self.executions += 1
            self.seconds += time.monotonic() - started
            self.last_execution = datetime.now(UTC)

    def learn(self, result: CodeExecutionResult) -> None:
        """Note how a cell ended."""
        if result.error is not None:
            self.last_error = result.error.name
        if result.state.kind == "lost":
            self.restarted(result.state.reason or "lost")
        if result.state.files == "lost":
            self.begun = False

    def restarted(self, cause: str) -> None:
        """Note that its variables began anew, and why. The latest 20 causes are kept."""
        self.restarts = [*self.restarts, cause][-_KEPT_RESTARTS:]

    def keep(self, display: Display) -> int:
        """Keep a display and return the number by which it is read later. The oldest are dropped: 50 and 16 MB of text are kept."""
        self.displayed += 1
        self.displays[self.displayed] = display
        while len(self.displays) > _KEPT_DISPLAYS or (len(self.displays) > 1 and self._weight() > _KEPT_DISPLAY_CHARACTERS):
            self.displays.pop(next(iter(self.displays)))
        return self.displayed

    def _weight(self) -> int:
        return sum(len(str(value)) for display in self.displays.values() for value in display.data.values())
