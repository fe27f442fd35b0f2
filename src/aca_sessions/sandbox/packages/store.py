"""Install packages for sessions, and track which packages each session has.

Packages are resolved on the host for the guests' Python, unpacked once and shared by all sessions. No code of a package runs on the host.
"""

import asyncio
import errno
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from anyio import to_thread
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ...lifetime import Tasks
from ...models import CodeError, CodeExecutionResult, Package
from ..environment import Survey, survey
from ..images.image_python import ImagePython
from ..policy import Policy
from .cache import SHOWN_AT, HeldSet, PackageCache
from .requirements import PackageError, Wheel, by_name, canonical, check_against, checked_name, is_met, is_pinned, parsed
from .resolver import Known, Resolver, Tell

_VALID_SECONDS = 86_400.0  # how long the answer to requirements without an exact version counts as the newest
_FOREVER = float("inf")
_AT_ONCE = 2  # installs that run pip; further ones wait, and may then find in the cache what they need


class Packages:
    """The package cache and the resolver of all sessions under one policy."""

    def __init__(self, policy: Policy, ask_image: Callable[[], Awaitable[ImagePython]] | None = None) -> None:
        """Initialize without reading any file.

        `ask_image` returns the description of the Python in the sessions' container image. It is None if the sessions use no image.
        """
        self._python = policy.image or policy.python or sys.executable
        self._ask_image = ask_image
        self._source = policy.packages
        self._shown_at = SHOWN_AT if policy.isolation == "full" else None
        self._resolver = Resolver(self._python, policy.packages, policy.packages.cache_size)
        self._cache: PackageCache | None = None
        self._environment: dict[str, str] | None = None
        self._version = ""
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def environment(self) -> dict[str, str]:
        """Return a dict from the canonical name of each package in the guests' environment to its version."""
        if self._environment is None and self._ask_image is not None:
            image = await self._ask_image()
            self._resolver = replace(self._resolver, python=sys.executable, image=image)
            self._version, self._environment = f"{image.version} {image.platforms[0]}", dict(image.packages)
        if self._environment is None:
            found = await to_thread.run_sync(self._surveyed)
            self._version, self._environment = found.version, by_name(found.packages)
        return self._environment

    @property
    def cache(self) -> PackageCache:
        """Return the package cache of this host. Raise PackageError if it cannot be used."""
        if self._cache is None:
            self._cache = PackageCache(self._source.folder, self._source.cache_size, shown_at=self._shown_at)
        return self._cache

    async def fetched(self, requirements: Sequence[Requirement], sets: Sequence[HeldSet], tell: Tell) -> HeldSet | None:
        """Fetch the set of packages that must be added to meet the requirements. Hold it (keep it from removal) and return it.

        Return None if the environment and `sets` meet the requirements already. Raise PackageError if they cannot be met.

        Args:
            requirements: All that the session has asked for, except what its environment meets.
            sets: The sets that the session has. The new set may replace packages of these.
            tell: Called with each line of progress.
        """
        known = Known(await self.environment(), [path for held in sets for path in self.cache.metadata_of(held)])
        texts = sorted(map(canonical, requirements))
        key = self._key(texts, [held.name for held in sets])
        within = _FOREVER if all(map(is_pinned, requirements)) else _VALID_SECONDS
        if (held := self.cache.recall(key, within=within)) is not None:
            return held
        async with self._turns:
            try:
                # Another call may have fetched it while this one waited for its turn.
                return self.cache.recall(key, within=within) or await self._resolved(key, texts, known, tell)
            except PackageError as error:
                # Without the index, an answer of any age will do.
                older = self.cache.recall(key, within=_FOREVER) if error.name == "IndexUnreachableError" else None
                if older is None:
                    raise
                return older

    async def kept(self, wheels: Sequence[Wheel], unpacked: Path) -> HeldSet:
        """Move an unpacked set into the cache, hold it so that it is not removed, and return it."""
        name = self.cache.name_of("set", self._python, *(f"{wheel.pin} {wheel.sha256}" for wheel in wheels))
        await to_thread.run_sync(self.cache.keep, name, wheels, unpacked)
        held = self.cache.hold(name)
        if held is None:
            raise PackageError("PackageCacheError", "the packages were removed by another process while they were installed: try again")
        return held

    async def without(self, held: HeldSet, names: set[str]) -> HeldSet | None:
        """Copy a set without some of its packages, and return the held copy. Return None if no package is left."""
        rest = [wheel for wheel in held.wheels if wheel.name not in names]
        if not rest:
            return None
        with self.cache.workplace() as place:
            return await self.kept(rest, await to_thread.run_sync(self.cache.without, held, names, place))

    async def _resolved(self, key: str, texts: list[str], known: Known, tell: Tell) -> HeldSet | None:
        with self.cache.workplace() as place:
            tell(f"resolving {', '.join(texts)}")
            wheels = await self._resolver.resolve(place, texts, known, tell)
            if not wheels:
                return None
            tell(f"fetching {', '.join(wheel.pin for wheel in wheels)}")
            held = await self.kept(wheels, await self._resolver.unpack(place, wheels, tell))
        self.cache.remember(key, held.name)
        return held

    def _surveyed(self) -> Survey:
        """Return the version and packages of the guests' Python, from the cache if possible: starting a Python takes long."""
        key = self.cache.name_of("survey", self._python)
        kept = self.cache.noted(key)
        if kept is not None and (found := Survey(**json.loads(kept))).is_current:
            return found
        found = survey(self._python)
        self.cache.note(key, json.dumps(asdict(found)))
        return found

    def _key(self, texts: list[str], sets: list[str]) -> str:
        """Return the key under which the cache records a resolution. It depends on everything that affects the packages to be added.

        `texts` are the requirements. `sets` are the names of the sets that the session has.
        """
        source = (self._source.index_url or "", self._source.wheels or "")
        there = json.dumps(sorted((self._environment or {}).items()))
        return self.cache.name_of("answer", self._version, self._python, there, *source, json.dumps(sets), *texts)


Show = Callable[[Sequence[str], Sequence[str]], Awaitable[CodeExecutionResult]]


class SessionPackages:
    """The sets of packages that a session has. Only one call at a time adds or removes packages."""

    def __init__(self, packages: Packages, show: Show) -> None:
        """Initialize a session without packages.

        `show` makes the live interpreter import packages from the given paths and no others. Its second argument names the modules whose
        version changes: if one of them is loaded, the result has an error and nothing changes.
        """
        self._packages = packages
        self._show = show
        self._sets: list[HeldSet] = []
        self._asked: dict[str, Requirement] = {}
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self._closed = False
        self.ever_changed = False  # then an interpreter from before, as in a checkpoint, may find other packages

    @property
    def paths(self) -> list[str]:
        """Return the folders from which the session's interpreters import the packages installed in the session."""
        return [held.path for held in self._sets]

    @property
    def installed(self) -> list[Package]:
        """Return the packages that were installed in the session, sorted by name."""
        return sorted((Package(name=name, version=version) for name, version in self._versions.items()), key=lambda one: one.name)

    async def install(self, requirements: Sequence[str], *, timeout: float, on_progress: Tell | None = None) -> CodeExecutionResult:
        """Install packages, and return the result. If the result has an error, nothing was changed.

        `requirements` are names with versions, extras and markers. Fetching the packages may take `timeout` seconds.
        """
        return await self._as_result(lambda: self._install(requirements, timeout, on_progress or _ignore))

    async def uninstall(self, names: Sequence[str]) -> CodeExecutionResult:
        """Remove packages that this session installed, and return the result. Modules that are imported stay loaded."""
        return await self._as_result(lambda: self._uninstall(names))

    def inherit(self, other: "SessionPackages") -> None:
        """Add and hold the sets of `other`. A new branch calls this with the packages of the session that it comes from."""
        for one in other._sets:
            if (held := self._packages.cache.hold(one.name)) is not None:
                self._sets.append(held)  # one by one: if a later one fails, `close` releases those before it
        self._asked, self.ever_changed = dict(other._asked), other.ever_changed

    async def close(self) -> None:
        """Wait until a running change has ended, then release all sets. An install that is still fetching adds nothing."""
        self._closed = True
        await self._tasks.finish()
        self._let_go(self._sets)
        self._sets = []

    @property
    def _versions(self) -> dict[str, str]:
        return {wheel.name: wheel.version for held in self._sets for wheel in held.wheels}

    async def _as_result(self, work: Callable[[], Awaitable[CodeExecutionResult]]) -> CodeExecutionResult:
        """Call and await `work`, one call at a time. Convert a PackageError or OSError to a failed result."""
        started = time.perf_counter()
        try:
            async with self._turn:
                result = await work()
        except PackageError as error:
            result = _failed(CodeError(error.name, str(error)))
        except OSError as error:
            result = _failed(_of_the_disk(error))
        return replace(result, duration=time.perf_counter() - started)

    async def _install(self, texts: Sequence[str], timeout: float, tell: Tell) -> CodeExecutionResult:
        asked = {canonicalize_name(requirement.name): requirement for requirement in parsed(texts)}
        environment = await self._packages.environment()
        for requirement in asked.values():
            check_against(environment, requirement)
        there = environment | self._versions
        if all(is_met(requirement, there) for requirement in asked.values()):
            return CodeExecutionResult(stdout="".join(f"{name} {there[name]} is there already\n" for name in asked))
        wanted = self._asked | asked
        missing = [requirement for requirement in wanted.values() if not is_met(requirement, environment)]
        try:
            async with asyncio.timeout(timeout):
                held = await self._packages.fetched(missing, self._sets, tell)
        except TimeoutError as error:
            raise PackageError(
                "TimeoutError", f"cannot fetch the packages within {timeout:g} s: nothing was installed, so raise timeout or install fewer"
            ) from error
        return await self._tasks.to_its_end(self._add(held, wanted))

    async def _add(self, held: HeldSet | None, wanted: dict[str, Requirement]) -> CodeExecutionResult:
        if held is None:
            self._asked = wanted
            return CodeExecutionResult(stdout="".join(f"{canonical(one)} is there already\n" for one in wanted.values()))
        replaced, cache = _names(held) & self._versions.keys(), self._packages.cache
        try:
            modules = [module for one in self._sets for name in replaced & _names(one) for module in cache.modules_of(one, name)]
            kept = await self._without(replaced)
        except BaseException:
            held.let_go()
            raise
        result = await self._exchange([*kept, held], modules)
        if result.success:
            self._asked = wanted
        lines = "".join(f"installed {wheel.name} {wheel.version}\n" for wheel in held.wheels) if result.success else ""
        return replace(result, stdout=lines + result.stdout)

    async def _uninstall(self, texts: Sequence[str]) -> CodeExecutionResult:
        names = {checked_name(text) for text in texts}
        versions, environment = self._versions, await self._packages.environment()
        for name in sorted(names - versions.keys()):
            raise PackageError("PackageNotFoundError", _not_here(name, environment))
        return await self._tasks.to_its_end(self._remove(names, versions))

    async def _remove(self, names: set[str], versions: dict[str, str]) -> CodeExecutionResult:
        result = await self._exchange(await self._without(names), ())
        if not result.success:
            return result
        self._asked = {name: one for name, one in self._asked.items() if name not in names}
        lines = "".join(f"uninstalled {name} {versions[name]}; what is imported of it stays until the reset\n" for name in sorted(names))
        return replace(result, stdout=lines + result.stdout)

    async def _without(self, names: set[str]) -> list[HeldSet]:
        """Return the session's sets without the packages `names`. Replace each set that has one of them by a held copy without it."""
        kept: list[HeldSet] = []
        with ExitStack() as on_failure:
            for held in self._sets:
                if not names & _names(held):
                    kept.append(held)
                elif (new := await self._packages.without(held, names)) is not None:
                    on_failure.callback(new.let_go)
                    kept.append(new)
            on_failure.pop_all()
        return kept

    async def _exchange(self, sets: list[HeldSet], modules: Sequence[str]) -> CodeExecutionResult:
        """Replace the session's sets by `sets`, unless the interpreter refuses, for example because it has loaded one of `modules`.

        In both cases, release each old or new set that the session does not use afterwards.
        """
        earlier, self.ever_changed = self._sets, True
        result: CodeExecutionResult | None = None
        try:
            result = await self._show([held.path for held in sets], modules)
        finally:
            if result is not None and result.success and not self._closed:
                self._sets = sets
            self._let_go([held for held in (*earlier, *sets) if not any(held is one for one in self._sets)])
        return result

    def _let_go(self, sets: Sequence[HeldSet]) -> None:
        for held in sets:
            held.let_go()


def _failed(error: CodeError) -> CodeExecutionResult:
    return CodeExecutionResult(error=error, stderr=str(error))


def _of_the_disk(error: OSError) -> CodeError:
    elsewhere = "or name another folder in ACASessions:Packages:CacheFolder"
    if error.errno == errno.ENOSPC:
        return CodeError("DiskFullError", f"the host's disk is full: free some of it, {elsewhere}")
    return CodeError(
        "PackageCacheError", f"this host cannot use its folder of packages ({error.strerror}): check its permissions, {elsewhere}"
    )


def _names(held: HeldSet) -> set[str]:
    return {wheel.name for wheel in held.wheels}


def _not_here(name: str, environment: dict[str, str]) -> str:
    if name in environment:
        return (
            f"{name} {environment[name]} belongs to the sessions' environment, which no session changes: name what this session installed"
        )
    return f"{name} is not installed in this session: choose one that the session's list of packages has"


def _ignore(_line: str) -> None:
    """Ignore a line of progress."""
