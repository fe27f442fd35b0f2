"""Find out why this host cannot isolate sessions fully, and what its user can do.

docs/reference/hosts.md has a table with a row for each cause.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

PAGE = "docs/reference/hosts.md"


@dataclass(frozen=True, slots=True)
class HostCondition:
    """Something about a host that keeps sessions from running or weakens their limits, such as a kernel setting.

    Attributes:
        anchor: The anchor, in docs/reference/hosts.md, of the table row about this condition.
        name: A short description, such as "macOS".
        line: The text for the user to copy, such as a command or an option, which changes the condition.
        how: What to do with `line`, such as "Run".
    """

    anchor: str
    name: str
    line: str
    how: str = "Run"

    @property
    def row(self) -> str:
        """Return a link to the table row about this condition, such as `docs/reference/hosts.md#docker`."""
        return f"{PAGE}#{self.anchor}"

    def __str__(self) -> str:
        return f"{self.how}: {self.line}"


NO_USER_NAMESPACES = HostCondition("no-user-namespaces", "user.max_user_namespaces is 0", "sudo sysctl user.max_user_namespaces=15000")
DEBIAN = HostCondition(
    "debian", "kernel.unprivileged_userns_clone is 0 (Debian's kernels)", "sudo sysctl kernel.unprivileged_userns_clone=1"
)
UBUNTU = HostCondition(
    "ubuntu",
    "kernel.apparmor_restrict_unprivileged_userns is 1 (Ubuntu from 23.10 on)",
    "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
)
DOCKER = HostCondition(
    "docker",
    "Docker with its default profiles",
    "--user 1000 --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined",
    "Start the container by docker run with",
)
PODMAN = HostCondition(
    "podman",
    "Podman with its default profiles",
    "--user 1000 --security-opt seccomp=unconfined --security-opt unmask=ALL",
    "Start the container by podman run with",
)
KUBERNETES = HostCondition(
    "kubernetes",
    "A Kubernetes pod with the default profiles",
    "hostUsers: false, and for the container securityContext: {runAsUser: 1000, procMount: Unmasked, "
    "seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}}",
    "Write into the pod's spec",
)
FILTERED = HostCondition(
    "namespaces-filtered",
    "A seccomp filter that refuses namespaces or mounts, as containers and services have",
    "--security-opt seccomp=unconfined (a systemd service: RestrictNamespaces=no)",
    "Start the container with",
)
MASKED_PROC = HostCondition(
    "masked-proc",
    "A /proc of which a part is masked, as container engines do",
    "--security-opt systempaths=unconfined (Docker), --security-opt unmask=ALL (Podman) or procMount: Unmasked (Kubernetes)",
    "Start the container with",
)
NO_CAPABILITIES = HostCondition(
    "no-capabilities", "Root without CAP_SYS_ADMIN", "--user 1000", "Run it as an ordinary user, who needs no capability; in a container"
)
LONE_ROOT = HostCondition(
    "lone-root",
    "Root of a user namespace that maps one uid, which is root on the host",
    "setpriv --reuid=1000 --regid=1000 --clear-groups aca-sessions …",
    "Run it as an ordinary user, or as root of a namespace with more than one uid",
)
NO_LANDLOCK = HostCondition(
    "no-landlock",
    "A kernel without Landlock: older than 5.13, or booted without it",
    "lsm=landlock,yama,apparmor",
    "Boot a kernel from 5.13 on with landlock among its lsm=, for example",
)
NO_SECCOMP = HostCondition(
    "no-seccomp",
    "A kernel without seccomp filters, or a sandbox that emulates one",
    "CONFIG_SECCOMP_FILTER=y",
    "Run a kernel that is built with",
)
NO_CGROUPS = HostCondition(
    "no-cgroups",
    "No control group that may be written to",
    "systemd-run --user --scope -p Delegate=yes aca-sessions serve",
    "Sessions are isolated fully, and their memory is looked at; to have it counted, run",
)
NO_PYTHON = HostCondition(
    "guests-python",
    "A Python that sessions cannot use",
    "aca-sessions env create sessions",
    "Give sessions a Python of their own, which ACASessions:Sandbox:Environment=sessions names",
)
SHORTAGE = HostCondition(
    "shortage",
    "No process, memory, descriptor or control group left",
    "ulimit -u; ulimit -n; cat /proc/loadavg",
    "The host is short of processes, memory or descriptors for this user: end some and try again. To see what is left, run",
)
OTHER = HostCondition(
    "other-refusals",
    "Anything else that refuses namespaces",
    "unshare --user --map-root-user --mount --pid --fork --mount-proc true",
    "Linux 5.13 or newer with user namespaces is needed. To see what refuses them, run",
)
MACOS = HostCondition(
    "macos",
    "macOS",
    "export ACASessions__SessionsHttpClient__Endpoint=http://HOST:8080 ACASessions__SessionsHttpClient__ApiKey=KEY",
    "Set the Endpoint of a Linux host, where aca-sessions serve prints both, or of an Azure pool, which needs no key",
)
WINDOWS = HostCondition(
    "windows",
    "Windows",
    "$env:ACASessions__SessionsHttpClient__Endpoint='http://HOST:8080'; $env:ACASessions__SessionsHttpClient__ApiKey='KEY'",
    f"Run it inside WSL2. Or {MACOS.how[0].lower()}{MACOS.how[1:]}",
)
NOT_LINUX = HostCondition("other-systems", "Other systems", MACOS.line, MACOS.how)
BY_PLATFORM = {"darwin": MACOS, "win32": WINDOWS}
ALL = tuple(host for host in globals().values() if isinstance(host, HostCondition))


_SWITCHES = {
    "/proc/sys/user/max_user_namespaces": ("0", NO_USER_NAMESPACES),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", DEBIAN),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", UBUNTU),
}
_BY_PART = {
    "proc": MASKED_PROC,
    "uid": LONE_ROOT,
    "capabilities": NO_CAPABILITIES,
    "Landlock": NO_LANDLOCK,
    "seccomp": NO_SECCOMP,
    "capabilities and seccomp": NO_SECCOMP,
    "preload": NO_PYTHON,
    "Python environment": NO_PYTHON,
    "Python inside the root": NO_PYTHON,
    "control group": SHORTAGE,
}
_ENGINES = {"/run/.containerenv": PODMAN, "/.dockerenv": DOCKER}
_NEEDED_BY_BOTH = ("Landlock", "seccomp", "uid", "capabilities")  # levels of isolation: the lower one does not help then
_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ETOOMANYREFS)
_CAP_SYS_ADMIN = 1 << 21
_ADVICE_WEAKER = (
    "Or accept less, by name: ACASessions:Sandbox:Isolation=no-namespaces holds sessions by Landlock, seccomp and limits alone "
    "(SECURITY.md says what is not enforced then)"
)
_ADVICE_REMOTE = "Or set ACASessions:SessionsHttpClient:Endpoint to a server on a host that can (aca-sessions serve), or to an Azure pool"
_OF_THE_ENVIRONMENT = {
    "IPython in the guests' environment": "Install ipython into that environment, or name another one in ACASessions:Sandbox:Python",
    "preload": "Install it into the guests' environment, or take it out of ACASessions:Sandbox:Preload",
    "Python environment": "Name a Python in ACASessions:Sandbox:Python that every user can read, or run it as an ordinary user",
}
IMAGE = "container image"
_IMAGE_LINES = """Add it with a Dockerfile such as
  FROM your-image
  RUN {line}"""
_IN_AN_IMAGE = {
    "without Python": "apt-get update && apt-get install -y --no-install-recommends python3 ipython3",
    "with Python": "python3 -m pip install ipython matplotlib-inline",
}


def lines_for_image(missing: str) -> str:
    """Return advice for the user of a container image that lacks `missing`, most often lines to add to a Dockerfile."""
    if missing.startswith("a Python that starts"):  # it is there
        return (
            "Check it with podman run or docker run, or name another Python of the image in ACASessions:Sandbox:Python. "
            "If this host is busy, try again"
        )
    if missing.startswith("Python 3.9"):
        return "Build on a newer one:\n  FROM python:3.12-slim\n  RUN pip install ipython"
    kind = "without Python" if "python3" in missing or "standard library" in missing else "with Python"
    return _IMAGE_LINES.format(line=_IN_AN_IMAGE[kind])


def remedy_for(part: str, number: int) -> str:
    """Return advice for the user on how to enable a part of the isolation that this host refused.

    The advice names each cause that was found, with a link to docs/reference/hosts.md. It also proposes weaker isolation, if that does not
    need the same part, and a remote endpoint. It proposes neither if the host lacks only resources or a usable Python.

    Args:
        part: The missing part, as in `IsolationError.part`.
        number: The errno of the failed system call.
    """
    causes = _causes(part, number)
    steps = [*filter(None, [_OF_THE_ENVIRONMENT.get(part)]), *map(str, causes)]
    if NO_PYTHON not in causes and SHORTAGE not in causes:
        steps += [*([] if part in _NEEDED_BY_BOTH else [_ADVICE_WEAKER]), _ADVICE_REMOTE]
    return f"{'. '.join(steps)}. See {', '.join(cause.row for cause in causes)}."


def advice_for_platform(platform: str) -> str:
    """Return advice for the user on how to run sessions from a system that is not Linux.

    `platform` is a value of sys.platform.
    """
    host = BY_PLATFORM.get(platform, NOT_LINUX)
    return f"{host}. See {host.row}."


def _causes(part: str, number: int) -> list[HostCondition]:
    if part.startswith("IPython"):
        return [NO_PYTHON]
    if part == "proc":
        return [MASKED_PROC, *_container_engine()]
    if part in _BY_PART:
        return [_BY_PART[part]]
    switched = _disabling_settings()
    if number in _SHORTAGES and not switched:
        return [SHORTAGE]
    return [*switched, *_container_conditions()] or [OTHER]


def _disabling_settings() -> list[HostCondition]:
    """Return a condition for each kernel setting that forbids namespaces on this machine."""
    # They concern root as well: users without privileges make the namespaces of its sessions.
    return [host for path, (off, host) in _SWITCHES.items() if _read(path).strip() == off]


def _container_conditions() -> list[HostCondition]:
    powerless = [NO_CAPABILITIES] if os.geteuid() == 0 and not _has_sys_admin() else []
    filtered = [FILTERED] if _status("Seccomp") == "2" else []
    return [*filtered, *powerless, *_container_engine()]


def _container_engine() -> list[HostCondition]:
    """Return Docker, Podman or Kubernetes in a list, if this process runs in one of its containers. Otherwise return an empty list."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return [KUBERNETES]
    return [host for path, host in _ENGINES.items() if os.path.exists(path)][:1]


def _has_sys_admin() -> bool:
    return bool(int(_status("CapEff") or "0", 16) & _CAP_SYS_ADMIN)


def _status(field: str) -> str:
    found = [line.partition(":")[2].strip() for line in _read("/proc/self/status").splitlines() if line.startswith(f"{field}:")]
    return found[0] if found else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
