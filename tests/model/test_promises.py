"""Test that results never report anything untrue: real sessions, in orders of events from hypothesis, against a reference model."""

import asyncio
import os
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ..conftest import mostly_long
from .driver import play
from .loop import ShuffledLoop
from .machine import Machine
from .programs import PROGRAMS, Program

MANY = int(os.environ.get("ACA_TEST_EXAMPLES", "1000"))


class Games:
    """Play one program after another on one machine. Use a new machine after a program that failed."""

    def __init__(self) -> None:
        self._loop = ShuffledLoop()
        self._opening: Any = None
        self._machine: Machine | None = None

    def play(self, program: Program) -> None:
        if self._machine is None:
            self._opening = Machine.open()
            self._machine = self._loop.run_until_complete(self._opening.__aenter__())
        self._loop.shuffle(program.seed)
        try:
            self._loop.run_until_complete(asyncio.wait_for(play(program, self._machine), 600))
        except BaseException:
            self._loop.shuffle(None)
            self.close_machine()
            raise
        self._loop.shuffle(None)

    def close_machine(self) -> None:
        if self._machine is not None:
            self._machine = None
            self._loop.run_until_complete(self._opening.__aexit__(None, None, None))

    def close(self) -> None:
        self.close_machine()
        self._loop.close()


@pytest.mark.timeout(7200)  # with many examples it takes half an hour
@pytest.mark.parametrize("examples", mostly_long([8, MANY], 8))
def test_results_report_what_happened(examples: int) -> None:
    games = Games()
    with ExitStack() as stack:
        stack.callback(games.close)

        @settings(max_examples=examples, deadline=None, print_blob=True, database=None, suppress_health_check=list(HealthCheck))
        @given(PROGRAMS)
        def played(program: Program) -> None:
            games.play(program)

        played()
