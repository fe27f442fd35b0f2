"""For environments without setuptools: AutoGen asks this module which packages there are before it runs its first cell."""

from importlib.metadata import distributions


class Distribution:
    """A package and its version."""

    def __init__(self, project_name: str, version: str) -> None:
        """Named as setuptools names it."""
        self.project_name = project_name
        self.key = project_name.lower()
        self.version = version


working_set = [Distribution(found.name, found.version) for found in distributions() if found.name]
