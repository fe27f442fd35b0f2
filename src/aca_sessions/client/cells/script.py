"""Runs a file of Python by itself; its output goes where a cell's goes."""

import json
import subprocess
import sys


def main(user: dict, path: str, *arguments: str) -> None:
    """Prints the exit code as one line of JSON behind the output."""
    sys.stdout.flush()
    command = [sys.executable, path, *arguments]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, cwd="/mnt/data").returncode
    print("\n" + json.dumps(code))
