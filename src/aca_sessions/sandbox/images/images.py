"""Find or make the folder that sessions use as their root file system, from one of three sources.

A source is a folder, the tar of a folder, or an image of podman or docker. Tars and images are unpacked once and kept. For images without
IPython, a copy of this host's IPython is kept as well.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from ...errors import ConfigurationError
from ..policy import user_folder
from ..wire import SUPPLY, SUPPLY_NEEDS
from .unpacking import UnpackingError, unpack

_logger = logging.getLogger("aca_sessions")
_KEY = "ACASessions:ContainerImage"
_ENGINES = ("podman", "docker")
_NAME = re.compile(r"[A-Za-z0-9][\w.:/@-]{0,254}", re.ASCII)
_ASK_SECONDS, _EXPORT_SECONDS = 30, 900  # the second limits a pull as well
_BY_HAND = "export a container of it yourself (podman export or docker export), and name the tar"
_UNPACKING = ".unpacking-"  # begins the names of folders that are being filled
_ELSEWHERE = "Free some disk there, or set XDG_CACHE_HOME to a folder that this user may write"
_WORD = "true"  # the command of a container that is made to be exported, and never started


def root_of(image: str) -> str:
    """Return the folder with an image's root file system. Pull and unpack the image first if that was not done yet.

    `image` is the path of such a folder or of its tar, or the name of an image of podman or docker. Raise ConfigurationError if it cannot
    be found, pulled or unpacked.
    """
    path = os.path.expanduser(image)
    if os.path.isdir(path):
        return _check_not_root(os.path.realpath(path))
    if os.path.isfile(path):
        return cached_folder(_identity(path), lambda folder: _unpack_file(path, folder))
    if image.startswith(("/", ".", "~")) or not _NAME.fullmatch(image):
        raise ConfigurationError(f"{_KEY}: expected the path of a root folder or of its tar, or the name of an image, got {image!r}")
    engine, digest = _find_or_pull(image)
    return cached_folder(digest, lambda folder: _export(engine, digest, folder))


def _check_not_root(folder: str) -> str:
    """Check that the folder of an image is not /, and return it. Raise ConfigurationError if it is.

    With / as their root, sessions would see all of this host.
    """
    if folder == "/":
        raise ConfigurationError(f"{_KEY}: expected the folder of an image, got {folder}, which is this host's own root: name another one")
    return folder


def _identity(path: str) -> str:
    """Return a cache key for a file, which changes when the file does: a hash of its path, device, inode, size and modification time."""
    # Not by its content: reading all of it would take longer than starting sessions.
    found = os.stat(path)
    identity = (os.path.realpath(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def cached_folder(key: str, fill: Callable[[str], None]) -> str:
    """Return the folder that is cached under `key`. If there is none, make an empty one and call `fill` with its path to fill it.

    Other callers with the same key wait until it is filled. If `fill` raises UnpackingError or OSError, raise ConfigurationError.
    """
    images = _folder()
    root = images / key
    _remove_leftovers(images)
    with _locked(images / f"{key}.lock"):
        if not root.is_dir():
            place = tempfile.mkdtemp(prefix=f"{_UNPACKING}{key}-", dir=images)
            try:
                fill(place)
                os.chmod(place, 0o755)  # noqa: S103 (sessions' users see what is in it)
                os.rename(place, root)
            except UnpackingError as error:
                raise ConfigurationError(f"{_KEY}: cannot unpack the image: {error}") from error
            except OSError as error:
                raise ConfigurationError(f"{_KEY}: cannot keep the unpacked image in {images}: {error.strerror}. {_ELSEWHERE}") from error
            finally:
                _remove(place)
    return str(root)


def _folder() -> Path:
    caches = user_folder("XDG_CACHE_HOME", ".cache")
    if caches is None:
        raise ConfigurationError(
            f"{_KEY}: cannot keep the unpacked image, because this user has no home folder: set HOME or XDG_CACHE_HOME"
        )
    folder = Path(caches, "aca-sessions", "images")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{_KEY}: cannot keep the unpacked image in {folder}: {error.strerror}. {_ELSEWHERE}") from error
    return folder


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file inside the `with` block. If `wait` is False and the lock is held, raise BlockingIOError."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_leftovers(images: Path) -> None:
    """Remove half-unpacked folders that killed processes left behind. Skip a folder if a live process holds its lock."""
    for place in images.glob(f"{_UNPACKING}*"):
        key = place.name.removeprefix(_UNPACKING).rpartition("-")[0]
        with contextlib.suppress(BlockingIOError), _locked(images / f"{key}.lock", wait=False):
            _remove(str(place))


def _remove(folder: str) -> None:
    if os.path.isdir(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _unpack_file(path: str, folder: str) -> None:
    try:
        archive = open(path, "rb")  # noqa: SIM115
    except OSError as error:  # `cached_folder` would say that the folder of images cannot be written
        raise ConfigurationError(f"{_KEY}: cannot read {path}: {error.strerror}") from error
    with archive:
        unpack(archive, folder)


def _find_or_pull(image: str) -> tuple[str, str]:
    """Find podman or docker, whichever has the image. If neither has it, pull it. Return the engine's name and the image's digest."""
    engines = [engine for engine in _ENGINES if shutil.which(engine)]
    if not engines:
        raise ConfigurationError(
            f"{_KEY}: {image} needs podman or docker, and this host has neither: install one, name a root folder or the tar of one, "
            "or leave the key out for this host's own Python"
        )
    for engine in engines:
        if digest := _digest_of(engine, image):
            return engine, digest
    _pull(engines[0], image)
    if digest := _digest_of(engines[0], image):
        return engines[0], digest
    raise ConfigurationError(
        f"{_KEY}: {engines[0]} pulled {image} but does not find it: run `{engines[0]} image inspect {image}` to see why"
    )


def _digest_of(engine: str, image: str) -> str | None:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return _digest(json.loads(_run_engine(engine, "image", "inspect", image))[0]["Id"])
    return None


def _pull(engine: str, image: str) -> None:
    _logger.info("ACASessions:ContainerImage: %s pulls %s, once", engine, image)
    try:
        command = [engine, "pull", "--quiet", image]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_EXPORT_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        why = f"it took longer than {_EXPORT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        why = next((line for line in reversed(error.stderr.splitlines()) if line.strip()), f"it ended with status {error.returncode}")
    except OSError as error:
        why = str(error.strerror)
    else:
        return
    raise ConfigurationError(
        f"{_KEY}: {engine} of this user does not have the image {image} and cannot pull it ({why.strip()[:400]}). "
        f"Run `{engine} pull {image}` where its registry can be reached, or name a root folder or the tar of one"
    )


def _digest(text: object) -> str:
    found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})", str(text))
    if found is None:
        raise ValueError("no digest")
    return found[1]


def _export(engine: str, digest: str, folder: str) -> None:
    container = _run_engine(engine, "create", "--network=none", digest, _WORD).strip()
    if not re.fullmatch(r"[0-9a-f]{12,64}", container):
        raise UnpackingError(f"{engine} cannot create a container of it: run `{engine} create {digest[:12]} {_WORD}` to see why")
    try:
        command = [engine, "export", container]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            _unpack_export(process, folder)
    finally:
        _run_engine(engine, "rm", "--force", container)


def _unpack_export(process: "subprocess.Popen[bytes]", folder: str) -> None:
    stream = process.stdout
    if stream is None:
        raise UnpackingError("its export has no output: try again, or name its tar")
    deadline = time.monotonic() + _EXPORT_SECONDS
    limit = threading.Timer(_EXPORT_SECONDS, process.kill)  # a read of the stream has no time limit, but ends with the engine
    limit.start()
    try:
        unpack(stream, folder)
        while stream.read(1 << 20):  # the rest behind the end mark of the tar, or the engine could not finish
            pass
        if process.wait():
            raise UnpackingError(f"its export ended with status {process.returncode}: {_BY_HAND}")
    except UnpackingError as error:
        if time.monotonic() < deadline:
            raise
        raise UnpackingError(f"its export took longer than {_EXPORT_SECONDS} s: name a smaller image, or {_BY_HAND}") from error
    finally:
        limit.cancel()
        process.kill()


def _run_engine(engine: str, *arguments: str) -> str:
    """Run podman or docker. Return its output, or "" if it fails."""
    try:
        done = subprocess.run(
            [engine, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


_COPIED_PACKAGES = ("ipython", "matplotlib-inline", "cloudpickle")
_FOR_ANY_VERSION = ".abi3.so"  # the stable ABI: a newer Python than it was compiled for loads it as well


def ipython_mount(image: str | None) -> dict[str, str]:
    """Return the mount that shows a copy of this host's IPython to sessions of an image without IPython. Make the copy if necessary.

    The dict maps the path in a session to the folder on this host. It is empty if `image` is None, because no copy is needed then, or if
    this host cannot keep files.
    """
    try:
        return {SUPPLY: _supply_folder()} if image else {}
    except ConfigurationError:  # this host cannot keep files; an image with an IPython of its own does not need them
        return {}


def _supply_folder() -> str:
    found = sorted(_with_requirements(_COPIED_PACKAGES), key=lambda one: one.name)
    files = [(one.name, one.version, str(one.locate_file(""))) for one in found]
    return cached_folder(
        f"ipython-{hashlib.sha256(repr(files).encode()).hexdigest()[:32]}", lambda folder: _copy_packages(found, Path(folder))
    )


def _with_requirements(names: tuple[str, ...]) -> Iterator[Distribution]:
    """Yield this host's packages with the given names and, recursively, the packages that they require. Leave out extras.

    Ignore requirement markers: they would be evaluated for this host's Python, and the image has another.
    """
    seen, coming = set(names), list(names)
    while coming:
        try:
            found = importlib.metadata.distribution(coming.pop())
        except PackageNotFoundError:
            continue
        yield found
        for text in found.requires or ():
            try:
                one = Requirement(text)
            except InvalidRequirement:
                continue
            if one.name not in seen and "extra" not in str(one.marker or ""):
                seen.add(one.name)
                coming.append(one.name)


def _copy_packages(packages: list[Distribution], folder: Path) -> None:
    for package in packages:
        files = [Path(file) for file in package.files or ()]
        # What is compiled for this host's Python version alone is left out. So is the package's metadata then: it would claim that the
        # package is complete.
        left_out = {file for file in files if file.suffix == ".so" and not file.name.endswith(_FOR_ANY_VERSION)}
        for file in files:
            is_metadata = file.parts[0].endswith(".dist-info")
            source = Path(str(package.locate_file(file)))
            if ".." in file.parts or file.is_absolute() or file in left_out or (is_metadata and left_out) or not source.is_file():
                continue
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / file, follow_symlinks=True)
    (folder / SUPPLY_NEEDS).write_text(_oldest_python(packages))
    for path in folder.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


def _oldest_python(packages: list[Distribution]) -> str:
    """Return the oldest version of Python, from 3.9 on, that all packages allow, as `3.x`."""
    allowed = [SpecifierSet(str(package.metadata.json.get("requires_python") or "")) for package in packages]
    return next(f"3.{minor}" for minor in range(9, 100) if all(one.contains(f"3.{minor}.99") for one in allowed))
