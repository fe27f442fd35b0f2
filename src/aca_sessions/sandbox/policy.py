"""The limits and rights of a sandbox. Every default of the embedded endpoint is defined in this module, and only here."""

import math
import os
import re
from dataclasses import dataclass, field
from typing import Literal

from ..errors import ConfigurationError
from ..network.rules import Network

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
INTERRUPT_GRACE = 2.0  # seconds between SIGINT and SIGKILL, without those for which the interpreter waited for a processor
QUEUED_SECONDS = 5.0  # of waiting for a processor that are left out at most
ANSWER_SECONDS = 600.0  # how long a cell waits for the answer to a question or host call
STILL_SECONDS = 3600.0  # how long the clock of one cell may stand still in total, while it waits for answers

_NICE_STEP = 1.25  # of weight, from one nice value to the next: sched(7)
_PLACE = re.compile(r"/mnt(/(?!\.\.?(/|$))[\w.@+-]+)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one session, in bytes, counts and seconds.

    Files are kept in memory. `disk` is lowered to at most half of `memory`, and `temporary` to at most a quarter, so that all files
    together take at most `memory`.

    Attributes:
        memory: Bytes of all its processes. A process that asks for more gets a MemoryError. If all need more together, they are killed.
        disk: Bytes of /mnt/data, and of the largest file.
        files: Files and folders in /mnt/data.
        temporary: Bytes of /tmp, and of /dev/shm.
        processes: Processes and threads.
        open_files: File descriptors of each process.
        cpu: Processors whose time it may use, such as 1.5. It needs control groups. None allows all, shared fairly.
        checkpoints: Checkpoints. The oldest are removed first.
        checkpoint_files: Bytes of the files that a checkpoint copies. With more files a checkpoint cannot be taken.
        cell_timeout: Seconds that a cell may run, at most 220.
        output: Bytes that are kept of stdout and of stderr: the beginning and the end of each.
        history: Cells that are kept in `In`, and values that are kept in `Out`. A value in `Out` stays in memory.
    """

    memory: int = 2 * GB
    disk: int = 256 * MB
    files: int = 16_384
    temporary: int = 64 * MB
    processes: int = 128
    open_files: int = 1024
    cpu: float | None = None
    checkpoints: int = 10
    checkpoint_files: int = 64 * MB  # copying takes about 1 ms a MB
    cell_timeout: float = 100.0  # as in Azure, whose maximum is 220 as well
    output: int = MB
    history: int = 1000

    def __post_init__(self) -> None:
        """Lower `disk` to at most half of `memory`, and `temporary` to at most a quarter."""
        object.__setattr__(self, "disk", min(self.disk, self.memory // 2))
        object.__setattr__(self, "temporary", min(self.temporary, self.memory // 4))

    @property
    def folders(self) -> int:
        """Return how many bytes /mnt/data, /tmp and /dev/shm may hold together."""
        return self.disk + 2 * self.temporary

    @property
    def family(self) -> int:
        """Return how many bytes of files a session, its branches and its checkpoints may have together.

        The host refuses to write more.
        """
        return 2 * self.disk


@dataclass(frozen=True, slots=True)
class Together:
    """The limits on all sessions of this process together, so that the host stays usable.

    Attributes:
        memory_share: The share of the machine's memory that they may use.
        processes: Processes and threads. Without control groups, all other processes of this user count as well.
        cpu_weight: Their weight on each processor, if another process has 1. Without control groups this is the weight of each session.
    """

    memory_share: float = 0.75
    processes: int = 16_384  # half of Linux's default
    # Beside a fork bomb, whose dead processes the kernel collects outside of any group, the p99 of this process's event loop was 1.4 to
    # 5 ms with 0.125, 70 to 450 ms with 0.25 and up to 2.5 s with 0.5 (two processors, quiet).
    cpu_weight: float = 0.125

    @property
    def nice(self) -> int:
        """Return the nice value (0 to 19) that gives a process nearly the weight `cpu_weight`. An ordinary process has the weight 1."""
        return min(max(round(-math.log(self.cpu_weight, _NICE_STEP)), 0), 19)


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the host that every session sees under /mnt.

    Attributes:
        host: The folder of the host, which must exist.
        guest: The path in the session, under /mnt and outside of /mnt/data.
        shared: Whether sessions may write. If so, a session has the rights of the user that it runs as. If the host program runs as root,
            each session has a uid of its own, and can write only where every user can.
    """

    host: str
    guest: str
    shared: Literal["read-only", "writable"] = "read-only"

    def __post_init__(self) -> None:
        """Raise ConfigurationError if `guest` is not a path under /mnt and outside /mnt/data, or if `host` is not a folder."""
        if not _PLACE.fullmatch(self.guest) or self.guest == "/mnt/data" or self.guest.startswith("/mnt/data/"):
            raise ConfigurationError(
                "ACASessions:Sandbox:Mounts: the target of a mount must be under /mnt and outside /mnt/data, and have only letters, "
                f"digits and '_.@+-' in its names, got {self.guest!r:.80}"
            )
        if not os.path.isdir(self.host):
            raise ConfigurationError(
                f"ACASessions:Sandbox:Mounts: the source of a mount must be an existing folder of this host, got {self.host!r:.200}"
            )


def user_folder(variable: str, *below_home: str) -> str | None:
    """Return a folder of this user, such as the cache folder: the one that the environment variable `variable` names.

    If the variable is not set, return the path `below_home` in the user's home folder. Return None if that folder is not known, because
    HOME is not set and the user is not in the user database.
    """
    named, home = os.environ.get(variable), os.path.expanduser("~")
    if named:
        return os.path.abspath(named)
    return os.path.join(home, *below_home) if os.path.isabs(home) else None


@dataclass(frozen=True, slots=True)
class PackageSource:
    """Where packages for sessions come from, and the folder of this host in which they are unpacked for all sessions.

    Attributes:
        index_url: The URL of the index, which may hold a password. None: the one in this host's pip configuration.
        wheels: A folder of wheels. Without an `index_url`, nothing is fetched from anywhere else.
        cache: The folder for unpacked packages. None: aca-sessions/packages in the user's cache folder.
        cache_size: Bytes of that folder. Packages that were not used for the longest time are removed first, those in use never.
    """

    index_url: str | None = field(default=None, repr=False)
    wheels: str | None = None
    cache: str | None = None
    cache_size: int = 4 * GB

    @property
    def folder(self) -> str:
        """Return the path of the folder in which packages are unpacked for all sessions.

        Return "" if that would be in the user's home folder and none is known. Then sessions cannot install packages.
        """
        if self.cache:
            folder = os.path.expanduser(self.cache)
            return "" if folder.startswith("~") else os.path.abspath(folder)
        caches = user_folder("XDG_CACHE_HOME", ".cache")
        return os.path.join(caches, "aca-sessions", "packages") if caches else ""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of a sandbox: its limits, network, mounts, Python, packages and level of isolation.

    Attributes:
        limits: The limits of each session.
        together: The limits of all sessions in total.
        network: What sessions can reach.
        mounts: Folders of the host that sessions see.
        python: The path of an interpreter whose environment has IPython. None: the host program's own, or the image's.
        image: The root of the sessions, in the place of this host's /usr and Python: a folder, the tar of one, or an image that Podman or
            Docker has.
        preload: Modules that every session has imported already. None: numpy, pandas and matplotlib if they are installed, as soon as they
            are loaded.
        packages: Where sessions get packages.
        spares: Sessions that are kept ready before they are needed, about 6 MB each.
        tenant: A name, or None. Sessions of another tenant have another fork server, and so another address layout and hash seed.
        isolation: `no-namespaces` is for hosts that refuse namespaces: only Landlock, seccomp and limits. SECURITY.md lists what it does
            not enforce.
    """

    limits: Limits = field(default_factory=Limits)
    together: Together = field(default_factory=Together)
    network: Network = field(default_factory=Network)
    mounts: tuple[Mount, ...] = ()
    python: str | None = None
    image: str | None = None
    preload: tuple[str, ...] | None = None
    packages: PackageSource = field(default_factory=PackageSource)
    spares: int = 2
    tenant: str | None = None
    isolation: Literal["full", "no-namespaces"] = "full"

    def __post_init__(self) -> None:
        """Raise ConfigurationError if `isolation` is "no-namespaces" and another setting, such as `mounts`, needs namespaces."""
        if self.isolation == "full":
            return
        if self.image:
            raise ConfigurationError(
                f"ACASessions:ContainerImage: needs `Sandbox:Isolation` full (a mount namespace), got {self.isolation}: use it, or no image"
            )
        if self.network.is_proxied:
            raise ConfigurationError(
                f"ACASessions:Sandbox:Network: domains need `Sandbox:Isolation` full (a network namespace), got {self.isolation}: "
                "use full, or the network none or host"
            )
        if self.mounts:
            raise ConfigurationError(
                f"ACASessions:Sandbox:Mounts: need `Sandbox:Isolation` full (a mount namespace), got {self.isolation}: use it, or no mounts"
            )
