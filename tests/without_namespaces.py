"""Run a program on a host that refuses namespaces and mounts, as the default filter of containers does; and find a Python for its sessions.

As a program: `python -m tests.without_namespaces COMMAND …`.
"""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from aca_sessions import Policy
from aca_sessions.sandbox import syscalls
from aca_sessions.sandbox.guest.isolation import seccomp

_REFUSED = {"unshare": (272, 97), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "setns": (308, 268)}
_CLONE = (56, 220)
_NEEDED = (
    *("IPython", "traitlets", "decorator", "decorator.py", "jedi", "parso", "matplotlib_inline", "pygments", "stack_data", "executing"),
    *("asttokens", "pure_eval", "prompt_toolkit", "wcwidth", "pexpect", "ptyprocess", "typing_extensions.py", "ipython_pygments_lexers.py"),
    "cloudpickle",
)
_PUBLIC = "/usr/bin/python3"
BARE = Policy(isolation="no-namespaces", preload=(), spares=0)
COMMAND = [sys.executable, "-m", "tests.without_namespaces"]


def refuse_namespaces() -> None:
    """Install the filter for this process and its descendants."""
    column = syscalls.ARCHITECTURES.index(syscalls.MACHINE)
    flags = [seccomp._jump(seccomp._ANY_BIT, sum(syscalls.Namespace), 0, 1), seccomp._refuse(errno.EPERM), seccomp._return(seccomp._ALLOW)]
    rules = [
        *seccomp._prologue(syscalls.MACHINE),
        *seccomp._rule(435, [seccomp._refuse(errno.ENOSYS)]),
        *seccomp._rule(_CLONE[column], [*seccomp._argument(0), *flags]),
        *(one for pair in _REFUSED.values() for one in seccomp._rule(pair[column], [seccomp._refuse(errno.EPERM)])),
        seccomp._return(seccomp._ALLOW),
    ]
    syscalls.no_new_privileges()
    syscalls.install_filter(b"".join(rules))


@contextmanager
def python_for_everybody() -> Iterator[str | None]:
    """Yield a Python that sessions may run whatever user they have: this one, a copy beside it if it lies in a private home, or None."""
    if os.geteuid() != 0 or _may_be_read_by_all(sys.base_prefix):
        yield sys.executable
        return
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        yield _copy(folder) if os.path.exists(_PUBLIC) else None
    finally:
        shutil.rmtree(folder)


def _may_be_read_by_all(path: str) -> bool:
    real = Path(os.path.realpath(path))
    return all(folder.stat().st_mode & 0o001 for folder in (real, *real.parents))


def _copy(folder: Path) -> str:
    subprocess.run([_PUBLIC, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    own = Path(find_spec("IPython").origin).parents[1]
    for name in _NEEDED:
        if (own / name).is_dir():
            shutil.copytree(own / name, packages / name)
        elif (own / name).exists():
            shutil.copy(own / name, packages / name)
    return str(folder / "venv" / "bin" / "python")


if __name__ == "__main__":
    refuse_namespaces()
    os.execvp(sys.argv[1], sys.argv[1:])
