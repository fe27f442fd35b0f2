"""Find out which of the host's paths and packages sessions see, given a Python interpreter. Also choose the uids for sessions."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError

# A prefix may hold other things as well (a home's .local can be one, with a keyring in it): only Python's own part of it is shown.
_PARTS = ("bin", "include", "lib", "lib32", "lib64", "libexec", "pyvenv.cfg")
# The files by which this host looks up names, for sessions that share its network.
NAME_LOOKUP = {path: os.path.realpath(path) for path in ("/etc/resolv.conf", "/etc/hosts") if os.path.exists(path)}
_LIST = (
    "import importlib.metadata as m, json, os, platform, sys; "
    "packages = sorted({(d.name, d.version) for d in m.distributions() if d.name}); "
    "folders = {p: os.stat(p).st_mtime_ns for p in [sys.executable, *sys.path] if os.path.exists(p)}; "
    "print(json.dumps([platform.python_version(), packages, folders]))"
)
HEAVY = ("numpy", "pandas", "matplotlib.pyplot")
_FIND = f"import importlib.util as u, json; print(json.dumps([m for m in {HEAVY} if u.find_spec(m.partition('.')[0])]))"
# Finds packages as `site` does when an interpreter starts, without running the code of .pth files and of sitecustomize. That code must run
# in sessions only.
_FIND_PACKAGES = "import site; site.addpackage = lambda *_: None; site.execsitecustomize = lambda: None; site.main(); "
_ASK = "import json, os, sys; print(json.dumps([sys.prefix, sys.base_prefix]))"
# This range has no account, container or dynamic user (systemd's list of uid ranges). Each fork server draws a part of it at random.
_FIRST_UID, _UIDS_EACH, _PARTS_TO_DRAW, _DRAWS = 0x7000_0000, 0x4000, 16_000, 20
_FEW_UIDS, _FEW_PARTS = 2000, 20  # for containers, which have ids up to 65,535: parts from 20,000 on


def visible_roots(python: str) -> dict[str, str]:
    """Return the files and folders of this host that the interpreter `python` needs.

    The result is a dict from each path to the same path with symbolic links resolved.

    Leave out everything below /usr, which sessions see anyway.
    """
    roots: dict[str, str] = {}
    for prefix in _prefixes(python):
        for target, source in _parts(prefix):
            inside = any(target == other or target.startswith(other + "/") for other in (*roots, "/usr"))
            if not inside and os.path.lexists(source):
                roots[target] = source
    return roots


@dataclass(frozen=True, slots=True)
class Survey:
    """What an interpreter reported: its version, its packages, and when the folders that hold them last changed.

    Attributes:
        version: The version of Python.
        packages: The name and version of each package.
        folders: The modification time, in nanoseconds, of the interpreter and of each existing path in `sys.path`.
    """

    version: str
    packages: list[tuple[str, str]]
    folders: dict[str, int]

    @property
    def is_current(self) -> bool:
        """Return whether the folders are unchanged since the survey, so that no package was installed or removed."""
        return all(_changed(folder) == time for folder, time in self.folders.items())


def survey(python: str) -> Survey:
    """Run an interpreter to list its version and packages. Raise ConfigurationError if it does not run."""
    version, packages, folders = _run(python, _LIST)
    return Survey(version, [(name, number) for name, number in packages], folders)


def worth_preloading(python: str) -> tuple[str, ...]:
    """Return which libraries of `HEAVY` (slow to import, used by most sessions) are installed for the interpreter `python`."""
    return tuple(str(module) for module in _run(python, _FIND))


def uid_range() -> tuple[int, int]:
    """Choose a random range of unused uids for a fork server and its sessions. Return its first uid and the number of uids.

    The fork server itself runs under the first uid. Return (0, 0) if this process is not root, or if its user namespace has no free range.
    """
    if os.geteuid() != 0:
        return 0, 0
    # No other program may have the fork server's uid: the uid that made a user namespace has every capability in it (user_namespaces(7)).
    taken = _uids_in_use()
    ranges = [(_FIRST_UID + secrets.randbelow(_PARTS_TO_DRAW) * _UIDS_EACH, _UIDS_EACH) for _ in range(_DRAWS)]
    ranges += [(20_000 + part * _FEW_UIDS, _FEW_UIDS) for part in secrets.SystemRandom().sample(range(_FEW_PARTS), _FEW_PARTS)]
    free = (
        (first, count) for first, count in ranges if _is_mapped(first, count) and not any(first <= uid < first + count for uid in taken)
    )
    return next(free, (0, 0))


def _uids_in_use() -> set[int]:
    # The fork server of another program may have drawn the same range.
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                found.add(os.stat(f"/proc/{name}").st_uid)
    return found


def _prefixes(python: str) -> list[str]:
    prefixes = [sys.prefix, sys.base_prefix] if python == sys.executable else _ask(python)
    return sorted({*prefixes, *map(os.path.realpath, prefixes)}, key=len)


def _ask(python: str) -> list[str]:
    return [str(prefix) for prefix in _run(python, _ASK)]


def _run(python: str, code: str) -> Any:
    try:
        answer = subprocess.run([python, "-I", "-S", "-c", _FIND_PACKAGES + code], capture_output=True, check=True, timeout=30, env={})
        return json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"ACASessions:Sandbox:Python: cannot run {python} to find its packages: name the path of a Python that runs"
        ) from error


def _parts(prefix: str) -> list[tuple[str, str]]:
    if os.path.isdir(os.path.join(prefix, "conda-meta")):
        return [(prefix, os.path.realpath(prefix))]
    return [(os.path.join(prefix, part), _source(os.path.join(os.path.realpath(prefix), part))) for part in _PARTS]


def _changed(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def _source(path: str) -> str:
    """Return a path with symbolic links resolved.

    If the path itself is a link to a name in its own folder (lib64 -> lib), return it unchanged.
    """
    if os.path.islink(path) and "/" not in os.readlink(path):
        return path
    return os.path.realpath(path)


def _is_mapped(first: int, count: int) -> bool:
    with open("/proc/self/uid_map") as lines:
        ranges = [tuple(map(int, line.split())) for line in lines]
    return any(start <= first and first + count <= start + length for start, _, length in ranges)
