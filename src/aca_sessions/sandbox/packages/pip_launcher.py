"""Run pip in a process that confines itself: it writes only below one folder and starts no program, so no package's code runs here.

If pip could start programs, a wheel could make it build a source package from a URL, in spite of `--only-binary`. This module uses only the
standard library: it runs in the sessions' Python or, for sessions of an image, in the host's.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import socket
import struct
import sys
import zipfile

from .. import syscalls

_READ = 4 | 8  # READ_FILE and READ_DIR of landlock(7); not EXECUTE, which is handled and granted nowhere
_FIRST_RIGHTS = (1 << 13) - 1  # all that the first version of Landlock knows
_RIGHT_ADDED_BY_VERSION = {2: 1 << 13, 3: 1 << 14}  # refer, truncate
_EXECUTE = 1
_MEMORY = 2 << 30  # bytes
_MOST_FILES = 500_000  # of all wheels together; the largest of PyPI have some 30,000
_MAX_METADATA = 64 << 20  # bytes of one file that pip reads whole: metadata, or the record of all files
TOO_LARGE = "wheels hold more than the whole cache may"
TOO_MUCH_FETCHED = "more was fetched than the whole cache may hold"
TOO_MUCH_METADATA = "the metadata of a wheel is larger than 64 MB"


def main() -> None:
    """Confine this process and run pip in it.

    The command line is `CODE FOLDER LARGEST RUNNER KNOWN MARKERS`, followed by pip's own arguments:

    - CODE: the entry of `sys.path` from which this module was imported.
    - FOLDER: the only folder in which pip may write.
    - LARGEST: a limit in bytes for each file. It is also the limit for the unpacked wheels together, and for all downloads together.
    - RUNNER: the script that starts pip.
    - KNOWN: a folder with metadata of packages that pip treats as installed. For a container image, these are all of its packages.
    - MARKERS: for a container image, the values of its Python's requirement markers, as JSON. Otherwise empty.
    """
    code, folder, largest, runner, known, markers, *arguments = sys.argv[1:]
    sys.path.remove(code)
    if markers:
        override_markers(json.loads(markers), runner)
    else:
        add_package_folders()
    sys.path.append(known)
    limit(resource.RLIMIT_FSIZE, int(largest))
    limit(resource.RLIMIT_DATA, _MEMORY)  # zipfile reads a wheel's directory whole, before it can be checked
    limit_received(int(largest))
    limit_wheels(int(largest), together="--dry-run" not in arguments)
    confine(folder)
    sys.argv = ["pip", *arguments]
    runpy.run_path(runner, run_name="__main__")


def limit(kind: int, size: int) -> None:
    """Set the resource limit `kind` of this process, an RLIMIT_* number, to `size`, or to its hard limit if that is lower."""
    _, hard = resource.getrlimit(kind)
    most = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(kind, (most, most))


def limit_received(size: int) -> None:
    """Make pip exit once it has received more than `size` bytes. Without this limit, the package index could send any amount."""
    left, read = size, socket.SocketIO.readinto  # everything that http.client reads passes through it, over TLS as well

    def readinto(self: socket.SocketIO, buffer: bytearray) -> int | None:
        nonlocal left
        received = read(self, buffer)
        left -= received or 0
        if left < 0:
            refuse_wheel(TOO_MUCH_FETCHED)
        return received

    socket.SocketIO.readinto = readinto  # type: ignore[assignment, method-assign]


def limit_wheels(size: int, *, together: bool) -> None:
    """Make pip exit before it unpacks a wheel to more than `size` bytes, or to too many files.

    The limits are checked against the sizes in the wheel's zip directory, which zipfile never exceeds. If `together` is true, the limits
    apply to the sum of all wheels. Otherwise they apply to each wheel: while pip looks for versions, it also opens wheels that it will not
    install.
    """
    seen: dict[str, tuple[int, int]] = {}

    class Checked(zipfile.ZipFile):
        def __init__(self, file, mode="r", *arguments, **options):  # type: ignore[no-untyped-def]
            super().__init__(file, mode, *arguments, **options)
            if mode == "r":
                entries = self.infolist()
                seen[str(self.filename)] = sum(entry.file_size for entry in entries), len(entries)
                counted = [*seen.values()] if together else [seen[str(self.filename)]]
                about = (entry.file_size for entry in entries if ".dist-info/" in entry.filename)
                if sum(total for total, _ in counted) > size or sum(count for _, count in counted) > _MOST_FILES:
                    refuse_wheel(TOO_LARGE)
                if max(about, default=0) > _MAX_METADATA:
                    refuse_wheel(TOO_MUCH_METADATA)

    zipfile.ZipFile = Checked  # type: ignore[misc]


def refuse_wheel(reason: str) -> None:
    """Print the reason and exit at once. An exception would not be enough, because pip might catch it."""
    print(f"ERROR: {reason}", flush=True)
    os._exit(1)


def override_markers(markers: dict[str, str], runner: str) -> None:
    """Make pip evaluate requirement markers with the values in `markers`, not with those of the Python that runs pip."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(runner)))
    from pip._vendor.packaging import markers as read

    del sys.path[0]
    own = read.default_environment
    read.default_environment = lambda: {**own(), **markers}  # type: ignore[typeddict-item]


def add_package_folders() -> None:
    """Add the folders of packages to `sys.path` as `site` does, but run no code of .pth files or sitecustomize."""
    import site

    site.addpackage = lambda *_: None
    site.execsitecustomize = lambda: None
    site.main()


def confine(folder: str) -> None:
    """Let this process read everything, write only below the folder, and execute nothing. This cannot be undone.

    Raise OSError if the kernel has no Landlock: pip must not run then.
    """
    version = syscalls.landlock_version()
    if version == 0:
        raise OSError(38, "this kernel does not have Landlock, which pip must run in: boot Linux 5.13 or newer with it")
    rights = _FIRST_RIGHTS | sum(right for since, right in _RIGHT_ADDED_BY_VERSION.items() if version >= since)
    ruleset = syscalls.landlock_ruleset(struct.pack("=Q", rights))
    syscalls.landlock_allow(ruleset, "/", _READ)
    syscalls.landlock_allow(ruleset, folder, rights & ~_EXECUTE)
    syscalls.no_new_privileges()
    syscalls.landlock_enforce(ruleset)
    os.close(ruleset)
