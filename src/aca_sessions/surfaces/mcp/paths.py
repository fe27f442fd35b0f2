"""Paths as clients write them, brought below /mnt/data or refused."""

from ...client.arguments import checked_path
from ...errors import InvalidArgumentError

ROOT = "/mnt/data"


def checked(path: str) -> str:
    """Relative to /mnt/data; what leads out of it, or names nothing, is refused here and not at the endpoint."""
    inside = path.removeprefix(f"{ROOT}/")
    if inside.startswith("/") or any(part in ("", ".", "..") for part in inside.split("/")):
        raise InvalidArgumentError("a path must be relative to /mnt/data, such as 'folder/data.csv', and must stay in it")
    checked_path(inside)
    return inside


def checked_folder(path: str) -> str:
    """The same for a folder; '' is /mnt/data itself."""
    inside = path.strip().rstrip("/")
    return checked(inside) if inside not in ("", ".", ROOT) else ""
