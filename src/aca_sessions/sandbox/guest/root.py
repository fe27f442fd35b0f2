"""The template root: a tmpfs with the folders, mounts and files that every session sees. Each session's root is a read-only copy of it."""

import errno
import os
from pathlib import Path

from .. import syscalls
from ..syscalls import Mount
from ..wire import Plan
from . import image
from .mounts import bind
from .place import DATA
from .refusal import part

GUEST_CODE = "/.guest"
CHILDREN = "children"  # a folder in GUEST_CODE: modules for the Python programs that a session starts
SESSIONS = "/.sess"
# A Python environment below /tmp is mounted here, because every session has its own /tmp. Links in each session's /tmp lead to it, which
# saves a second bind mount for each session.
_BELOW_TMP = "/.tmp"

_FOLDERS = (
    *("usr", "etc", "dev/shm", "dev/pts", "proc", "tmp", "mnt/data", "sys", "run", "home", "root", "var/tmp"),
    *(".packages", ".guest", ".sess", ".tmp"),
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
    "resolv.conf": "",
}
# The new root is mounted over one of these, in its own mount namespace. So no folder is left on the host, whatever kills it.
_MOUNT_POINTS = ("/mnt", "/srv", "/media", "/run", "/tmp")


def build(plan: Plan, code: str) -> str:
    """Build the root and return the folder where it is mounted.

    The root holds /usr and a few settings of the host, or an image; devices; the mounts that the plan names; and the guest's own code.

    Args:
        plan: What the root holds.
        code: The folder of this package's sources.
    """
    base = _mount_point([*plan.roots.values(), *plan.mounts.values(), *([plan.image] if plan.image else [])])
    syscalls.mount(None, "/", None, Mount.RECURSIVE | Mount.PRIVATE)
    syscalls.mount("tmpfs", base, "tmpfs", Mount.NO_SUID, "size=16m,mode=755")
    for folder in _FOLDERS:
        os.makedirs(f"{base}/{folder}")
    if plan.image:
        image.add(base, plan.image)
    else:
        _add_system(base)
        _add_settings(base)
    _write_settings(base)
    _add_devices(base)
    for target, source in plan.roots.items():
        _add_environment(base, target, source)
    _add_other_names(base)
    for target, source in plan.mounts.items():
        bind(source, base + target, writable=target in plan.writable)
    copy_code(Path(code), Path(base + GUEST_CODE))
    return base


def enter(base: str) -> int:
    """Make the built root this process's root. Return a descriptor of its pid namespace."""
    os.chdir(base)
    # A mount that was copied from another user namespace is locked, and pivot_root(2) answers EINVAL for a locked mount. The top of a
    # recursive bind of it onto itself is not locked; the mounts below stay locked, so no session can remove them.
    syscalls.mount(".", ".", None, Mount.BIND | Mount.RECURSIVE)
    os.chdir(base)
    # The kernel lets a session mount its own /proc only while a complete /proc is visible (mount_namespaces(7), "fully visible").
    with part("proc"):
        syscalls.mount("proc", "proc", "proc", Mount.NO_SUID | Mount.NO_DEVICES | Mount.NO_EXEC)
    pid_namespace = os.open("proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.mount("tmpfs", f".{SESSIONS}", "tmpfs", Mount.NO_SUID | Mount.NO_DEVICES, "size=1m,mode=700,nr_inodes=64k")
    syscalls.pivot_root_here()
    mount_tmp(64 << 20)
    flags = Mount.REMOUNT | Mount.BIND | Mount.READ_ONLY | Mount.NO_SUID
    syscalls.mount(None, "/", None, flags)
    return pid_namespace


def mount_tmp(size: int) -> None:
    """Mount a new /tmp of `size` bytes, with links to the environments that lie below the host's /tmp."""
    syscalls.mount("tmpfs", "/tmp", "tmpfs", Mount.NO_SUID | Mount.NO_DEVICES, f"size={size},nr_inodes=16k,mode=1777")
    for name in os.listdir(_BELOW_TMP):
        os.symlink(f"{_BELOW_TMP}/{name}", f"/tmp/{name}")


def _mount_point(sources: list[str]) -> str:
    for candidate in _MOUNT_POINTS:
        hides = any(source == candidate or source.startswith(candidate + "/") for source in sources)
        if not hides and os.path.isdir(candidate) and os.stat(candidate).st_mode & 0o001:
            return candidate
    raise FileNotFoundError(errno.ENOENT, f"no folder to mount over among {', '.join(_MOUNT_POINTS)}")


def _add_system(base: str) -> None:
    bind("/usr", f"{base}/usr")
    for name in _SYSTEM_FOLDERS:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{base}/{name}")
        elif os.path.isdir(f"/{name}"):
            bind(f"/{name}", f"{base}/{name}")


def _add_other_names(base: str) -> None:
    """Link /sandbox to the session's folder, for code written for tools that call it so. Skip it if this host's Python lies there."""
    if not os.path.lexists(f"{base}/sandbox"):
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
    """Copy the guest's own modules into the root. Sessions see no other module of this package."""
    sandbox = Path("aca_sessions", "sandbox")
    (target / sandbox / "guest").mkdir(parents=True)
    (target / "aca_sessions" / "__init__.py").touch()
    own = [source / sandbox / name for name in ("__init__.py", "wire.py", "syscalls.py")]
    for file in own + sorted((source / sandbox / "guest").glob("*.py")):
        (target / file.relative_to(source)).write_bytes(file.read_bytes())
    (target / CHILDREN).mkdir()
    for file in (source / sandbox / "guest" / CHILDREN).glob("*.py"):
        (target / CHILDREN / file.name).write_bytes(file.read_bytes())
    for shim in (source / sandbox / "guest" / "shims").glob("*.py"):
        # This folder is last on the import path: a shim is found only if the environment has no module of that name.
        (target / shim.name).write_bytes(shim.read_bytes())
