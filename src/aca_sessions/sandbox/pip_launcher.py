"""pip in a domain of its own: it writes below one folder and starts no program, so nothing of a package ever runs on this host.

Without the second, a wheel whose metadata names a source at some address would have it built here, `--only-binary` or not. Runs in the
guests' Python as a program, with the standard library alone.
"""

import json
import os
import resource
import runpy
import struct
import sys

from . import syscalls

_READ = 4 | 8  # files and folders; not EXECUTE, which is handled and granted nowhere
_FIRST_RIGHTS = (1 << 13) - 1
_RIGHT_ADDED_BY_VERSION = {2: 1 << 13, 3: 1 << 14}  # refer, truncate
_EXECUTE = 1


def main() -> None:
    """`CODE FOLDER LARGEST RUNNER KNOWN MARKERS pip's own arguments`: KNOWN holds metadata of what is to count as installed, and MARKERS
    is what requirements are to find if it is another Python that they are for, of which KNOWN tells everything.
    """
    code, folder, largest, runner, known, markers, *arguments = sys.argv[1:]
    sys.path.remove(code)
    if markers:
        answer_for_another(json.loads(markers), runner)
    else:
        find_packages()
    sys.path.append(known)
    limit_files(int(largest))
    confine(folder)
    sys.argv = ["pip", *arguments]
    runpy.run_path(runner, run_name="__main__")


def limit_files(size: int) -> None:
    """No file grows larger; a limit that is lower already stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def answer_for_another(markers: dict[str, str], runner: str) -> None:
    """pip asks the Python that runs it what markers mean, even where it looks for another one."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(runner)))
    from pip._vendor.packaging import markers as read

    del sys.path[0]
    own = read.default_environment
    read.default_environment = lambda: {**own(), **markers}  # type: ignore[typeddict-item]


def find_packages() -> None:
    """What `site` does at an interpreter's start, without the lines of code in .pth files and without sitecustomize."""
    import site

    site.addpackage = lambda *_: None
    site.execsitecustomize = lambda: None
    site.main()


def confine(folder: str) -> None:
    """Reads everything, writes below the folder alone, executes nothing: for good."""
    version = syscalls.landlock_version()
    if version == 0:
        raise OSError(38, "this kernel has no Landlock")
    rights = _FIRST_RIGHTS | sum(right for since, right in _RIGHT_ADDED_BY_VERSION.items() if version >= since)
    ruleset = syscalls.landlock_ruleset(struct.pack("=Q", rights))
    syscalls.landlock_allow(ruleset, "/", _READ)
    syscalls.landlock_allow(ruleset, folder, rights & ~_EXECUTE)
    syscalls.no_new_privileges()
    syscalls.landlock_enforce(ruleset)
    os.close(ruleset)
