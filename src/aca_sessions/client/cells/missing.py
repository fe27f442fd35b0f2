"""Find the packages that are not installed, or installed in another version."""

import importlib.metadata
import json


def main(user: dict, *requirements: str) -> None:
    """Print them as a list in JSON."""
    print(json.dumps([requirement for requirement in requirements if not is_here(requirement)]))


def is_here(requirement: str) -> bool:
    """Return whether a requirement is surely met. One with extras is not: that cannot be found out without a package index."""
    try:
        from packaging.requirements import Requirement

        wanted = Requirement(requirement)
        version = importlib.metadata.version(wanted.name)
        return not wanted.extras and wanted.specifier.contains(version, prereleases=True)
    except (ImportError, ValueError):
        return False
