"""What the MCP server itself knows about a session, such as its name, its displays and how many cells it ran.

Reading it needs no request to the session. Nothing here awaits, so no other call can change it in the middle of a method.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote

from ..client.executions import Execution
from ..models import CodeExecutionResult, Display

_KEPT_RESTARTS = 20
_KEPT_DISPLAYS = 50
_KEPT_DISPLAY_CHARACTERS = 16 << 20
DISPLAYS_KEPT = f"a session keeps its last {_KEPT_DISPLAYS} displays, of at most {_KEPT_DISPLAY_CHARACTERS >> 20} Mi characters in all"


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class NamedSession:
    """What the MCP server knows about a session.

    MCP clients call the session by its `name`. The pool calls it by its `id`, which is secret and not sent to clients. `is_expired` is True
    from the time when the pool ended the session, because it was idle, until it is started again. `is_deleted` is True from the time when a
    client deleted it: a call that was waiting then must not start it again. `executing` has the cells that run or wait for their turn, the
    oldest first.
    """

    name: str
    description: str = ""
    shared: bool = False
    id: str = field(default_factory=lambda: f"mcp-{uuid.uuid4()}", repr=False)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    is_started: bool = False
    is_expired: bool = False
    is_deleted: bool = False
    executions: int = 0
    seconds: float = 0.0
    last_execution: datetime | None = None
    last_error: str | None = None
    restarts: list[str] = field(default_factory=list)
    displays: dict[int, Display] = field(default_factory=dict)
    displayed: int = 0
    has_scripts: bool = False  # of save_script, in scripts/
    finds_scripts: bool = False  # whether `import` looks there
    executing: list[Execution] = field(default_factory=list, repr=False)
    _running: list[float] = field(default_factory=list)

    def file_uri(self, path: str) -> str:
        """Return the URI of the MCP resource for a file of the session."""
        return f"session://{self.name}/files/{quote(path)}"

    def display_uri(self, number: int) -> str:
        """Return the URI of the MCP resource for a display that `keep` has stored."""
        return f"session://{self.name}/displays/{number}"

    @property
    def uptime(self) -> float:
        """Return the seconds since the session was created."""
        return (datetime.now(UTC) - self.created).total_seconds()

    @property
    def busy_for(self) -> float | None:
        """Return the seconds since the oldest cell that still runs in the session was sent, or None if none runs."""
        return time.monotonic() - self._running[0] if self._running else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a cell as running during the `with` block.

        At the end, add 1 to the session's number of cells, and the cell's duration to their total time.
        """
        started = time.monotonic()
        self._running.append(started)
        try:
            yield
        finally:
            self._running.remove(started)
            self.executions += 1
            self.seconds += time.monotonic() - started
            self.last_execution = datetime.now(UTC)

    def record_result(self, result: CodeExecutionResult) -> None:
        """Record the error's name if a cell failed, and the cause if variables were lost. If files were lost, set `is_started` to False."""
        if result.error is not None:
            self.last_error = result.error.name
        if result.state.kind == "lost":
            self.record_restart(result.state.reason or "lost")
        if result.state.files == "lost":
            self.is_started = False

    def record_restart(self, cause: str) -> None:
        """Record why the session's interpreter was replaced: by a loss, a rollback, or a restart, even one that kept the variables.

        Keep only the latest 20 causes.
        """
        self.restarts = [*self.restarts, cause][-_KEPT_RESTARTS:]
        self.finds_scripts = False

    def keep(self, display: Display) -> int:
        """Store a display, so that clients can read it later, and return the number in its URI.

        If more than 50 displays or more than 16 Mi characters are stored then, drop the oldest displays.
        """
        self.displayed += 1
        self.displays[self.displayed] = display
        while len(self.displays) > _KEPT_DISPLAYS or (len(self.displays) > 1 and self._weight() > _KEPT_DISPLAY_CHARACTERS):
            self.displays.pop(next(iter(self.displays)))
        return self.displayed

    def _weight(self) -> int:
        return sum(len(str(value)) for display in self.displays.values() for value in display.data.values())
