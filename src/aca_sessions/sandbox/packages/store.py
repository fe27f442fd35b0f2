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
from .cache import MOUNT_POINT, LockedPackageSet, PackageCache
from .requirements import (
    PackageError,
    Wheel,
    check_environment_allows,
    is_met,
    is_pinned,
    map_versions,
    parse_name,
    parse_requirements,
    spell_canonically,
)
from .resolver import InstalledPackages, ReportProgress, Resolver

_VALID_SECONDS = 86_400.0  # how long the answer to requirements without an exact version counts as the newest
_FOREVER = float("inf")
_AT_ONCE = 2  # installs that run pip; further ones wait, and may then find in the cache what they need


class Packages:
    """The package cache and the resolver of all sessions under one policy."""

    def __init__(self, policy: Policy, ask_image: Callable[[], Awaitable[ImagePython]] | None = None) -> None:
        """Create the object without reading any file.

        `ask_image` returns the description of the Python in the sessions' container image. It is None if the sessions use no image.
        """
        self._python = policy.image or policy.python or sys.executable
        self._ask_image = ask_image
        self._source = policy.packages
        self._mount_point = MOUNT_POINT if policy.isolation == "full" else None
        self._resolver = Resolver(self._python, policy.packages, policy.packages.cache_size)
        self._cache: PackageCache | None = None
        self._environment: dict[str, str] | None = None
        self._version = ""
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def environment(self) -> dict[str, str]:
        """Return a dict with the packages of the guests' Python: the version of each, by its canonical name."""
        if self._environment is None and self._ask_image is not None:
            image = await self._ask_image()
            self._resolver = replace(self._resolver, python=sys.executable, image=image)
            self._version, self._environment = f"{image.version} {image.platforms[0]}", dict(image.packages)
        if self._environment is None:
            found = await to_thread.run_sync(self._survey)
            self._version, self._environment = found.version, map_versions(found.packages)
        return self._environment

    @property
    def cache(self) -> PackageCache:
        """Return the package cache of this host. Raise PackageError if it cannot be used."""
        if self._cache is None:
            self._cache = PackageCache(self._source.folder, self._source.cache_size, mount_point=self._mount_point)
        return self._cache

    async def fetch_set(
        self, requirements: Sequence[Requirement], sets: Sequence[LockedPackageSet], report_progress: ReportProgress
    ) -> LockedPackageSet | None:
        """Return a locked package set with the packages that a session lacks to meet the requirements. Download them if necessary.

        Return None if the requirements are met already. Raise PackageError if they cannot be met.

        Args:
            requirements: What the session asks for now and has installed before, except what the guests' Python already meets.
            sets: The package sets that the session has. The new one may contain other versions of their packages.
            report_progress: Called with each line of progress.
        """
        known = InstalledPackages(
            await self.environment(), [path for package_set in sets for path in self.cache.list_metadata(package_set)]
        )
        texts = sorted(map(spell_canonically, requirements))
        key = self._key(texts, [package_set.name for package_set in sets])
        within = _FOREVER if all(map(is_pinned, requirements)) else _VALID_SECONDS
        if (package_set := self.cache.find_resolved(key, within=within)) is not None:
            return package_set
        async with self._turns:
            try:
                # Another call may have fetched it while this one waited for its turn.
                return self.cache.find_resolved(key, within=within) or await self._resolve(key, texts, known, report_progress)
            except PackageError as error:
                # Without the index, an answer of any age will do.
                older = self.cache.find_resolved(key, within=_FOREVER) if error.name == "IndexUnreachableError" else None
                if older is None:
                    raise
                return older

    async def add_set(self, wheels: Sequence[Wheel], unpacked: Path) -> LockedPackageSet:
        """Move a folder of unpacked wheels into the cache as one package set. Return it, locked so that the cache does not remove it."""
        name = self.cache.derive_name("set", self._python, *(f"{wheel.pin} {wheel.sha256}" for wheel in wheels))
        await to_thread.run_sync(self.cache.add_set, name, wheels, unpacked)
        package_set = self.cache.lock_set(name)
        if package_set is None:
            raise PackageError("PackageCacheError", "the packages were removed by another process while they were installed: try again")
        return package_set

    async def copy_without(self, package_set: LockedPackageSet, names: set[str]) -> LockedPackageSet | None:
        """Copy a package set without the packages `names`, and return the locked copy. Return None if no package is left."""
        rest = [wheel for wheel in package_set.wheels if wheel.name not in names]
        if not rest:
            return None
        with self.cache.work_folder() as place:
            return await self.add_set(rest, await to_thread.run_sync(self.cache.copy_without, package_set, names, place))

    async def _resolve(
        self, key: str, texts: list[str], known: InstalledPackages, report_progress: ReportProgress
    ) -> LockedPackageSet | None:
        with self.cache.work_folder() as place:
            report_progress(f"resolving {', '.join(texts)}")
            wheels = await self._resolver.resolve(place, texts, known, report_progress)
            if not wheels:
                return None
            report_progress(f"fetching {', '.join(wheel.pin for wheel in wheels)}")
            package_set = await self.add_set(wheels, await self._resolver.unpack(place, wheels, report_progress))
        self.cache.record_resolved(key, package_set.name)
        return package_set

    def _survey(self) -> Survey:
        """Return the version and packages of the guests' Python, from the cache if it has them: asking that Python takes long."""
        key = self.cache.derive_name("survey", self._python)
        stored = self.cache.load_text(key)
        if stored is not None and (found := Survey(**json.loads(stored))).is_current:
            return found
        found = survey(self._python)
        self.cache.store_text(key, json.dumps(asdict(found)))
        return found

    def _key(self, texts: list[str], sets: list[str]) -> str:
        """Return the cache key for the result of resolving requirements. It depends on everything that affects this result.

        Args:
            texts: The requirements.
            sets: The names of the package sets that the session has.
        """
        source = (self._source.index_url or "", self._source.wheels or "")
        there = json.dumps(sorted((self._environment or {}).items()))
        return self.cache.derive_name("answer", self._version, self._python, there, *source, json.dumps(sets), *texts)


ReplacePaths = Callable[[Sequence[str], Sequence[str]], Awaitable[CodeExecutionResult]]


class SessionPackages:
    """The packages that one session has installed, as package sets in the cache. Calls that add or remove packages take turns."""

    def __init__(self, packages: Packages, replace_paths: ReplacePaths) -> None:
        """Create the object for a session that has installed nothing.

        `replace_paths` makes the live interpreter import packages from the given folders, and no longer from earlier ones. Its second
        argument names the modules whose version changes. If one of them is imported already, the result has an error and nothing changes.
        """
        self._packages = packages
        self._replace_paths = replace_paths
        self._sets: list[LockedPackageSet] = []
        self._requested: dict[str, Requirement] = {}
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self._closed = False
        self.ever_changed = False  # then an interpreter from before, as in a checkpoint, may find other packages

    @property
    def paths(self) -> list[str]:
        """Return the folders from which the session imports the packages that it installed, as paths inside the session."""
        return [package_set.path for package_set in self._sets]

    @property
    def installed(self) -> list[Package]:
        """Return the packages that were installed in the session, sorted by name."""
        return sorted((Package(name=name, version=version) for name, version in self._versions.items()), key=lambda one: one.name)

    async def install(
        self, requirements: Sequence[str], *, timeout: float, on_progress: ReportProgress | None = None
    ) -> CodeExecutionResult:
        """Install packages, and return the result. If the result has an error, nothing was changed.

        Args:
            requirements: Names of packages, which may have versions, extras and markers.
            timeout: How many seconds resolving and downloading may take.
            on_progress: Called with each line of progress.
        """
        return await self._as_result(lambda: self._install(requirements, timeout, on_progress or _ignore))

    async def uninstall(self, names: Sequence[str]) -> CodeExecutionResult:
        """Remove packages that this session installed, and return the result. Modules that are imported already stay usable."""
        return await self._as_result(lambda: self._uninstall(names))

    def inherit(self, other: "SessionPackages") -> None:
        """Give this new branch the packages of the session `other` that it was made from. Lock their package sets for the branch too."""
        for one in other._sets:
            if (package_set := self._packages.cache.lock_set(one.name)) is not None:
                self._sets.append(package_set)  # one by one: if a later one fails, `close` releases those before it
        self._requested, self.ever_changed = dict(other._requested), other.ever_changed

    async def close(self) -> None:
        """Wait until an install or uninstall that is changing the session has ended, then unlock all package sets.

        Do not wait for an install that is still downloading. It will not add its packages.
        """
        self._closed = True
        await self._tasks.finish()
        self._release(self._sets)
        self._sets = []

    @property
    def _versions(self) -> dict[str, str]:
        return {wheel.name: wheel.version for package_set in self._sets for wheel in package_set.wheels}

    async def _as_result(self, work: Callable[[], Awaitable[CodeExecutionResult]]) -> CodeExecutionResult:
        """Call `work` and return its result. Concurrent calls take turns. Convert a PackageError or OSError to a failed result."""
        started = time.perf_counter()
        try:
            async with self._turn:
                result = await work()
        except PackageError as error:
            result = _failed(CodeError(error.name, str(error)))
        except OSError as error:
            result = _failed(_make_disk_error(error))
        return replace(result, duration=time.perf_counter() - started)

    async def _install(self, texts: Sequence[str], timeout: float, report_progress: ReportProgress) -> CodeExecutionResult:
        requested = {canonicalize_name(requirement.name): requirement for requirement in parse_requirements(texts)}
        environment = await self._packages.environment()
        for requirement in requested.values():
            check_environment_allows(environment, requirement)
        there = environment | self._versions
        if all(is_met(requirement, there) for requirement in requested.values()):
            return CodeExecutionResult(stdout="".join(f"{name} {there[name]} is there already\n" for name in requested))
        wanted = self._requested | requested
        missing = [requirement for requirement in wanted.values() if not is_met(requirement, environment)]
        try:
            async with asyncio.timeout(timeout):
                package_set = await self._packages.fetch_set(missing, self._sets, report_progress)
        except TimeoutError as error:
            raise PackageError(
                "TimeoutError", f"cannot fetch the packages within {timeout:g} s: nothing was installed, so raise timeout or install fewer"
            ) from error
        return await self._tasks.run_shielded(self._add(package_set, wanted))

    async def _add(self, package_set: LockedPackageSet | None, wanted: dict[str, Requirement]) -> CodeExecutionResult:
        if package_set is None:
            self._requested = wanted
            return CodeExecutionResult(stdout="".join(f"{spell_canonically(one)} is there already\n" for one in wanted.values()))
        replaced, cache = _package_names(package_set) & self._versions.keys(), self._packages.cache
        try:
            modules = [module for one in self._sets for name in replaced & _package_names(one) for module in cache.list_modules(one, name)]
            kept = await self._without(replaced)
        except BaseException:
            package_set.release()
            raise
        result = await self._replace_sets([*kept, package_set], modules)
        if result.success:
            self._requested = wanted
        lines = "".join(f"installed {wheel.name} {wheel.version}\n" for wheel in package_set.wheels) if result.success else ""
        return replace(result, stdout=lines + result.stdout)

    async def _uninstall(self, texts: Sequence[str]) -> CodeExecutionResult:
        names = {parse_name(text) for text in texts}
        versions, environment = self._versions, await self._packages.environment()
        for name in sorted(names - versions.keys()):
            raise PackageError("PackageNotFoundError", _explain_missing(name, environment))
        return await self._tasks.run_shielded(self._remove(names, versions))

    async def _remove(self, names: set[str], versions: dict[str, str]) -> CodeExecutionResult:
        result = await self._replace_sets(await self._without(names), ())
        if not result.success:
            return result
        self._requested = {name: one for name, one in self._requested.items() if name not in names}
        lines = "".join(f"uninstalled {name} {versions[name]}; what is imported of it stays until the reset\n" for name in sorted(names))
        return replace(result, stdout=lines + result.stdout)

    async def _without(self, names: set[str]) -> list[LockedPackageSet]:
        """Return the session's package sets after removing the packages `names`.

        A package set that contains one of them is replaced by a locked copy without it.
        """
        kept: list[LockedPackageSet] = []
        with ExitStack() as on_failure:
            for package_set in self._sets:
                if not names & _package_names(package_set):
                    kept.append(package_set)
                elif (new := await self._packages.copy_without(package_set, names)) is not None:
                    on_failure.callback(new.release)
                    kept.append(new)
            on_failure.pop_all()
        return kept

    async def _replace_sets(self, sets: list[LockedPackageSet], modules: Sequence[str]) -> CodeExecutionResult:
        """Make the interpreter use `sets` instead of the session's package sets, and return the result.

        If that fails, for example because one of `modules` is imported already, the session keeps its old sets. In both cases, unlock the
        package sets that the session does not use afterwards.
        """
        earlier, self.ever_changed = self._sets, True
        result: CodeExecutionResult | None = None
        try:
            result = await self._replace_paths([package_set.path for package_set in sets], modules)
        finally:
            if result is not None and result.success and not self._closed:
                self._sets = sets
            self._release([package_set for package_set in (*earlier, *sets) if not any(package_set is one for one in self._sets)])
        return result

    def _release(self, sets: Sequence[LockedPackageSet]) -> None:
        for package_set in sets:
            package_set.release()


def _failed(error: CodeError) -> CodeExecutionResult:
    return CodeExecutionResult(error=error, stderr=str(error))


def _make_disk_error(error: OSError) -> CodeError:
    elsewhere = "or name another folder in ACASessions:Packages:CacheFolder"
    if error.errno == errno.ENOSPC:
        return CodeError("DiskFullError", f"the host's disk is full: free some of it, {elsewhere}")
    return CodeError(
        "PackageCacheError", f"this host cannot use its folder of packages ({error.strerror}): check its permissions, {elsewhere}"
    )


def _package_names(package_set: LockedPackageSet) -> set[str]:
    return {wheel.name for wheel in package_set.wheels}


def _explain_missing(name: str, environment: dict[str, str]) -> str:
    if name in environment:
        return (
            f"{name} {environment[name]} belongs to the sessions' environment, which no session changes: name what this session installed"
        )
    return f"{name} is not installed in this session: choose one that the session's list of packages has"


def _ignore(_line: str) -> None:
    pass
