"""Compare the pool with a model of it, in orders of events from hypothesis: its decisions alone, and with real sessions."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from aca_sessions import open_pool
from aca_sessions.client.pool import Lease, Leases, Waiter

pytestmark = pytest.mark.slow

NAMES = st.sampled_from(["alice", "bob", "carol", "dave"])
IDLE = timedelta(minutes=30)


class LeasesMachine(RuleBasedStateMachine):
    """Check what must always hold: the limit, the order of the queue, and that no state passes to another caller."""

    held = Bundle("held")
    waiters = Bundle("waiters")

    @initialize(limit=st.integers(1, 3))
    def begin(self, limit: int) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.leases = Leases(limit, IDLE, lambda: self.now)
        self.count: Counter[str] = Counter()  # leases that callers hold
        self.alive: set[str] = set()  # sessions that exist, as their owners see it
        self.queue: list[Waiter] = []
        self.terminated: list[object] = []
        self.seen_anonymous: set[str] = set()

    def granted(self, wanted: str | None, granted: Lease) -> Lease:
        name = granted.session_id
        if wanted is None:
            assert name not in self.seen_anonymous, "an anonymous session was given out twice"
            self.seen_anonymous.add(name)
        else:
            assert name == wanted
        self.count[name] += 1
        self.alive.add(name)
        return granted

    def ended(self, names: list[str]) -> None:
        for name in names:
            assert name in self.alive
            self.alive.discard(name)

    def after_change(self) -> None:
        """Record which waiters were woken. No later waiter may be woken first, unless its session is already leased."""
        for waiter in [waiter for waiter in self.queue if waiter.granted is not None]:
            self.queue.remove(waiter)
            self.granted(waiter.session_id, waiter.granted)

    @rule(target=held, name=st.none() | NAMES)
    def acquire(self, name: str | None) -> object:
        may = self.count[name] > 0 or (len(+self.count) < self.leases.limit and not self.queue)
        answer = self.leases.acquire(name, lambda _: None)
        assert isinstance(answer, Lease) == may
        if isinstance(answer, Waiter):
            self.queue.append(answer)
            return answer
        return self.granted(name, answer)

    @rule(lease=consumes(held))
    def release_lease(self, lease: Lease | Waiter) -> None:
        """Release a lease, or stop waiting for one, or return one that came meanwhile."""
        granted = lease.granted if isinstance(lease, Waiter) else lease
        if granted is None:
            self.queue.remove(lease)
        elif not any(granted.pooled is held for held in self.terminated):
            self.count[granted.session_id] -= 1
        self.ended(self.leases.leave_queue(lease) if isinstance(lease, Waiter) else self.leases.release(lease) or [])
        self.after_change()

    @rule(name=NAMES)
    def terminate(self, name: str) -> None:
        exists = name in self.alive
        held = self.leases._sessions.get(name)
        ended = self.leases.terminate(name)
        assert ended == ([name] if exists else [])
        self.terminated.append(held)
        self.alive.discard(name)
        del self.count[name]
        self.after_change()

    @rule(minutes=st.integers(0, 40))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        expired = self.leases.expire()
        assert not any(self.count[name] for name in expired)
        self.ended(expired)

    @rule(name=NAMES)
    def release_unleased_name(self, name: str) -> None:
        if not self.count[name]:
            assert self.leases.release(name) is None

    @invariant()
    def the_limit_holds_and_no_waiter_is_forgotten(self) -> None:
        if not hasattr(self, "leases"):
            return
        assert self.leases.leased == len(+self.count) <= self.leases.limit
        assert self.leases.waiting == len(self.queue)
        assert {info.session_id for info in self.leases.infos()} == self.alive
        assert {info.session_id for info in self.leases.infos() if info.is_active} == set(+self.count)
        if self.queue:
            assert self.leases.leased == self.leases.limit
            assert not any(self.count[waiter.session_id] for waiter in self.queue if waiter.session_id)


TestLeases = LeasesMachine.TestCase
TestLeases.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


class MoreLeases(LeasesMachine):
    """Run the same checks in more orders of events."""


TestMoreLeases = pytest.mark.long(MoreLeases.TestCase)
TestMoreLeases.settings = settings(max_examples=2000, stateful_step_count=30, deadline=None)


class PoolMachine(RuleBasedStateMachine):
    """Use real sessions: each caller finds its own counter, as often increased as it did so itself since the session began."""

    held = Bundle("held")

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.opening = open_pool(max_concurrent_sessions=3)
        self.pool = self.loop.run_until_complete(self.opening.__aenter__())
        self.counters: Counter[str] = Counter()
        self.holding: Counter[str] = Counter()
        self.terminated: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.loop.run_until_complete(self.opening.__aexit__())
            self.loop.close()

    @rule(target=held, name=st.none() | NAMES)
    def lease(self, name: str | None) -> object:
        if len(+self.holding) == 3 and not self.holding[name or ""]:
            return None
        session = self.loop.run_until_complete(self.pool.get_or_create(name))
        self.holding[session.session_id] += 1
        return session

    @rule(session=held)
    def count(self, session) -> None:
        if session is None or not self.holding[session.session_id]:
            return
        name = session.session_id
        self.counters[name] += 1
        result = self.loop.run_until_complete(session.run("n = globals().get('n', 0) + 1; n"))
        assert result.value == self.counters[name]
        assert str(result.state) in ("kept", "lost: terminated" if name in self.terminated else "kept"), "each caller reads it once"

    @rule(session=held)
    def cancelled_count(self, session) -> None:
        if session is None or not self.holding[session.session_id]:
            return

        async def cancelled() -> None:
            running = asyncio.create_task(session.run("while True: pass"))
            await asyncio.sleep(0.003)
            running.cancel()
            await asyncio.wait({running})

        self.loop.run_until_complete(cancelled())

    @rule(session=consumes(held))
    def release(self, session) -> None:
        if session is None:
            return
        name = session.session_id
        self.loop.run_until_complete(self.pool.release(name))
        self.holding[name] -= self.holding[name] > 0
        if name not in ("alice", "bob", "carol", "dave"):
            del self.counters[name]

    @rule(name=NAMES)
    def terminate(self, name: str) -> None:
        self.loop.run_until_complete(self.pool.terminate(name))
        del self.counters[name]
        del self.holding[name]
        self.terminated.add(name)

    @invariant()
    def the_counts_are_right(self) -> None:
        if hasattr(self, "pool"):
            assert repr(self.pool) == f"<SessionPool embedded, {len(+self.holding)} of 3 leased, 0 waiting>"


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
