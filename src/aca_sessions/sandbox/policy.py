"""What a sandbox may do: the whole posture on one screen. Every default of the embedded endpoint is written here, and only here."""

from dataclasses import dataclass, field

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may use, in bytes, counts and seconds."""

    memory: int = 2 * GB  # address space of each process, above what a fork comes with
    disk: int = 256 * MB  # /mnt/data, which is kept in memory; also the largest file
    files: int = 16_384  # inodes in /mnt/data
    temporary: int = 64 * MB  # /tmp and /dev/shm, each
    processes: int = 128  # processes and threads
    open_files: int = 1024  # descriptors of each process
    cell_timeout: float = 100.0  # Azure's own default; at most 220, as there
    output: int = MB  # of each stream: its head and its tail are kept


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of a session and the Python that it runs. There is no network but the session's own loopback."""

    limits: Limits = field(default_factory=Limits)
    python: str | None = None  # an interpreter whose environment has IPython; None is the host program's own
    preload: tuple[str, ...] = ()  # modules that every session finds imported


INTERRUPT_GRACE = 2.0
