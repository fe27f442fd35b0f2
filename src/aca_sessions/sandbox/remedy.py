"""Advice for a host that refuses a part of the isolation: the row of docs/hosts.md that describes the host, and the line to paste."""

import errno
import os
from pathlib import Path

from . import hosts
from .hosts import Host

_SWITCHES = {
    "/proc/sys/user/max_user_namespaces": ("0", hosts.NO_USER_NAMESPACES),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", hosts.DEBIAN),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", hosts.UBUNTU),
}
_BY_PART = {
    "proc": hosts.MASKED_PROC,
    "uid": hosts.LONE_ROOT,
    "capabilities": hosts.NO_CAPABILITIES,
    "Landlock": hosts.NO_LANDLOCK,
    "seccomp": hosts.NO_SECCOMP,
    "capabilities and seccomp": hosts.NO_SECCOMP,
    "preload": hosts.NO_PYTHON,
    "Python environment": hosts.NO_PYTHON,
    "Python inside the root": hosts.NO_PYTHON,
    "control group": hosts.SHORTAGE,
}
_ENGINES = {"/run/.containerenv": hosts.PODMAN, "/.dockerenv": hosts.DOCKER}
_NEEDED_BY_BOTH = ("Landlock", "seccomp", "uid", "capabilities")  # levels of isolation: the lower one does not help then
_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ETOOMANYREFS)
_CAP_SYS_ADMIN = 1 << 21
_OR_LESS = (
    "Or accept less, by name: ACASessions:Sandbox:Isolation=no-namespaces holds sessions by Landlock, seccomp and limits alone "
    "(SECURITY.md says what is not enforced then)"
)
_OR_REMOTE = "Or set ACASessions:SessionsHttpClient:Endpoint to a server on a host that can (aca-sessions serve), or to an Azure pool"
_OF_THE_ENVIRONMENT = {
    "IPython in the guests' environment": "Install ipython into that environment, or name another one in ACASessions:Sandbox:Python",
    "preload": "Install it into the guests' environment, or take it out of ACASessions:Sandbox:Preload",
    "Python environment": "Name a Python in ACASessions:Sandbox:Python that everybody may read, or run it as an ordinary user",
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
    """Return the lines of a Dockerfile that add what an image lacks."""
    if missing.startswith("Python 3.9"):
        return "Build on a newer one:\n  FROM python:3.12-slim\n  RUN pip install ipython"
    kind = "without Python" if "python3" in missing or "standard library" in missing else "with Python"
    return _IMAGE_LINES.format(line=_IN_AN_IMAGE[kind])


def remedy_for(part: str, number: int) -> str:
    """Return how to enable a part of the isolation on this host, as far as the cause can be seen, and which documentation to read.

    A lower level of isolation or a remote endpoint is offered too, unless resources or a usable Python are all that is missing.

    Args:
        part: the part that failed, as an IsolationError names it.
        number: the errno of the failure.
    """
    causes = _causes(part, number)
    steps = [*filter(None, [_OF_THE_ENVIRONMENT.get(part)]), *map(str, causes)]
    if hosts.NO_PYTHON not in causes and hosts.SHORTAGE not in causes:
        steps += [*([] if part in _NEEDED_BY_BOTH else [_OR_LESS]), _OR_REMOTE]
    return f"{'. '.join(steps)}. See {', '.join(cause.row for cause in causes)}."


def elsewhere(platform: str) -> str:
    """Return what to do on a system that is not Linux. `platform` is a value of sys.platform."""
    host = hosts.BY_PLATFORM.get(platform, hosts.NOT_LINUX)
    return f"{host}. See {host.row}."


def _causes(part: str, number: int) -> list[Host]:
    if part.startswith("IPython"):
        return [hosts.NO_PYTHON]
    if part == "proc":
        return [hosts.MASKED_PROC, *_engine()]
    if part in _BY_PART:
        return [_BY_PART[part]]
    switched = _switched_off()
    if number in _SHORTAGES and not switched:
        return [hosts.SHORTAGE]
    return [*switched, *_contained()] or [hosts.OTHER]


def _switched_off() -> list[Host]:
    """Return the kernel settings that forbid namespaces here."""
    # They concern root as well: users without privileges make the namespaces of its sessions.
    return [host for path, (off, host) in _SWITCHES.items() if _read(path).strip() == off]


def _contained() -> list[Host]:
    powerless = [hosts.NO_CAPABILITIES] if os.geteuid() == 0 and not _may_administer() else []
    filtered = [hosts.FILTERED] if _status("Seccomp") == "2" else []
    return [*filtered, *powerless, *_engine()]


def _engine() -> list[Host]:
    """Return the container engine that this process runs in, as far as it can be detected."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return [hosts.KUBERNETES]
    return [host for path, host in _ENGINES.items() if os.path.exists(path)][:1]


def _may_administer() -> bool:
    return bool(int(_status("CapEff") or "0", 16) & _CAP_SYS_ADMIN)


def _status(field: str) -> str:
    found = [line.partition(":")[2].strip() for line in _read("/proc/self/status").splitlines() if line.startswith(f"{field}:")]
    return found[0] if found else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
