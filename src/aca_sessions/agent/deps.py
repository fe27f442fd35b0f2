"""Dependencies: packages that the agent's sessions have. Their requirements are kept, and they are installed from the host's side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..client.session import Session
from ..errors import InvalidArgumentError, NotSupportedError
from .storage import Storage

_RECORD = "requirements"
_BY_SESSIONS = "by-sessions"  # the names of packages that code in a session added; all others were added by the owner
Texts = list[str]


class Deps:
    """The requirements of a storage. If they are `locked` they can be installed, but not added or removed."""

    def __init__(self, storage: Storage, *, locked: bool = False) -> None:
        self._storage = storage
        self._locked = locked
        self._first: Path | None = None

    def begin_with(self, file: Path) -> None:
        """Use the lines of a file until a requirement is added or removed."""
        self._first = file

    async def list(self) -> Texts:
        """Return the requirements, in the order in which they were added."""
        data = await self._storage.read("deps", _RECORD)
        if data is not None:
            return [str(one) for one in json.loads(data)]
        if self._first is None or not self._first.is_file():
            return []
        lines = (line.partition("#")[0].strip() for line in self._first.read_text().splitlines())
        return [line for line in lines if line]

    async def remember(self, package: str, *, origin: str = "host") -> str:
        """Keep a requirement and return it. It replaces an earlier one for the same package.

        Raise InvalidArgumentError if a session (`origin`) would replace a requirement of its owner.
        """
        self.check_unlocked()
        wanted = _name(package)
        async with self._storage.locked("deps"):
            before, by_sessions = await self.list(), await self._by_sessions()
            if origin == "host":
                await self._note_by_sessions(by_sessions - {wanted})
            elif package not in before:
                self._check_is_of_sessions(wanted, before, by_sessions)
            kept = [one for one in before if _name(one) != wanted]
            await self._storage.write("deps", _RECORD, json.dumps([*kept, package], indent=1).encode())
            if origin != "host" and package not in before:  # last: if it fails, the requirement counts as the owner's
                await self._note_by_sessions(by_sessions | {wanted})
        return package

    async def forget(self, package: str, *, origin: str = "host") -> bool:
        """Forget a requirement and return whether there was one.

        Raise InvalidArgumentError if a session (`origin`) would remove a requirement of its owner.
        """
        self.check_unlocked()
        unwanted = _name(package)
        async with self._storage.locked("deps"):
            before, by_sessions = await self.list(), await self._by_sessions()
            if origin != "host":
                self._check_is_of_sessions(unwanted, before, by_sessions)
            kept = [one for one in before if _name(one) != unwanted]
            await self._storage.write("deps", _RECORD, json.dumps(kept, indent=1).encode())
            await self._note_by_sessions(by_sessions - {unwanted})
        return len(kept) < len(before)

    def _check_is_of_sessions(self, name: str, requirements: Texts, by_sessions: set[str]) -> None:
        if name not in by_sessions and any(_name(one) == name for one in requirements):
            raise InvalidArgumentError(
                f"{name} is a dependency that the session's owner added: code in a session cannot change or remove it"
            )

    async def _by_sessions(self) -> set[str]:
        data = await self._storage.read("deps", _BY_SESSIONS)
        return set() if data is None else {str(one) for one in json.loads(data)}

    async def _note_by_sessions(self, names: set[str]) -> None:
        if names != await self._by_sessions():
            await self._storage.write("deps", _BY_SESSIONS, json.dumps(sorted(names)).encode())

    def check_unlocked(self) -> None:
        """Raise NotSupportedError if the dependencies are locked."""
        if self._locked:
            raise NotSupportedError("dependencies are locked in this session (allow_runtime_deps=False): use what is installed")


class Pending:
    """The packages that cells asked to install or remove, which waits until no cell runs. The last request for each package wins."""

    def __init__(self) -> None:
        self._wanted: dict[str, str] = {}
        self._unwanted: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._wanted or self._unwanted)

    def add(self, requirement: str) -> None:
        """Request that a package is installed."""
        name = _name(requirement)
        self._unwanted.pop(name, None)
        self._wanted[name] = requirement

    def remove(self, package: str) -> None:
        """Request that a package is removed, or not installed."""
        name = _name(package)
        self._wanted.pop(name, None)
        self._unwanted[name] = package

    async def carry_out(self, session: Session) -> str:
        """Carry out all requests. Return what failed, for stderr, or ""."""
        wanted, unwanted = [*self._wanted.values()], [*self._unwanted.values()]
        self._wanted, self._unwanted = {}, {}
        kept = [one for package in unwanted for one in (await uninstall(session, package, configured=True))["failed"]]
        note = f"deps: {', '.join(kept)} could not be taken away\n" if kept else ""
        try:
            told = await install(session, wanted)
        except NotSupportedError as error:
            told = {"failed": wanted, "error": str(error)}
        return note if not told["failed"] else f"{note}deps: {', '.join(told['failed'])} could not be installed: {told['error']}\n"


async def install(session: Session, requirements: Sequence[str]) -> dict[str, Any]:
    """Install packages one by one. Return them as `installed`, `already_present` or `failed`; `error` is the last failure."""
    told: dict[str, Any] = {"installed": [], "already_present": [], "failed": []}
    for requirement in requirements:
        before = await _installed(session)
        result = await session.install(requirement)
        if not result.success:
            told["failed"].append(requirement)
            told["error"] = str(result.error)
        elif before is not None and await _installed(session) == before:
            told["already_present"].append(requirement)
        else:
            told["installed"].append(requirement)
    return told


async def uninstall(session: Session, package: str, *, configured: bool) -> dict[str, Any]:
    """Uninstall a package. Return it as `removed`, `not_found` or `failed`; `removed_from_config` is `configured`."""
    told: dict[str, Any] = {"removed": [], "not_found": [], "failed": [], "removed_from_config": configured}
    if not await is_installed(session, package):
        told["not_found"].append(package)
        return told
    told["removed" if (await session.uninstall(_name(package))).success else "failed"].append(package)
    return told


async def is_installed(session: Session, package: str) -> bool:
    """Return whether the session installed a package. Return False if the endpoint does not list packages."""
    return _name(package) in {canonicalize_name(one.partition(" ")[0]) for one in await _installed(session) or ()}


async def _installed(session: Session) -> set[str] | None:
    """Return the session's packages with their versions, or None if the endpoint does not list them."""
    try:
        return {f"{package.name} {package.version}" for package in await session.packages()}
    except NotSupportedError:
        return None


def _name(package: object) -> str:
    try:
        return canonicalize_name(Requirement(str(package)).name)
    except InvalidRequirement:
        raise InvalidArgumentError("a dependency is a requirement such as 'humanize' or 'pandas>=2'") from None
