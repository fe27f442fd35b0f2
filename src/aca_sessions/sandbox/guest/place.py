"""The paths of a session's own folders: fixed paths in a root of its own, or folders of the host if there are no namespaces."""

from dataclasses import dataclass

DATA = "/mnt/data"


@dataclass
class _Place:
    data: str = DATA
    temporary: str = "/tmp"


place = _Place()
