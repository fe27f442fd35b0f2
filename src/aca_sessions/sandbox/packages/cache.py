"""Cache unpacked wheels on this host for all its sessions. All calls block the calling thread.

The cache keeps wheels in package sets. A package set is a folder with the unpacked wheels that one install needed. It is named after its
content and never changed. A session locks the package sets that it uses, and a locked one is never removed. The cache's folder contains:

sets/NAME        one package set; `sets` can be entered but not listed, and names cannot be guessed
labels/NAME      its wheels and size; its mtime is the last use; a shared lock on this file means that the package set is in use
answers/KEY      the name of the package set that some requirements were resolved to; its mtime is the time when they were resolved
notes/KEY        other cached text, such as a survey of an environment
work/            folders in which wheels are being unpacked
key              the secret that all names are derived from
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from ..policy import PackageSource
from .requirements import PackageError, Wheel

MOUNT_POINT = "/.packages"
_ABANDONED_SECONDS = 86_400.0  # after this time without a change, a folder in work/ is removed: its process has died
_NAME_BYTES = 20


@dataclass(frozen=True, slots=True)
class LockedPackageSet:
    """A package set (one folder of unpacked wheels) that a session uses. The cache does not remove it until `release` is called."""

    name: str
    path: str  # where sessions find it
    wheels: tuple[Wheel, ...]
    lock: int

    def release(self) -> None:
        """Unlock the package set, so that the cache may remove it to make room."""
        os.close(self.lock)


class PackageCache:
    """The cache of unpacked wheels in one folder of this host. Any number of processes may use it at the same time."""

    def __init__(self, folder: str, size: int, *, mount_point: str | None = MOUNT_POINT) -> None:
        """Open the cache, and create its folder if it is missing.

        Raise PackageError if the folder cannot be used, or if the path is "" (the user has no home).

        Args:
            folder: The path of the cache.
            size: How many bytes all package sets may have together. If they have more, the least recently used ones are removed.
            mount_point: The path at which sessions see all package sets, or None if they use the path on this host.
        """
        if not folder:
            advice = "set HOME or XDG_CACHE_HOME, or name a folder in ACASessions:Packages:CacheFolder"
            raise PackageError("PackageCacheError", f"cannot keep packages, because this user has no home folder: {advice}")
        self._root = Path(folder)
        self._mount_point = mount_point or self.sets_folder
        self._size = size
        try:
            self._secret = self._prepare()
        except OSError as error:
            reason = f"cannot keep packages in their folder on this host ({error.strerror})"
            raise PackageError("PackageCacheError", f"{reason}: name another in ACASessions:Packages:CacheFolder") from error

    @property
    def sets_folder(self) -> str:
        """Return the path on this host of the folder that contains all package sets."""
        return str(self._root / "sets")

    def derive_name(self, *parts: str) -> str:
        """Return a name or key for the cache: a hash of `parts` and the cache's secret, so that sessions cannot guess it."""
        return hashlib.blake2b(json.dumps(parts).encode(), key=self._secret, digest_size=_NAME_BYTES).hexdigest()

    def lock_set(self, name: str) -> LockedPackageSet | None:
        """Lock and return the package set `name`, which then stays in the cache until `release` is called. Return None if it is missing."""
        lock = self._lock(name, fcntl.LOCK_SH)
        if lock is None:
            return None
        if not (self._root / "sets" / name).is_dir():
            os.close(lock)
            return None
        os.utime(lock)
        return LockedPackageSet(name, f"{self._mount_point}/{name}", _wheels(json.loads(os.pread(lock, 1 << 24, 0))["wheels"]), lock)

    def add_set(self, name: str, wheels: Sequence[Wheel], unpacked: Path) -> None:
        """Move the folder `unpacked` into the cache as the package set `name`, unless the cache already has one of that name.

        If the cache is too large afterwards, remove other package sets: the least recently used first, and never one in use.
        """
        label = {"size": _size(unpacked), "wheels": [[wheel.name, wheel.version, wheel.sha256] for wheel in wheels]}
        # Never replaced: locks that are held would be on another file. And locked: if another process made room before the set is there,
        # the set would have no label, and would never be removed.
        while (lock := self._lock(name, fcntl.LOCK_SH)) is None:
            self._create(self._root / "labels" / name, json.dumps(label))
        with contextlib.suppress(OSError):  # another process was first
            os.rename(unpacked, self._root / "sets" / name)
        os.close(lock)
        self._make_room(spare=name)

    def find_resolved(self, key: str, *, within: float) -> LockedPackageSet | None:
        """Lock and return the package set that meets some requirements, if `record_resolved` recorded it under `key`.

        Return None if nothing was recorded in the last `within` seconds, or if the package set was removed since.
        """
        path = self._root / "answers" / key
        try:
            if time.time() - path.stat().st_mtime > within:
                return None
            return self.lock_set(path.read_text())
        except FileNotFoundError:
            return None

    def record_resolved(self, key: str, name: str) -> None:
        """Record that the package set `name` meets some requirements. `find_resolved` returns it for the same `key`."""
        self._replace(self._root / "answers" / key, name)

    def store_text(self, key: str, text: str) -> None:
        """Store a text in the cache. `load_text` returns it for the same `key`, in later processes too."""
        self._replace(self._root / "notes" / key, text)

    def load_text(self, key: str) -> str | None:
        """Return the text that `store_text` stored under `key`, or None if there is none."""
        try:
            return (self._root / "notes" / key).read_text()
        except FileNotFoundError:
            return None

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """Make a temporary folder for a `with` block, from which files can be moved or linked into the cache. Remove it afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self._root / "work"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def copy_without(self, package_set: LockedPackageSet, names: set[str], parent: Path) -> Path:
        """Copy a package set without some of its packages, by hard links, and return the copy's folder.

        Args:
            package_set: The package set.
            names: The canonical names of the packages to leave out.
            parent: The folder in which to make the copy, from `work_folder`.
        """
        source, target = self._root / "sets" / package_set.name, parent / "unpacked"
        gone = {file for name in names for file in _files_of(source, name)}

        def is_gone(folder: str, entries: list[str]) -> set[str]:
            return {entry for entry in entries if os.path.relpath(os.path.join(folder, entry), source) in gone}

        shutil.copytree(source, target, ignore=is_gone, copy_function=_link, symlinks=True)
        _remove_empty_folders(target)
        return target

    def list_metadata(self, package_set: LockedPackageSet) -> list[Path]:
        """Return the sorted paths of the METADATA files in a package set. They contain each package's name, version and requirements."""
        return sorted((self._root / "sets" / package_set.name).glob("*.dist-info/METADATA"))

    def list_modules(self, package_set: LockedPackageSet, name: str) -> list[str]:
        """Return the sorted names of the top-level modules of one package, `name`, in a package set."""
        tops = {file.split("/")[0].partition(".")[0] for file in _files_of(self._root / "sets" / package_set.name, name)}
        return sorted(top for top in tops if top.isidentifier() and top != "bin")

    def _prepare(self) -> bytes:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
        if (about := self._root.stat()).st_uid != os.geteuid() or about.st_mode & 0o022:
            raise PermissionError(
                errno.EPERM, "it must belong to this user alone, but other users may write there"
            )  # they could decide what sessions import
        for name in ("labels", "answers", "notes", "work"):
            (self._root / name).mkdir(exist_ok=True, mode=0o700)
        sets = self._root / "sets"
        sets.mkdir(exist_ok=True)
        sets.chmod(0o311)  # sessions enter it, as another user or as this one, but cannot list it
        key = self._root / "key"
        if not key.exists():
            self._create(key, secrets.token_hex(32))
        return key.read_bytes()

    def _create(self, path: Path, text: str) -> None:
        """Create a file atomically: other processes see it only with its content. If the file already exists, leave it unchanged."""
        with self.work_folder() as place, contextlib.suppress(FileExistsError):
            (place / "new").write_text(text)
            (place / "new").chmod(0o600)
            os.link(place / "new", path)

    def _replace(self, path: Path, text: str) -> None:
        with self.work_folder() as place:
            (place / "new").write_text(text)
            os.replace(place / "new", path)

    def _lock(self, name: str, operation: int) -> int | None:
        """Lock the label file of the package set `name` with flock(2), and return its descriptor.

        `operation` is LOCK_SH or LOCK_EX, alone or with LOCK_NB. Return None if there is no such file, or if `operation` has LOCK_NB and
        another descriptor has the lock.
        """
        try:
            lock = os.open(self._root / "labels" / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, operation)
            if os.fstat(lock).st_nlink:  # else `_remove_set` had the lock before
                return lock
        os.close(lock)
        return None

    def _make_room(self, spare: str) -> None:
        labels = sorted((self._root / "labels").iterdir(), key=_last_used)
        total = sum(map(_labelled_size, labels))
        for label in labels:
            if total > self._size and label.name != spare:
                total -= self._remove_set(label)
        for answer in (self._root / "answers").iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was first
                if not (self._root / "labels" / answer.read_text()).exists():
                    answer.unlink()
        for left in (self._root / "work").iterdir():
            if time.time() - _last_used(left) > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

    def _remove_set(self, label: Path) -> int:
        """Remove the package set that a label file describes, and return how many bytes that freed.

        Return 0 if it is in use or was removed already.
        """
        size = _labelled_size(label)
        lock = self._lock(label.name, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return 0
        with self.work_folder() as place:
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._root / "sets" / label.name, place / "removed")
            label.unlink(missing_ok=True)  # last: `lock_set`, which may wait for the lock, sees by it that the set is gone
            os.close(lock)
        return size


def _files_of(folder: Path, name: str) -> set[str]:
    """Return the paths of a package's files, as its RECORD lists them. `folder` is a package set.

    The RECORD may be false: use the paths only to omit files from a copy or to name modules.
    """
    found: set[str] = set()
    for about in folder.glob("*.dist-info"):
        if canonicalize_name(about.name.partition("-")[0]) == name:
            found |= {f"{about.name}/{entry.name}" for entry in about.iterdir()} | {about.name}
            with contextlib.suppress(FileNotFoundError):
                found |= {_make_relative(line.rsplit(",", 2)[0]) for line in (about / "RECORD").read_text().splitlines()}
    return found


def _make_relative(recorded: str) -> str:
    """Convert a path in a RECORD to a path in a package set: a script, which a RECORD lists as ../../bin/name, is at bin/name."""
    return recorded.strip('"').removeprefix("../../")


def _remove_empty_folders(folder: Path) -> None:
    """Remove the empty folders below a folder, because they could still be imported as namespace packages."""
    for place, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(place)
    folder.mkdir(exist_ok=True)


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def _wheels(rows: Sequence[Sequence[str]]) -> tuple[Wheel, ...]:
    return tuple(Wheel(*one) for one in rows)


def _last_used(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _labelled_size(label: Path) -> int:
    try:
        return int(json.loads(label.read_text())["size"])
    except (OSError, ValueError, KeyError):
        return 0


def _size(folder: Path) -> int:
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def make_mount(source: PackageSource) -> dict[str, str]:
    """Return the mount that shows all package sets to sessions: a dict from the path in a session to the folder on this host.

    Return an empty dict if this host cannot keep packages. Installing a package then fails with the reason.
    """
    try:
        return {MOUNT_POINT: PackageCache(source.folder, source.cache_size).sets_folder}
    except PackageError:
        return {}
