"""Where a session's own folders are: the same for all that have a root of their own, else folders of the host's."""

from dataclasses import dataclass

DATA = "/mnt/data"


@dataclass
class _Place:
    data: str = DATA
    temporary: str = "/tmp"


place = _Place()
