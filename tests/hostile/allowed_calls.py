"""The committed table of kernel interfaces that a session may use, and the numbers of its names."""

import tomllib
from pathlib import Path

from aca_sessions.sandbox.guest.isolation import seccomp
from aca_sessions.sandbox.syscalls import MACHINE

_OTHER_NUMBERS = {"uretprobe": 335, "uprobe": 336}
TABLE = {
    section: {name: reason for names, reason in lines.items() for name in names.split()}
    for section, lines in tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).items()
}


def numbers(machine: str = MACHINE) -> dict[str, dict[str, int]]:
    """Return the filter's own numbers, by the sections and names of the table."""
    refused = {name: number for name, (number, _) in seccomp.list_other_errors(machine).items() if "xattr" in name}
    calls = seccomp.list_allowed_calls(machine) | refused | (_OTHER_NUMBERS if machine == "x86_64" else {})
    options = {level: dict(options) for (level, _), options in seccomp.OPTIONS.items()}
    sockets = {"socket": seccomp.FAMILIES | seccomp.TYPES | seccomp.PROTOCOLS}
    return {"calls": calls, **seccomp.COMMANDS, **seccomp.FLAGS, **options, **sockets}
