"""What this host enforces, found by doing it: a session is started, looked at from outside, and asked to break out."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import IsolationError
from .ends import host_pid
from .interpreter import Interpreter
from .policy import Network, Policy
from .sandbox import Sandbox
from .sandboxes import Sandboxes

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
_DIRECT = "no host network"
_ATTEMPTS = {
    "host files": ("open('/etc/shadow').read()", "FileNotFoundError"),
    "host environment": ("open('/proc/1/environ').read()", "PermissionError"),
    "Landlock": ("open('/proc/self/oom_score_adj', 'w').write('0')", "PermissionError"),
    "system calls": (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); libc.unshare(1 << 28); raise OSError(ctypes.get_errno(), '')",
        "PermissionError",
    ),
    "read-only root": ("open('/usr/probe', 'w')", "OSError"),
    _DIRECT: ("import socket; socket.create_connection(('192.0.2.1', 80), 1)", "OSError: [Errno 101]"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of the isolation, and how it was found."""

    name: str
    enforced: bool
    how: str


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """All parts. Full isolation is every one of them; there is no lesser level yet."""

    findings: tuple[Finding, ...]
    remedy: str = ""

    @property
    def full(self) -> bool:
        """Whether every part is enforced."""
        return all(finding.enforced for finding in self.findings)

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{'ok ' if finding.enforced else 'NO '} {finding.name:<{width}}  {finding.how}" for finding in self.findings]
        lines.append("isolation: full" if self.full else f"isolation: NOT full. {self.remedy}")
        return "\n".join(lines)


async def report(policy: Policy) -> IsolationReport:
    """Starts a session on this host and finds out."""
    async with Sandboxes(policy) as sandboxes:
        return await examine(sandboxes)


async def examine(sandboxes: Sandboxes) -> IsolationReport:
    """Starts a further session and finds out."""
    policy = sandboxes.policy
    try:
        sandbox = await sandboxes.open()
        try:
            interpreter = await sandbox.interpreter()
            return IsolationReport(
                (
                    *_seen_from_outside(interpreter, policy.network),
                    *await _tried_from_inside(interpreter, policy.network),
                    *await _limits(sandbox, interpreter, policy),
                )
            )
        finally:
            await sandbox.close()
    except IsolationError as error:
        return IsolationReport((Finding(error.part, False, str(error)),), error.remedy)


def _seen_from_outside(interpreter: Interpreter, network: Network) -> list[Finding]:
    process = _process(interpreter.pidfd)
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    uid = int(status["Uid"].split()[0])
    namespaces = [
        Finding(f"{name} namespace", os.readlink(process / "ns" / name) != os.readlink(f"/proc/self/ns/{name}"), f"own {what}")
        for name, what in _NAMESPACES.items()
        if not (name == "net" and network.kind == "host")
    ]
    return [
        *namespaces,
        Finding("uid", uid != 0, f"{uid} on this host" + (", another in each session" if os.geteuid() == 0 else ", your own")),
        Finding("no_new_privs", status.get("NoNewPrivs") == "1", "in the process's status"),
        Finding("capabilities", not any(int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")), "none in any set"),
        Finding("seccomp", status.get("Seccomp") == "2", "a filter is in force"),
    ]


async def _tried_from_inside(interpreter: Interpreter, network: Network) -> list[Finding]:
    findings = []
    if network.kind == "host":
        findings.append(Finding("network", True, "this host's own, as the policy says: sessions reach all that it reaches"))
    elif network.kind == "allow":
        findings.append(Finding("network", True, f"by a proxy, as the policy says: {', '.join(network.domains)}"))
    for name, (code, refusal) in _ATTEMPTS.items():
        if network.kind == "host" and name == _DIRECT:
            continue
        result = await interpreter.run("probe", code, 10.0)
        said = str(result.error)
        findings.append(
            Finding(name, said.startswith(refusal), f"an attempt ended with {said.partition(':')[0] if result.error else 'success'}")
        )
    return findings


async def _limits(sandbox: Sandbox, interpreter: Interpreter, policy: Policy) -> list[Finding]:
    limits = policy.limits
    over = await interpreter.run("probe", f"bytearray({limits.memory + _MEGABYTE})", 10.0)
    refused = over.error is not None and over.error.name == "MemoryError"
    rows = (_process(interpreter.pidfd) / "limits").read_text().splitlines()
    processes = next(row.split()[2] for row in rows if row.startswith("Max processes"))
    return [
        Finding(
            "memory",
            refused,
            f"{limits.memory >> 20} MB a process: a megabyte more ended with {over.error.name if over.error else 'success'}",
        ),
        Finding("memory of a session", True, f"{sandbox.memory.how}: its processes and its files together"),
        Finding(
            "processes", processes.isdecimal() and int(processes) <= limits.processes, f"{processes}, in the session's own user namespace"
        ),
        Finding("disk", sandbox.files.capacity() <= limits.disk, f"{limits.disk >> 20} MB in /mnt/data, by the size of its tmpfs"),
    ]


def _process(pidfd: int) -> Path:
    """The /proc folder of a process that lives in a pid namespace below ours."""
    return Path("/proc", str(host_pid(pidfd)))
