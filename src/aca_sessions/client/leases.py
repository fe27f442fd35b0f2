"""The leases of sessions as plain state. Nothing here awaits.

A lease is a caller's right to use a session now. Leases of one name share its session, and the limit counts leased sessions. A caller that
cannot have a lease waits in a queue. Each change wakes the callers whose turn it is, and returns the sessions to end.
"""

import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ..models import SessionInfo


@dataclass(slots=True)
class _Held:
    named: bool
    created: datetime
    last_used: datetime
    leases: int = 0
    leased_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease. It ends with its session: a later session of the same name is another one."""

    session_id: str
    held: _Held | None = field(default=None, compare=False, repr=False)


@dataclass(eq=False, slots=True)
class Waiter:
    """A place in the queue. `wake` is called with the lease, or with None if there will be none."""

    session_id: str | None
    wake: Callable[[Granted | None], None]
    granted: Granted | None = field(default=None)


class Leases:
    """The pool's decisions: which caller gets a lease, and which session ends."""

    def __init__(self, limit: int, idle_timeout: timedelta, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.limit = limit
        self._idle_timeout = idle_timeout
        self._clock = clock
        self._sessions: dict[str, _Held] = {}
        self._waiting: deque[Waiter] = deque()

    @property
    def leased(self) -> int:
        """Return the number of leased sessions."""
        return sum(held.leases > 0 for held in self._sessions.values())

    @property
    def waiting(self) -> int:
        """Return the number of callers in the queue."""
        return len(self._waiting)

    def leases_of(self, session_id: str) -> int:
        """Return how many leases the session of this name has."""
        held = self._sessions.get(session_id)
        return held.leases if held else 0

    def is_held(self, session_id: str | None) -> bool:
        """Return whether the session of this name is leased."""
        return session_id is not None and self.leases_of(session_id) > 0

    def knows(self, session_id: str) -> bool:
        """Return whether a session of this name is kept, leased or not."""
        return session_id in self._sessions

    def has_ended(self, lease: Granted) -> bool:
        """Return whether the session of a lease was terminated."""
        return self._sessions.get(lease.session_id) is not lease.held

    def acquire(self, session_id: str | None, wake: Callable[[Granted | None], None]) -> Granted | Waiter:
        """Return a lease, or a place in the queue. Callers are served in order, but for one whose session is leased already."""
        # A further lease of a leased session takes no room of the pool, so it need not wait behind others.
        if self.is_held(session_id) or (self.leased < self.limit and not self._waiting):
            return self._grant(session_id)
        waiter = Waiter(session_id, wake)
        self._waiting.append(waiter)
        return waiter

    def give_up(self, waiter: Waiter) -> list[str]:
        """Remove a waiter from the queue and return the sessions to end. If it was granted a lease meanwhile, release that."""
        if waiter.granted is not None:
            return self.release(waiter.granted)
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        return []

    def release(self, lease: Granted | str) -> list[str]:
        """End a lease, or one of the leases of a name, and return the sessions to end.

        An anonymous session ends with its lease, so its state reaches no other caller. A lease that ended before changes nothing.
        """
        session_id = lease if isinstance(lease, str) else lease.session_id
        held = self._sessions.get(session_id)
        if held is None or held.leases == 0 or (isinstance(lease, Granted) and self.has_ended(lease)):
            return []
        held.leases -= 1
        held.last_used = self._clock()
        ended = [session_id] if held.leases == 0 and not held.named else []
        if held.leases == 0:
            held.leased_since = None
        for name in ended:
            del self._sessions[name]
        self._serve_queue()
        return ended

    def terminate(self, session_id: str) -> list[str]:
        """End a session and all its leases. Return the sessions to end."""
        if self._sessions.pop(session_id, None) is None:
            return []
        self._serve_queue()
        return [session_id]

    def expire(self) -> list[str]:
        """Remove the named sessions that had no lease for the idle time-out, and return them."""
        before = self._clock() - self._idle_timeout
        idle = [name for name, held in self._sessions.items() if held.leases == 0 and held.last_used <= before]
        for name in idle:
            del self._sessions[name]
        return idle

    def end_all(self) -> tuple[list[str], list[Waiter]]:
        """Remove everything. Return all sessions, which have to be ended, and the callers that still wait."""
        names, waiters = [*self._sessions], [*self._waiting]
        self._sessions.clear()
        self._waiting.clear()
        return names, waiters

    def infos(self) -> list[SessionInfo]:
        """Return a description of every session that the pool keeps."""
        return [
            SessionInfo(
                session_id=name,
                created=held.created,
                last_used=held.last_used,
                expires=None if held.leases else held.last_used + self._idle_timeout,
                is_active=held.leases > 0,
                leased_since=held.leased_since,
            )
            for name, held in self._sessions.items()
        ]

    def _grant(self, session_id: str | None) -> Granted:
        name = session_id or str(uuid.uuid4())
        now = self._clock()
        held = self._sessions.setdefault(name, _Held(session_id is not None, now, now))
        held.leases += 1
        held.last_used = now
        held.leased_since = held.leased_since or now
        return Granted(name, held)

    def _serve_queue(self) -> None:
        for waiter in [*self._waiting]:
            if self.is_held(waiter.session_id) or self.leased < self.limit:
                self._waiting.remove(waiter)
                waiter.granted = self._grant(waiter.session_id)
                waiter.wake(waiter.granted)
