"""Skills: functions that cells or the owner of a session save for later sessions. The host only parses them; they run in sessions."""

import ast
import asyncio
import contextlib
import json
import keyword
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from ...errors import InvalidArgumentError, NotSupportedError, StorageError
from .search import Embed, Search
from .storage import Storage

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_OWN_NAMES = frozenset({"create", "invoke", "search", "list", "get", "delete"})
_HEADER = "# aca-sessions: "
_MOST_SOURCE = 64 << 10
_KEPT_VERSIONS = 10
Described = list[dict[str, Any]]
Try = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """A function that was saved for later sessions: Python source that defines `run`.

    `origin` is `session` if a cell saved it, otherwise `host`. `tested` tells whether the examples in its docstring were run and passed.
    `earlier` has up to 10 older sources, the latest first.
    """

    name: str
    source: str
    description: str = ""
    version: int = 1
    origin: str = "host"
    created: str = ""
    tested: bool = False
    earlier: tuple[str, ...] = ()

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """Return the parameters of the skill's function `run`, each with `name`, `type`, `required` and `default`."""
        return parse_parameters(self.source)

    @property
    def search_text(self) -> str:
        """Return the text by which searches find the skill.

        It consists of the description and the first paragraphs of two docstrings in the source: that of `run` and that of the module.
        """
        return "\n".join(dict.fromkeys([self.description, *_read_documentation(self.source)]))

    def describe(self, uses: int = 0) -> dict[str, Any]:
        """Return the skill as a dict without its source. The dict includes `uses`, the number of times the skill was used."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "version": self.version,
            "origin": self.origin,
            "created_at": self.created,
            "tested": self.tested,
            "uses": uses,
        }


SkillList = list[Skill]


class Skills:
    """The skills in a storage, with async methods to list, search, add and remove them."""

    def __init__(self, storage: Storage, try_examples: Try | None = None, embed: Embed | None = None) -> None:
        """Store the arguments. Nothing is read from the storage before another method is called.

        Args:
            storage: Where the skills are kept.
            try_examples: Runs the examples of a skill before it is saved, and raises if one fails. By default they are not run.
            embed: A function that returns a vector for each text, so that searches compare meanings. By default searches compare words.
        """
        self._storage = storage
        self._try_examples = try_examples
        self._stamp: str | None = None
        self._all: dict[str, Skill] = {}
        self._search = Search(embed)

    async def list(self) -> Described:
        """Return all skills as dicts, sorted by name, without their sources."""
        return [skill.describe(await self._read_use_count(skill.name)) for skill in (await self.all()).values()]

    async def search(self, query: str, limit: int = 5) -> Described:
        """Return the skills that match a query best, at most `limit`, the best first. Each is a dict without its source."""
        return [skill.describe(await self._read_use_count(skill.name)) for skill in await self.best(query, limit)]

    async def best(self, query: str, limit: int) -> "SkillList":
        """Return at most `limit` skills that match a query as Skill objects, the best match first."""
        skills = await self.all()
        return [skills[name] for name in await self._search.best(query, limit) if name in skills]

    async def get(self, name: str) -> dict[str, Any] | None:
        """Return a skill as a dict with its source, or None if no skill has that name."""
        skill = await self._read(name)
        return None if skill is None else {**skill.describe(await self._read_use_count(name)), "source": skill.source}

    async def source(self, name: str) -> str:
        """Return a skill's source, and count one use of it if the storage is writable.

        Raise InvalidArgumentError if there is no such skill.
        """
        skill = await self._read(name)
        if skill is None:
            raise InvalidArgumentError(f"there is no skill {check_skill_name(name)}: see skills.list()")
        with contextlib.suppress(StorageError):
            await self._count_use(name)
        return skill.source

    async def _count_use(self, name: str) -> None:
        async with self._storage.locked("uses"):
            used = {"uses": await self._read_use_count(name) + 1, "last": time.time()}
            await self._storage.write("uses", name, json.dumps(used).encode())

    async def add(self, name: str, source: str, description: str = "", *, origin: str = "host") -> dict[str, Any]:
        """Run the examples in a skill's docstring, if `try_examples` was given, then save the skill. Return it as a dict with its source.

        A skill of the same name is replaced, and its source is kept as an earlier one. Raise InvalidArgumentError if the name or the source
        is invalid, if an example fails, or if a session would replace a skill that the host saved.

        Args:
            name: A Python name of up to 64 characters.
            source: Python source that defines `run`.
            description: What the skill does. By default the first paragraph of the docstring.
            origin: Who saves it: `host` or `session`.
        """
        documented = _read_documentation(source)
        now = datetime.now(UTC).isoformat()
        skill = Skill(name=check_skill_name(name), source=source, description=description or documented[0], origin=origin, created=now)
        tested = await self._run_examples(skill) if ">>>" in (ast.get_docstring(parse_run(source)) or "") else False
        async with self._storage.locked("skills"):
            before = await self._read(name)
            _check_owner(before, origin)
            earlier = () if before is None else (before.source, *before.earlier)[:_KEPT_VERSIONS]
            skill = replace(skill, version=before.version + 1 if before else 1, earlier=earlier, tested=tested)
            await self._storage.write("skills", name, _encode_skill(skill))
        return {**skill.describe(), "source": skill.source}

    async def remove(self, name: str, *, origin: str = "host") -> bool:
        """Remove a skill. Return whether it existed. Raise InvalidArgumentError if a session would remove a skill that the host saved.

        `origin` is who removes it, `host` or `session`.
        """
        # The host may remove any skill and takes no lock, because a full Redis gives none, and removing is what makes room there.
        async with contextlib.nullcontext() if origin == "host" else self._storage.locked("skills"):
            _check_owner(await self._read(name), origin)
            await self._storage.delete("uses", name)
            return await self._storage.delete("skills", name)

    async def _run_examples(self, skill: Skill) -> bool:
        if self._try_examples is None:
            return False
        try:
            await self._try_examples(skill.name, skill.source)
        except NotSupportedError:
            return False
        return True

    async def _read(self, name: str) -> Skill | None:
        data = await self._storage.read("skills", check_skill_name(name))
        return None if data is None else _decode_skill(name, data)

    async def all(self) -> dict[str, Skill]:
        """Return a dict of all skills by name, sorted.

        Return the skills of the previous call if the storage reports that no skill has changed since. Otherwise read them again.
        """
        stamp = await self._storage.stamp("skills")
        if stamp is None or stamp != self._stamp:
            found = [await self._read(name) for name in await self._storage.names("skills") if _is_name(name)]
            self._all = {skill.name: skill for skill in found if skill is not None}
            self._search.set_texts({skill.name: skill.search_text for skill in self._all.values()})
            self._stamp = stamp
        return self._all

    async def _read_use_count(self, name: str) -> int:
        data = await self._storage.read("uses", name)
        return int(json.loads(data)["uses"]) if data else 0


def check_skill_name(name: object) -> str:
    """Validate a skill's name and return it.

    Raise InvalidArgumentError if it is too long, is not a Python name, or is also a method of the object `skills` that cells use.
    """
    if not _is_name(name):
        form = "a Python name of up to 64 letters, digits and '_' that begins with a letter"
        raise InvalidArgumentError(f"a skill's name must be {form}, and none of {', '.join(sorted(_OWN_NAMES))}: got {str(name)[:80]!r}")
    return str(name)


def parse_run(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """Parse a skill's source and return the syntax tree of its function `run`.

    Raise InvalidArgumentError if the source is invalid or does not define `run`.
    """
    if not isinstance(source, str) or len(source) > _MOST_SOURCE:
        got = f"{len(source)} characters" if isinstance(source, str) else type(source).__name__
        raise InvalidArgumentError(f"a skill's source must be text of at most {_MOST_SOURCE} characters, got {got}")
    try:
        parsed = ast.parse(source)
    except SyntaxError as error:  # not chained, nor those below: the cause quotes the source, which code in a session may have written
        raise InvalidArgumentError(f"the skill's source must be valid Python: {error.msg} (line {error.lineno})") from None
    except ValueError:
        raise InvalidArgumentError("the skill's source must be text without null characters and lone surrogates: remove them") from None
    except (RecursionError, MemoryError):
        raise InvalidArgumentError(
            "the skill's source must not be nested that deeply: split its long expressions into statements"
        ) from None
    for node in reversed(parsed.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "run":
            return node
    raise InvalidArgumentError("a skill's source must define 'def run(...)' or 'async def run(...)' outside of any block")


def parse_parameters(source: str) -> list[dict[str, Any]]:
    """Return the parameters of `run` in a skill's source. Types and defaults are source text, because nothing is evaluated."""
    given = parse_run(source).args
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults)) + [*given.defaults]
    both = [*zip(plain, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [_parameter(argument, default) for argument, default in both]


def _parameter(argument: ast.arg, default: ast.expr | None) -> dict[str, Any]:
    return {
        "name": argument.arg,
        "type": ast.unparse(argument.annotation) if argument.annotation else None,
        "required": default is None,
        "default": ast.unparse(default) if default else None,
    }


def _check_owner(skill: Skill | None, origin: str) -> None:
    """Raise InvalidArgumentError if the host saved the skill and `origin` is not `host`. Later sessions trust skills of the host."""
    if skill is not None and skill.origin == "host" and origin != "host":
        raise InvalidArgumentError(
            f"the skill {skill.name} belongs to the session's owner, so code in a session cannot change or remove it: use another name"
        )


def _read_documentation(source: str) -> tuple[str, ...]:
    """Return the first paragraphs of two docstrings in a skill's source: that of `run` and that of the module.

    Leave out empty ones. Return ("",) if both are empty.
    """
    function = parse_run(source)
    firsts = [_first_paragraph(ast.get_docstring(node) or "") for node in (function, ast.parse(source))]
    return tuple(filter(None, firsts)) or ("",)


def _first_paragraph(documentation: str) -> str:
    return documentation.partition("\n\n")[0].partition(">>>")[0].strip()


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and name not in _OWN_NAMES and not keyword.iskeyword(name)


def _encode_skill(skill: Skill) -> bytes:
    """Encode a skill as a Python file.

    The first line is a comment with the fields of the skill that are not in its source, such as `version` and `origin`.
    """
    fields = ("description", "version", "origin", "created", "tested", "earlier")
    return f"{_HEADER}{json.dumps({name: getattr(skill, name) for name in fields})}\n{skill.source}".encode("utf-8", "backslashreplace")


def _decode_skill(name: str, data: bytes) -> Skill | None:
    """Decode a skill from a Python file. Return None if the file is not valid.

    If the file does not begin with the comment that `_encode_skill` writes, fields such as `version` have their defaults.
    """
    first, _, source = data.decode("utf-8", "replace").partition("\n")
    fields: dict[str, Any] = {}
    try:
        if first.startswith(_HEADER):
            fields = json.loads(first.removeprefix(_HEADER))
            fields["earlier"] = tuple(fields["earlier"])
        else:
            source = data.decode("utf-8", "replace")
        description = _read_documentation(source)[0]
    except (ValueError, TypeError, KeyError):
        return None
    return Skill(name=name, source=source, **{**fields, "description": fields.get("description") or description})


Answer = TypeVar("Answer")


class SkillLibrary:
    """The skills in a storage, for code outside of sessions. Every call reads the storage, so it sees at once what sessions add.

    Each call blocks its thread. If an event loop runs in that thread, its tasks, such as running cells, wait until the call returns.
    """

    def __init__(self, open_storage: Callable[[], AbstractAsyncContextManager[Storage]], embed: Embed | None = None) -> None:
        """Store a function that opens the storage. Each method calls it in a new event loop.

        `embed` is a function that returns a vector for each text, so that searches compare meanings. By default searches compare words.
        """
        self._open_storage = open_storage
        self._embed = embed

    def list(self) -> SkillList:
        """Return all skills, sorted by name."""
        return [*self._all().values()]

    def get(self, name: str) -> Skill | None:
        """Return a skill, or None if no skill has that name."""
        return self._all().get(name)

    def search(self, query: str, limit: int = 10) -> SkillList:
        """Return at most `limit` skills that match a query, the best match first."""
        return self._call(lambda skills: skills.best(query, limit))

    def add(self, skill: Skill | str, source: str = "", description: str = "") -> Skill:
        """Save a skill and return it as it was saved. A skill of the same name is replaced.

        Examples in its docstring are not run. To run them, use `AgentSession.add_skill`.

        Args:
            skill: A Skill object, for example from another library, or the name of a new skill.
            source: The source, if `skill` is a name.
            description: The description, if `skill` is a name. By default the first paragraph of the docstring.
        """
        given = (skill.name, skill.source, skill.description) if isinstance(skill, Skill) else (skill, source, description)

        async def added(skills: Skills) -> Skill:
            await skills.add(*given)
            return (await skills.all())[given[0]]

        return self._call(added)

    def remove(self, name: str) -> bool:
        """Remove a skill. Return whether it existed."""
        return self._call(lambda skills: skills.remove(name))

    def refresh(self) -> None:
        """Check that the storage can be read; raise StorageError if not. Nothing is refreshed, because every call reads the storage."""
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
        async def call() -> Answer:
            async with self._open_storage() as storage:
                return await act(Skills(storage, embed=self._embed))

        # In another thread: the caller's may have a running event loop, in which `asyncio.run` fails.
        with ThreadPoolExecutor(1, thread_name_prefix="aca-sessions-skills") as thread:
            return thread.submit(asyncio.run, call()).result()
