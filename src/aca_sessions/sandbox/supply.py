"""This host's IPython, for images that have none: the files of its packages and nothing else of this host, in a folder of their own."""

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from ..errors import ConfigurationError
from . import images
from .wire import SUPPLY, SUPPLY_NEEDS

_ASKED_FOR = ("ipython", "matplotlib-inline")
_FOR_ANY_VERSION = ".abi3.so"  # the stable ABI: a newer Python than it was compiled for loads it as well


def shown(image: str | None) -> dict[str, str]:
    """Return the folder that sessions of an image see, by the path at which they see it.

    Return an empty dict without an image: those sessions see this host's environment.
    """
    try:
        return {SUPPLY: _folder()} if image else {}
    except ConfigurationError:  # this host cannot keep files; an image with an IPython of its own does not need them
        return {}


def _folder() -> str:
    found = sorted(_with_requirements(_ASKED_FOR), key=lambda one: one.name)
    files = [(one.name, one.version, str(one.locate_file(""))) for one in found]
    return images.kept(f"ipython-{hashlib.sha256(repr(files).encode()).hexdigest()[:32]}", lambda folder: _copy(found, Path(folder)))


def _with_requirements(names: tuple[str, ...]) -> Iterator[Distribution]:
    """Yield packages and all that they require. Markers are ignored, since the image has another Python. Extras are left out."""
    seen, coming = set(names), list(names)
    while coming:
        try:
            found = importlib.metadata.distribution(coming.pop())
        except PackageNotFoundError:
            continue
        yield found
        for text in found.requires or ():
            try:
                one = Requirement(text)
            except InvalidRequirement:
                continue
            if one.name not in seen and "extra" not in str(one.marker or ""):
                seen.add(one.name)
                coming.append(one.name)


def _copy(packages: list[Distribution], folder: Path) -> None:
    for package in packages:
        files = [Path(file) for file in package.files or ()]
        # What is compiled for this host's Python version alone is left out. So is the package's metadata then: it would claim that the
        # package is complete.
        left_out = {file for file in files if file.suffix == ".so" and not file.name.endswith(_FOR_ANY_VERSION)}
        for file in files:
            is_metadata = file.parts[0].endswith(".dist-info")
            source = Path(str(package.locate_file(file)))
            if ".." in file.parts or file.is_absolute() or file in left_out or (is_metadata and left_out) or not source.is_file():
                continue
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / file, follow_symlinks=True)
    (folder / SUPPLY_NEEDS).write_text(_oldest_python(packages))
    for path in folder.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


def _oldest_python(packages: list[Distribution]) -> str:
    """Return the oldest Python 3.x that all packages allow."""
    allowed = [SpecifierSet(str(package.metadata.json.get("requires_python") or "")) for package in packages]
    return next(f"3.{minor}" for minor in range(9, 100) if all(one.contains(f"3.{minor}.99") for one in allowed))
