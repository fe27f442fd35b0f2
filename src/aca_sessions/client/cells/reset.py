"""Clear the user's variables. Files and loaded modules stay."""

import builtins
import os
import sys


def main(user: dict, mark: str = "") -> None:
    """Make a session like a new one, as far as that is possible in a living interpreter."""
    shell = user.get("get_ipython", lambda: None)()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if shell is not None:
        shell.reset(new_session=True)
    os.chdir("/mnt/data")
    if mark:  # the next position in the client's ledger
        builtins.__dict__["_aca_sessions_mark"] = mark
