"""A check that one process has all sessions of a server. With several workers, each would have sessions of its own."""

import argparse
import multiprocessing
import os
import sys
from pathlib import Path

from ..errors import ConfigurationError


def check_is_alone() -> None:
    """Raise ConfigurationError if this process is one of several workers.

    That is found from the environment and the command line, in the ways of uvicorn and gunicorn.
    """
    asked = {"WEB_CONCURRENCY": os.environ.get("WEB_CONCURRENCY", ""), "--workers": _workers(sys.argv)}
    for name, count in asked.items():
        if count.isdecimal() and int(count) > 1:
            raise ConfigurationError(
                f"{name} asks for {count} workers, and each would have sessions of its own: run one, or several servers behind a proxy "
                "that knows whose session is where (docs/scaling.md)"
            )


def _workers(command: list[str]) -> str:
    """Return the number of workers that the command line of this process asks for, or "".

    uvicorn spawns its workers with that command line, gunicorn forks them with it.
    """
    program = Path(command[0]).parts[-2:] if command else ()
    if "gunicorn" not in program and ("uvicorn" not in program or multiprocessing.parent_process() is None):
        return ""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-w", "--workers", default="")
    return str(parser.parse_known_args(command[1:])[0].workers)
