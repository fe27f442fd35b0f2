"""Writes deploy/seccomp.json: the calls that sessions may make themselves, and those by which the server walls them in."""

import json
from pathlib import Path

from aca_sessions.sandbox.guest.seccomp import allowed
from aca_sessions.sandbox.syscalls import ARCHITECTURES

_ENOSYS = 38  # what a kernel without the call says: libraries then take the older one
_WALLS = (
    *("unshare", "setns", "mount", "umount2", "pivot_root", "sethostname", "mount_setattr", "open_tree", "move_mount"),
    *("capset", "setgroups", "seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
)
_ORDINARY_PERSONALITIES = (0, 0xFFFFFFFF)


def profile() -> dict[str, object]:
    """An allow list for Docker, Podman and Kubernetes."""
    names = {name for machine in ARCHITECTURES for name in allowed(machine)} - {"personality"}
    plain = {"names": sorted(names | {*_WALLS}), "action": "SCMP_ACT_ALLOW"}
    personalities = [_personality(number) for number in _ORDINARY_PERSONALITIES]
    architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _ENOSYS,
        "architectures": architectures,
        "syscalls": [plain, *personalities],
    }


def _personality(number: int) -> dict[str, object]:
    test = {"index": 0, "value": number, "op": "SCMP_CMP_EQ"}
    return {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [test]}


if __name__ == "__main__":
    Path(__file__).with_name("seccomp.json").write_text(json.dumps(profile(), indent=1) + "\n")
