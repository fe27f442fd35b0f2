"""A stand-in for setuptools' `pkg_resources`, with which AutoGen lists the installed packages before its first cell."""

from importlib.metadata import distributions


class Distribution:
    """An installed package and its version, with the attribute names of setuptools."""

    def __init__(self, project_name: str, version: str) -> None:
        self.project_name = project_name
        self.key = project_name.lower()
        self.version = version


working_set = [Distribution(found.name, found.version) for found in distributions() if found.name]
