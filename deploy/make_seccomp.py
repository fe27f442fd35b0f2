"""Writes deploy/seccomp.json: the calls that sessions may make themselves, and those by which the server walls them in."""

import json
from pathlib import Path

from aca_sessions.sandbox.guest.isolation.seccomp import list_allowed_calls
from aca_sessions.sandbox.syscalls import ARCHITECTURES

_ENOSYS = 38  # what a kernel without the call says: libraries then take the older one
_WALLS = (
    *("unshare", "setns", "mount", "umount2", "pivot_root", "sethostname", "mount_setattr", "open_tree", "move_mount"),
    *("capset", "setgroups", "seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
    *("setfsuid", "setfsgid"),  # the host acts on files as a session's user
)


def profile() -> dict[str, object]:
    """An allow list for Docker, Podman and Kubernetes."""
    names = {name for machine in ARCHITECTURES for name in list_allowed_calls(machine)} | {*_WALLS}
    plain = {"names": sorted(names), "action": "SCMP_ACT_ALLOW"}
    architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _ENOSYS,
        "architectures": architectures,
        "syscalls": [plain],
    }


if __name__ == "__main__":
    Path(__file__).with_name("seccomp.json").write_text(json.dumps(profile(), indent=1) + "\n")
