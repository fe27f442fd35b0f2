"""Container images as roots: what of an image goes into the template root, and whether its Python can run sessions."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys

from ..wire import SUPPLY, SUPPLY_NEEDS
from .mounts import bind
from .refusal import RefusalError

PART = "container image"
SETTINGS = "/.etc"  # the mount of the image's /etc; links in a session's /etc point into it
_NOT_SHOWN = frozenset(("boot", "dev", "etc", "lost+found", "mnt", "proc", "run", "sys", "tmp"))
_CHECK_SECONDS = 30
_SOUGHT = tuple(f"{folder}/python3" for folder in ("/usr/local/bin", "/usr/bin", "/bin", "/opt/venv/bin", "/opt/conda/bin"))
# Runs in the image's Python, which may be of any age. Prints one line for each thing that is missing.
_CHECK = """
import sys
sys.version_info < (3, 9) and sys.exit('Python 3.9 or newer (it has %d.%d)\\n' % sys.version_info[:2])
import importlib.util, site
site.main()
supply, needs = sys.argv[1:]
lacks = []
for name in ('asyncio', 'ctypes', 'fcntl', 'json', 'resource', 'socket'):
    try:
        __import__(name)
    except ImportError:
        lacks.append('the module %s of the standard library' % name)
has = lambda name: importlib.util.find_spec(name) is not None
if not has('IPython'):
    if not supply or lacks:
        lacks.append('IPython')
    elif sys.version_info < tuple(map(int, needs.split('.'))):
        lacks.append("IPython (this host's needs Python %s or newer, the image has %d.%d)" % ((needs,) + sys.version_info[:2]))
    else:
        sys.path.append(supply)
        try:
            import IPython.core.interactiveshell
        except Exception as error:
            lacks.append("IPython (this host's does not work with the image's packages: %s: %s)" % (type(error).__name__, error))
has('matplotlib') and not has('matplotlib_inline') and lacks.append('matplotlib-inline')
sys.stderr.write('\\n'.join(lacks))
"""


def add(base: str, image: str) -> None:
    """Mount an image's folders read-only at their places in a root.

    A link is copied as a link: following it here could lead to a file of the host.
    """
    with os.scandir(image) as entries:
        for entry in entries:
            if entry.name not in _NOT_SHOWN and not entry.name.startswith("."):
                _show(entry, f"{base}/{entry.name}")
    if os.path.isdir(f"{image}/etc") and not os.path.islink(f"{image}/etc"):
        bind(f"{image}/etc", base + SETTINGS)
        _link_settings(f"{base}/etc", f"{image}/etc")


def _show(entry: os.DirEntry[str], target: str) -> None:
    if entry.is_symlink():
        if os.path.isdir(target):
            os.rmdir(target)
        os.symlink(os.readlink(entry.path), target)
    elif entry.is_dir() or entry.is_file():
        bind(entry.path, target)


def _link_settings(target: str, source: str) -> None:
    """Fill /etc with links to the one mount of the image's /etc."""
    # Each session pays for each mount, so there is one mount and many links. A link of the image is copied, because it may be relative to
    # its folder: links between settings keep their targets.
    for name in os.listdir(source):
        path = f"{source}/{name}"
        os.symlink(os.readlink(path) if os.path.islink(path) else f"{SETTINGS}/{name}", f"{target}/{name}")


def python(named: str) -> str:
    """Return the path of the image's Python. Call it inside the image's root.

    Args:
        named: The path that the policy names, or "" to look in the usual places.

    Raises:
        RefusalError: The image lacks something that sessions need. The message lists everything that is missing.
    """
    program = next((path for path in (named,) * bool(named) or _SOUGHT if os.path.exists(path)), "")
    if not program:
        raise refused(f"{named or 'python3'} (sought at {named or ', '.join(_SOUGHT)})")
    try:
        command = [program, "-I", "-S", "-B", "-c", _CHECK, *_supply()]
        check = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise refused(f"a Python that starts: {program} was still running after {_CHECK_SECONDS} s") from error
    except OSError as error:
        other = " (is it for another processor, or a script?)" if error.errno == errno.ENOEXEC else ""
        raise refused(f"a Python that starts: {program}: {error.strerror}{other}") from error
    missing = check.stderr.decode(errors="replace").strip().splitlines()
    if check.returncode or missing:
        raise refused(", ".join(missing)[:500] or f"a Python that starts: {program} ended with status {check.returncode}")
    return program


def add_supply() -> None:
    """Append the host's IPython to the end of the import path if the image has none."""
    if importlib.util.find_spec("IPython") is None and os.path.isdir(SUPPLY):
        sys.path.append(SUPPLY)


def _supply() -> tuple[str, str]:
    try:
        with open(f"{SUPPLY}/{SUPPLY_NEEDS}") as needs:
            return SUPPLY, needs.read()
    except OSError:
        return "", ""


def refused(missing: str) -> RefusalError:
    """Return the error for an image that lacks what sessions need."""
    return RefusalError(PART, OSError(errno.ENOENT, missing))
