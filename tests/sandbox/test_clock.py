"""Test the time that a cell has used, and the time that it has to obey a signal, with clocks that tests set by hand."""

import os
import subprocess
import sys
import time

import pytest

from aca_sessions.sandbox.policy import INTERRUPT_GRACE, QUEUED_SECONDS, STILL_SECONDS
from aca_sessions.sandbox.session.cell import Clock, GracePeriod
from aca_sessions.sandbox.session.descriptors import queued_time


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
    times.clock.start()
    assert [times.pass_by(2), times.pass_by(1, computing=4)] == [2, 3]


def test_while_it_is_stopped_only_computing_counts() -> None:
    times = Times()
    times.clock.start()
    times.clock.stop()
    assert [times.pass_by(10), times.pass_by(10, computing=1), times.pass_by(1, computing=0.5)] == [0, 1, 1.5]
    times.clock.start()
    assert times.pass_by(1) == 2.5


def test_several_threads_count_as_at_most_real_time() -> None:
    times = Times()
    times.clock.start()
    times.clock.stop()
    assert times.pass_by(10, computing=40) == 10


def test_it_does_not_stay_stopped_for_ever() -> None:
    times = Times()
    for _ in range(4):
        times.clock.start()
        times.clock.stop()
        times.pass_by(STILL_SECONDS / 2)
    assert times.clock.used == STILL_SECONDS


def test_a_second_question_does_not_extend_the_stop() -> None:
    times = Times()
    times.clock.start()
    times.clock.stop()
    times.pass_by(1, computing=1)
    times.clock.stop()
    assert times.pass_by(1, computing=1) == 2


class Queue:
    def __init__(self) -> None:
        self.now, self.queued = 100.0, 7.0
        self.grace = GracePeriod(lambda: self.queued, lambda: self.now)

    def pass_by(self, seconds: float, *, queued: float = 0.0) -> float:
        self.now += seconds
        self.queued += queued
        return self.grace.left


def test_a_signal_is_obeyed_in_two_seconds() -> None:
    queue = Queue()
    assert [queue.grace.left, queue.pass_by(1.5), queue.pass_by(0.5)] == [INTERRUPT_GRACE, 0.5, 0] == [2, 0.5, 0]


def test_waiting_for_a_processor_does_not_count_up_to_a_limit() -> None:
    queue = Queue()
    assert [queue.pass_by(2, queued=1.5), queue.pass_by(1.5, queued=0.5), queue.pass_by(0.5)] == [1.5, 0.5, 0]
    assert queue.pass_by(1000, queued=1000) == 2 + QUEUED_SECONDS - 1004


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="this kernel does not count how long a process waits")
def test_the_time_that_a_process_waits_for_a_processor_is_known() -> None:
    pin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", pin]) for _ in range(3)]
    pidfd = os.pidfd_open(processes[0].pid)
    try:
        before = queued_time(pidfd)
        while queued_time(pidfd) < before + 0.2:
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert queued_time(pidfd) == 0
    os.close(pidfd)
