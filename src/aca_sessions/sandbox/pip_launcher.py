"""pip in a domain of its own: it writes below one folder and starts no program, so nothing of a package ever runs on this host.

Without the second, a wheel whose metadata names a source at some address would have it built here, `--only-binary` or not. Runs in the
guests' Python as a program, with the standard library alone.
"""

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
    """`CODE FOLDER LARGEST RUNNER KNOWN pip's own arguments`: KNOWN holds metadata of what is to count as installed."""
    code, folder, largest, runner, known, *arguments = sys.argv[1:]
    sys.path.remove(code)
    find_packages()
    sys.path.append(known)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    confine(folder)
    sys.argv = ["pip", *arguments]
    runpy.run_path(runner, run_name="__main__")


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
