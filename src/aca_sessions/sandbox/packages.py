"""The packages that sessions may install. They are resolved on the host for the guests' Python, unpacked once and kept for all sessions.

No code of a package runs on the host.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from anyio import to_thread
from packaging.requirements import Requirement

from .environment import Survey, survey
from .image_python import ImagePython
from .package_cache import SHOWN_AT, HeldSet, PackageCache
from .pip_output import Tell
from .policy import Policy
from .requirements import PackageError, Wheel, by_name, canonical, is_pinned
from .resolver import Known, Resolver

_VALID_SECONDS = 86_400.0  # how long the answer to requirements without an exact version counts as the newest
_FOREVER = float("inf")
_AT_ONCE = 2  # installs that run pip; further ones wait, and may then find in the cache what they need


class Packages:
    """The package cache and the resolver of all sessions under one policy."""

    def __init__(self, policy: Policy, ask_image: Callable[[], Awaitable[ImagePython]] | None = None) -> None:
        """Prepare without touching anything. `ask_image` asks an image's Python about itself: it runs in sessions only."""
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
        """Return the packages of the guests' environment, as versions by names."""
        if self._environment is None and self._ask_image is not None:
            told = await self._ask_image()
            self._resolver = replace(self._resolver, python=sys.executable, image=told)
            self._version, self._environment = f"{told.version} {told.platforms[0]}", dict(told.packages)
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
        """Return a set, held, that meets the requirements together with the environment and `sets`. Return None if nothing has to be added.

        Raise PackageError if the requirements cannot be met.

        Args:
            requirements: all that the session has asked for and its environment lacks.
            sets: what the session has already; the new set may replace packages of it.
            tell: called with each line of progress.
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
        """Move an unpacked set into the cache, and return it, held."""
        name = self.cache.name_of("set", self._python, *(f"{wheel.pin} {wheel.sha256}" for wheel in wheels))
        await to_thread.run_sync(self.cache.keep, name, wheels, unpacked)
        held = self.cache.hold(name)
        if held is None:
            raise PackageError("PackageCacheError", "the packages were removed by another process while they were installed: try again")
        return held

    async def without(self, held: HeldSet, names: set[str]) -> HeldSet | None:
        """Return the set without some of its packages, held as well. Return None if nothing is left."""
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
        """Return what the guests' Python reports about itself, from the cache until its environment changes.

        Asking an interpreter takes longer than all the rest.
        """
        key = self.cache.name_of("survey", self._python)
        kept = self.cache.noted(key)
        if kept is not None and (found := Survey(**json.loads(kept))).is_current:
            return found
        found = survey(self._python)
        self.cache.note(key, json.dumps(asdict(found)))
        return found

    def _key(self, texts: list[str], sets: list[str]) -> str:
        """Return a cache key made of all that an answer depends on."""
        source = (self._source.index_url or "", self._source.wheels or "")
        there = json.dumps(sorted((self._environment or {}).items()))
        return self.cache.name_of("answer", self._version, self._python, there, *source, json.dumps(sets), *texts)
