"""The paths of a session's data folder and temporary folder: /mnt/data and /tmp, or folders of the host if there are no namespaces."""

from dataclasses import dataclass

DATA = "/mnt/data"


@dataclass
class _Folders:
    data: str = DATA
    temporary: str = "/tmp"


session_folders = _Folders()
