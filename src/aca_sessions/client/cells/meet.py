"""Meets a cell that runs in a thread of the session, by a module that was put there."""

import sys


def main(user: dict, module: str, marker: str, said: str) -> None:
    """Prints one line behind the marker."""
    found = sys.modules.get(module)
    if found is None:
        print("\n" + marker + '{"cell": "no module"}')
    else:
        found.meet(marker, said)
