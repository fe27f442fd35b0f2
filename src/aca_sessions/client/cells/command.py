"""Run a shell command; its output appears as the output of the cell."""

import json
import subprocess
import sys


def main(user: dict, command: str) -> None:
    """Run the command and print its exit code as one line of JSON after the output."""
    # Otherwise what the session wrote before would come after the command's output.
    sys.stdout.flush()
    code = subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, check=False).returncode
    print("\n" + json.dumps(code))
