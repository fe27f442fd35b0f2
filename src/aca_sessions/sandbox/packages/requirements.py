"""Validate what a caller asks to install: names with versions, extras and markers, but no address, path or option."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

_MOST, _LONGEST = 100, 300
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)


class PackageError(Exception):
    """Raised when packages cannot be installed or removed. `name` is the name of the error in the caller's result."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that the resolver chose. `sha256` is empty if the package index did not give it."""

    name: str
    version: str
    sha256: str = ""

    @property
    def pin(self) -> str:
        """Return the requirement for exactly this version, as `name==version`."""
        return f"{self.name}=={self.version}"


def parse_requirements(texts: Iterable[str]) -> list[Requirement]:
    """Parse 1 to 100 requirements, such as `humanize>=4`, and return them.

    Raise PackageError if there are none or more than 100, or if one is invalid or contains a URL.
    """
    given = [*texts]
    if not 0 < len(given) <= _MOST:
        raise _invalid(f"a call must name 1 to {_MOST} packages, got {len(given)}: use several calls for more")
    return [_parse(text, number) for number, text in enumerate(given, 1)]


def spell_canonically(requirement: Requirement) -> str:
    """Return a requirement as text with canonical names. pip cannot mistake this text for the name of a file."""
    extras = f"[{','.join(sorted(map(canonicalize_name, requirement.extras)))}]" if requirement.extras else ""
    marker = f" ; {requirement.marker}" if requirement.marker else ""
    return f"{canonicalize_name(requirement.name)}{extras}{requirement.specifier}{marker}"


def is_pinned(requirement: Requirement) -> bool:
    """Return whether a requirement names one exact version."""
    return any(one.operator == "==" and not one.version.endswith("*") for one in requirement.specifier)


def is_met(requirement: Requirement, versions: Mapping[str, str]) -> bool:
    """Return whether the installed packages meet a requirement. `versions` has the version of each, by its canonical name.

    Return False if the requirement has extras or a marker, which only the resolver understands.
    """
    version = versions.get(canonicalize_name(requirement.name))
    plain = requirement.marker is None and not requirement.extras
    return plain and version is not None and _fits(requirement, version)


def check_environment_allows(environment: Mapping[str, str], requirement: Requirement) -> None:
    """Raise PackageError if a requirement, such as `numpy<2`, excludes the version in the guests' Python, which no session can replace.

    `environment` has the version of each package of the guests' Python, by its canonical name.
    """
    version = environment.get(canonicalize_name(requirement.name))
    if version is not None and requirement.marker is None and not _fits(requirement, version):
        raise PackageError(
            "PackageConflictError",
            f"{requirement.name}{requirement.specifier} does not fit {requirement.name} {version}, which the sessions' environment has: "
            "ask for that version, or name an environment without it in ACASessions:Sandbox:Environment",
        )


def parse_name(text: str) -> str:
    """Return a package's name in canonical spelling. Raise PackageError if the text is not only a name."""
    if len(text) > _LONGEST or not _NAME.fullmatch(text):
        raise _invalid("a package to uninstall must be given by its name alone, such as 'humanize', without a version, an option or a path")
    return canonicalize_name(text)


def map_versions(packages: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Turn pairs of a name and a version into a dict with canonical names. Leave out packages with an invalid version."""
    return {canonicalize_name(name): version for name, version in packages if _is_version(version)}


def _parse(text: str, number: int) -> Requirement:
    # Errors name the number of the argument. The text itself may be an option or an address that holds a password.
    if len(text) > _LONGEST or not text.isprintable() or not text.isascii():
        raise _invalid(f"package {number} of the call must be at most {_LONGEST} printable ASCII characters: name one in each argument")
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise _invalid(
            f"package {number} of the call must be such as 'humanize', 'humanize>=4' or 'humanize[extra]==4.9', and no option or path"
        ) from error
    if requirement.url is not None:
        raise _invalid(
            f"package {number} of the call must not have an address: put its wheel into an index or into ACASessions:Packages:WheelFolder"
        )
    if any(one.operator == "===" for one in requirement.specifier):
        raise _invalid(f"package {number} of the call must compare versions by ==, >=, <=, !=, ~=, > or <, got ===")
    return requirement


def _fits(requirement: Requirement, version: str) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _invalid(message: str) -> PackageError:
    return PackageError("InvalidRequirementError", message)
