"""Installs packages with the session's own pip."""

import importlib
import subprocess
import sys


def main(user: dict, *requirements: str) -> None:
    """Prints what pip says; fails as pip does."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", *requirements]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    importlib.invalidate_caches()
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError("pip could not install " + ", ".join(requirements) + "; its output says why")
