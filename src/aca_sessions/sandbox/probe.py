"""Check what isolation this host enforces: start a session, inspect it from outside, and run code in it that tries to break out."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import IsolationError
from ..lifetime import run_in_thread
from .limits.capacity import Capacity, capacity
from .limits.watchdog import private_memory
from .policy import Limits, Policy
from .sandbox import Sandbox
from .sandboxes import Sandboxes
from .session.descriptors import host_pid
from .session.interpreter import Interpreter

_MEGABYTE = 1 << 20
_NAMESPACES = {
    "user": "ids",
    "mnt": "files",
    "pid": "processes",
    "net": "network",
    "ipc": "queues and shared memory",
    "uts": "host name",
    "cgroup": "cgroup view",
}
# Expected errors: 101 is ENETUNREACH, 97 is EAFNOSUPPORT. 192.0.2.1 is for documentation, so no host has it (RFC 5737).
_DIRECT = "no host network"
_SYSTEM_CALLS = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); libc.unshare(1 << 28); raise OSError(ctypes.get_errno(), '')"
_ATTEMPTS: dict[str, tuple[str, str | tuple[str, ...]]] = {
    "host files": ("open('/etc/shadow').read()", "FileNotFoundError"),
    "host environment": ("open('/proc/1/environ').read()", "PermissionError"),
    "Landlock": ("open('/proc/self/oom_score_adj', 'w').write('0')", "PermissionError"),
    "system calls": (_SYSTEM_CALLS, "PermissionError"),
    "read-only root": ("open('/usr/probe', 'w')", "OSError"),
    _DIRECT: ("import socket; socket.create_connection(('192.0.2.1', 80), 1)", "OSError: [Errno 101]"),
}
_BARE_ATTEMPTS: dict[str, tuple[str, str | tuple[str, ...]]] = {
    "host files": ("open('/etc/shadow').read()", "PermissionError"),
    "host environment": ("open('/proc/1/environ').read()", "PermissionError"),
    "Landlock": ("open('/proc/self/oom_score_adj', 'w').write('0')", "PermissionError"),
    "system calls": (_SYSTEM_CALLS, "PermissionError"),
    "no writes outside": ("open('/usr/probe', 'w')", "PermissionError"),
    "no signals to others": ("import os; os.kill(os.getppid(), 0)", "PermissionError"),
    "no Unix sockets": ("import socket; socket.socket(socket.AF_UNIX)", "OSError: [Errno 97]"),
    _DIRECT: ("import socket; socket.socket()", "OSError: [Errno 97]"),
}
_NOT_WITHOUT_NAMESPACES = {
    "names of host files": "whether a path exists, its size and its times can be asked for; contents and listings cannot",
    "/mnt/data": "is not there: a session's files are in its working directory, a folder of this host",
    "disk of a session": "files count to no limit together, neither in bytes nor in number",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of checking one part of the isolation: whether it is enforced, and how that was found."""

    name: str
    enforced: bool
    how: str


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """The findings about all parts of the isolation. `level` is the isolation that the settings require: `full` or `no-namespaces`."""

    findings: tuple[Finding, ...]
    remedy: str = ""
    level: str = "full"
    capacity: Capacity | None = None  # None if no session could be opened

    @property
    def full(self) -> bool:
        """Return whether full isolation was asked for and every part of it is enforced."""
        return self.level == "full" and all(finding.enforced for finding in self.findings)

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{'ok ' if finding.enforced else 'NO '} {finding.name:<{width}}  {finding.how}" for finding in self.findings]
        lesser = "" if self.level == "full" else f" It is {self.level}, which the settings name."
        lines.append("isolation: full" if self.full else f"isolation: NOT full.{lesser} {self.remedy}".rstrip())
        return "\n".join(lines)


async def report(policy: Policy) -> IsolationReport:
    """Start a session under a policy, check which parts of its isolation this host enforces, and return the findings."""
    async with Sandboxes(policy) as sandboxes:
        return await examine(sandboxes)


async def examine(sandboxes: Sandboxes) -> IsolationReport:
    """Open a session for this check alone, check its isolation, and return the findings.

    If opening the session raises an IsolationError, return that as the only finding.
    """
    policy = sandboxes.policy
    try:
        sandbox = await sandboxes.open()
        try:
            interpreter = await sandbox.interpreter()
            idle = max(sandbox.memory.used(), await run_in_thread(private_memory, host_pid(interpreter.runtime.init)))
            room = capacity(policy, idle)
            findings = (
                Finding("sessions that fit", True, str(room)),
                *_check_from_outside(interpreter, policy),
                *await _check_from_inside(interpreter, policy),
                *await _limits(sandbox, interpreter, policy),
            )
            return IsolationReport(findings, level=policy.isolation, capacity=room)
        finally:
            await sandbox.close()
    except IsolationError as error:
        return IsolationReport((Finding(error.part, False, error.reason),), error.remedy, policy.isolation)


def _check_from_outside(interpreter: Interpreter, policy: Policy) -> list[Finding]:
    process = _process(interpreter.pidfd)
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    uid = int(status["Uid"].split()[0])
    own_uid, bare = os.geteuid() == 0, policy.isolation != "full"
    sets = ("CapEff", "CapPrm", "CapInh", *([] if bare and not own_uid else ["CapBnd"]))
    return [
        *(_namespace(process, name, what) for name, what in _NAMESPACES.items() if not (name == "net" and policy.network.kind == "host")),
        Finding(
            "uid", uid != 0 and (own_uid or not bare), f"{uid} on this host" + (", another in each session" if own_uid else ", your own")
        ),
        Finding("no_new_privs", status.get("NoNewPrivs") == "1", "in the process's status"),
        Finding("capabilities", not any(int(status[name], 16) for name in sets), f"none in {', '.join(sets)}"),
        Finding("seccomp", status.get("Seccomp") == "2", "a filter is in force"),
    ]


def _namespace(process: Path, name: str, what: str) -> Finding:
    try:
        own = os.readlink(process / "ns" / name) != os.readlink(f"/proc/self/ns/{name}")
    except PermissionError:  # a root without CAP_SYS_PTRACE, as in containers
        return Finding(f"{name} namespace", False, "may not be looked at by this process")
    return Finding(f"{name} namespace", own, f"own {what}" if own else f"the host's {what}")


async def _check_from_inside(interpreter: Interpreter, policy: Policy) -> list[Finding]:
    network, bare = policy.network, policy.isolation != "full"
    findings = [Finding(name, False, how) for name, how in _NOT_WITHOUT_NAMESPACES.items()] if bare else []
    if network.kind == "host":
        findings.append(Finding("network", True, "this host's own, as the policy says: sessions reach all that it reaches"))
    elif network.is_proxied:
        findings.append(Finding("network", True, f"by a proxy, as in the policy: {', '.join(network.described)}"))
    for name, (code, refusal) in (_BARE_ATTEMPTS if bare else _ATTEMPTS | _host_folder_check(policy)).items():
        if network.kind == "host" and name == _DIRECT:
            continue
        result = await interpreter.run("probe", code, 10.0)
        said = str(result.error)
        findings.append(
            Finding(name, said.startswith(refusal), f"an attempt ended with {said.partition(':')[0] if result.error else 'success'}")
        )
    return findings


def _host_folder_check(policy: Policy) -> dict[str, tuple[str, str | tuple[str, ...]]]:
    """Return the check "host files" for sessions of a container image: code to run, and the errors with which it should fail.

    The code lists the image's folder on this host. Return {} if the policy has no image: the check in `_ATTEMPTS` reads /etc/shadow then.
    In a session of an image that would prove nothing, because the image has its own /etc/shadow.
    """
    if policy.image is None:
        return {}
    return {"host files": (f"import os; os.listdir({policy.image!r})", ("FileNotFoundError", "PermissionError"))}


async def _limits(sandbox: Sandbox, interpreter: Interpreter, policy: Policy) -> list[Finding]:
    limits = policy.limits
    over = await interpreter.run("probe", f"bytearray({limits.memory + _MEGABYTE})", 10.0)
    refused = over.error is not None and over.error.name == "MemoryError"
    rows = (_process(interpreter.pidfd) / "limits").read_text().splitlines()
    elsewhere = "" if policy.isolation == "full" else "; its files are on this host's disk and count to no limit together"
    processes = next(row.split()[2] for row in rows if row.startswith("Max processes"))
    return [
        Finding(
            "memory",
            refused,
            f"{limits.memory >> 20} MB a process: a megabyte more ended with {over.error.name if over.error else 'success'}",
        ),
        Finding("memory of a session", True, f"{sandbox.memory.how}{elsewhere}"),
        *_processor_time(sandbox, limits),
        *(
            [_processes(processes, limits), _branches(sandbox), _disk(sandbox, limits)]
            if policy.isolation == "full"
            else [_bare_processes(processes)]
        ),
    ]


def _processor_time(sandbox: Sandbox, limits: Limits) -> list[Finding]:
    """Return a list with one finding: whether `limits.cpu` is enforced. Return an empty list if that limit is not set."""
    if limits.cpu is None:
        return []
    if sandbox.memory.limits_cpu:
        return [Finding("processor time", True, f"{limits.cpu:g} processors, by a control group")]
    return [
        Finding("processor time", False, f"not limited to {limits.cpu:g} processors: that needs control groups with the cpu controller")
    ]


def _processes(most: str, limits: Limits) -> Finding:
    return Finding("processes", most.isdecimal() and int(most) <= limits.processes, f"{most}, in the session's own user namespace")


def _branches(sandbox: Sandbox) -> Finding:
    """Report how the host stops the processes of a session's other branches while one branch runs a cell."""
    return Finding(
        "processes of branches",
        True,
        "frozen by control groups" if sandbox.memory.freezes else "stopped by signals, until none of them moves",
    )


def _bare_processes(most: str) -> Finding:
    return Finding("processes", most.isdecimal(), f"{most}" if os.geteuid() == 0 else f"{most}, with all that this user runs elsewhere")


def _disk(sandbox: Sandbox, limits: Limits) -> Finding:
    return Finding("disk", sandbox.files.capacity() <= limits.disk, f"{limits.disk >> 20} MB in /mnt/data, by the size of its tmpfs")


def _process(pidfd: int) -> Path:
    """Return the folder in the host's /proc of the process that a pidfd refers to."""
    return Path("/proc", str(host_pid(pidfd)))
