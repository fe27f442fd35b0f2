"""Container images as roots for guests: a root folder, the tar of one, or an image of podman or docker. They are unpacked once and kept."""

import contextlib
import fcntl
import hashlib
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
from pathlib import Path

from ..errors import ConfigurationError
from .policy import user_folder
from .unpacking import UnpackingError, unpack

_logger = logging.getLogger("aca_sessions")
_KEY = "ACASessions:ContainerImage"
_ENGINES = ("podman", "docker")
_NAME = re.compile(r"[A-Za-z0-9][\w.:/@-]{0,254}", re.ASCII)
_ASK_SECONDS, _EXPORT_SECONDS = 30, 900  # the second limits a pull as well
_UNPACKING = ".unpacking-"  # begins the names of folders that are being filled
_WORD = "true"  # the command of a container that is made to be exported, and never started


def root_of(image: str) -> str:
    """Return the folder of an image's root file system. The first time it may have to be pulled and unpacked.

    Raise ConfigurationError if the image cannot be found, pulled or unpacked.

    Args:
        image: The path of a root folder, the path of its tar, or the name of an image of podman or docker.
    """
    path = os.path.expanduser(image)
    if os.path.isdir(path):
        return _apart(os.path.realpath(path))
    if os.path.isfile(path):
        return kept(_identity(path), lambda folder: _unpack_file(path, folder))
    if image.startswith(("/", ".", "~")) or not _NAME.fullmatch(image):
        raise ConfigurationError(f"{_KEY}: no folder, file or image can be called so: name a root folder, the tar of one, or an image")
    engine, digest = _known(image)
    return kept(digest, lambda folder: _export(engine, digest, folder))


def _apart(folder: str) -> str:
    """Return the folder. Raise ConfigurationError for this host's own root, which would show all of the host."""
    if folder == "/":
        raise ConfigurationError(f"{_KEY}: this host's own root is no image: name another folder")
    return folder


def _identity(path: str) -> str:
    """Return a key for a file in its current state, by its place, size and time."""
    # Not by its content: reading all of it would take longer than starting sessions.
    found = os.stat(path)
    told = (os.path.realpath(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def kept(key: str, fill: Callable[[str], None]) -> str:
    """Return the folder for a key. The first caller fills it, and others wait. No caller sees a folder that is partly filled.

    Args:
        key: Names the folder in the cache.
        fill: Called with an empty folder. An UnpackingError or OSError becomes a ConfigurationError.
    """
    images = _folder()
    root = images / key
    _remove_leftovers(images)
    with _alone(images / f"{key}.lock"):
        if not root.is_dir():
            place = tempfile.mkdtemp(prefix=f"{_UNPACKING}{key}-", dir=images)
            try:
                fill(place)
                os.chmod(place, 0o755)  # noqa: S103 (sessions' users see what is in it)
                os.rename(place, root)
            except UnpackingError as error:
                raise ConfigurationError(f"{_KEY}: its root cannot be unpacked: {error}") from None
            except OSError as error:
                raise ConfigurationError(f"{_KEY}: its root cannot be kept in {images}: {error.strerror}") from None
            finally:
                _remove(place)
    return str(root)


def _folder() -> Path:
    caches = user_folder("XDG_CACHE_HOME", ".cache")
    if caches is None:
        raise ConfigurationError(f"{_KEY}: its root cannot be kept: this user has no home folder: set HOME or XDG_CACHE_HOME")
    folder = Path(caches, "aca-sessions", "images")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{_KEY}: its root cannot be kept in {folder}: {error.strerror}") from None
    return folder


@contextlib.contextmanager
def _alone(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file for the block, against other processes as well. Without `wait`, raise BlockingIOError if it is held."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_leftovers(images: Path) -> None:
    """Remove the folders of processes that were killed while they unpacked. Those that unpack now hold the lock of their key."""
    for place in images.glob(f"{_UNPACKING}*"):
        key = place.name.removeprefix(_UNPACKING).rpartition("-")[0]
        with contextlib.suppress(BlockingIOError), _alone(images / f"{key}.lock", wait=False):
            _remove(str(place))


def _remove(folder: str) -> None:
    if os.path.isdir(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _unpack_file(path: str, folder: str) -> None:
    with open(path, "rb") as archive:
        unpack(archive, folder)


def _known(image: str) -> tuple[str, str]:
    """Return the first engine that has an image, and the image's digest. If none has the image, the first engine pulls it."""
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
    raise ConfigurationError(f"{_KEY}: {engines[0]} pulled {image} and does not find it: try {engines[0]} image inspect {image}")


def _digest_of(engine: str, image: str) -> str | None:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return _digest(json.loads(_ask(engine, "image", "inspect", image))[0]["Id"])
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
        f"{_KEY}: {engine} of this user has no image {image} and cannot pull it ({why.strip()[:400]}). "
        f"Run `{engine} pull {image}` where its registry can be reached, or name a root folder or the tar of one"
    )


def _digest(told: object) -> str:
    found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})", str(told))
    if found is None:
        raise ValueError("no digest")
    return found[1]


def _export(engine: str, digest: str, folder: str) -> None:
    container = _ask(engine, "create", "--network=none", digest, _WORD).strip()
    if not re.fullmatch(r"[0-9a-f]{12,64}", container):
        raise UnpackingError(f"{engine} makes no container of it")
    try:
        command = [engine, "export", container]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            _take(process, folder)
    finally:
        _ask(engine, "rm", "--force", container)


def _take(process: "subprocess.Popen[bytes]", folder: str) -> None:
    stream = process.stdout
    if stream is None:
        raise UnpackingError("nothing was exported")
    deadline = time.monotonic() + _EXPORT_SECONDS
    limit = threading.Timer(_EXPORT_SECONDS, process.kill)  # a read of the stream has no time limit, but ends with the engine
    limit.start()
    try:
        unpack(stream, folder)
        while stream.read(1 << 20):  # the rest behind the end mark of the tar, or the engine could not finish
            pass
        if process.wait():
            raise UnpackingError(f"its export ended with status {process.returncode}")
    except UnpackingError:
        if time.monotonic() < deadline:
            raise
        raise UnpackingError(f"its export took longer than {_EXPORT_SECONDS} s") from None
    finally:
        limit.cancel()
        process.kill()


def _ask(engine: str, *arguments: str) -> str:
    """Run an engine. Return its standard output, or "" if it fails."""
    try:
        done = subprocess.run(
            [engine, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
