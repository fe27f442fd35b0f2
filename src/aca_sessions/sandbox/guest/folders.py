"""The paths of a session's data and temporary folders: /mnt/data and /tmp, or without namespaces folders of the host."""

from dataclasses import dataclass

DATA = "/mnt/data"


@dataclass
class _Folders:
    data: str = DATA
    temporary: str = "/tmp"


session_folders = _Folders()
