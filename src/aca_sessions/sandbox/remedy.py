"""What to do where a host refuses a part of the isolation: one line to paste."""

import errno
import os
from pathlib import Path

_SWITCHES = {
    "/proc/sys/user/max_user_namespaces": ("0", "sudo sysctl user.max_user_namespaces=15000"),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
}
_IN_A_CONTAINER = (
    "Run the container with: --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
)
_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ETOOMANYREFS)
_OR_LESS = (
    "Or accept less, by name: ACASessions:Sandbox:Isolation=no-namespaces holds sessions by Landlock, seccomp and limits alone "
    "(SECURITY.md says what is not enforced then)"
)
_OR_REMOTE = "Or set ACASessions:SessionsHttpClient:Endpoint to a server on a host that can (aca-sessions serve), or to an Azure pool"


IMAGE = "container image"
_IMAGE_LINES = """Add it with a Dockerfile such as
  FROM your-image
  RUN {line}"""
_IN_AN_IMAGE = {
    "without Python": "apt-get update && apt-get install -y --no-install-recommends python3 ipython3",
    "with Python": "python3 -m pip install ipython matplotlib-inline",
}


def lines_for_image(missing: str) -> str:
    """The lines of a Dockerfile that add what an image lacks."""
    if missing.startswith("Python 3.9"):
        return "Build on a newer one:\n  FROM python:3.12-slim\n  RUN pip install ipython"
    kind = "without Python" if "python3" in missing or "standard library" in missing else "with Python"
    return _IMAGE_LINES.format(line=_IN_AN_IMAGE[kind])


def remedy_for(part: str, number: int) -> str:
    """What enables a part here, as far as this host tells; a remote endpoint always does."""
    if part == "session" and number in _SHORTAGES:
        return "The host is short of processes, memory or descriptors for this user: end some and try again."
    if part.startswith("IPython"):
        return "Install ipython into that environment, or name another one in ACASessions:Sandbox:Python."
    if part == "uid":
        return "Run it as an ordinary user, or as root of a namespace with more than one uid. " + _OR_REMOTE + "."
    if part == "preload":
        return "Install it into the guests' environment, or take it out of ACASessions:Sandbox:Preload."
    if part == "Python environment":
        return "Name a Python in ACASessions:Sandbox:Python that everybody may read, or run it as an ordinary user."
    steps = [*_switched_off(), *([_IN_A_CONTAINER] if _in_a_container() else [])]
    if part == "Landlock":
        steps = ["Boot a kernel from 5.13 on with lsm=landlock among its lsm="]
        return ". ".join([*steps, _OR_REMOTE]) + "."
    return ". ".join([*(steps or ["Linux 5.13 or newer with user namespaces is needed"]), _OR_LESS, _OR_REMOTE]) + "."


def _switched_off() -> list[str]:
    return [f"Run: {command}" for path, (off, command) in _SWITCHES.items() if _read(path) == off]


def _in_a_container() -> bool:
    return any(os.path.exists(path) for path in ("/.dockerenv", "/run/.containerenv")) or bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
