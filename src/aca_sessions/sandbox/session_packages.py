"""The packages that one session installed. The host remembers them, so that the session's next interpreter has them as well."""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..models import CodeError, CodeExecutionResult, Package
from ..tasks import Tasks
from .package_cache import HeldSet
from .packages import Packages
from .pip_output import Tell
from .requirements import PackageError, canonical, check_against, checked_name, is_met, parsed

Show = Callable[[Sequence[str], Sequence[str]], Awaitable[CodeExecutionResult]]


class SessionPackages:
    """The sets of packages of a session. They are added and removed by one call after another."""

    def __init__(self, packages: Packages, show: Show) -> None:
        """Begin without packages.

        Args:
            packages: the cache and the resolver.
            show: makes the live interpreter find the packages at these paths and no others. It takes the paths, and the names of modules
                that come in another version: if one of them is loaded, the result has an error and nothing changes.
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
        """Return the folders in which the session's interpreters find what is installed."""
        return [held.path for held in self._sets]

    @property
    def installed(self) -> list[Package]:
        """Return the packages that the session has beyond its environment, sorted by name."""
        return sorted((Package(name=name, version=version) for name, version in self._versions.items()), key=lambda one: one.name)

    async def install(self, requirements: Sequence[str], *, timeout: float, on_progress: Tell | None = None) -> CodeExecutionResult:
        """Install packages, and return the result. If it has an error, nothing was changed.

        Args:
            requirements: names with versions, extras and markers.
            timeout: seconds until the packages must be fetched.
            on_progress: called with each line of progress.
        """
        return await self._told(lambda: self._install(requirements, timeout, on_progress or _nobody))

    async def uninstall(self, names: Sequence[str]) -> CodeExecutionResult:
        """Remove packages that this session installed. What is imported stays loaded."""
        return await self._told(lambda: self._uninstall(names))

    def inherit(self, other: "SessionPackages") -> None:
        """Take the packages of another session, of which this one is a branch."""
        for one in other._sets:
            if (held := self._packages.cache.hold(one.name)) is not None:
                self._sets.append(held)  # one by one: if a later one fails, `close` releases those before it
        self._asked, self.ever_changed = dict(other._asked), other.ever_changed

    async def close(self) -> None:
        """Release all sets. An install that still runs adds nothing any more."""
        self._closed = True
        await self._tasks.finish()
        self._let_go(self._sets)
        self._sets = []

    @property
    def _versions(self) -> dict[str, str]:
        return {wheel.name: wheel.version for held in self._sets for wheel in held.wheels}

    async def _told(self, work: Callable[[], Awaitable[CodeExecutionResult]]) -> CodeExecutionResult:
        """Await `work`, one change at a time. Return a PackageError or OSError as a failed result."""
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
        except TimeoutError:
            raise PackageError("TimeoutError", f"the packages were not fetched within {timeout:g} s; nothing was installed") from None
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
        told = "".join(f"installed {wheel.name} {wheel.version}\n" for wheel in held.wheels) if result.success else ""
        return replace(result, stdout=told + result.stdout)

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
        told = "".join(f"uninstalled {name} {versions[name]}; what is imported of it stays until the reset\n" for name in sorted(names))
        return replace(result, stdout=told + result.stdout)

    async def _without(self, names: set[str]) -> list[HeldSet]:
        """Return the session's sets, each without some packages."""
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
        """Give the session these sets, if its interpreter takes them. Release the sets that it does not have then."""
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
    elsewhere = "or name another place in ACASessions:Packages:CacheFolder"
    if error.errno == errno.ENOSPC:
        return CodeError("DiskFullError", f"the host's disk is full: free some of it, {elsewhere}")
    return CodeError("PackageCacheError", f"this host cannot use its folder of packages ({error.strerror}): see to its rights, {elsewhere}")


def _names(held: HeldSet) -> set[str]:
    return {wheel.name for wheel in held.wheels}


def _not_here(name: str, environment: dict[str, str]) -> str:
    if name in environment:
        return f"{name} {environment[name]} belongs to the sessions' environment, which no session changes"
    return f"{name} is not installed in this session"


def _nobody(_line: str) -> None:
    """Ignore progress."""
