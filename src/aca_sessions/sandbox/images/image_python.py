"""Parse the description of the Python in a container image, and make pip find wheels for that Python.

A session of the image sends the description.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ...errors import ConfigurationError
from .. import syscalls
from ..environment import HEAVY

# The source of a cell that prints the description. The C library's version is in it because it decides which wheels fit.
ASK = f"""
import importlib.metadata as m, importlib.util as u, json, os, platform
def libc():
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        return None
packages = {{d.metadata["Name"]: [d.version, d.requires or []] for d in m.distributions() if d.metadata["Name"]}}
heavy = [one for one in {HEAVY} if u.find_spec(one.partition(".")[0])]
print(json.dumps([platform.python_version(), libc(), heavy, packages]))
"""
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_OLDEST_GLIBC, _MUSL = 5, ("musllinux_1_2", "musllinux_1_1")  # glibc 2.5


@dataclass(frozen=True, slots=True)
class ImagePython:
    """The description of an image's Python. Because a guest sends it, names, versions and requirements that are invalid are left out.

    Attributes:
        version: The version of Python.
        platforms: The platform tags of wheels that work with it, such as `manylinux2014_x86_64`, the preferred one first.
        heavy: Those libraries of `HEAVY` (slow to import, used by most sessions) that the image has.
        packages: The version of each package, by its canonical name.
        requirements: The requirements of each package, by its canonical name.
    """

    version: str
    platforms: tuple[str, ...]
    heavy: tuple[str, ...]
    packages: Mapping[str, str]
    requirements: Mapping[str, Sequence[str]]

    @classmethod
    def parse(cls, text: str) -> "ImagePython":
        """Parse the description that the code in `ASK` prints when it runs in a session. Raise ConfigurationError if it is malformed."""
        try:
            version, libc, heavy, packages = json.loads(text)
            there = {canonicalize_name(name): (number, needs) for name, (number, needs) in packages.items() if _is_package(name, number)}
            return cls(
                version=str(Version(version)),
                platforms=_platforms(libc),
                heavy=tuple(one for one in HEAVY if one in heavy),
                packages={name: number for name, (number, _) in there.items()},
                requirements={name: _readable(needs) for name, (_, needs) in there.items()},
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ConfigurationError(
                "ACASessions:ContainerImage: expected a JSON description of its Python, got other output: "
                "check that its python3 starts and prints nothing by itself"
            ) from None  # unchained: the cause would hold what the image printed

    @property
    def options(self) -> list[str]:
        """Return the options for pip that make it choose wheels for this Python, and not for the one that runs pip."""
        return [f"--python-version={self.version}", "--implementation=cp", *(f"--platform={platform}" for platform in self.platforms)]

    @property
    def markers(self) -> dict[str, str]:
        """Return the values of requirement markers, such as python_version, for the image's Python.

        Without them, pip would evaluate requirements for the Python that runs it.
        """
        minor = ".".join(self.version.split(".")[:2])
        return {"python_version": minor, "python_full_version": self.version, "implementation_version": self.version}

    def write_metadata(self, folder: Path) -> None:
        """Write a `.dist-info` folder for each package of the image into `folder`, so that pip treats the packages as installed."""
        for name, version in self.packages.items():
            place = folder / f"{name}-{version}.dist-info"
            place.mkdir()
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            lines += [f"Requires-Dist: {one}" for one in self.requirements[name]]
            (place / "METADATA").write_text("\n".join(lines) + "\n")


def _is_package(name: object, version: object) -> bool:
    try:
        Version(cast(str, version))
    except (InvalidVersion, TypeError):
        return False
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _readable(requirements: object) -> list[str]:
    """Return those requirements of a package that pip can check: valid ones without a URL that do not belong to an extra."""
    # Requirements of an extra hold only for those who asked for the extra, and their markers cannot be evaluated without its name.
    readable = []
    for text in cast(list[object], requirements):
        try:
            one = Requirement(str(text))
        except InvalidRequirement:
            continue
        if one.url is None and "extra" not in str(one.marker or ""):
            readable.append(str(one))
    return readable


def _platforms(libc: object) -> tuple[str, ...]:
    """Return the platform tags of wheels that work with an image's C library, the preferred one first.

    `libc` is the name and version of a glibc, such as "glibc 2.36". For any other value, return the tags for musl.
    """
    machine = syscalls.MACHINE
    found = re.fullmatch(r"glibc 2\.(\d{1,3})", str(libc))
    if found is None:
        return tuple(f"{one}_{machine}" for one in _MUSL)
    numbered = (f"manylinux_2_{minor}_{machine}" for minor in range(int(found[1]), _OLDEST_GLIBC - 1, -1))
    return (*numbered, f"manylinux2014_{machine}")
