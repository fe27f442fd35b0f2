"""Finds out which packages are not here, or in another version."""

import importlib.metadata
import json


def main(user: dict, *requirements: str) -> None:
    """Prints a list of them."""
    print(json.dumps([requirement for requirement in requirements if not is_here(requirement)]))


def is_here(requirement: str) -> bool:
    """As far as that can be told without an index; what has extras is not known to be here."""
    try:
        from packaging.requirements import Requirement

        wanted = Requirement(requirement)
        version = importlib.metadata.version(wanted.name)
        return not wanted.extras and wanted.specifier.contains(version, prereleases=True)
    except (ImportError, ValueError):
        return False
