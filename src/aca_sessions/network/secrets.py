"""Secrets that are added to requests of sessions: their sources, and a store that reads them when they are needed.

A `repr`, pickle, dump, log or error never contains their values. An error about a secret is raised outside of the `except` block of its
cause, so that it has no context: the text of the cause may contain the value.
"""

import asyncio
import inspect
import os
import re
import stat
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ..errors import AuthenticationError, ConfigurationError, MissingExtraError, SecretError, imports_of
from .calls import CallCancelledError, Hidden, SharedCalls, call_in_thread
from .key_vault import VaultSecret
from .rules import SECRET, names_in
from .tokens import AzureTokenProvider, DefaultCredential

if TYPE_CHECKING:
    import httpx
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

LARGEST = 16 << 10  # characters of a value: servers refuse longer headers
PATIENCE = 60.0  # seconds that a caller waits for a value or a token
_KEPT = {"keyring": 60.0, "key_vault": 300.0, "call": 30.0}  # seconds that a value is used before it is read again
_ISSUED = 100  # latest values of each secret, which are masked in responses
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)
_VARIABLE = re.compile(r"[^=\0]{1,256}")
Kind = Literal["environment", "file", "keyring", "key_vault", "call", "value"]
Source = Callable[[], str] | Callable[[], Awaitable[str]]


class Secret:
    """Where one secret comes from. Create one with `environment`, `file`, `keyring`, `key_vault`, `call` or `value`."""

    __slots__ = __match_args__ = ("_kind", "_source")  # not a dataclass, whose fields pydantic and `asdict` dump

    def __init__(self, kind: Kind, source: tuple[str, ...] | Source) -> None:
        self._kind: Final = kind
        self._source: Final = source  # the arguments, or the function that returns the value

    @classmethod
    def environment(cls, variable: str) -> "Secret":
        """Return the secret in an environment variable of this program, which is read each time."""
        if not _VARIABLE.fullmatch(variable):
            raise ConfigurationError("the environment variable of a secret must be a name without '='")
        return cls("environment", (variable,))

    @classmethod
    def file(cls, path: str | os.PathLike[str]) -> "Secret":
        """Return the secret in a file of this host, which is read again after it has changed. White space around it is removed."""
        if not os.fspath(path) or "\0" in os.fspath(path):
            raise ConfigurationError("the file of a secret must be a path")
        return cls("file", (os.path.abspath(os.path.expanduser(path)),))

    @classmethod
    def keyring(cls, service: str, user: str) -> "Secret":
        """Return the secret in the keyring of this user, as `keyring set SERVICE USER` stores it. It needs the extra `keyring`."""
        if not service or not user:
            raise ConfigurationError("a secret of the keyring must have a service and a user")
        return cls("keyring", (service, user))

    @classmethod
    def key_vault(cls, url: str) -> "Secret":
        """Return a secret of Azure Key Vault: `https://VAULT.vault.azure.net/secrets/NAME`, or a version of it.

        It needs the extra `azure`.
        """
        return cls("key_vault", (VaultSecret.parse(url).url,))

    @classmethod
    def call(cls, function: Source) -> "Secret":
        """Return the secret that a function returns, which is called at most every 30 seconds. If it is not async, it runs in a thread."""
        if not callable(function):
            raise ConfigurationError(f"the function of a secret must be callable, got {type(function).__name__}")
        return cls("call", function)

    @classmethod
    def value(cls, text: str) -> "Secret":
        """Return a secret with a known value."""
        return cls("value", lambda: text)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self._source)) if isinstance(self._source, tuple) else "…"  # a partial shows its arguments
        return f"Secret.{self._kind}({shown})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self._kind, self._source) == (other._kind, other._source)

    def __hash__(self) -> int:
        return hash((self._kind, self._source))

    def __deepcopy__(self, _: object) -> "Secret":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a Secret cannot be pickled: create it in each process")


class SecretStore:
    """Secrets by their names, and Azure tokens by their scopes. They are read when they are needed, and kept for a short time.

    Callers that need a value at the same time share one read. A failure is not kept. A store keeps nothing open: several
    event loops can use it, also after `aclose`.
    """

    def __init__(
        self,
        secrets: Mapping[str, Secret | str | Source],
        *,
        credential: "TokenCredential | AsyncTokenCredential | None" = None,
        transport: "httpx.AsyncBaseTransport | None" = None,
        clock: Callable[[], float] = time.time,
        earlier: Iterable[str] = (),
    ) -> None:
        """Create a store. Raise ConfigurationError if a name or a type is invalid, and SecretError if a value is.

        Args:
            secrets: The secrets by name. A text is the value itself, a function returns it.
            credential: The credential for Azure, which the caller closes. None: `DefaultAzureCredential`.
            transport: The transport of httpx for requests to Key Vault.
            clock: Returns the time in seconds since 1970.
            earlier: The values of a store that this one replaces. `values` returns the latest 100 of them, too.
        """
        self._secrets = as_secrets(secrets)
        self._credential, self._transport, self._clock = credential, transport, clock
        self._calls = SharedCalls()
        self._read: dict[str, Hidden[_Value]] = {}
        self._tokens: dict[str, AzureTokenProvider] = {}
        self._issued: dict[tuple[str, str], Hidden[deque[str]]] = {("earlier", ""): Hidden(deque(dict.fromkeys(earlier), _ISSUED))}

    def __repr__(self) -> str:
        return f"<SecretStore: {', '.join(self._secrets) or 'empty'}>"

    def __deepcopy__(self, _: object) -> "SecretStore":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a SecretStore cannot be pickled: create one in each process")

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the secrets."""
        return frozenset(self._secrets)

    async def get(self, name: str) -> str:
        """Return the value of a secret. Raise SecretError with its name and the reason, without its value, if it cannot be read."""
        secret = self._secrets.get(name)
        if secret is None:
            known = ", ".join(self._secrets) or "none"
            raise SecretError(f"the secret {name!r:.80} is not defined (defined: {known}): add it to ACASessions:Secrets")
        value = self._kept_value(name, secret)
        if value is None:
            value = await self._share(("secret", name), f"the secret {name!r}", partial(self._renew, name, secret))
        return self._issue(("secret", name), value)

    async def token(self, scope: str) -> str:
        """Return an Azure token for a scope. Keep it, and renew it before it expires. Raise SecretError if that fails."""
        return self._issue(
            ("token", scope), await self._share(("token", scope), f"the Azure token for {scope}", partial(self._azure_token, scope))
        )

    async def fill(self, template: str) -> str:
        """Replace each `${secret:NAME}` in a text by its value. Do not replace references inside a value."""
        values = {name: await self.get(name) for name in names_in([template])}
        return SECRET.sub(lambda found: values[found[1]], template)

    def values(self) -> tuple[str, ...]:
        """Return the values and tokens that were returned so far, the latest 100 of each, so that responses can be masked.

        The latest one of each is at the end, because only so many of the last ones are masked.
        """
        columns = [tuple(issued.value)[::-1] for issued in [*self._issued.values()]]
        return tuple(value for row in [*zip_longest(*columns)][::-1] for value in row if value is not None)

    async def aclose(self) -> None:
        """Forget all values, and cancel running reads: their callers get a SecretError."""
        await self._calls.cancel()
        for kept in (self._read, self._tokens, self._issued):
            kept.clear()

    def _kept_value(self, name: str, secret: Secret) -> str | None:
        """Return the value, or None if it must be read first."""
        match secret:
            case Secret("environment", (variable,)):
                found = os.environ.get(variable)
                if found is None:
                    raise SecretError(f"the secret {name!r}: the environment variable {variable} is not set: set it for this program")
                return _checked(name, Hidden(found))
            case Secret("value", read) if callable(read):
                return str(read())  # checked when the store was made
        kept = self._read.get(name)
        # The age is below 0 if the clock was set back.
        return kept.value.text if kept and 0 <= self._clock() - kept.value.time < _KEPT.get(secret._kind, 0) else None

    async def _share(self, key: tuple[str, str], what: str, work: Callable[[], Awaitable[str]]) -> str:
        try:
            return await self._calls.call(key, work, within=PATIENCE)
        except TimeoutError:
            problem = f"was not read within {PATIENCE:g} s: check its source"
        except CallCancelledError:
            problem = "cannot be read: its store was closed"
        raise SecretError(f"{what} {problem}")

    async def _renew(self, name: str, secret: Secret) -> str:
        """Read a secret from its source. Raise SecretError if that fails."""
        kept, begun, stamp, problem = self._read.get(name), self._clock(), None, ""
        try:
            match secret:
                case Secret("file", (path,)):
                    made = await call_in_thread(partial(_read_file, path, kept))
                    stamp, text = made.value.stamp, Hidden(made.value.text)
                case Secret("keyring", (service, user)):
                    text = await call_in_thread(partial(_read_keyring, service, user))
                case Secret("key_vault", (url,)):
                    text = Hidden(await VaultSecret.parse(url).read(self._azure_token, self._forget_token, self._transport))
                case _:
                    text = await _call(secret._source)  # type: ignore[arg-type]
        except MissingExtraError:
            raise
        except SecretError as error:
            problem = str(error)
        if problem:
            raise SecretError(f"the secret {name!r}: {problem}")
        value = _checked(name, text)
        self._read[name] = Hidden(_Value(value, begun, stamp))
        return value

    async def _azure_token(self, scope: str) -> str:
        provider = self._tokens.get(scope)
        if provider is None:
            provider = self._tokens[scope] = AzureTokenProvider(
                self._credential or DefaultCredential(),  # type: ignore[arg-type]
                scopes=(scope,),
                clock=self._clock,
                remedy="sign in (az login), or give this machine a managed identity",
            )
        try:
            token = Hidden(await provider.get_token())
        except (AuthenticationError, CallCancelledError) as error:
            problem = str(error) or f"the request for a token for {scope} was cancelled"
        else:
            return _checked(f"token for {scope}", token)
        raise SecretError(problem)

    def _forget_token(self, scope: str, token: str) -> None:
        if scope in self._tokens:
            self._tokens[scope].clear_cache(token)

    def _issue(self, key: tuple[str, str], value: str) -> str:
        issued = self._issued.setdefault(key, Hidden(deque(maxlen=_ISSUED))).value
        if not issued or issued[-1] != value:
            if value in issued:
                issued.remove(value)
            issued.append(value)
        return value


@dataclass(frozen=True, slots=True, repr=False)
class _Value:
    """A value, the time at which it was read, and the stamp of its file."""

    text: str
    time: float
    stamp: tuple[int, ...] | None


def as_secrets(given: Mapping[str, Secret | str | Source]) -> dict[str, Secret]:
    """Return secrets by their names. Raise ConfigurationError if a name or a type is invalid, and SecretError if a value is."""
    return {_checked_name(name): _as_secret(name, one) for name, one in given.items()}


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(f"the name of a secret must have at most 100 letters, digits and '_.-', got {name!r:.80}")
    return name


def _as_secret(name: str, given: object) -> Secret:
    if isinstance(given, str):
        _checked(name, Hidden(given))
        return Secret.value(given)
    if isinstance(given, Secret):
        if given._kind == "value" and callable(given._source):
            _checked(name, Hidden(given._source()))
        return given
    if callable(given):
        return Secret.call(given)
    raise ConfigurationError(f"the secret {name!r} must be a Secret, a text or a function, got {type(given).__name__}")


def _checked(name: str, given: Hidden[Any]) -> str:
    """Return the value of a secret. Raise SecretError if it cannot be in an HTTP header."""
    if not isinstance(given.value, str):
        problem = f"must be text, got {type(given.value).__name__}"
    elif not given.value:
        problem = "must not be empty"
    elif len(given.value) > LARGEST:
        problem = f"must have at most {LARGEST} characters, has {len(given.value)}"
    elif not (given.value.isascii() and given.value.isprintable()):
        problem = "must have only printable ASCII characters, without line breaks"
    else:
        return given.value
    # `given` hides the value from tools that show the variables of a traceback.
    raise SecretError(f"the secret {name!r}: its value {problem}")


def _read_file(path: str, kept: Hidden[_Value] | None) -> Hidden[_Value]:
    """Return the content of a file with its stamp, or `kept` if the file has not changed since. Raise SecretError if it cannot be read."""
    problem, content = "", Hidden(b"")
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would block; Windows has none
        try:
            found = os.fstat(descriptor)
            stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if kept is not None and kept.value.stamp == stamp:
                return kept
            if not stat.S_ISREG(found.st_mode):
                problem = f"{path} must be a file"
            elif found.st_size > LARGEST + 1024:  # for white space around it
                problem = f"{path} must have at most {LARGEST} bytes, has {found.st_size}"
            else:
                content = Hidden(os.read(descriptor, LARGEST + 1025))
        finally:
            os.close(descriptor)
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
    if problem:
        raise SecretError(problem)
    return Hidden(_Value(content.value.decode("utf-8", "replace").strip(), 0, stamp))


def _read_keyring(service: str, user: str) -> Hidden[str]:
    with imports_of("keyring"):
        import keyring

    try:
        found = Hidden(keyring.get_password(service, user))
    except Exception as error:  # of the backend
        problem = f"the keyring cannot be read ({type(error).__name__}): unlock it, or see `keyring diagnose`"
    else:
        if found.value is not None:
            return Hidden(found.value)
        problem = f"the keyring has no entry for {service!r} and {user!r}: run `keyring set SERVICE USER` with them"
    raise SecretError(problem)


async def _call(function: Source) -> Hidden[Any]:
    """Call the function of a secret. Raise SecretError, without the error's text, if it fails."""
    deadline = asyncio.timeout(PATIENCE)
    try:
        made: Hidden[Any]
        if _is_async(function):
            made = Hidden(function())
        else:
            made = await call_in_thread(lambda: Hidden(function()))
        if inspect.isawaitable(made.value):
            async with deadline:
                made = Hidden(await made.value)
        return made
    except Exception as error:
        problem = "did not return" if isinstance(error, TimeoutError) and deadline.expired() else f"raised {_where(error)}"
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            raise
        problem = f"raised {_where(error)}"
    raise SecretError(f"its function {problem}")


def _is_async(function: Source) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _where(error: BaseException) -> str:
    """Return the type of an error and the line that raised it, without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else type(error).__name__
