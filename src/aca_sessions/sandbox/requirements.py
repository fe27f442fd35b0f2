"""What a caller may ask to install: names with versions, extras and markers. What leads anywhere else is refused. Nothing here awaits."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

_MOST, _LONGEST = 100, 300
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)


class PackageError(Exception):
    """Packages could not be installed or removed. `name` is the kind of error, as a failed result names it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Wheel:
    """One distribution as it was resolved. The hash is empty if its index gave none."""

    name: str
    version: str
    sha256: str = ""

    @property
    def pin(self) -> str:
        """Return the requirement that only this version meets."""
        return f"{self.name}=={self.version}"


def parsed(texts: Iterable[str]) -> list[Requirement]:
    """Parse 1 to 100 requirements. Raise PackageError for a text that is not one, or that leads to a file or an address."""
    given = [*texts]
    if not 0 < len(given) <= _MOST:
        raise _invalid(f"a call names 1 to {_MOST} packages")
    return [_parsed(text) for text in given]


def canonical(requirement: Requirement) -> str:
    """Return a requirement in its one canonical spelling, in which pip cannot take a name for that of a file."""
    extras = f"[{','.join(sorted(map(canonicalize_name, requirement.extras)))}]" if requirement.extras else ""
    marker = f" ; {requirement.marker}" if requirement.marker else ""
    return f"{canonicalize_name(requirement.name)}{extras}{requirement.specifier}{marker}"


def is_pinned(requirement: Requirement) -> bool:
    """Return whether a requirement names one version."""
    return any(one.operator == "==" and not one.version.endswith("*") for one in requirement.specifier)


def is_met(requirement: Requirement, versions: Mapping[str, str]) -> bool:
    """Return whether an installed version meets a requirement.

    With extras or a marker return False, since only the resolver understands those.
    """
    version = versions.get(canonicalize_name(requirement.name))
    plain = requirement.marker is None and not requirement.extras
    return plain and version is not None and _fits(requirement, version)


def check_against(environment: Mapping[str, str], requirement: Requirement) -> None:
    """Raise PackageError if the guests' environment has the package in a version that does not fit. That version cannot be replaced."""
    version = environment.get(canonicalize_name(requirement.name))
    if version is not None and requirement.marker is None and not _fits(requirement, version):
        raise PackageError(
            "PackageConflictError",
            f"{requirement.name}{requirement.specifier} does not fit {requirement.name} {version}, which the sessions' environment has: "
            "ask for that version, or name an environment without it in ACASessions:Sandbox:Environment",
        )


def checked_name(text: str) -> str:
    """Return the canonical name of a package. Raise PackageError if the text is more than a name."""
    if len(text) > _LONGEST or not _NAME.fullmatch(text):
        raise _invalid("a package to uninstall is given by its name alone")
    return canonicalize_name(text)


def by_name(packages: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return versions by canonical names, without versions that cannot be compared."""
    return {canonicalize_name(name): version for name, version in packages if _is_version(version)}


def _parsed(text: str) -> Requirement:
    if len(text) > _LONGEST or not text.isprintable() or not text.isascii():
        raise _invalid(f"a package is named in at most {_LONGEST} printable ASCII characters, one in each argument")
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise _invalid("a package is named as 'humanize', 'humanize>=4' or 'humanize[extra]==4.9'; no option, no path") from None
    if requirement.url is not None:
        raise _invalid("a package is named without an address: put its wheel into an index or into ACASessions:Packages:WheelFolder")
    if any(one.operator == "===" for one in requirement.specifier):
        raise _invalid("versions are compared by ==, >=, <=, !=, ~=, > and <; === is not taken")
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
