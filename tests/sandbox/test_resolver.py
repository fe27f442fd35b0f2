"""The programs that the resolver runs: pip, and what it writes."""

import os
import sys
from pathlib import Path

from aca_sessions.sandbox.packages.resolver import _run_program


async def test_a_line_that_is_too_long_is_cut_and_the_next_one_is_read(tmp_path: Path) -> None:
    code = "print('before'); print('x' * (5 << 20)); print('Collecting after'); raise SystemExit(3)"
    told: list[str] = []
    status, output = await _run_program((sys.executable, "-I", "-S", "-c", code), dict(os.environ), tmp_path, told.append)
    assert status == 3
    before, cut, after = output.splitlines()
    assert (before, set(cut), after) == ("before", {"x"}, "Collecting after")
    assert len(cut) < 2 << 20
    assert told == ["Collecting after"]
