"""What outlives a session, as its owner reaches it: skills, artifacts and dependencies of an agent session."""

from collections.abc import Sequence
from typing import Any

from .artifacts import Artifacts
from .deps import Deps, install, uninstall
from .live import Live
from .skills import Skills
from .storage import Storage


class Kept:
    """The methods of py-code-mode's sessions about what is kept, each with its documented answer."""

    _skills: Skills
    _artifacts: Artifacts
    _deps: Deps
    _live: Live
    _storage: Storage

    @property
    def storage(self) -> Storage:
        """Where it is kept."""
        return self._storage

    async def list_skills(self) -> list[dict[str, Any]]:
        """All skills: name, description, parameters and where they come from; no source."""
        return await self._skills.list()

    async def search_skills(self, query: str, limit: int = 5) -> list[dict[str, Any]]:
        """The skills that fit a description, the best first."""
        return await self._skills.search(query, limit)

    async def get_skill(self, name: str) -> dict[str, Any] | None:
        """A skill with its source; None where there is none."""
        return await self._skills.get(name)

    async def add_skill(self, name: str, source: str, description: str = "") -> dict[str, Any]:
        """Keeps a skill: source with `run`. Examples in its docstring are run first; one that fails refuses it."""
        return await self._skills.add(name, source, description)

    async def remove_skill(self, name: str) -> bool:
        """Whether there was one to remove."""
        return await self._skills.remove(name)

    async def list_artifacts(self) -> list[dict[str, Any]]:
        """All artifacts: name, path, description, metadata, created_at."""
        return await self._artifacts.list()

    async def save_artifact(self, name: str, data: Any, description: str = "", metadata: dict[str, Any] | None = None) -> dict[str, Any]:
        """Keeps text, bytes, JSON or a DataFrame under a name."""
        return await self._artifacts.save(name, data, description, metadata)

    async def load_artifact(self, name: str) -> Any:
        """The data, as it was saved."""
        return await self._artifacts.load(name)

    async def delete_artifact(self, name: str) -> None:
        """Deletes one; there need be none."""
        await self._artifacts.delete(name)

    async def list_deps(self) -> list[str]:
        """The requirements."""
        return await self._deps.list()

    async def add_dep(self, package: str) -> dict[str, Any]:
        """Installs a package and keeps its requirement: `installed`, `already_present`, `failed`. One that failed is not kept."""
        self._deps.check_unlocked()
        told = await install(self._live.session, [package])
        if not told["failed"]:
            await self._deps.remember(package)
        return told

    async def remove_dep(self, package: str) -> dict[str, Any]:
        """Takes a package away: `removed`, `not_found`, `failed`, and `removed_from_config`, whether its requirement was kept."""
        configured = await self._deps.forget(package)
        return await uninstall(self._live.session, package, configured=configured)

    async def sync_deps(self) -> dict[str, Any]:
        """Installs all that is kept: `installed`, `already_present`, `failed`."""
        return await self.install_all(await self._deps.list())

    async def install_all(self, requirements: Sequence[str]) -> dict[str, Any]:
        """Installs packages into this session without keeping their requirements."""
        return await install(self._live.session, requirements)
