"""Files of this machine, below a folder that the caller named and never outside it."""

from pathlib import Path

from ..client.host_files import replacing
from ..errors import InvalidArgumentError


def read_below(folder: Path, name: str) -> bytes:
    """The content of a file below a folder."""
    path = _below(folder, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{path.name} cannot be read ({error.strerror})") from None


def write_below(folder: Path, name: str, data: bytes) -> Path:
    """Write a file below a folder, which is made with its parents, and return its path. What is there is replaced whole or not at all."""
    path = _below(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise InvalidArgumentError(f"{path.name} cannot be written ({error.strerror})") from None
    return path


def _below(folder: Path, name: str) -> Path:
    """The path, with every link in it followed: a link that leads out does so as much as '..' does."""
    base = folder.resolve()
    path = (base / name).resolve()
    if not name or path == base or not path.is_relative_to(base):
        raise InvalidArgumentError("the name leads out of the folder: name a file below it")
    return path
