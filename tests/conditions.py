"""Run one program under a condition of docs/reference/hosts.md: `python -m tests.conditions NAME COMMAND …`.

Filters apply to the program alone. Mounts and switches are changed in namespaces of its own, so that nothing of the machine changes.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from aca_sessions.sandbox import syscalls
from aca_sessions.sandbox.guest.isolation import confine, seccomp
from aca_sessions.sandbox.syscalls import Mount, Namespace

from .without_namespaces import refuse_namespaces

_COLUMN = syscalls.ARCHITECTURES.index(syscalls.MACHINE)
_LANDLOCK = (444, 445, 446)
_SECCOMP, _PRCTL = (317, 277)[_COLUMN], (157, 167)[_COLUMN]
_MOUNT, _SETRESGID = (165, 40)[_COLUMN], (119, 149)[_COLUMN]
_PR_SET_SECCOMP = 22
MASKED = ("acpi", "scsi", "sys", "bus", "fs")  # the ones that this kernel has


def refuse(*rules: bytes) -> None:
    """Install a filter for this process and its descendants."""
    syscalls.no_new_privileges()
    syscalls.install_filter(b"".join([*seccomp._prologue(syscalls.MACHINE), *rules, seccomp._return(seccomp._ALLOW)]))


def call(number: int, error: int) -> bytes:
    """Add a rule: this call fails with that error."""
    return b"".join(seccomp._rule(number, [seccomp._refuse(error)]))


def no_landlock() -> None:
    """Simulate a kernel that was built without Landlock."""
    refuse(*(call(number, errno.ENOSYS) for number in _LANDLOCK))


def landlock_not_booted() -> None:
    """Simulate a kernel that has Landlock but was booted without it."""
    refuse(*(call(number, errno.EOPNOTSUPP) for number in _LANDLOCK))


def no_seccomp() -> None:
    """Simulate a kernel that was built without filters."""
    by_prctl = [*seccomp._argument(0), seccomp._jump(seccomp._EQUAL, _PR_SET_SECCOMP, 0, 1), seccomp._refuse(errno.EINVAL)]
    rule = b"".join(seccomp._rule(_PRCTL, [*by_prctl, seccomp._return(seccomp._ALLOW)]))
    refuse(call(_SECCOMP, errno.ENOSYS), rule)


def masked_proc() -> None:
    """Hide some folders of /proc under mounts, as container engines do."""
    _own_mounts()
    for name in MASKED:
        if os.path.isdir(f"/proc/{name}"):
            syscalls.mount("tmpfs", f"/proc/{name}", "tmpfs", Mount.READ_ONLY)


def no_cgroups() -> None:
    """Simulate a host with nothing mounted at /sys/fs/cgroup."""
    _own_mounts()
    syscalls.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", Mount.READ_ONLY)


def podman() -> None:
    """Simulate a Podman container: its marker file is there, and a part of /proc is masked."""
    masked_proc()
    syscalls.mount("tmpfs", "/run", "tmpfs", Mount.NO_SUID)
    Path("/run/.containerenv").touch()


def no_user_namespaces() -> None:
    """Set the limit of user namespaces to zero, in a namespace of its own."""
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(Namespace.USER)
    confine.map_ids(uid, uid, gid)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def lone_root() -> None:
    """Simulate the root of a container that has no other user."""
    syscalls.unshare(Namespace.USER)
    confine.map_ids(0, 0, 0)


def debian() -> None:
    """Simulate Debian's kernels with the switch off: the switch is readable, and no user namespace can be made."""
    _switch("unprivileged_userns_clone", "0")
    refuse_namespaces()


def ubuntu() -> None:
    """Simulate AppArmor's restriction: a user namespace can be made, but nothing can be mounted in it."""
    _switch("apparmor_restrict_unprivileged_userns", "1")
    refuse(call(_MOUNT, errno.EACCES))


def ubuntu_as_root() -> None:
    """Simulate the same for root, who gives up its power first, so that no process becomes the namespace's root."""
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
    """Switch to the user nobody, who may still read the Python that the tests run with. An ordinary user stays who they are."""
    if os.geteuid() == 0:
        keep = "+dac_read_search"
        user = ["--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={keep}", f"--ambient-caps={keep}"]
        os.execvp("setpriv", ["setpriv", *user, *sys.argv[2:]])


def no_capabilities() -> None:
    """Run as root without any capability."""
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
