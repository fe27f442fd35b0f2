"""Files of this machine, below a folder that the caller named and never outside it."""

from pathlib import Path

from ..client.host_files import replacing
from ..errors import InvalidArgumentError


def read_below(folder: Path, name: str) -> bytes:
    """Return the content of a file below a folder. Raise InvalidArgumentError if it cannot be read or lies outside."""
    path = _below(folder, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{path.name} cannot be read ({error.strerror})") from None


def write_below(folder: Path, name: str, data: bytes) -> Path:
    """Write a file below a folder, which is created with its parents, and return its path.

    An existing file is replaced whole or not at all.
    """
    path = _below(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise InvalidArgumentError(f"{path.name} cannot be written ({error.strerror})") from None
    return path


def _below(folder: Path, name: str) -> Path:
    """Return the path with every link resolved: a link can lead out of the folder, as '..' can. Raise InvalidArgumentError if it does."""
    base = folder.resolve()
    path = (base / name).resolve()
    if not name or path == base or not path.is_relative_to(base):
        raise InvalidArgumentError("the name leads out of the folder: name a file below it")
    return path
