"""What one session installed. The host remembers it, so that the session's next interpreter has it as well."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
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
    """Adds sets of packages to a session and takes them away, one call after another."""

    def __init__(self, packages: Packages, show: Show) -> None:
        """Starts with none. `show` has the live interpreter find these paths and no others, unless modules that are replaced are loaded."""
        self._packages = packages
        self._show = show
        self._sets: list[HeldSet] = []
        self._asked: dict[str, Requirement] = {}
        self._turn = asyncio.Lock()
        self._tasks = Tasks()
        self._closed = False

    @property
    def paths(self) -> list[str]:
        """Where the session's interpreters find what is installed."""
        return [held.path for held in self._sets]

    @property
    def installed(self) -> list[Package]:
        """What the session has beyond its environment."""
        return sorted((Package(name=name, version=version) for name, version in self._versions.items()), key=lambda one: one.name)

    async def install(self, requirements: Sequence[str], *, timeout: float, on_progress: Tell | None = None) -> CodeExecutionResult:
        """What became of it: failed, with the reason, it changed nothing."""
        return await self._told(lambda: self._install(requirements, timeout, on_progress or _nobody))

    async def uninstall(self, names: Sequence[str]) -> CodeExecutionResult:
        """Takes away what was installed here; what is imported stays loaded."""
        return await self._told(lambda: self._uninstall(names))

    async def close(self) -> None:
        """Lets go of everything; what is on its way is not added any more."""
        self._closed = True
        await self._tasks.finish()
        self._let_go(self._sets)
        self._sets = []

    @property
    def _versions(self) -> dict[str, str]:
        return {wheel.name: wheel.version for held in self._sets for wheel in held.wheels}

    async def _told(self, work: Callable[[], Awaitable[CodeExecutionResult]]) -> CodeExecutionResult:
        started = time.perf_counter()
        try:
            async with self._turn:
                result = await work()
        except PackageError as error:
            told = CodeError(error.name, str(error))
            result = CodeExecutionResult(error=told, stderr=str(told))
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
        replaced = {wheel.name for wheel in held.wheels} & self._versions.keys()
        modules = [module for one in self._sets for name in replaced & _names(one) for module in self._packages.cache.modules_of(one, name)]
        try:
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
        """The sets as they are without some packages."""
        kept: list[HeldSet] = []
        for held in self._sets:
            new = await self._packages.without(held, names) if names & _names(held) else held
            kept += [new] if new is not None else []
        return kept

    async def _exchange(self, sets: list[HeldSet], modules: Sequence[str]) -> CodeExecutionResult:
        """The session has these sets from now on, if its interpreter took them; whichever it has not are let go of."""
        earlier = self._sets
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


def _names(held: HeldSet) -> set[str]:
    return {wheel.name for wheel in held.wheels}


def _not_here(name: str, environment: dict[str, str]) -> str:
    if name in environment:
        return f"{name} {environment[name]} belongs to the sessions' environment, which no session changes"
    return f"{name} is not installed in this session"


def _nobody(_line: str) -> None:
    """Where nobody wants to know how far it is."""
