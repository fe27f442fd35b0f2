"""Checks of paths that clients send: they must lie below /mnt/data."""

from ...client.arguments import checked_path
from ...errors import InvalidArgumentError

ROOT = "/mnt/data"


def checked(path: str) -> str:
    """Return a file's path relative to /mnt/data. Raise InvalidArgumentError if it leads out of it or names nothing.

    Such a path is refused here and not at the endpoint.
    """
    inside = path.removeprefix(f"{ROOT}/")
    if inside.startswith("/") or any(part in ("", ".", "..") for part in inside.split("/")):
        raise InvalidArgumentError("a path must be relative to /mnt/data, such as 'folder/data.csv', and must stay in it")
    checked_path(inside)
    return inside


def checked_folder(path: str) -> str:
    """Return a folder's path relative to /mnt/data; '' is /mnt/data itself. Raise InvalidArgumentError as `checked` does."""
    inside = path.strip().rstrip("/")
    return checked(inside) if inside not in ("", ".", ROOT) else ""
