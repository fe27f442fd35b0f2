"""Clears the user's variables; files, and modules that are loaded, stay."""

import builtins
import os
import sys


def main(user: dict, mark: str = "") -> None:
    """Leaves a session like a new one, as far as a living interpreter can be."""
    shell = user.get("get_ipython", lambda: None)()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if shell is not None:
        shell.reset(new_session=True)
    os.chdir("/mnt/data")
    if mark:  # the next position of the client that keeps the ledger
        builtins.__dict__["_aca_sessions_mark"] = mark
