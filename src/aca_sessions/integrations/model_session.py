"""The base of all integrations: a session that checks a model's arguments, shortens results, and copies files for the host program."""

import asyncio
import base64
import json
import re
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from dataclasses import fields, replace
from functools import cache, update_wrapper, wraps
from operator import attrgetter
from pathlib import Path
from types import FunctionType, MappingProxyType, MethodType
from typing import Annotated, Any, Generic, Self, TypedDict, TypeVar, cast, overload

from ..client.arguments import checked_path, checked_session_id, checked_timeout
from ..client.files import replace_file
from ..client.http import shown_endpoint
from ..client.pool import SessionPool
from ..client.session import CallerPositions, Session
from ..connect import access_of, checked_settings, open_pool
from ..errors import ACASessionsError, ConfigurationError, InvalidArgumentError, NotSupportedError
from ..hints import Remedies, access_sentences, hint, install_sentence
from ..lifetime import OwnerProcess, SourceLine, find_calling_line
from ..models import CodeError, CodeExecutionResult, RemoteFile
from ..settings import Settings
from ..telemetry import hash_name


def read_below(folder: str | Path, name: str) -> bytes:
    """Return the content of a file in a folder of this machine. `name` is the file's path relative to `folder`.

    Raise InvalidArgumentError if the file cannot be read, or if '..' or a link leads out of the folder.
    """
    path = _below(folder, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{path.name!r:.200} cannot be read: {error.strerror}") from error


def write_below(folder: str | Path, name: str, data: bytes) -> Path:
    """Write a file into a folder of this machine, and return its path. `name` is the file's path relative to `folder`.

    Raise InvalidArgumentError if the file cannot be written, or if '..' or a link leads out of the folder. An existing file then stays as
    it was.
    """
    path = _below(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(data)
    except OSError as error:
        raise InvalidArgumentError(f"{path.name!r:.200} cannot be written: {error.strerror}") from error
    return path


def _below(folder: str | Path, name: str) -> Path:
    """Return the path of `name` in `folder`, with links resolved. Raise InvalidArgumentError if '..' or a link leads out of the folder."""
    if not isinstance(folder, str | Path):
        raise InvalidArgumentError(f"folder must be the path of a folder on this machine, got {type(folder).__name__}")
    checked_path(name)
    base = Path(folder).resolve()
    path = (base / name).resolve()
    if not name or path == base or not path.is_relative_to(base):
        raise InvalidArgumentError(f"a file's name must be a path below the folder, without links that lead out of it, got {name!r:.200}")
    return path


Files = dict[str, str | bytes]

_MOST_CODE = 1_000_000
_DATA_URI = re.compile(r"data:(?!\s)[^,\n]*;base64,", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")
_EXAMPLE = '{"data.csv": "a,b\\n1,2\\n"}'


def checked_files(files: object) -> tuple[Files, CodeError | None]:
    """Validate the files that a model sent. Return a dict of their contents by name, and None (no error).

    If the files are invalid, return an empty dict, and an error to show to the model. A model may send the dict as JSON text, and binary
    content as a data URI.
    """
    if isinstance(files, str):
        try:
            files = json.loads(files)
        except ValueError:
            return {}, CodeError(
                "TypeError", f"the argument 'files' must be a JSON object, got other text: send an object such as {_EXAMPLE}"
            )
    if not isinstance(files, Mapping):
        kind = type(files).__name__
        return {}, CodeError(
            "TypeError", f"the argument 'files' must map file names to their text, got {kind}: send an object such as {_EXAMPLE}"
        )
    contents: Files = {}
    for name, text in files.items():
        if not isinstance(name, str):
            return {}, CodeError("TypeError", f"a file's name must be text, got {type(name).__name__}: send an object such as {_EXAMPLE}")
        if not isinstance(text, str):
            kind = type(text).__name__
            return {}, CodeError(
                "TypeError", f"the content of the file {name!r:.200} must be text, got {kind}: send an object such as {_EXAMPLE}"
            )
        try:
            contents[name] = _content(text)
        except ValueError:
            return {}, CodeError("ValueError", f"the data URI of the file {name!r:.200} must be valid base64: encode the whole file again")
    try:
        for name in contents:
            checked_path(name)
    except InvalidArgumentError as error:
        return {}, _not_written(error)
    return contents, None


def _content(text: str) -> str | bytes:
    uri = _DATA_URI.match(text)
    return base64.b64decode("".join(text[uri.end() :].split()).translate(_URL_SAFE), validate=True) if uri else text


CODE = (
    "Python source, as in a notebook cell; plain text without Markdown fences. "
    "The value of its last expression is returned; figures, interactive charts and HTML are only named."
)
FILES = (
    "File names and the text of each file, written to /mnt/data, the working directory, before the code runs. "
    "A binary file is a data URI: data:application/octet-stream;base64,…"
)

PACKAGES = "Packages as in lines of requirements.txt, such as humanize or numpy<3."

_MOST_PACKAGES = 100
_NAMED_PACKAGE = re.compile(r"[\w.-]+(?:\[[\w.,-]+\])?(?:[<>=!~]=?[\w.*+!-]+)?", re.ASCII)


def checked_packages(packages: object) -> tuple[list[str], CodeError | None]:
    """Validate the packages that a model sent. Return a list of them, and None (no error).

    If they are invalid, return an empty list, and an error to show to the model. A model may send the list as JSON text, or as names with
    spaces or commas between them.
    """
    example = 'send a list such as ["humanize", "numpy<3"]'
    if isinstance(packages, str):
        packages = _as_list(packages)
    if not isinstance(packages, list | tuple):
        return [], CodeError("TypeError", f"the argument 'packages' must be a list of texts, got {type(packages).__name__}: {example}")
    if kinds := {type(one).__name__ for one in packages if not isinstance(one, str)}:
        got = ", ".join(sorted(kinds)[:3])
        return [], CodeError("TypeError", f"the argument 'packages' must be a list of texts, got a list with {got}: {example}")
    if not 0 < len(packages) <= _MOST_PACKAGES:
        return [], CodeError("ValueError", f"the argument 'packages' must have 1 to {_MOST_PACKAGES} items, got {len(packages)}: {example}")
    return [*packages], None


def _as_list(text: str) -> object:
    try:
        listed = json.loads(text)
    except ValueError:
        words = re.split(r"[\s,]+", text.strip())
        return words if all(map(_NAMED_PACKAGE.fullmatch, words)) else [text]
    return listed if isinstance(listed, list) else [text]


_NO_FILES: Mapping[str, str] = MappingProxyType({})
_FIELDS = tuple(field.name for field in fields(CodeExecutionResult))
_values = attrgetter(*_FIELDS)


_LEAST_OUTPUT = 200
# Errors of an installation that a model did not cause and cannot mend.
_OF_THE_HOST = frozenset(
    ("IndexUnreachableError", "IndexRefusedError", "PackageCacheError", "PackageChangedError", "DiskFullError", "NotSupportedError")
)
_GO_ON = "this cannot be mended from here: do not try again, and go on with the packages that are installed"
_WITH_INSTALL = Remedies("install a missing package with install_packages, then run the code again")
_WITHOUT_INSTALL = Remedies("")
Function = TypeVar("Function", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """The keyword arguments that all integrations have in common. `ModelSession` explains them."""

    max_output: int
    timeout: float | None
    memory_megabytes: int | None
    disk_megabytes: int | None
    install_packages: bool | None


def check_options(options: Options, function: str) -> None:
    """Raise TypeError if there is an unknown option. The error names `function`, which passes its options on to ModelSession."""
    if unknown := options.keys() - Options.__annotations__.keys():
        known = ", ".join(Options.__annotations__)
        raise TypeError(f"{function}() got an unexpected keyword argument {min(unknown)!r}: its options are {known}")


class ModelSession:
    """One Python session for a model. The model's mistakes do not raise: they become results with an error.

    Calls can run at the same time, for example those that a model makes in one turn. They share the session's variables.
    """

    _result_type = CodeExecutionResult

    def __init_subclass__(cls) -> None:
        """Copy the methods for host programs into a subclass, so that Python's errors about their arguments name the class of the user."""
        super().__init_subclass__()
        if ModelSession in cls.__bases__:
            for method in (
                cls.run,
                cls.install,
                cls.for_session,
                cls.upload_file,
                cls.download_file,
                cls.list_files,
                cls.end_session,
                cls.close,
            ):
                own = FunctionType(method.__code__, method.__globals__, method.__name__, method.__defaults__, method.__closure__)
                own.__kwdefaults__ = method.__kwdefaults__
                setattr(cls, method.__name__, update_wrapper(own, method))
                own.__qualname__ = f"{cls.__name__}.{method.__name__}"

    def __init__(
        self,
        pool: SessionPool | None = None,
        session_id: str | None = None,
        *,
        settings: Settings | None = None,
        max_output: int = 10_000,
        timeout: float | None = None,
        memory_megabytes: int | None = None,
        disk_megabytes: int | None = None,
        install_packages: bool | None = None,
    ) -> None:
        """Use the given pool, which the caller closes, or open one at the first call.

        Raise InvalidArgumentError or ConfigurationError if an argument is invalid, or if a memory or disk limit is given where it cannot be
        set: with a pool, or for an endpoint in the settings.

        Args:
            pool: The pool of sessions.
            session_id: The session's name, by default a new one. If you give both a pool and a name, `close` does not end the session.
            settings: Where sessions run, if no pool is given. By default the settings are read from appsettings.json (section ACASessions)
                and from environment variables.
            max_output: The approximate length, in characters, to which the text of a result is shortened for a model.
            timeout: The time limit of each cell in seconds, by default the endpoint's: 100 in the embedded sandbox.
            memory_megabytes: The memory limit of a session in the embedded sandbox, instead of the one in the settings. Not allowed with a
                pool, whose sessions have their limits already.
            disk_megabytes: The size limit of a session's /mnt/data in the embedded sandbox. Not allowed with a pool either.
            install_packages: Whether a model may install packages, with a function `install_packages`. The default is the setting
                `Packages:InstallFunction`, which is false unless you set it.
        """
        if isinstance(pool, Settings | dict | str):
            got = type(pool).__name__
            raise InvalidArgumentError(f"pool must be a SessionPool, got {got}: pass others by name, as in settings=Settings(…)")
        if isinstance(max_output, bool) or not isinstance(max_output, int) or max_output < _LEAST_OUTPUT:
            raise InvalidArgumentError(f"max_output must be at least {_LEAST_OUTPUT} characters, got {max_output!r:.40}")
        limits = {"memory_megabytes": memory_megabytes, "disk_megabytes": disk_megabytes}
        self._source = _Source(pool, settings, {name: value for name, value in limits.items() if value is not None})
        self._closes_source = True
        self._session_id = f"model-{uuid.uuid4()}" if session_id is None else checked_session_id(session_id)
        self._owns_session = session_id is None
        self._max_output = max_output
        self._timeout = checked_timeout(timeout)
        access = self._source.access
        self._can_install = access.can_install if install_packages is None else install_packages
        self._about_access, self._about_install = access_sentences(access), install_sentence(access)  # end the descriptions of tools
        self._warning = weakref.finalize(self, _warn_if_open, self._source, type(self).__name__, find_calling_line())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of session {hash_name(self._session_id)}, {self._source!r}>"

    async def run(self, code: object, files: object = _NO_FILES, *, timeout: float | None = None) -> CodeExecutionResult:
        """Write the files into the session, run the cell and return its result.

        Mistakes of the model, such as an invalid file name, do not raise: the result has an error that the model can read.

        Args:
            code: The source text.
            files: Contents of files by name: text, or data URIs.
            timeout: The time limit in seconds, by default the one of this object.
        """
        limit = self._timeout if timeout is None else checked_timeout(timeout)
        contents, error = ({}, None) if files is _NO_FILES else checked_files(files)
        # A framework may have turned a missing argument into text.
        if not isinstance(code, str) or code.strip() in ("None", "null"):
            is_missing = code is None or isinstance(code, str)
            what = "is missing" if is_missing else f"must be text, got {type(code).__name__}"
            error = CodeError("ValueError", f"the argument 'code' {what}: send the Python source text")
        elif len(code) > _MOST_CODE:
            error = CodeError(
                "ValueError", f"the argument 'code' must be at most {_MOST_CODE} characters long, got {len(code)}: put data into files"
            )
        if error is not None:
            return self._result(CodeExecutionResult(error=error, stderr=str(error)))
        pool = self._source.pool or await self._source.open()
        async with self._leased(pool) as session:
            try:
                for name, data in contents.items():
                    await session.upload_file(name, data)
            except ACASessionsError as failure:
                error = _not_written(failure)
                return self._result(CodeExecutionResult(error=error, stderr=str(error)))
            return self._result(await session.run(str(code), timeout=limit), hinted=True)

    async def _install_for_model(self, packages: object) -> CodeExecutionResult:
        """Install packages as `install` does, or return an error if models may not install packages."""
        if self._can_install:
            return await self.install(packages)
        error = CodeError("NotSupportedError", "installing packages is turned off: go on with the packages that are installed")
        return self._result(CodeExecutionResult(error=error, stderr=str(error)))

    async def install(self, packages: object) -> CodeExecutionResult:
        """Install packages into the session and return the result. If one cannot be installed, nothing changes.

        The host fetches the packages from the source in its settings. Mistakes in the argument do not raise: the result has an error. This
        method is for the host program, whether or not models may install packages.
        """
        requirements, error = checked_packages(packages)
        if error is not None:
            return self._result(CodeExecutionResult(error=error, stderr=str(error)))
        pool = self._source.pool or await self._source.open()
        async with self._leased(pool) as session:
            try:
                result = await session.install(*requirements)
            except (InvalidArgumentError, NotSupportedError) as failure:
                error = CodeError(type(failure).__name__, str(failure))
                result = CodeExecutionResult(error=error, stderr=str(error))
        is_of_the_host = result.error is not None and result.error.name in _OF_THE_HOST
        return self._result(replace(result, hint=_GO_ON if is_of_the_host else ""))

    @asynccontextmanager
    async def _leased(self, pool: SessionPool) -> AsyncIterator[Session]:
        """Lease the session for a `with` block. Its results report what was lost since the model's last result, in whatever lease."""
        async with pool.session(self._session_id) as session:
            self._source.positions.continue_in(session)
            yield session

    def for_session(self, session_id: str) -> Self:
        """Return an object like this one for another session of the same pool, for example one for each conversation of a server.

        Closing it does nothing: call `end_session` to end the session. Close the original, which closes the pool if it opened the pool.
        Raise InvalidArgumentError if no session can have this name.
        """
        sibling = copy(self)
        sibling._session_id, sibling._owns_session, sibling._closes_source = checked_session_id(session_id), False, False
        return sibling

    async def upload_file(self, name: str, data: str | bytes | Path | None = None, *, folder: str | Path | None = None) -> RemoteFile:
        """Write a file into the session. Give either `data` or `folder`. This method is for the host program: no model can call it.

        Args:
            name: The path of the file in the session, relative to /mnt/data.
            data: The content, or the path of a file of this machine.
            folder: A folder of this machine. The file `name` below it is copied.
        """
        if folder is not None and data is None:
            data = await asyncio.to_thread(read_below, folder, name)
        elif data is None or folder is not None:
            got = "neither" if data is None else "both"
            raise InvalidArgumentError(f"upload_file needs the content, as in upload_file('a.csv', 'x,y'), or folder='…', got {got}")
        async with (await self._source.open()).session(self._session_id) as session:
            return await session.upload_file(name, data)

    @overload
    async def download_file(self, name: str) -> bytes: ...

    @overload
    async def download_file(self, name: str, *, folder: str | Path) -> Path: ...

    async def download_file(self, name: str, *_paths: object, folder: str | Path | None = None) -> bytes | Path:
        """Return the content of the session's file `name`. With `folder`, copy it to `folder/name` on this machine and return that path.

        This method is for the host program: no model can call it.

        Args:
            name: The path of the file in the session, relative to /mnt/data.
            folder: A folder of this machine.
        """
        if _paths:
            raise TypeError(f"{type(self).__name__}.download_file() takes one path: download_file('a.csv', folder='out') writes out/a.csv")
        async with (await self._source.open()).session(self._session_id) as session:
            data = await session.download_file(name)
        return data if folder is None else await asyncio.to_thread(write_below, folder, name, data)

    async def list_files(self, folder: str = "") -> list[RemoteFile]:
        """Return the files and folders in the session's /mnt/data, or in a folder of it.

        This method is for the host program: a model can list them with Python.
        """
        async with (await self._source.open()).session(self._session_id) as session:
            return await session.list_files(folder)

    async def end_session(self) -> None:
        """End the session, which deletes its variables and files. A later call starts a new session of the same name.

        This method is for the host program, for example when a conversation is over: no model can call it.
        """
        await (await self._source.open()).terminate(self._session_id)
        self._source.positions.forget(self._session_id)

    async def close(self) -> None:
        """Close the pool and its sessions, if this object opened the pool. Otherwise end only the session, unless you gave its name.

        A later call opens the pool or starts the session again. This may be called in any event loop.
        """
        if self._source.is_open and self._closes_source:
            await self._source.close()
        elif self._owns_session and self._source.pool is not None:
            await self._source.pool.terminate(self._session_id)
            self._source.positions.forget(self._session_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _result(self, result: CodeExecutionResult, *, hinted: bool = False) -> CodeExecutionResult:
        values = dict(zip(_FIELDS, _values(result), strict=True))
        if hinted and (result.error or result.stderr or result.stdout):
            access = self._source.access if self._source.pool is None else self._source.pool._access_of(self._session_id)
            values["hint"] = hint(result, access, _WITH_INSTALL if self._can_install else _WITHOUT_INSTALL)
        return self._result_type(**{**values, "session_id": self._session_id, "max_output": self._max_output})


class _ModelFunction(Generic[Function]):
    """A method that models call. On each session, the first line of its docstring ends with a sentence about that session.

    The sentence is about the session's network or, for `install_packages`, about how packages are fetched.
    """

    def __init__(self, function: Function, *, installs: bool = False) -> None:
        self._function = function
        self._installs = installs

    def __get__(self, session: ModelSession | None, _owner: type) -> Any:
        if session is None:
            return self._function
        if self._installs:
            return MethodType(_described(self._function, session._about_install, is_offered=session._can_install), session)
        return MethodType(_described(self._function, session._about_access, is_offered=True), session)


def model_function(function: Function) -> Function:
    """Decorate a method that models call. Its docstring, which models read, gets a sentence on the session's network access."""
    return cast(Function, _ModelFunction(function))


def install_function(function: Function) -> Function:
    """Decorate the method that installs packages. Its docstring, which models read, gets a sentence on how packages are fetched.

    If the model may not install packages, frameworks that search an object for functions do not find the method.
    """
    return cast(Function, _ModelFunction(function, installs=True))


@cache
def _described(function: Callable[..., Awaitable[Any]], sentence: str, *, is_offered: bool) -> Callable[..., Awaitable[Any]]:
    """Return a function that calls `function`, and whose docstring has `sentence` at the end of its first line.

    If `is_offered` is False, the returned function lacks the mark by which Semantic Kernel finds the functions of a plugin.
    """

    @wraps(function)
    async def described(*arguments: Any, **named: Any) -> Any:
        return await function(*arguments, **named)

    first, rest_begins, rest = (function.__doc__ or "").partition("\n")
    described.__doc__ = f"{first} {sentence}".rstrip() + rest_begins + rest
    marks = vars(described)
    if "__kernel_function_description__" in marks:
        marks["__kernel_function_description__"] = described.__doc__
    if not is_offered:
        marks.pop("__kernel_function__", None)
    return described


class PythonTool(ModelSession):
    """One Python session for a model, with the tools `execute_python` and `execute_python_with_files` as methods.

    They fit every framework that accepts plain async methods, such as LangChain, OpenAI Agents and Pydantic-AI. If models may install
    packages, `install_packages` is a third.
    """

    # Frameworks send these docstrings to models.
    @model_function
    async def execute_python(self, code: Annotated[str, CODE]) -> str:
        """Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call.

        Args:
            code: Python source, as in a notebook cell; plain text without Markdown fences.
        """
        return str(await self.run(code))

    @model_function
    async def execute_python_with_files(self, code: Annotated[str, CODE], files: Annotated[dict[str, str], FILES]) -> str:
        """Writes files into the session of execute_python, then runs Python code there that can read or import them.

        Args:
            code: Python source, as in a notebook cell; plain text without Markdown fences.
            files: File names and the text of each file; a binary file is a base64 data URI.
        """
        return str(await self.run(code, files))

    @install_function
    async def install_packages(self, packages: Annotated[list[str], PACKAGES]) -> str:
        """Installs Python packages for execute_python. If it fails, nothing was installed.

        Args:
            packages: Packages as in lines of requirements.txt, such as humanize or numpy<3.
        """
        return str(await self._install_for_model(packages))


def _not_written(error: ACASessionsError) -> CodeError:
    return CodeError("FileError", f"a file could not be written, and the code was not run: {error}")


def plain_value(value: Any) -> object:
    """Convert a function's return value for a session: a pydantic object to a dict, and an object of an unknown type to text."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return value if value is None or isinstance(value, bool | int | float | str | bytes | list | dict) else str(value)


class _Source:
    """The pool that a ModelSession uses: the one that the caller gave, or one that `open` opens from the settings."""

    def __init__(self, pool: SessionPool | None, settings: Settings | None, limits: Mapping[str, int]) -> None:
        if pool is not None and limits:
            raise InvalidArgumentError(
                f"{' and '.join(limits)} cannot be given with a pool, whose sessions have their limits already: give the limits to the "
                'pool, as in open_pool(Settings(Sandbox={"Limits": {"MemoryMegabytes": 512}}))'
            )
        self.pool = pool
        self._settings = None if pool else _limited(checked_settings(settings) or Settings(), limits)
        self.access = pool.access if pool is not None else access_of(self._settings or Settings())
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._owner = OwnerProcess()
        self.is_open = False  # whether the pool was opened here
        self.positions = CallerPositions()  # what the model knows of each session

    def __repr__(self) -> str:
        if self.pool is not None:
            return repr(self.pool)
        return f"no pool open ({shown_endpoint((self._settings or Settings()).SessionsHttpClient.Endpoint or '')})"

    async def open(self) -> SessionPool:
        async with self._opening:  # calls of one turn may arrive together
            if self.pool is None:
                self.pool = await self._stack.enter_async_context(open_pool(self._settings))
                self.is_open, self._owner = True, OwnerProcess()
            return self.pool

    @property
    def is_forgotten(self) -> bool:
        """Return whether this object opened its pool itself, in this process, and the pool is still open.

        If this is true when the ModelSession is discarded, `_warn_if_open` warns that it was not closed.
        """
        return self.is_open and self._owner.is_current

    async def close(self) -> None:
        if self.is_open:
            self.is_open, self.pool = False, None
            self.positions = CallerPositions()
            await self._stack.aclose()


def _limited(settings: Settings, limits: Mapping[str, int]) -> Settings:
    """Return a copy of `settings` with the given limits of sessions. The keys are arguments of ModelSession, such as `memory_megabytes`.

    Raise ConfigurationError if a limit is impossible, or if the settings have an Endpoint, because then its server sets the limits.
    """
    if not limits:
        return settings
    if settings.SessionsHttpClient.Endpoint:
        raise ConfigurationError(
            f"{' and '.join(limits)} cannot be given with ACASessions:SessionsHttpClient:Endpoint, whose sessions have the limits of its "
            "server: set them there, or leave out the Endpoint for the embedded sandbox"
        )
    given = settings.model_dump(exclude_unset=True)
    sandbox = given.get("Sandbox", {})
    keys = {name.title().replace("_", ""): value for name, value in limits.items()}  # memory_megabytes: MemoryMegabytes
    limited = Settings(**given | {"Sandbox": sandbox | {"Limits": sandbox.get("Limits", {}) | keys}})
    disk, memory = limited.Sandbox.Limits.DiskMegabytes, limited.Sandbox.Limits.MemoryMegabytes
    if limits.get("disk_megabytes", disk) > disk:
        raise ConfigurationError(
            f"disk_megabytes must be at most half of a session's memory, which holds the files and has {memory} MB, got "
            f"{limits['disk_megabytes']}: raise memory_megabytes, or lower disk_megabytes"
        )
    return limited


def _warn_if_open(source: _Source, what: str, made_at: SourceLine) -> None:
    if source.is_forgotten:
        made_at.warn_unclosed(f"a {what}", "async with")
