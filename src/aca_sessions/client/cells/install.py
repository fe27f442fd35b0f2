"""Install packages with the session's own pip: into its environment if that is writable, otherwise beside the files."""

import importlib
import os
import subprocess
import sys
import sysconfig

BESIDE = "/mnt/data/.packages"


def main(user: dict, *requirements: str) -> None:
    """Print pip's output. Raise RuntimeError if pip fails."""
    target = [] if os.access(sysconfig.get_path("purelib"), os.W_OK) else ["--target", BESIDE]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", *target, *requirements]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if target and BESIDE not in sys.path:
        sys.path.append(BESIDE)
    importlib.invalidate_caches()
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError("pip could not install " + ", ".join(requirements) + "; its output says why")
