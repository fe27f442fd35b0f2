"""Makes the conditions of docs/hosts.md on this machine, for one program: `python -m tests.conditions NAME COMMAND …`.

Filters hold for the program alone; mounts and switches are those of namespaces that it gets, so that nothing of the machine changes.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from aca_sessions.sandbox import syscalls
from aca_sessions.sandbox.guest import confine, seccomp
from aca_sessions.sandbox.syscalls import Mount, Namespace

from .without_namespaces import refuse_namespaces

_COLUMN = syscalls.ARCHITECTURES.index(syscalls.MACHINE)
_LANDLOCK = (444, 445, 446)
_SECCOMP, _PRCTL = (317, 277)[_COLUMN], (157, 167)[_COLUMN]
_MOUNT, _SETRESGID = (165, 40)[_COLUMN], (119, 149)[_COLUMN]
_PR_SET_SECCOMP = 22
MASKED = ("acpi", "scsi", "sys", "bus", "fs")  # whichever of them this kernel has


def refuse(*rules: bytes) -> None:
    """A filter for this process and all that come from it."""
    syscalls.no_new_privileges()
    syscalls.install_filter(b"".join([*seccomp._prologue(syscalls.MACHINE), *rules, seccomp._return(seccomp._ALLOW)]))


def call(number: int, error: int) -> bytes:
    """A rule: this call ends with that error."""
    return b"".join(seccomp._rule(number, [seccomp._refuse(error)]))


def no_landlock() -> None:
    """As a kernel that was built without it."""
    refuse(*(call(number, errno.ENOSYS) for number in _LANDLOCK))


def landlock_not_booted() -> None:
    """As a kernel that has it and was told not to use it."""
    refuse(*(call(number, errno.EOPNOTSUPP) for number in _LANDLOCK))


def no_seccomp() -> None:
    """As a kernel that was built without filters."""
    by_prctl = [*seccomp._argument(0), seccomp._jump(seccomp._EQUAL, _PR_SET_SECCOMP, 0, 1), seccomp._refuse(errno.EINVAL)]
    rule = b"".join(seccomp._rule(_PRCTL, [*by_prctl, seccomp._return(seccomp._ALLOW)]))
    refuse(call(_SECCOMP, errno.ENOSYS), rule)


def masked_proc() -> None:
    """As container engines leave it: some folders of /proc are hidden below others."""
    _own_mounts()
    for name in MASKED:
        if os.path.isdir(f"/proc/{name}"):
            syscalls.mount("tmpfs", f"/proc/{name}", "tmpfs", Mount.READ_ONLY)


def no_cgroups() -> None:
    """As where nothing is mounted at /sys/fs/cgroup."""
    _own_mounts()
    syscalls.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", Mount.READ_ONLY)


def podman() -> None:
    """As one of its containers: it says so, and a part of /proc is masked."""
    masked_proc()
    syscalls.mount("tmpfs", "/run", "tmpfs", Mount.NO_SUID)
    Path("/run/.containerenv").touch()


def no_user_namespaces() -> None:
    """As with the limit set to none, which here belongs to a namespace of its own."""
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(Namespace.USER)
    confine.map_ids(uid, uid, gid)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def lone_root() -> None:
    """As the root of a container that has no other user."""
    syscalls.unshare(Namespace.USER)
    confine.map_ids(0, 0, 0)


def debian() -> None:
    """As its kernels with the switch off: the switch can be read, and no user namespace is made."""
    _switch("unprivileged_userns_clone", "0")
    refuse_namespaces()


def ubuntu() -> None:
    """As with AppArmor's restriction: a user namespace is made, and nothing is mounted in it."""
    _switch("apparmor_restrict_unprivileged_userns", "1")
    refuse(call(_MOUNT, errno.EACCES))


def ubuntu_as_root() -> None:
    """The same for root, who gives its power away before: nobody becomes the namespace's root."""
    _switch("apparmor_restrict_unprivileged_userns", "1")
    to_root = [*seccomp._argument(0), seccomp._jump(seccomp._EQUAL, 0, 0, 1), seccomp._refuse(errno.EPERM), seccomp._return(seccomp._ALLOW)]
    refuse(b"".join(seccomp._rule(_SETRESGID, to_root)))


def _switch(name: str, value: str) -> None:
    _own_mounts()
    syscalls.mount("tmpfs", "/proc/sys/kernel", "tmpfs", Mount.NO_SUID)
    Path("/proc/sys/kernel", name).write_text(value)


def _own_mounts() -> None:
    if os.geteuid() == 0:
        syscalls.unshare(Namespace.MOUNT)
    else:
        uid, gid = os.getuid(), os.getgid()
        syscalls.unshare(Namespace.USER | Namespace.MOUNT)
        confine.map_ids(uid, uid, gid)
    syscalls.mount(None, "/", None, Mount.RECURSIVE | Mount.PRIVATE)


def ordinary_user() -> None:
    """As nobody, who may still read the Python that the tests run with; whoever is no root stays who they are."""
    if os.geteuid() == 0:
        keep = "+dac_read_search"
        user = ["--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={keep}", f"--ambient-caps={keep}"]
        os.execvp("setpriv", ["setpriv", *user, *sys.argv[2:]])


def no_capabilities() -> None:
    """As root to whom nothing was left."""
    os.execvp("setpriv", ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *sys.argv[2:]])


CONDITIONS: dict[str, Callable[[], None]] = {
    make.__name__: make
    for make in (
        *(no_landlock, landlock_not_booted, no_seccomp, masked_proc, podman, no_cgroups, no_user_namespaces, lone_root),
        *(debian, ubuntu, ubuntu_as_root, refuse_namespaces, ordinary_user, no_capabilities),
    )
}


if __name__ == "__main__":
    for condition in sys.argv[1].split("+"):
        CONDITIONS[condition]()
    os.execvp(sys.argv[2], sys.argv[2:])
