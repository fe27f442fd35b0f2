"""Count and limit the resources of sessions by control groups: one for all sessions of this process, and below it one for each session.

Version 2 is used if this process can make groups with limits there, else version 1 if this process is root, else no groups. A control group
counts what limits on single processes cannot: the memory of all processes of a session together, of its files and of its sockets' buffers.
"""

import contextlib
import itertools
import logging
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from anyio import to_thread

from ..policy import Limits, Together
from .capacity import is_shortage, with_reserve

_logger = logging.getLogger("aca_sessions")
_CONTROLLERS: tuple[str, ...] = ("memory", "pids", "cpu")
_FREEZER = "trees"
_TCP, _TCP_PART = "memory.kmem.tcp.limit_in_bytes", 4  # version 1 only: the buffers may have a quarter of the memory limit
_REPORT_SECONDS = 0.1
_REMOVAL_SECONDS, _REMOVALS = 0.2, 50
_KERNELS_SHARE = 64  # for a page of each file, an entry in a tree of 64 pages, and an inode
_PERIOD = 100_000  # microseconds over which a share of the processors is given out
# Waits until this process has ended, however it ends, and removes its groups: the kernel keeps empty groups. It tries for 2.5 s, since a
# group with processes cannot be removed. It is a shell, because that is small and starts at once.
_CLEANUP_SCRIPT = (
    "read _; n=0; while [ $n -lt 25 ]; do left=; "
    'for top in "$@"; do rmdir "$top"/*/*/* "$top"/*/* "$top"/* "$top" 2>/dev/null; [ -d "$top" ] && left=1; done; '
    '[ -z "$left" ] && exit; n=$((n+1)); sleep 0.1; done'
)


class CgroupVersion(Protocol):
    """The interface of one version of control groups: find the folders of a group, write its limits and read its counters.

    A group has one folder (version 2) or one for each controller (version 1). In all methods, `folders` are the folders of one group, in
    the order in which `group_folders` returns them.
    """

    name: str
    not_counted: str  # the end of `SessionGroup.how`: what this version does not count with the rest

    # Return the folders of the group `name`.
    def group_folders(self, name: str) -> list[Path]: ...  # noqa: D102
    # Enable the controllers of a new group for the groups below it.
    def enable_controllers(self, folders: Sequence[Path]) -> None: ...  # noqa: D102
    # Return whether a group can limit processor time and have a weight.
    def has_cpu(self, folders: Sequence[Path]) -> bool: ...  # noqa: D102
    # Write limits to a group.
    def limit(self, folders: Sequence[Path], limits: "GroupLimits") -> None: ...  # noqa: D102
    # Return how many bytes a group's processes and files use now.
    def used(self, folders: Sequence[Path]) -> int: ...  # noqa: D102
    # Return the path of the file that counts the group's processes that the kernel killed for lack of memory.
    def kill_count_file(self, folders: Sequence[Path]) -> str: ...  # noqa: D102
    # Return the folder below which the processes of each workspace can be frozen, or None if the host cannot freeze.
    def freezer_folder(self, folders: Sequence[Path]) -> Path | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The limits of a control group. For a value of None, no limit is set."""

    memory: int | None = None  # bytes
    processes: int | None = None
    cpu: float | None = None  # processors' worth of time
    weight: float | None = None  # on each processor; a process outside of the group has 1
    kills_all: bool = False  # whether exceeding `memory` kills all processes of the group and not one of them; version 2 only


class CgroupV1:
    """Version 1 of control groups, which has a hierarchy for each controller. Only root may make groups there."""

    name = "cgroup v1"

    def __init__(self, parents: dict[str, Path]) -> None:
        """Make groups below the folders in `parents`, which maps the name of a controller, such as `memory`, to a folder of its hierarchy.

        The key `trees`, which is optional, names no controller but a folder of version 2. Groups below that folder can freeze processes.
        """
        tcp = (parents["memory"] / _TCP).exists() if "memory" in parents else False
        self.not_counted = f", but TCP's and UDP's buffers {f'apart, at most 1/{_TCP_PART} of that' if tcp else 'not at all'}"
        self._controllers = list(parents)
        self._parents = parents

    @classmethod
    def find(cls) -> "CgroupV1 | None":
        """Return an instance, or None if this process cannot make groups of version 1 that limit memory and processes."""
        mounts = {option: Path(mount[1]) for mount in _mounts("cgroup") for option in mount[3].split(",")}
        own = dict(_own_groups())
        found = {name: mounts[name] / own.get(name, "/").lstrip("/") for name in _CONTROLLERS if name in mounts}
        parents = {name: path for name, path in found.items() if os.access(path, os.W_OK)}
        usable = {"memory", "pids"} <= parents.keys()
        # Many hosts with version 1 mount version 2 beside it, without controllers. Its groups are used to freeze processes.
        for mount in _mounts("cgroup2")[:1]:
            beside = Path(mount[1]) / own.get("", "/").lstrip("/")
            if os.access(beside / "cgroup.procs", os.W_OK):
                parents[_FREEZER] = beside
        return cls(parents) if usable else None

    def group_folders(self, name: str) -> list[Path]:
        """Return the folders of the group `name`: one in each hierarchy."""
        return [parent / name for parent in self._parents.values()]

    def enable_controllers(self, folders: Sequence[Path]) -> None:
        """Do nothing. In version 1, controllers need not be enabled for the groups below a group."""

    def has_cpu(self, folders: Sequence[Path]) -> bool:
        """Return whether a group can limit processor time. This is the same for all groups of version 1."""
        return "cpu" in self._controllers

    def limit(self, folders: Sequence[Path], limits: GroupLimits) -> None:
        """Write the limits of a group. The memory limit includes swap, if the kernel counts swap."""
        folder = dict(zip(self._controllers, folders, strict=True))
        if limits.memory is not None:
            _write(folder["memory"] / "memory.limit_in_bytes", limits.memory)
            with contextlib.suppress(OSError):  # the file exists only if the kernel counts swap
                _write(folder["memory"] / "memory.memsw.limit_in_bytes", limits.memory)
            with contextlib.suppress(OSError):  # the kernel counts the buffers of TCP and UDP apart, and only if they have a limit
                _write(folder["memory"] / _TCP, limits.memory // _TCP_PART)
        if limits.processes is not None:
            _write(folder["pids"] / "pids.max", limits.processes)
        if "cpu" in folder and limits.cpu is not None:
            _write(folder["cpu"] / "cpu.cfs_period_us", _PERIOD)
            _write(folder["cpu"] / "cpu.cfs_quota_us", int(limits.cpu * _PERIOD))
        if "cpu" in folder and limits.weight is not None:
            # The kernel divides a group's shares among the processors. Each process or autogroup beside it has 1024 on one processor alone.
            _write(folder["cpu"] / "cpu.shares", max(2, int(limits.weight * 1024 * len(os.sched_getaffinity(0)))))

    def used(self, folders: Sequence[Path]) -> int:
        """Return how many bytes a group's processes and files use now (memory.usage_in_bytes), or 0 if the group is gone."""
        return int(_read(folders[self._controllers.index("memory")] / "memory.usage_in_bytes") or 0)

    def kill_count_file(self, folders: Sequence[Path]) -> str:
        """Return the path of the group's memory.oom_control, which counts processes that the kernel killed for lack of memory."""
        return str(folders[self._controllers.index("memory")] / "memory.oom_control")

    def freezer_folder(self, folders: Sequence[Path]) -> Path | None:
        """Return the group's folder of version 2, below which processes can be frozen, or None if this host cannot freeze processes."""
        return _if_freezable(folders[self._controllers.index(_FREEZER)]) if _FREEZER in self._controllers else None


class CgroupV2:
    """Finds, limits and measures control groups of version 2, where a group is one folder for all controllers. See `CgroupVersion`."""

    name = "cgroup v2"
    not_counted = ""

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    @classmethod
    def find(cls, controllers: frozenset[str] = frozenset({"memory", "pids"})) -> "CgroupV2 | None":
        """Find a group below which this process can make groups with limits. Return an instance that uses it, or None if there is none.

        The search begins with this process's own group and goes up to the groups above it. It ends at the first group that this process may
        write to and that enables `controllers` for the groups below it.
        """
        # A group with processes of its own cannot have limited children ("no internal processes" in cgroups(7)). So this process's own
        # group is usually of no use.
        mounts = [Path(mount[1]) for mount in _mounts("cgroup2")]
        own = dict(_own_groups()).get("")
        if not mounts or own is None:
            return None
        group = mounts[0] / own.lstrip("/")
        while group != mounts[0].parent:
            handed_down = _read(group / "cgroup.subtree_control").split()
            if controllers <= set(handed_down) and all(os.access(group / name, os.W_OK) for name in ("", "cgroup.procs")):
                return cls(group)
            group = group.parent
        return None

    def group_folders(self, name: str) -> list[Path]:
        """Return a list with the one folder of the group `name`."""
        return [self._parent / name]

    def enable_controllers(self, folders: Sequence[Path]) -> None:
        """Enable the controllers memory, pids and, if available, cpu in a group, so that the groups below it can have limits."""
        (folder,) = folders
        cpu = " +cpu" if "cpu" in _read(folder / "cgroup.controllers").split() else ""
        _write(folder / "cgroup.subtree_control", f"+memory +pids{cpu}")

    def has_cpu(self, folders: Sequence[Path]) -> bool:
        """Return whether a group can limit processor time. The group above it must enable the cpu controller for that."""
        return (folders[0] / "cpu.max").exists()

    def limit(self, folders: Sequence[Path], limits: GroupLimits) -> None:
        """Write the limits of a group.

        If `limits.kills_all` is set, the kernel kills all processes of the group when it exceeds its memory limit (memory.oom.group).
        """
        (folder,) = folders
        if limits.memory is not None:
            _write(folder / "memory.max", limits.memory)
            # Not in the group of all sessions: there, one session over the common limit would end all the others (cgroup-v2.rst).
            for name, value in (("memory.swap.max", 0), ("memory.oom.group", int(limits.kills_all))):
                with contextlib.suppress(OSError):  # not every kernel has both files
                    _write(folder / name, value)
        if limits.processes is not None:
            _write(folder / "pids.max", limits.processes)
        if self.has_cpu(folders) and limits.cpu is not None:
            _write(folder / "cpu.max", f"{int(limits.cpu * _PERIOD)} {_PERIOD}")
        if self.has_cpu(folders) and limits.weight is not None:
            _write(folder / "cpu.weight", max(1, int(limits.weight * 100)))

    def used(self, folders: Sequence[Path]) -> int:
        """Return how many bytes a group's processes and files use now (memory.current), or 0 if the group is gone."""
        return int(_read(folders[0] / "memory.current") or 0)

    def kill_count_file(self, folders: Sequence[Path]) -> str:
        """Return the path of the group's memory.events, which counts processes that the kernel killed for lack of memory."""
        return str(folders[0] / "memory.events")

    def freezer_folder(self, folders: Sequence[Path]) -> Path | None:
        """Return the group's folder, below which processes can be frozen, or None if the kernel is older than 5.2."""
        return _if_freezable(folders[0])


class SessionGroup:
    """The control group of one session. It implements `MemoryLimit`."""

    def __init__(
        self, version: CgroupVersion, folders: Sequence[Path], memory: int, nice: int, pending_removals: "PendingRemovals"
    ) -> None:
        """Take over the folders of a group whose limits are written already. `memory` is the group's memory limit in bytes.

        `nice` is the nice value of interpreters. It is used only if the group cannot limit processor time. `pending_removals` removes the
        group later, if it still has processes when `remove` is called.
        """
        self._pending_removals = pending_removals
        self.how = (
            f"{memory >> 20} MB of its processes, sockets and files together, those of its branches and checkpoints included, counted by "
            f"{version.name}{version.not_counted}"
        )
        self.is_charged = True  # the kernel charges the group for what its processes allocate
        self.lists_sockets = False  # not needed: the kernel counts the buffers of sockets
        self.limits_cpu = version.has_cpu(folders)
        self.nice = None if self.limits_cpu else nice
        self._limit = memory
        self._version = version
        self._folders = folders
        self._freezer_folder = version.freezer_folder(folders)
        self._kill_count_file = version.kill_count_file(folders)  # the file that counts kills
        self.freezes = self._freezer_folder is not None
        self._numbers = itertools.count(1)
        self._kills = self._kills_before = 0
        self._since = 0.0

    async def add_first_process(self, init: int) -> Path | None:
        """Put a session's first process (pid `init`) into the group before it forks, so that all its descendants are in the group too.

        If this host can freeze groups, put these processes into a new group below this one, and return that new group, so that they can be
        frozen. Otherwise return None.
        """
        self._kills = self._kills_before = self._count_kills()
        return await to_thread.run_sync(self._add, init)

    async def start(self, init: int, kill: Callable[[], None], sockets: int | None = None) -> None:
        """Do nothing. The kernel counts the memory of a group, and kills processes at the limit."""

    def set_cell_running(self, running: bool) -> None:
        """Record, when a cell begins or ends, how many processes the kernel has killed so far.

        `was_exceeded` then reports only later kills.
        """
        self._kills_before, self._kills, self._since = self._kills, self._count_kills(), time.monotonic()

    def used(self) -> int:
        """Return how many bytes the session uses now, or 0 if the group is gone."""
        return self._version.used(self._folders)

    def free_file_bytes(self) -> int:
        """Return how many more bytes the session's files may take."""
        # The kernel charges its own memory for files to the group as well. Without this share, it would kill the session for the last file.
        return self._limit - self._limit // _KERNELS_SHARE - self.used()

    def was_exceeded(self) -> bool:
        """Return whether the kernel has killed a process for lack of memory since the latest cell began or ended."""
        # A death is reported a moment after the kill. So a kill that was counted right before the cell began or ended may be this one.
        before = self._kills if time.monotonic() - self._since > _REPORT_SECONDS else self._kills_before
        return self._count_kills() > before

    def stop_without_waiting(self, init: int) -> None:
        """Do nothing. The kernel itself stops counting processes that have ended."""

    async def stop(self, init: int) -> None:
        """Do nothing. The kernel itself stops counting processes that have ended."""

    def remove(self) -> None:
        """Remove the group. If it still has processes, because they are just ending, retry in the background."""
        self._pending_removals.remove(self._folders)

    def _count_kills(self) -> int:
        # The file is read twice for each cell. Keeping it open would save 6 µs each time, and take a descriptor of each session.
        try:
            return kills_in(_read_kill_counts(self._kill_count_file))
        except OSError as error:
            if not is_shortage(error):
                return 0  # another program has removed the group
        with contextlib.suppress(OSError):
            return kills_in(with_reserve(lambda: _read_kill_counts(self._kill_count_file)))
        return 0

    def _add(self, pid: int) -> Path | None:
        own = self._freezer_folder / f"first-{next(self._numbers)}" if self._freezer_folder is not None else None
        if own is not None:
            own.mkdir()
        for folder in self._folders:
            _write((own if own is not None and folder == self._freezer_folder else folder) / "cgroup.procs", pid)
        return own


class PendingRemovals:
    """Control groups that could not be removed yet, because they still have processes.

    If this process ends before they are removed, its `CleanupShell` removes them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[Path, int] = {}  # how many tries are left

    def remove(self, folders: Sequence[Path]) -> None:
        """Remove the groups with these folders. If some still have processes, retry those in a thread, every 0.2 s for at most 10 s."""
        self._try_later({folder: _REMOVALS for folder in folders if not _remove_group(folder)})

    def _try_later(self, left: dict[Path, int]) -> None:
        with self._lock:
            is_first = bool(left) and not self._left
            self._left |= left
        if is_first:
            # One thread for all groups: with one for each, 1,000 sessions that ended together took 30 s.
            again = threading.Timer(_REMOVAL_SECONDS, self._try_again)
            again.daemon = True
            again.start()

    def _try_again(self) -> None:
        with self._lock:
            left, self._left = self._left, {}
        self._try_later({folder: tries - 1 for folder, tries in left.items() if tries > 1 and not _remove_group(folder)})


class Groups:
    """The control group that all sessions of this process share. The group of each session is made below it."""

    _shared: ClassVar[dict[tuple[int, Together], "Groups"]] = {}
    _sharing = threading.Lock()

    def __init__(self, version: CgroupVersion, together: Together) -> None:
        """Make the control group of all sessions, and write the limits in `together`.

        Start a `CleanupShell`, which removes the group when this process ends, even if it is killed.
        """
        self.version = version
        self._nice = together.nice
        self._users = 0
        self._numbers = itertools.count(1)
        self._pending_removals = PendingRemovals()
        self._folders = version.group_folders(f"aca-sessions-{secrets.token_hex(8)}")
        with contextlib.ExitStack() as on_failure:
            for top in self._folders:
                top.mkdir()
                on_failure.callback(top.rmdir)
            version.enable_controllers(self._folders)
            memory = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * together.memory_share)
            version.limit(self._folders, GroupLimits(memory=memory, processes=together.processes, weight=together.cpu_weight))
            self._cleanup_shell = CleanupShell(_CLEANUP_SCRIPT, *map(str, self._folders))
            on_failure.pop_all()

    @classmethod
    def shared(cls, together: Together) -> "Groups | None":
        """Return this process's control group with the limits in `together`, or None if this process cannot make control groups.

        Make the group if it does not exist yet. The caller must call `release` once for each call of `shared`.
        """
        # The process is part of the key: a forked one gets a group of its own.
        key = (os.getpid(), together)
        with cls._sharing:
            groups = cls._shared.get(key)
            if groups is None:
                groups = cls._make(together)
                if groups is None:
                    return None
                cls._shared[key] = groups
            groups._users += 1
            return groups

    @classmethod
    def _make(cls, together: Together) -> "Groups | None":
        version = CgroupV2.find() or CgroupV1.find()
        if version is None:
            return None
        try:
            return cls(version, together)
        except OSError as error:
            if is_shortage(error):
                raise  # without the group, memory would be counted less exactly, and no caller has chosen that
            _logger.info("cannot use control groups here: %s", error.strerror)
            return None

    def make(self, limits: Limits) -> SessionGroup:
        """Make the group of one session, and write its limits. Its processes and its files share one memory limit."""
        name = str(next(self._numbers))
        folders = [top / name for top in self._folders]
        memory = limits.memory + limits.family + 2 * limits.temporary
        with contextlib.ExitStack() as on_failure:
            for folder in folders:
                folder.mkdir()
                on_failure.callback(folder.rmdir)
            # One process more than the limit: the session's first process counts as well.
            self.version.limit(folders, GroupLimits(memory=memory, processes=limits.processes + 1, cpu=limits.cpu, kills_all=True))
            on_failure.pop_all()
        return SessionGroup(self.version, folders, memory, self._nice, self._pending_removals)

    def release(self) -> None:
        """Record that one caller of `shared` no longer uses this group. If it was the last caller, remove the group."""
        with self._sharing:
            self._users -= 1
            if self._users:
                return
            for key in [key for key, groups in self._shared.items() if groups is self]:
                del self._shared[key]
        self._cleanup_shell.finish()  # it retries while the last processes are reaped


def _mounts(kind: str) -> list[list[str]]:
    with open("/proc/self/mounts") as lines:
        return [fields for line in lines if (fields := line.split())[2] == kind]


def _own_groups() -> list[tuple[str, str]]:
    """Return the control groups that this process is in, as pairs of controller and path. For version 2 the controller is ""."""
    with open("/proc/self/cgroup") as lines:
        rows = [line.rstrip("\n").split(":", 2) for line in lines]
    return [(controller, path) for _, controllers, path in rows for controller in controllers.split(",")]


def _if_freezable(folder: Path) -> Path | None:
    return folder if (folder / "cgroup.freeze").exists() else None


def _remove_group(folder: Path) -> bool:
    """Remove a group and the groups below it, except those that have processes. Return whether the group is gone."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    return not folder.exists()


def _read(path: Path) -> str:
    try:
        return with_reserve(path.read_text)
    except OSError:
        return ""


def _write(path: Path, value: object) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _read_kill_counts(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 12).decode()
    finally:
        os.close(descriptor)


def kills_in(events: str) -> int:
    """Return how many processes of a group the kernel has killed for lack of memory.

    `events` is the text of the group's memory.events (version 2) or memory.oom_control (version 1).
    """
    count = events.partition("oom_kill ")[2].partition("\n")[0]
    return int(count or 0)


_CLEANUP_SECONDS = 10.0


class CleanupShell:
    """A shell that runs a clean-up script once this process calls `finish` or ends, even if it is killed.

    A shell is used because it is small and starts at once.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        """Start the shell. In `script`, the `arguments` are `$1` and so on.

        The script must begin with `read _`, which blocks until `finish` is called or this process ends.
        """
        # A socket and not a pipe: a process that was forked from this one has the end open as well, so the shell would not notice a close.
        # `finish` shuts the socket down, which no copy prevents.
        self._link, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", script, "aca-sessions-janitor", *arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            self._link.close()
            raise
        finally:
            theirs.close()

    def finish(self) -> None:
        """Make the shell clean up now, and wait until the shell has ended. Kill it if that takes longer than 10 s."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
        try:
            self._process.wait(_CLEANUP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
