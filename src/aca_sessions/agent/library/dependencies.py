"""Dependencies: packages for an agent's sessions. The storage keeps the requirements; the host, not a cell, installs the packages."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ...client.session import Session
from ...errors import InvalidArgumentError, NotSupportedError
from .storage import Storage

_RECORD = "requirements"
_BY_SESSIONS = "by-sessions"  # the names of packages that code in a session added; all others were added by the owner
Texts = list[str]


class Deps:
    """The package requirements in a storage, such as `pandas>=2`. If `locked` is true, they can be installed, but not added or removed."""

    def __init__(self, storage: Storage, *, locked: bool = False) -> None:
        self._storage = storage
        self._locked = locked
        self._initial_file: Path | None = None

    def set_initial_file(self, file: Path) -> None:
        """Set a file, such as requirements.txt, with the requirements to use as long as the storage has none.

        The first `add` or `remove` copies them to the storage. From then on, the file is ignored.
        """
        self._initial_file = file

    async def list(self) -> Texts:
        """Return the requirements, in the order in which they were added."""
        data = await self._storage.read("deps", _RECORD)
        if data is not None:
            return [str(one) for one in json.loads(data)]
        if self._initial_file is None or not self._initial_file.is_file():
            return []
        lines = (line.partition("#")[0].strip() for line in self._initial_file.read_text().splitlines())
        return [line for line in lines if line]

    async def add(self, package: str, *, origin: str = "host") -> str:
        """Add a requirement, such as `pandas>=2`, and return it. It replaces an earlier requirement for the same package.

        `origin` is who adds it, `host` or `session`. Raise InvalidArgumentError if a session would replace a requirement that the host
        added.
        """
        self.check_unlocked()
        wanted = _parse_name(package)
        async with self._storage.locked("deps"):
            before, by_sessions = await self.list(), await self._read_names_of_sessions()
            if origin == "host":
                await self._write_names_of_sessions(by_sessions - {wanted})
            elif package not in before:
                self._check_added_by_session(wanted, before, by_sessions)
            kept = [one for one in before if _parse_name(one) != wanted]
            await self._storage.write("deps", _RECORD, json.dumps([*kept, package], indent=1).encode())
            if origin != "host" and package not in before:  # last: if it fails, the requirement counts as the owner's
                await self._write_names_of_sessions(by_sessions | {wanted})
        return package

    async def remove(self, package: str, *, origin: str = "host") -> bool:
        """Remove a package's requirement. Return whether there was one. `package` is a name or a requirement such as `pandas>=2`.

        `origin` is who removes it, `host` or `session`. Raise InvalidArgumentError if a session would remove a requirement that the host
        added.
        """
        self.check_unlocked()
        unwanted = _parse_name(package)
        async with self._storage.locked("deps"):
            before, by_sessions = await self.list(), await self._read_names_of_sessions()
            if origin != "host":
                self._check_added_by_session(unwanted, before, by_sessions)
            kept = [one for one in before if _parse_name(one) != unwanted]
            await self._storage.write("deps", _RECORD, json.dumps(kept, indent=1).encode())
            await self._write_names_of_sessions(by_sessions - {unwanted})
        return len(kept) < len(before)

    def _check_added_by_session(self, name: str, requirements: Texts, by_sessions: set[str]) -> None:
        if name not in by_sessions and any(_parse_name(one) == name for one in requirements):
            raise InvalidArgumentError(
                f"{name} is a dependency that the session's owner added: code in a session cannot change or remove it, so ask the owner"
            )

    async def _read_names_of_sessions(self) -> set[str]:
        data = await self._storage.read("deps", _BY_SESSIONS)
        return set() if data is None else {str(one) for one in json.loads(data)}

    async def _write_names_of_sessions(self, names: set[str]) -> None:
        if names != await self._read_names_of_sessions():
            await self._storage.write("deps", _BY_SESSIONS, json.dumps(sorted(names)).encode())

    def check_unlocked(self) -> None:
        """Raise NotSupportedError if requirements are locked, so that they cannot be added or removed."""
        if self._locked:
            raise NotSupportedError("dependencies are locked in this session (allow_runtime_deps=False): use what is installed")


class PackageChanges:
    """Collects the packages that cells request to install or remove. `apply` installs and removes them.

    If cells request both for one package, the last request counts.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._to_install: dict[str, str] = {}
        self._to_remove: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._to_install or self._to_remove)

    def add(self, requirement: str) -> None:
        """Request that a package is installed. This cancels an earlier request to remove it."""
        name = _parse_name(requirement)
        self._to_remove.pop(name, None)
        self._to_install[name] = requirement

    def remove(self, package: str) -> None:
        """Request that a package is removed. This cancels an earlier request to install it."""
        name = _parse_name(package)
        self._to_install.pop(name, None)
        self._to_remove[name] = package

    async def is_installed(self, package: str) -> bool:
        """Return whether a package was installed into the session. Return False if the endpoint cannot list packages."""
        return await _is_installed(self._session, package)

    async def apply(self) -> str:
        """Install and remove the requested packages, and clear the requests.

        Return a note for stderr that names the packages for which this failed, or "" if there are none.
        """
        wanted, unwanted = [*self._to_install.values()], [*self._to_remove.values()]
        self._to_install, self._to_remove = {}, {}
        kept = [one for package in unwanted for one in (await uninstall(self._session, package, configured=True))["failed"]]
        note = f"deps: {', '.join(kept)} could not be uninstalled and can still be imported: call deps.remove() again\n" if kept else ""
        try:
            outcome = await install(self._session, wanted)
        except NotSupportedError as error:
            outcome = {"failed": wanted, "error": str(error)}
        return note if not outcome["failed"] else f"{note}deps: {', '.join(outcome['failed'])} could not be installed: {outcome['error']}\n"


async def install(session: Session, requirements: Sequence[str]) -> dict[str, Any]:
    """Install packages into a session, one by one. Return a dict with the lists `installed`, `already_present` and `failed`.

    If a package failed, the dict also has `error`, the message of the last failure.
    """
    outcome: dict[str, Any] = {"installed": [], "already_present": [], "failed": []}
    for requirement in requirements:
        before = await _list_installed(session)
        result = await session.install(requirement)
        if not result.success:
            outcome["failed"].append(requirement)
            outcome["error"] = str(result.error)
        elif before is not None and await _list_installed(session) == before:
            outcome["already_present"].append(requirement)
        else:
            outcome["installed"].append(requirement)
    return outcome


async def uninstall(session: Session, package: str, *, configured: bool) -> dict[str, Any]:
    """Uninstall a package from a session. Return a dict with the lists `removed`, `not_found` and `failed`.

    The package is in one of the lists. `configured` is whether the storage had a requirement for the package; the dict has it as
    `removed_from_config`.
    """
    outcome: dict[str, Any] = {"removed": [], "not_found": [], "failed": [], "removed_from_config": configured}
    if not await _is_installed(session, package):
        outcome["not_found"].append(package)
        return outcome
    outcome["removed" if (await session.uninstall(_parse_name(package))).success else "failed"].append(package)
    return outcome


async def _is_installed(session: Session, package: str) -> bool:
    return _parse_name(package) in {canonicalize_name(one.partition(" ")[0]) for one in await _list_installed(session) or ()}


async def _list_installed(session: Session) -> set[str] | None:
    """Return the packages that were installed into a session, as `name version`, or None if the endpoint cannot list them."""
    try:
        return {f"{package.name} {package.version}" for package in await session.packages()}
    except NotSupportedError:
        return None


def _parse_name(package: object) -> str:
    try:
        return canonicalize_name(Requirement(str(package)).name)
    except InvalidRequirement:
        # Not chained: the cause quotes text that code in a session may have written.
        raise InvalidArgumentError(
            "a dependency must be a requirement such as 'humanize' or 'pandas>=2', got text that is not one"
        ) from None
