"""Debian root file systems for tests of images and containers: made once by debootstrap (a minute or two each), then kept."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ASKED_FOR = bool(os.environ.get("ACA_TEST_CONTAINERS"))
# Packages of the newest Debian that has each: three versions of Python, and of IPython.
RECIPES = {
    "bookworm": "python3,python3-venv,util-linux,ipython3",
    "bullseye": "python3,ipython3",
    "trixie": "python3,ipython3,python3-numpy",
}
VERSIONS = {"bookworm": ((3, 11), "8.5.0"), "bullseye": ((3, 9), "7.20.0"), "trixie": ((3, 13), "8.35.0")}
# Not in the XDG_CACHE_HOME of one run.
_KEPT = Path.home() / ".cache" / "aca-sessions-tests"


def root_tar(suite: str) -> Path:
    """Return the tar of a root. Tests that need one take minutes and are skipped unless ACA_TEST_CONTAINERS is set."""
    if not ASKED_FOR:
        pytest.skip("make test-containers runs it")
    recipe = RECIPES[suite]
    path = _KEPT / f"{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar"
    if path.exists():
        return path
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        pytest.skip("needs root and debootstrap: sudo apt install debootstrap")
    _KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_KEPT) as folder:
        command = ["debootstrap", "--variant=minbase", f"--include={recipe}", suite, f"{folder}/root", _mirror()]
        subprocess.run(command, check=True, capture_output=True, timeout=900)
        subprocess.run(["tar", "-C", f"{folder}/root", "-cf", f"{folder}/root.tar", "."], check=True, timeout=300)
        Path(f"{folder}/root.tar").rename(path)
    return path


def _mirror() -> str:
    """Return this machine's own package source."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(source.read_text() for source in sources if source.is_file())
    found = re.search(r"^(?:deb|URIs:)\s+(?:\[[^]]*\]\s+)?(https?://\S+/debian)/?(?:\s|$)", text, re.MULTILINE)
    return found[1] if found else "http://deb.debian.org/debian"
