"""The rows of docs/hosts.md that errors refer to: why a host refuses isolation, and the line that enables it."""

from dataclasses import dataclass

PAGE = "docs/hosts.md"


@dataclass(frozen=True, slots=True)
class Host:
    """A condition of hosts that keeps sessions from running, or weakens their limits.

    Attributes:
        anchor: Names the row on the page.
        name: What the condition is.
        line: What to paste to change it.
        how: What to do with the line.
    """

    anchor: str
    name: str
    line: str
    how: str = "Run"

    @property
    def row(self) -> str:
        """Return the page and anchor of the row."""
        return f"{PAGE}#{self.anchor}"

    def __str__(self) -> str:
        return f"{self.how}: {self.line}"


NO_USER_NAMESPACES = Host("no-user-namespaces", "user.max_user_namespaces is 0", "sudo sysctl user.max_user_namespaces=15000")
DEBIAN = Host("debian", "kernel.unprivileged_userns_clone is 0 (Debian's kernels)", "sudo sysctl kernel.unprivileged_userns_clone=1")
UBUNTU = Host(
    "ubuntu",
    "kernel.apparmor_restrict_unprivileged_userns is 1 (Ubuntu from 23.10 on)",
    "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
)
DOCKER = Host(
    "docker",
    "Docker with its default profiles",
    "--user 1000 --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined",
    "Start the container by docker run with",
)
PODMAN = Host(
    "podman",
    "Podman with its default profiles",
    "--user 1000 --security-opt seccomp=unconfined --security-opt unmask=ALL",
    "Start the container by podman run with",
)
KUBERNETES = Host(
    "kubernetes",
    "A Kubernetes pod with the default profiles",
    "hostUsers: false, and for the container securityContext: {runAsUser: 1000, procMount: Unmasked, "
    "seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}}",
    "Write into the pod's spec",
)
FILTERED = Host(
    "namespaces-filtered",
    "A seccomp filter that refuses namespaces or mounts, as containers and services have",
    "--security-opt seccomp=unconfined (a systemd service: RestrictNamespaces=no)",
    "Start the container with",
)
MASKED_PROC = Host(
    "masked-proc",
    "A /proc of which a part is masked, as container engines do",
    "--security-opt systempaths=unconfined (Docker), --security-opt unmask=ALL (Podman) or procMount: Unmasked (Kubernetes)",
    "Start the container with",
)
NO_CAPABILITIES = Host(
    "no-capabilities", "Root without CAP_SYS_ADMIN", "--user 1000", "Run it as an ordinary user, who needs no capability; in a container"
)
LONE_ROOT = Host(
    "lone-root",
    "Root of a user namespace that maps one uid, which is root on the host",
    "setpriv --reuid=1000 --regid=1000 --clear-groups aca-sessions …",
    "Run it as an ordinary user, or as root of a namespace with more than one uid",
)
NO_LANDLOCK = Host(
    "no-landlock",
    "A kernel without Landlock: older than 5.13, or booted without it",
    "lsm=landlock,yama,apparmor",
    "Boot a kernel from 5.13 on with landlock among its lsm=, for example",
)
NO_SECCOMP = Host(
    "no-seccomp",
    "A kernel without seccomp filters, or a sandbox that emulates one",
    "CONFIG_SECCOMP_FILTER=y",
    "Run a kernel that is built with",
)
NO_CGROUPS = Host(
    "no-cgroups",
    "No control group that may be written to",
    "systemd-run --user --scope -p Delegate=yes aca-sessions serve",
    "Sessions are isolated fully, and their memory is looked at; to have it counted, run",
)
NO_PYTHON = Host(
    "guests-python",
    "A Python that sessions cannot use",
    "aca-sessions env create sessions",
    "Give sessions a Python of their own, which ACASessions:Sandbox:Environment=sessions names",
)
SHORTAGE = Host(
    "shortage",
    "No process, memory, descriptor or control group left",
    "ulimit -u; ulimit -n; cat /proc/loadavg",
    "The host is short of processes, memory or descriptors for this user: end some and try again. What there is is said by",
)
OTHER = Host(
    "other-refusals",
    "Anything else that refuses namespaces",
    "unshare --user --map-root-user --mount --pid --fork --mount-proc true",
    "Linux 5.13 or newer with user namespaces is needed. What refuses them is told by",
)
MACOS = Host(
    "macos",
    "macOS",
    "export ACASessions__SessionsHttpClient__Endpoint=http://HOST:8080 ACASessions__SessionsHttpClient__ApiKey=KEY",
    "Set the Endpoint of a Linux host, where aca-sessions serve prints both, or of an Azure pool, which needs no key",
)
WINDOWS = Host(
    "windows",
    "Windows",
    "$env:ACASessions__SessionsHttpClient__Endpoint='http://HOST:8080'; $env:ACASessions__SessionsHttpClient__ApiKey='KEY'",
    f"Run it inside WSL2. Or {MACOS.how[0].lower()}{MACOS.how[1:]}",
)
NOT_LINUX = Host("other-systems", "Other systems", MACOS.line, MACOS.how)
BY_PLATFORM = {"darwin": MACOS, "win32": WINDOWS}
ALL = tuple(host for host in globals().values() if isinstance(host, Host))
