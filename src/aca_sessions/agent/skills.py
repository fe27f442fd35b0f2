"""Skills: functions that a session's code or its owner wrote once, and that later sessions find and use again.

On the host their source is only parsed with `ast`. It runs only in sessions.
"""

import ast
import contextlib
import json
import keyword
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ..errors import InvalidArgumentError, NotSupportedError, StorageError
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
    """A skill as it is kept. `origin` is who wrote it, `session` or `host`. `earlier` holds up to 10 older sources."""

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
        """Return the parameters of `run`: `name`, `type`, `required`, `default`."""
        return parameters(self.source)

    @property
    def searched(self) -> str:
        """Return the text for searches: the description, and the first paragraphs of the docstrings."""
        return "\n".join(dict.fromkeys([self.description, *_documentation(self.source)]))

    def told(self, uses: int = 0) -> dict[str, Any]:
        """Return the skill for a list: without its source."""
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


Found = list[Skill]


class Skills:
    """The skills of a storage."""

    def __init__(self, storage: Storage, attempt: Try | None = None, embed: Embed | None = None) -> None:
        """Take a storage. Nothing is read yet.

        Args:
            storage: Where the skills are kept.
            attempt: Runs the examples of a skill before it is kept, and raises if one fails. By default they are not run.
            embed: Makes vectors of texts, so that searches are by meaning and not by words.
        """
        self._storage = storage
        self._attempt = attempt
        self._stamp: str | None = None
        self._all: dict[str, Skill] = {}
        self._search = Search(embed)

    async def list(self) -> Described:
        """Return all skills without their sources."""
        return [skill.told(await self._uses(skill.name)) for skill in (await self.all()).values()]

    async def search(self, query: str, limit: int = 5) -> Described:
        """Return the skills that fit a description, the best first, without their sources."""
        return [skill.told(await self._uses(skill.name)) for skill in await self.best(query, limit)]

    async def best(self, query: str, limit: int) -> "Found":
        """Return the skills that fit a description, the best first."""
        skills = await self.all()
        return [skills[name] for name in await self._search.best(query, limit) if name in skills]

    async def get(self, name: str) -> dict[str, Any] | None:
        """Return a skill with its source, or None if there is none of that name."""
        skill = await self._read(name)
        return None if skill is None else {**skill.told(await self._uses(name)), "source": skill.source}

    async def source(self, name: str) -> str:
        """Return the source of a skill and count the use. The use is not counted if the storage cannot be written.

        Raise InvalidArgumentError if the skill does not exist.
        """
        skill = await self._read(name)
        if skill is None:
            raise InvalidArgumentError(f"there is no skill {checked(name)}: see skills.list()")
        with contextlib.suppress(StorageError):
            await self._count_use(name)
        return skill.source

    async def _count_use(self, name: str) -> None:
        async with self._storage.locked("uses"):
            used = {"uses": await self._uses(name) + 1, "last": time.time()}
            await self._storage.write("uses", name, json.dumps(used).encode())

    async def add(self, name: str, source: str, description: str = "", *, origin: str = "host") -> dict[str, Any]:
        """Run the examples of a skill, then keep it and return it with its source. Sources that it replaces are kept as earlier ones.

        Raise InvalidArgumentError if the name or the source is invalid, or if a session (`origin`) would replace a skill of its owner.

        Args:
            name: Its name, a Python name of up to 64 characters.
            source: Python source that defines `run`.
            description: What it is for. By default the first paragraph of the docstring.
            origin: Who adds it: `host` or `session`.
        """
        documented = _documentation(source)
        now = datetime.now(UTC).isoformat()
        skill = Skill(name=checked(name), source=source, description=description or documented[0], origin=origin, created=now)
        tested = await self._try(skill) if ">>>" in (ast.get_docstring(entry(source)) or "") else False
        async with self._storage.locked("skills"):
            before = await self._read(name)
            _check_owner(before, origin)
            earlier = () if before is None else (before.source, *before.earlier)[:_KEPT_VERSIONS]
            skill = replace(skill, version=before.version + 1 if before else 1, earlier=earlier, tested=tested)
            await self._storage.write("skills", name, _encode(skill))
        return {**skill.told(), "source": skill.source}

    async def remove(self, name: str, *, origin: str = "host") -> bool:
        """Remove a skill and return whether there was one. Raise InvalidArgumentError if a session would remove a skill of its owner."""
        # The host may remove any skill and takes no lock, because a full Redis gives none, and removing is what makes room there.
        async with contextlib.nullcontext() if origin == "host" else self._storage.locked("skills"):
            _check_owner(await self._read(name), origin)
            await self._storage.delete("uses", name)
            return await self._storage.delete("skills", name)

    async def _try(self, skill: Skill) -> bool:
        if self._attempt is None:
            return False
        try:
            await self._attempt(skill.name, skill.source)
        except NotSupportedError:
            return False
        return True

    async def _read(self, name: str) -> Skill | None:
        data = await self._storage.read("skills", checked(name))
        return None if data is None else _decode(name, data)

    async def all(self) -> dict[str, Skill]:
        """Return all skills by name. They are read again only if the storage has another stamp."""
        stamp = await self._storage.stamp("skills")
        if stamp is None or stamp != self._stamp:
            found = [await self._read(name) for name in await self._storage.names("skills") if _is_name(name)]
            self._all = {skill.name: skill for skill in found if skill is not None}
            self._search.over({skill.name: skill.searched for skill in self._all.values()})
            self._stamp = stamp
        return self._all

    async def _uses(self, name: str) -> int:
        data = await self._storage.read("uses", name)
        return int(json.loads(data)["uses"]) if data else 0


def checked(name: object) -> str:
    """Return the name. Raise InvalidArgumentError if code cannot call a skill by it."""
    if not _is_name(name):
        form = "a Python name of up to 64 letters, digits and '_' that begins with a letter"
        raise InvalidArgumentError(f"a skill's name must be {form}, and none of {', '.join(sorted(_OWN_NAMES))}: got {str(name)[:80]!r}")
    return str(name)


def entry(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """Return the function `run` of a skill. Raise InvalidArgumentError if there is none, or if the source is not valid Python."""
    if not isinstance(source, str) or len(source) > _MOST_SOURCE:
        raise InvalidArgumentError(f"a skill's source is text of at most {_MOST_SOURCE} characters")
    try:
        parsed = ast.parse(source)
    except SyntaxError as error:
        raise InvalidArgumentError(f"the skill's source is no Python: {error.msg} (line {error.lineno})") from None
    except (ValueError, RecursionError, MemoryError):
        raise InvalidArgumentError("the skill's source is nested too deeply, or holds null characters") from None
    for node in reversed(parsed.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "run":
            return node
    raise InvalidArgumentError("a skill's source defines 'def run(...)' or 'async def run(...)'")


def parameters(source: str) -> list[dict[str, Any]]:
    """Return the parameters of `run` as they are written. Nothing is evaluated."""
    given = entry(source).args
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
    """Raise InvalidArgumentError if a session would replace a skill of its owner: later sessions would trust the new one."""
    if skill is not None and skill.origin == "host" and origin != "host":
        raise InvalidArgumentError(f"the skill {skill.name} was given from outside, and stays as it is: use another name")


def _documentation(source: str) -> tuple[str, ...]:
    """Return the first paragraphs of the docstrings of `run` and of its file, without empty ones. Return ("",) if there are none."""
    function = entry(source)
    firsts = [_first(ast.get_docstring(node) or "") for node in (function, ast.parse(source))]
    return tuple(filter(None, firsts)) or ("",)


def _first(documentation: str) -> str:
    """Return the first paragraph of a docstring, without examples."""
    return documentation.partition("\n\n")[0].partition(">>>")[0].strip()


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and name not in _OWN_NAMES and not keyword.iskeyword(name)


def _encode(skill: Skill) -> bytes:
    """Encode a skill as a Python file. Its first line holds what is not in the source."""
    fields = ("description", "version", "origin", "created", "tested", "earlier")
    return f"{_HEADER}{json.dumps({name: getattr(skill, name) for name in fields})}\n{skill.source}".encode("utf-8", "backslashreplace")


def _decode(name: str, data: bytes) -> Skill | None:
    """Decode a file. Without the first line of `_encode` it is a skill as well. Return None if it is not valid Python."""
    first, _, source = data.decode("utf-8", "replace").partition("\n")
    told: dict[str, Any] = {}
    try:
        if first.startswith(_HEADER):
            told = json.loads(first.removeprefix(_HEADER))
            told["earlier"] = tuple(told["earlier"])
        else:
            source = data.decode("utf-8", "replace")
        description = _documentation(source)[0]
    except (ValueError, TypeError, KeyError):
        return None
    return Skill(name=name, source=source, **{**told, "description": told.get("description") or description})
