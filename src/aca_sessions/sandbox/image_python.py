"""What an image's Python says of itself, in a session, and what pip has to be told to find wheels for it on this host."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ..errors import ConfigurationError
from . import syscalls
from .environment import HEAVY

# The C library's version is what decides which wheels fit.
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
_OLDEST_GLIBC, _MUSL = 5, ("musllinux_1_2", "musllinux_1_1")


@dataclass(frozen=True, slots=True)
class ImagePython:
    """A guest's word, of which nothing but names, versions and requirements is left."""

    version: str
    platforms: tuple[str, ...]
    heavy: tuple[str, ...]
    packages: Mapping[str, str]
    requirements: Mapping[str, Sequence[str]]

    @classmethod
    def told(cls, said: str) -> "ImagePython":
        """What a session printed for ASK."""
        try:
            version, libc, heavy, packages = json.loads(said)
            there = {canonicalize_name(name): (number, needs) for name, (number, needs) in packages.items() if _is_package(name, number)}
            return cls(
                version=str(Version(version)),
                platforms=_platforms(libc),
                heavy=tuple(one for one in HEAVY if one in heavy),
                packages={name: number for name, (number, _) in there.items()},
                requirements={name: _readable(needs) for name, (_, needs) in there.items()},
            )
        except (ValueError, TypeError, AttributeError):
            raise ConfigurationError("ACASessions:ContainerImage: its Python does not say what it is and which packages it has") from None

    @property
    def options(self) -> list[str]:
        """pip's own: wheels for this Python in the place of the one that runs pip."""
        return [f"--python-version={self.version}", "--implementation=cp", *(f"--platform={platform}" for platform in self.platforms)]

    @property
    def markers(self) -> dict[str, str]:
        """What a requirement's marker asks for and pip would look up in the Python that runs it."""
        minor = ".".join(self.version.split(".")[:2])
        return {"python_version": minor, "python_full_version": self.version, "implementation_version": self.version}

    def write_metadata(self, folder: Path) -> None:
        """What makes pip take the image's packages for installed, without a line of their code."""
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
    """An extra's requirements are nobody's who did not ask for it, and their markers would need to know it."""
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
    """Newest first, as pip prefers them."""
    machine = syscalls.MACHINE
    found = re.fullmatch(r"glibc 2\.(\d{1,3})", str(libc))
    if found is None:
        return tuple(f"{one}_{machine}" for one in _MUSL)
    numbered = (f"manylinux_2_{minor}_{machine}" for minor in range(int(found[1]), _OLDEST_GLIBC - 1, -1))
    return (*numbered, f"manylinux2014_{machine}")
