"""Where in the user's program something was made, for the warning that it was never closed."""

import sys
from pathlib import Path

_OURS = str(Path(__file__).parents[1])


def caller() -> str:
    """File and line of the innermost frame that is neither ours nor the standard library's context managers."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (frame.f_code.co_filename.startswith(_OURS) or frame.f_code.co_filename.endswith("contextlib.py")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
