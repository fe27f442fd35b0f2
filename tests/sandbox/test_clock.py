"""Test the time that a cell has used, with clocks that tests set by hand."""

from aca_sessions.sandbox.policy import STILL_SECONDS
from aca_sessions.sandbox.session.cell import Clock


class Times:
    def __init__(self) -> None:
        self.now = self.computed = 0.0
        self.clock = Clock(lambda: self.computed, lambda: self.now)

    def pass_by(self, seconds: float, *, computing: float = 0.0) -> float:
        self.now += seconds
        self.computed += computing
        return self.clock.used


def test_running_time_counts_whatever_is_computed() -> None:
    times = Times()
    assert times.pass_by(5) == 0
    times.clock.go_on()
    assert [times.pass_by(2), times.pass_by(1, computing=4)] == [2, 3]


def test_while_it_is_stopped_only_computing_counts() -> None:
    times = Times()
    times.clock.go_on()
    times.clock.stop()
    assert [times.pass_by(10), times.pass_by(10, computing=1), times.pass_by(1, computing=0.5)] == [0, 1, 1.5]
    times.clock.go_on()
    assert times.pass_by(1) == 2.5


def test_several_threads_count_as_at_most_real_time() -> None:
    times = Times()
    times.clock.go_on()
    times.clock.stop()
    assert times.pass_by(10, computing=40) == 10


def test_it_does_not_stay_stopped_for_ever() -> None:
    times = Times()
    for _ in range(4):
        times.clock.go_on()
        times.clock.stop()
        times.pass_by(STILL_SECONDS / 2)
    assert times.clock.used == STILL_SECONDS


def test_a_second_question_does_not_extend_the_stop() -> None:
    times = Times()
    times.clock.go_on()
    times.clock.stop()
    times.pass_by(1, computing=1)
    times.clock.stop()
    assert times.pass_by(1, computing=1) == 2
