"""The paths of a session's data and temporary folders: /mnt/data and /tmp, or without namespaces folders of the host."""

from dataclasses import dataclass

DATA = "/mnt/data"


@dataclass
class _Place:
    data: str = DATA
    temporary: str = "/tmp"


place = _Place()
