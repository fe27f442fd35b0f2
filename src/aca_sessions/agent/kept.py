"""The methods of an agent session for its owner: skills, artifacts and dependencies, which outlive the session."""

from collections.abc import Sequence
from typing import Any

from .artifacts import Artifacts
from .deps import Deps, install, uninstall
from .live import Live
from .skills import Skills
from .storage import Storage


class Kept:
    """The methods that py-code-mode's sessions have for what is kept. They return what py-code-mode documents."""

    _skills: Skills
    _artifacts: Artifacts
    _deps: Deps
    _live: Live
    _storage: Storage

    @property
    def storage(self) -> Storage:
        """Return the storage of skills, artifacts and dependencies."""
        return self._storage

    async def list_skills(self) -> list[dict[str, Any]]:
        """Return all skills: name, description, parameters, origin and more, but not the source."""
        return await self._skills.list()

    async def search_skills(self, query: str, limit: int = 5) -> list[dict[str, Any]]:
        """Return the skills that fit a description, the best first."""
        return await self._skills.search(query, limit)

    async def get_skill(self, name: str) -> dict[str, Any] | None:
        """Return a skill with its source, or None if there is none of that name."""
        return await self._skills.get(name)

    async def add_skill(self, name: str, source: str, description: str = "") -> dict[str, Any]:
        """Save a skill and return it. Raise InvalidArgumentError if an example in its docstring fails.

        Args:
            name: Its name, a Python name of up to 64 characters.
            source: Python source that defines `run`. Examples in its docstring are run first.
            description: What it is for. By default the first paragraph of the docstring.
        """
        return await self._skills.add(name, source, description)

    async def remove_skill(self, name: str) -> bool:
        """Remove a skill and return whether there was one."""
        return await self._skills.remove(name)

    async def list_artifacts(self) -> list[dict[str, Any]]:
        """Return all artifacts: name, path, description, metadata, created_at."""
        return await self._artifacts.list()

    async def save_artifact(self, name: str, data: Any, description: str = "", metadata: dict[str, Any] | None = None) -> dict[str, Any]:
        """Save text, bytes, JSON or a DataFrame under a name, and return its description.

        Args:
            name: The name. An artifact of the same name is replaced.
            data: The content.
            description: What it is.
            metadata: Further facts, as JSON.
        """
        return await self._artifacts.save(name, data, description, metadata)

    async def load_artifact(self, name: str) -> Any:
        """Return the content of an artifact, as it was saved."""
        return await self._artifacts.load(name)

    async def delete_artifact(self, name: str) -> None:
        """Delete an artifact. Do nothing if there is none of that name."""
        await self._artifacts.delete(name)

    async def list_deps(self) -> list[str]:
        """Return the requirements that are kept."""
        return await self._deps.list()

    async def add_dep(self, package: str) -> dict[str, Any]:
        """Install a package and keep its requirement, unless installing fails. Return `installed`, `already_present`, `failed`."""
        self._deps.check_unlocked()
        told = await install(self._live.session, [package])
        if not told["failed"]:
            await self._deps.remember(package)
        return told

    async def remove_dep(self, package: str) -> dict[str, Any]:
        """Uninstall a package and forget its requirement. Return `removed`, `not_found`, `failed` and `removed_from_config`.

        `removed_from_config` is whether its requirement was kept.
        """
        configured = await self._deps.forget(package)
        return await uninstall(self._live.session, package, configured=configured)

    async def sync_deps(self) -> dict[str, Any]:
        """Install all requirements that are kept. Return `installed`, `already_present`, `failed`."""
        return await self.install_all(await self.list_deps())

    async def install_all(self, requirements: Sequence[str]) -> dict[str, Any]:
        """Install packages into this session without keeping their requirements."""
        return await install(self._live.session, requirements)
