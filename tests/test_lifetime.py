"""The line of the user's program that a warning names."""

from pathlib import Path

import pytest

import aca_sessions
from aca_sessions.lifetime import find_calling_line

PACKAGE = Path(aca_sessions.__file__).parent


@pytest.mark.parametrize("file", [f"{PACKAGE}_x/program.py", "/home/user/my_contextlib.py"])
def test_a_program_whose_path_resembles_ours_is_the_callers(file: str) -> None:
    scope = {"find_calling_line": find_calling_line}
    exec(compile("\nline = find_calling_line()", file, "exec"), scope)
    assert (scope["line"].file, scope["line"].number) == (file, 2)


def test_a_line_of_this_package_is_not_the_callers() -> None:
    scope = {"find_calling_line": find_calling_line}
    exec(compile("\nline = find_calling_line()", str(PACKAGE / "client" / "program.py"), "exec"), scope)
    assert scope["line"].file == __file__
