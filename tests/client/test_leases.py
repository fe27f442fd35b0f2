"""The pool's decisions, without a clock or a session of their own."""

from datetime import UTC, datetime, timedelta

from aca_sessions.client.leases import Granted, Leases, Waiter


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def leases(limit: int = 2, clock: Clock | None = None) -> Leases:
    return Leases(limit, timedelta(minutes=30), clock or Clock())


def woken(into: list[Granted]):
    return into.append


def test_a_named_lease_is_granted_at_once() -> None:
    assert leases().acquire("alice", woken([])) == Granted("alice")


def test_an_anonymous_session_has_a_name_nobody_can_guess() -> None:
    state = leases()
    first, second = state.acquire(None, woken([])), state.acquire(None, woken([]))
    assert first.session_id != second.session_id
    assert len(first.session_id) == 36


def test_the_limit_counts_sessions_that_are_held() -> None:
    state = leases(limit=1)
    state.acquire("alice", woken([]))
    assert isinstance(state.acquire("bob", woken([])), Waiter)
    assert (state.leased, state.waiting) == (1, 1)


def test_leases_of_one_name_share_their_session() -> None:
    state = leases(limit=1)
    state.acquire("alice", woken([]))
    assert state.acquire("alice", woken([])) == Granted("alice")
    assert state.leased == 1


def test_who_waited_longest_is_next() -> None:
    state, order = leases(limit=1), []
    state.acquire("alice", woken([]))
    for name in ("bob", "carol"):
        state.acquire(name, woken(order))
    state.release("alice")
    assert [granted.session_id for granted in order] == ["bob"]
    state.release("bob")
    assert [granted.session_id for granted in order] == ["bob", "carol"]


def test_nobody_overtakes_the_queue() -> None:
    state = leases(limit=1)
    state.acquire("alice", woken([]))
    waiter = state.acquire("bob", woken([]))
    state.give_up(waiter)
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


def test_a_held_session_does_not_expire() -> None:
    clock = Clock()
    state = leases(clock=clock)
    state.acquire("alice", woken([]))
    clock.now += timedelta(days=1)
    assert state.expire() == []


def test_a_waiter_that_was_granted_and_leaves_gives_its_lease_on() -> None:
    state, order = leases(limit=1), []
    state.acquire("alice", woken([]))
    bob = state.acquire("bob", woken([]))
    state.acquire("carol", woken(order))
    state.release("alice")
    state.give_up(bob)
    assert [granted.session_id for granted in order] == ["carol"]


def test_infos_say_who_is_held() -> None:
    state = leases()
    state.acquire("alice", woken([]))
    state.acquire("bob", woken([]))
    state.release("bob")
    assert {info.session_id: info.is_active for info in state.infos()} == {"alice": True, "bob": False}


def test_a_terminated_session_frees_its_place_and_the_next_in_the_queue_gets_it() -> None:
    state, order = leases(limit=1), []
    first = state.acquire("alice", woken([]))
    state.acquire("bob", woken(order))
    assert state.terminate("alice") == ["alice"]
    assert (order, state.release(first), state.leased) == ([Granted("bob")], [], 1)
    assert [info.session_id for info in state.infos()] == ["bob"]


def test_the_lease_of_a_terminated_session_does_not_end_one_of_the_session_that_has_its_name_now() -> None:
    state = leases()
    first = state.acquire("alice", woken([]))
    state.terminate("alice")
    second = state.acquire("alice", woken([]))
    state.release(first)
    assert state.is_held("alice")
    state.release(second)
    assert not state.is_held("alice")
