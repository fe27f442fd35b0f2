"""Refuse `pip install` into a session's environment, unless the requirements are installed already.

The environment is read-only. Without this module, pip would try for eight seconds to reach an index, then fail.
"""

import os
import sys
import sysconfig
import tempfile

# What to do instead depends on who runs the cell, so each entry point says it in a hint (hints.py finds this line).
REFUSAL = "a cell cannot install packages: the host does, between cells"
_PLACES = ("-t", "--target", "--prefix", "--root", "--user", "--python", "--dry-run", "--help", "-h")
_ALWAYS = ("-U", "--upgrade", "--force-reinstall", "-I", "--ignore-installed")


def refuse(arguments: "list[str]") -> None:
    """Exit if the arguments tell pip to install into the session's environment, else return.

    The exit status is 0 if the installed packages meet all requirements. Otherwise it is 1, and a message on stderr says that a cell
    cannot install packages.
    """
    if arguments[:1] != ["install"] or any(one.partition("=")[0] in _PLACES for one in arguments):
        return
    if _can_write(sysconfig.get_path("purelib")):  # a virtual environment that the session made
        return
    wanted = [one for one in arguments[1:] if not one.startswith("-")]
    is_met = bool(wanted) and not any(one in _ALWAYS for one in arguments) and all(map(_is_met, wanted))
    if is_met:
        for one in wanted:
            print("Requirement already satisfied: " + one)
    else:
        sys.stderr.write(REFUSAL + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if is_met else 1)


def _can_write(folder: str) -> bool:
    try:  # access(2) does not know what Landlock denies
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_met(text: str) -> bool:
    try:
        from importlib.metadata import version

        from pip._vendor.packaging.requirements import Requirement

        requirement = Requirement(text)
        return not requirement.url and requirement.specifier.contains(version(requirement.name), prereleases=True)
    except Exception:
        return False
