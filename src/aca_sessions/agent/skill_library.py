"""The skills of a storage for code without `await`, with the methods of py-code-mode's libraries."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from .search import Embed
from .skills import Found, Skill, Skills
from .storage import Storage

Answer = TypeVar("Answer")


class SkillLibrary:
    """The skills of a storage, outside of a session. Every call reads the storage, so what sessions add is seen at once.

    Calls block. They can be made where an event loop runs, but cells wait meanwhile.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[Storage]], embed: Embed | None = None) -> None:
        """Take a function that opens the storage for one call. Each call runs in an event loop of its own. Nothing is read yet."""
        self._opening = opening
        self._embed = embed

    def list(self) -> Found:
        """Return all skills, by name."""
        return [*self._all().values()]

    def get(self, name: str) -> Skill | None:
        """Return a skill, or None if there is none of that name."""
        return self._all().get(name)

    def search(self, query: str, limit: int = 10) -> Found:
        """Return the skills that fit a description, the best first."""
        return self._call(lambda skills: skills.best(query, limit))

    def add(self, skill: Skill | str, source: str = "", description: str = "") -> Skill:
        """Keep a skill: one of another library, or a name, source and description. A skill of the same name is replaced.

        Examples in its docstring are not run: use a session's `add_skill` for that.
        """
        given = (skill.name, skill.source, skill.description) if isinstance(skill, Skill) else (skill, source, description)

        async def added(skills: Skills) -> Skill:
            await skills.add(*given)
            return (await skills.all())[given[0]]

        return self._call(added)

    def remove(self, name: str) -> bool:
        """Remove a skill and return whether there was one."""
        return self._call(lambda skills: skills.remove(name))

    def refresh(self) -> None:
        """Check that the storage can be read. Nothing is kept here that could be out of date."""
        self._all()

    def __len__(self) -> int:
        return len(self._all())

    def __iter__(self) -> Iterator[Skill]:
        return iter(self.list())

    def __contains__(self, name: object) -> bool:
        return name in self._all() or name in self._all().values()

    def _all(self) -> dict[str, Skill]:
        return self._call(lambda skills: skills.all())

    def _call(self, act: Callable[[Skills], Awaitable[Answer]]) -> Answer:
        async def acted() -> Answer:
            async with self._opening() as storage:
                return await act(Skills(storage, embed=self._embed))

        # In another thread: the caller's may have a running event loop, in which `asyncio.run` fails.
        with ThreadPoolExecutor(1, thread_name_prefix="aca-sessions-skills") as thread:
            return thread.submit(asyncio.run, acted()).result()
