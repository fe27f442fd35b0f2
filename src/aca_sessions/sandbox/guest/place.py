"""The paths of a session's own folders: fixed ones in the session's own root, or, without namespaces, folders of the host."""

from dataclasses import dataclass

DATA = "/mnt/data"


@dataclass
class _Place:
    data: str = DATA
    temporary: str = "/tmp"


place = _Place()
