"""Run a Python file, named relative to /mnt/data, in a process of its own; its output appears as the output of the cell."""

import json
import os
import subprocess
import sys


def main(user: dict, path: str, *arguments: str) -> None:
    """Run the script and print its exit code as one line of JSON after the output."""
    # Otherwise what the session wrote before would come after the script's output.
    sys.stdout.flush()
    folder = "/mnt/data" if os.path.isdir("/mnt/data") else os.path.expanduser("~")  # sessions without namespaces have no /mnt/data
    code = subprocess.run([sys.executable, path, *arguments], stdin=subprocess.DEVNULL, check=False, cwd=folder).returncode
    print("\n" + json.dumps(code))
