"""The template root: a root file system on a tmpfs, with the folders, mounts and files that every session sees.

It contains parts of the host's system, or the folders of a container image whose Python can run sessions. The root of each session is a
read-only copy of it.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ... import syscalls
from ...syscalls import Mount
from ...wire import SUPPLY, SUPPLY_NEEDS, Plan, Refused
from ..folders import CERTIFICATES, DATA

GUEST_CODE = "/.guest"
CHILDREN = "children"  # a folder in GUEST_CODE: modules for the Python programs that a session starts
SESSIONS = "/.sess"
# A Python environment below /tmp is mounted here, because every session has its own /tmp. Links in each session's /tmp lead to it, which
# saves a second bind mount for each session.
_BELOW_TMP = "/.tmp"

_FOLDERS = (
    *("usr", "etc", "dev/shm", "dev/pts", "proc", "tmp", "mnt/data", "sys", "run", "home", "root", "var/tmp"),
    *(".packages", ".guest", ".sess", ".tmp", CERTIFICATES[1:]),
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
SETTINGS = (
    *("alternatives", "fonts", "ld.so.cache", "localtime", "locale.alias", "mime.types", "nsswitch.conf", "pki/ca-trust/extracted"),
    *("pki/tls/certs", "protocols", "services", "ssl/certs", "ssl/openssl.cnf", "timezone"),
)
_WRITTEN_SETTINGS = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/mnt/data:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost session\n::1 localhost\n",
    "resolv.conf": "nameserver 127.0.0.1\n",
}
# The new root is mounted over one of these, in its own mount namespace. So no folder is left on the host, whatever kills it.
_MOUNT_POINTS = ("/mnt", "/srv", "/media", "/run", "/tmp")
# What both sides import, and the guest's half of host calls.
_SHARED_CODE = (
    *("sandbox/__init__.py", "sandbox/wire.py", "sandbox/syscalls.py"),
    *("bridge/__init__.py", "bridge/codec.py", "bridge/guest.py"),
)
_IMAGE_PART = "container image"
_IMAGE_SETTINGS = "/.etc"  # the mount of the image's /etc; links in a session's /etc point into it
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


class RefusalError(Exception):
    """A step of the isolation failed, because this machine or the container image does not provide what the step needs.

    `report` is the `Refused` message that reports this to the host process.
    """

    def __init__(self, part: str, error: OSError) -> None:
        super().__init__(part)
        self.report = Refused(part, error.errno or 0, str(error.strerror or error))


@contextmanager
def isolation_step(name: str) -> Iterator[None]:
    """Convert an OSError in the `with` block to a RefusalError, which reports that the part `name` of the isolation failed."""
    try:
        yield
    except OSError as error:
        raise RefusalError(name, error) from error


def build(plan: Plan, code: str) -> str:
    """Build the template root in a new tmpfs. Return the folder of the host over which the tmpfs is mounted.

    The root holds either the host's /usr and a few files of /etc, or the folders of a container image. In both cases it also holds devices,
    the plan's mounts and the guest's code. The code is copied from `code`, the folder of this package's sources.
    """
    base = _mount_point([*plan.roots.values(), *plan.mounts.values(), *([plan.image] if plan.image else [])])
    syscalls.mount(None, "/", None, Mount.RECURSIVE | Mount.PRIVATE)
    syscalls.mount("tmpfs", base, "tmpfs", Mount.NO_SUID, "size=16m,mode=755")
    for folder in _FOLDERS:
        os.makedirs(f"{base}/{folder}")
    if plan.image:
        _add_image(base, plan.image)
    else:
        _add_system(base)
        _add_settings(base)
    _write_settings(base)
    _add_devices(base)
    for target, source in plan.roots.items():
        _add_environment(base, target, source)
    _link_sandbox(base)
    for target, source in plan.mounts.items():
        bind(source, base + target, writable=target in plan.writable)
    copy_code(Path(code), Path(base + GUEST_CODE))
    return base


def enter(base: str) -> int:
    """Make the template root at `base` the root folder of this process. Return a descriptor of this process's pid namespace."""
    os.chdir(base)
    # A mount that was copied from another user namespace is locked, and pivot_root(2) answers EINVAL for a locked mount. The top of a
    # recursive bind of it onto itself is not locked; the mounts below stay locked, so no session can remove them.
    syscalls.mount(".", ".", None, Mount.BIND | Mount.RECURSIVE)
    os.chdir(base)
    # The kernel lets a session mount its own /proc only while a complete /proc is visible (mount_namespaces(7), "fully visible").
    with isolation_step("proc"):
        syscalls.mount("proc", "proc", "proc", Mount.NO_SUID | Mount.NO_DEVICES | Mount.NO_EXEC)
    pid_namespace = os.open("proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.mount("tmpfs", f".{SESSIONS}", "tmpfs", Mount.NO_SUID | Mount.NO_DEVICES, "size=1m,mode=700,nr_inodes=64k")
    syscalls.pivot_root_here()
    mount_tmp(64 << 20)
    flags = Mount.REMOUNT | Mount.BIND | Mount.READ_ONLY | Mount.NO_SUID
    syscalls.mount(None, "/", None, flags)
    return pid_namespace


def mount_tmp(size: int) -> None:
    """Mount a new, empty /tmp of `size` bytes.

    If the Python environment is in a folder of the host's /tmp, link to it from the new /tmp, so that its paths stay valid.
    """
    syscalls.mount("tmpfs", "/tmp", "tmpfs", Mount.NO_SUID | Mount.NO_DEVICES, f"size={size},nr_inodes=16k,mode=1777")
    for name in os.listdir(_BELOW_TMP):
        os.symlink(f"{_BELOW_TMP}/{name}", f"/tmp/{name}")


def _mount_point(sources: list[str]) -> str:
    for candidate in _MOUNT_POINTS:
        hides = any(source == candidate or source.startswith(candidate + "/") for source in sources)
        if not hides and os.path.isdir(candidate) and os.stat(candidate).st_mode & 0o001:
            return candidate
    raise FileNotFoundError(
        errno.ENOENT, f"expected a folder to mount over, which every user may enter, among {', '.join(_MOUNT_POINTS)}: make one of them"
    )


def _add_system(base: str) -> None:
    bind("/usr", f"{base}/usr")
    for name in _SYSTEM_FOLDERS:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{base}/{name}")
        elif os.path.isdir(f"/{name}"):
            bind(f"/{name}", f"{base}/{name}")


def _link_sandbox(base: str) -> None:
    """Create the link /sandbox to /mnt/data in the root at `base`, because code that was written for other tools uses that name."""
    if not os.path.lexists(f"{base}/sandbox"):  # the host's Python may lie there
        os.symlink(DATA, f"{base}/sandbox")


def _add_settings(base: str) -> None:
    for name in SETTINGS:
        source = os.path.realpath(f"/etc/{name}")
        if os.path.exists(source):
            bind(source, f"{base}/etc/{name}")


def _write_settings(base: str) -> None:
    for name, text in _WRITTEN_SETTINGS.items():
        path = Path(base, "etc", name)
        path.unlink(missing_ok=True)
        path.write_text(text)


def _add_devices(base: str) -> None:
    for name in _DEVICES:
        Path(base, "dev", name).touch()
        syscalls.mount(f"/dev/{name}", f"{base}/dev/{name}", None, Mount.BIND)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"{base}/dev/{name}")


def _add_environment(base: str, target: str, source: str) -> None:
    if target.startswith("/tmp/"):
        target = target.replace("/tmp", _BELOW_TMP, 1)
    if os.path.islink(source):
        os.makedirs(os.path.dirname(base + target), exist_ok=True)
        os.symlink(os.readlink(source), base + target)
    else:
        bind(source, base + target)


def copy_code(source: Path, target: Path) -> None:
    """Copy the guest's modules from the folder `source` to `target`. Sessions can import no other module of this package."""
    guest = source / "aca_sessions" / "sandbox" / "guest"
    for file in [source / "aca_sessions" / name for name in _SHARED_CODE] + sorted(guest.rglob("*.py")):
        if file.parent.name not in (CHILDREN, "shims"):
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(file.read_bytes())
    (target / "aca_sessions" / "__init__.py").touch()
    (target / CHILDREN).mkdir()
    for file in (guest / CHILDREN).glob("*.py"):
        (target / CHILDREN / file.name).write_bytes(file.read_bytes())
    for shim in (guest / "shims").glob("*.py"):
        # This folder is last on the import path: a shim is found only if the environment has no module of that name.
        (target / shim.name).write_bytes(shim.read_bytes())


def bind(source: str, target: str, *, writable: bool = False) -> None:
    """Create `target` and bind-mount a file or folder of the host there. Devices and set-user-id programs are disabled."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    try:
        syscalls.mount(source, target, None, Mount.BIND)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A mount below the source is locked: the kernel refuses a bind that would uncover what it hides (mount_namespaces(7),
        # "Restrictions on mount namespaces"). A recursive bind takes the mount along.
        syscalls.mount(source, target, None, Mount.BIND | Mount.RECURSIVE)
    syscalls.harden_mount(target, read_only=not writable)


def _add_image(base: str, image: str) -> None:
    """Mount the folders of an image read-only below `base`.

    Symbolic links are copied and not followed, because their targets could be files of the host.
    """
    with os.scandir(image) as entries:
        for entry in entries:
            if entry.name not in _NOT_SHOWN and not entry.name.startswith("."):
                _show(entry, f"{base}/{entry.name}")
    if os.path.isdir(f"{image}/etc") and not os.path.islink(f"{image}/etc"):
        bind(f"{image}/etc", base + _IMAGE_SETTINGS)
        _link_settings(f"{base}/etc", f"{image}/etc")


def _show(entry: os.DirEntry[str], target: str) -> None:
    if entry.is_symlink():
        if os.path.isdir(target):
            os.rmdir(target)
        os.symlink(os.readlink(entry.path), target)
    elif entry.is_dir() or entry.is_file():
        bind(entry.path, target)


def _link_settings(target: str, source: str) -> None:
    """Create a symbolic link in the folder `target` to each entry of an image's /etc. `source` is the path of this /etc on the host."""
    # Each session pays for each mount, so there is one mount and many links. A link of the image is copied, because it may be relative to
    # its folder: links between settings keep their targets.
    for name in os.listdir(source):
        path = f"{source}/{name}"
        os.symlink(os.readlink(path) if os.path.islink(path) else f"{_IMAGE_SETTINGS}/{name}", f"{target}/{name}")


def find_image_python(named: str) -> str:
    """Return the path of the image's Python: `named`, or one in the usual places if `named` is "".

    Must be called inside the image's root. Raise RefusalError if the image lacks something that sessions need. The message lists everything
    that is missing.
    """
    program = next((path for path in (named,) * bool(named) or _SOUGHT if os.path.exists(path)), "")
    if not program:
        raise _report_missing(f"{named or 'python3'} (sought at {named or ', '.join(_SOUGHT)})")
    try:
        command = [program, "-I", "-S", "-B", "-c", _CHECK, *_find_host_ipython()]
        check = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _report_missing(f"a Python that starts within {_CHECK_SECONDS} s: {program} did not") from error
    except OSError as error:
        other = " (is it for another processor, or a script?)" if error.errno == errno.ENOEXEC else ""
        raise _report_missing(f"a Python that starts: {program}: {error.strerror}{other}") from error
    missing = check.stderr.decode(errors="replace").strip().splitlines()
    if check.returncode or missing:
        raise _report_missing(
            ", ".join(missing)[:500] or f"a Python that starts: {program} ended with status {check.returncode} and no message"
        )
    return program


def add_host_ipython() -> None:
    """Append `SUPPLY`, a folder with the host's IPython and cloudpickle, to `sys.path`, if the image lacks one and this folder exists."""
    if os.path.isdir(SUPPLY) and None in map(importlib.util.find_spec, ("IPython", "cloudpickle")):
        sys.path.append(SUPPLY)


def _find_host_ipython() -> tuple[str, str]:
    try:
        with open(f"{SUPPLY}/{SUPPLY_NEEDS}") as needs:
            return SUPPLY, needs.read()
    except OSError:
        return "", ""


def _report_missing(missing: str) -> RefusalError:
    return RefusalError(_IMAGE_PART, OSError(errno.ENOENT, missing))
