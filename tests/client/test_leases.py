"""Test the decisions of the pool without a real clock or real sessions."""

from datetime import UTC, datetime, timedelta

from aca_sessions.client.pool import Lease, Leases, Waiter


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def leases(limit: int = 2, clock: Clock | None = None) -> Leases:
    return Leases(limit, timedelta(minutes=30), clock or Clock())


def woken(into: list[Lease]):
    return into.append


def test_a_named_lease_is_granted_at_once() -> None:
    assert leases().acquire("alice", woken([])) == Lease("alice")


def test_an_anonymous_session_has_an_unguessable_name() -> None:
    state = leases()
    first, second = state.acquire(None, woken([])), state.acquire(None, woken([]))
    assert first.session_id != second.session_id
    assert len(first.session_id) == 36


def test_the_limit_counts_leased_sessions() -> None:
    state = leases(limit=1)
    state.acquire("alice", woken([]))
    assert isinstance(state.acquire("bob", woken([])), Waiter)
    assert (state.leased, state.waiting) == (1, 1)


def test_leases_of_one_name_share_their_session() -> None:
    state = leases(limit=1)
    state.acquire("alice", woken([]))
    assert state.acquire("alice", woken([])) == Lease("alice")
    assert state.leased == 1


def test_the_longest_waiter_is_next() -> None:
    state, order = leases(limit=1), []
    state.acquire("alice", woken([]))
    for name in ("bob", "carol"):
        state.acquire(name, woken(order))
    state.release("alice")
    assert [granted.session_id for granted in order] == ["bob"]
    state.release("bob")
    assert [granted.session_id for granted in order] == ["bob", "carol"]


def test_no_caller_overtakes_the_queue() -> None:
    state = leases(limit=1)
    state.acquire("alice", woken([]))
    waiter = state.acquire("bob", woken([]))
    state.leave_queue(waiter)
    state.acquire("carol", woken([]))
    state.release("alice")
    assert isinstance(state.acquire("dave", woken([])), Waiter)


def test_an_anonymous_session_ends_with_its_lease_and_a_named_one_does_not() -> None:
    state = leases()
    anonymous = state.acquire(None, woken([])).session_id
    state.acquire("alice", woken([]))
    assert state.release(anonymous) == [anonymous]
    assert state.release("alice") == []
    assert [info.session_id for info in state.infos()] == ["alice"]


def test_a_lease_is_released_once() -> None:
    state = leases(limit=1)
    state.acquire("alice", woken([]))
    state.release("alice")
    state.release("alice")
    state.acquire("alice", woken([]))
    assert state.leased == 1


def test_an_idle_session_expires() -> None:
    clock = Clock()
    state = leases(clock=clock)
    state.acquire("alice", woken([]))
    state.release("alice")
    clock.now += timedelta(minutes=29)
    assert state.expire() == []
    clock.now += timedelta(minutes=1)
    assert state.expire() == ["alice"]


def test_a_leased_session_does_not_expire() -> None:
    clock = Clock()
    state = leases(clock=clock)
    state.acquire("alice", woken([]))
    clock.now += timedelta(days=1)
    assert state.expire() == []


def test_a_waiter_that_was_granted_a_lease_and_leaves_passes_it_on() -> None:
    state, order = leases(limit=1), []
    state.acquire("alice", woken([]))
    bob = state.acquire("bob", woken([]))
    state.acquire("carol", woken(order))
    state.release("alice")
    state.leave_queue(bob)
    assert [granted.session_id for granted in order] == ["carol"]


def test_session_infos_show_which_sessions_are_leased() -> None:
    state = leases()
    state.acquire("alice", woken([]))
    state.acquire("bob", woken([]))
    state.release("bob")
    assert {info.session_id: info.is_active for info in state.infos()} == {"alice": True, "bob": False}


def test_a_terminated_session_frees_its_place_for_the_next_waiter() -> None:
    state, order = leases(limit=1), []
    first = state.acquire("alice", woken([]))
    state.acquire("bob", woken(order))
    assert state.terminate("alice") == ["alice"]
    assert (order, state.release(first), state.leased) == ([Lease("bob")], None, 1)
    assert [info.session_id for info in state.infos()] == ["bob"]


def test_the_lease_of_a_terminated_session_does_not_end_its_successor_of_the_same_name() -> None:
    state = leases()
    first = state.acquire("alice", woken([]))
    state.terminate("alice")
    second = state.acquire("alice", woken([]))
    state.release(first)
    assert state.leases_of("alice")
    state.release(second)
    assert not state.leases_of("alice")
