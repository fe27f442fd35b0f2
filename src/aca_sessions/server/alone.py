"""One process has all sessions of a server: whoever asks for several is told, since each would have sessions of its own."""

import argparse
import multiprocessing
import os
import sys
from pathlib import Path

from ..errors import ConfigurationError


def check_is_alone() -> None:
    """ConfigurationError where this process is one of several workers, as far as the ways of uvicorn and gunicorn show it."""
    asked = {"WEB_CONCURRENCY": os.environ.get("WEB_CONCURRENCY", ""), "--workers": _workers(sys.argv)}
    for name, count in asked.items():
        if count.isdecimal() and int(count) > 1:
            raise ConfigurationError(
                f"{name} asks for {count} workers, and each would have sessions of its own: run one, or several servers behind a proxy "
                "that knows whose session is where (docs/scaling.md)"
            )


def _workers(command: list[str]) -> str:
    """What the command line of our own process says: uvicorn's workers are spawned with it, gunicorn's are forked with it."""
    program = Path(command[0]).parts[-2:] if command else ()
    if "gunicorn" not in program and ("uvicorn" not in program or multiprocessing.parent_process() is None):
        return ""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-w", "--workers", default="")
    return str(parser.parse_known_args(command[1:])[0].workers)
