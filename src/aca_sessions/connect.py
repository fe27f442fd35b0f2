"""The functions that open everything from settings. Only this module decides between embedded and remote."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx
from anyio import to_thread

from .client.http import SessionsHttpClient
from .client.interpreter import CodeInterpreter
from .client.pool import PoolEvent, SessionPool
from .contract.versions import version_named
from .errors import ConfigurationError, NotSupportedError, PoolError
from .hosting import Hosting
from .owner import Owner
from .policies import packages_of, policy_of
from .settings import Settings

if TYPE_CHECKING:
    from .client.auth import AzureTokenProvider
    from .sandbox.named_environments import Environments
    from .sandbox.policy import Policy
    from .sandbox.probe import IsolationReport
    from .server.app import Service

_logger = logging.getLogger("aca_sessions")
_UNIX = "unix://"
_AZURE = ".dynamicsessions.io"
_POOLS = (_AZURE, ".azurecontainerapps.io")  # pools of custom containers are below the second
_ROOM_FOR_IDLE = 20  # sessions that the embedded server can keep alive for each lease of the pool
_OTHER_LOOP_SECONDS = 10.0  # how long to wait for another thread's event loop to close what it opened
Opened = TypeVar("Opened")


class Opening(Generic[Opened]):
    """An `async with` block for one thing. Everything that was opened for it is closed with it, in reverse order.

    This is not a generator: the event loop closes a forgotten generator when the loop ends, while other things still use what it opened.
    """

    def __init__(self, open_on: "Callable[[Stack], Awaitable[Opened]]") -> None:
        self._open_on = open_on
        self._stack = Stack()
        self._owner = Owner()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Opened:
        self._owner, self._loop = Owner(), asyncio.get_running_loop()
        try:
            return await self._open_on(self._stack)
        except BaseException:
            await self._stack.aclose()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Close everything on the event loop that opened it. Do nothing in a forked process, where all of it belongs to the parent."""
        loop = self._loop
        if not self._owner.is_here:
            self._stack.pop_all()
        elif loop is None or loop is asyncio.get_running_loop():
            await self._stack.aclose()
        elif loop.is_closed():
            self.abandon()
        elif loop.is_running():
            await _close_there(self._stack, loop)
        else:
            await to_thread.run_sync(loop.run_until_complete, self._stack.aclose())

    def abandon(self) -> None:
        """End all processes at once, without the event loop that opened them: it is closed, so nothing can be awaited on it."""
        for end in reversed(self._stack.at_once):
            end()
        self._stack.pop_all()


class Stack(AsyncExitStack):
    """An exit stack that also has the functions that end its processes when its event loop is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once: list[Callable[[], None]] = []


async def _close_there(stack: Stack, loop: asyncio.AbstractEventLoop) -> None:
    """Close on an event loop that runs in another thread.

    Raise PoolError after 10 s. If the caller blocks that loop, the loop closes everything as soon as it is free.
    """
    closing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(stack.aclose(), loop))
    done, _ = await asyncio.wait({closing}, timeout=_OTHER_LOOP_SECONDS)
    if not done:
        raise PoolError("the event loop that opened this is busy and will close it later: close it in the loop that opened it")
    await closing


def open_pool(
    settings: Settings | None = None,
    *,
    policy: "Policy | None" = None,
    endpoint: str | None = None,
    max_concurrent_sessions: int | None = None,
    on_event: Callable[[PoolEvent], None] | None = None,
    spares: int | None = None,
) -> Opening[SessionPool]:
    """Open a pool of sessions, at the endpoint of the settings or in the embedded sandbox if they have none.

    Args:
        settings: The settings; by default they are read from appsettings.json and the environment.
        policy: The policy of embedded sessions, instead of that of the settings.
        endpoint: The endpoint, instead of that of the settings.
        max_concurrent_sessions: The number of leases, instead of that of the settings.
        on_event: A function that is called with every event of the pool.
        spares: How many sessions an embedded pool keeps ready, instead of the number of the policy or the settings.
    """

    async def open_on(stack: Stack) -> SessionPool:
        chosen = _settings(settings, endpoint, max_concurrent_sessions)
        limit = chosen.SessionPool.MaxConcurrentSessions
        # The pool alone ends idle sessions: one that it keeps must never make room for another at the embedded server.
        hosting = Hosting(max_sessions=_ROOM_FOR_IDLE * limit, cooldown=None, evicts=False)
        embedded = replace(policy or policy_of(chosen), spares=spares) if spares is not None and not _is_remote(chosen) else policy
        interpreter = await _open_interpreter(chosen, embedded, hosting, stack)
        pool = _pool(interpreter, chosen, on_event)
        stack.at_once.append(pool.abandon)
        return await stack.enter_async_context(pool)

    return Opening(open_on)


def open_interpreter(
    settings: Settings | None = None, *, policy: "Policy | None" = None, endpoint: str | None = None
) -> Opening[CodeInterpreter]:
    """Open an interpreter, which takes requests and returns results. Sessions are named in each request.

    Args:
        settings: The settings; by default they are read from appsettings.json and the environment.
        policy: The policy of embedded sessions, instead of that of the settings.
        endpoint: The endpoint, instead of that of the settings.
    """

    async def open_on(stack: Stack) -> CodeInterpreter:
        chosen = _settings(settings, endpoint, None)
        return await _open_interpreter(chosen, policy, Hosting(cooldown=_session_seconds(chosen)), stack)

    return Opening(open_on)


def open_http(settings: Settings | None = None) -> Opening[SessionsHttpClient]:
    """Open a client that sends single requests to the endpoint of the settings."""

    async def open_on(stack: Stack) -> SessionsHttpClient:
        return await stack.enter_async_context(await _open_http(settings or Settings(), None, Hosting(), stack))

    return Opening(open_on)


def open_server(
    settings: Settings | None = None, *, policy: "Policy | None" = None, hosting: "Hosting | None" = None
) -> Opening["Service"]:
    """Open the service over the embedded sandbox, as an ASGI application.

    Raise ConfigurationError if this process is one of several workers. Give the server a key in `hosting` if strangers can reach it.

    Args:
        settings: The settings; by default they are read from appsettings.json and the environment.
        policy: The policy of sessions, instead of that of the settings.
        hosting: How many sessions it hosts, for how long and for whom.
    """
    return _open_server(settings, policy, hosting, alone=True)


def _open_server(settings: Settings | None, policy: "Policy | None", hosting: "Hosting | None", *, alone: bool) -> Opening["Service"]:
    async def open_on(stack: Stack) -> "Service":
        _require_linux()
        from .sandbox.sandboxes import Sandboxes
        from .server.alone import check_is_alone

        if alone:
            check_is_alone()
        chosen = policy or policy_of(settings or Settings())
        # /mnt/data cannot be private without a mount, and translating paths would not reach C libraries.
        if chosen.isolation != "full" and hosting is not None and hosting.plain:
            raise ConfigurationError("serve --plain promises /mnt/data as Azure has it, which sessions without namespaces have not")
        # Start the fork server first: it starts while the rest of the server is imported.
        sandboxes = await stack.enter_async_context(Sandboxes(chosen))
        stack.at_once.append(sandboxes.abandon)
        from .server.app import Service
        from .server.sessions import Sessions

        await sandboxes.wait_until_ready()
        host = _audited(hosting or Hosting(), settings or Settings())
        sessions = Sessions(sandboxes, host, default_timeout=chosen.limits.cell_timeout)
        stack.at_once.append(sessions.journal.close)
        return Service(await stack.enter_async_context(sessions), host)

    return Opening(open_on)


def _audited(hosting: Hosting, settings: Settings) -> Hosting:
    file = hosting.audit or settings.Audit.File
    return replace(hosting, audit=file, audit_code=hosting.audit_code or settings.Audit.Code)


async def isolation_report(settings: Settings | None = None) -> "IsolationReport":
    """Return what isolation this host can enforce, part by part. Each part is tried."""
    _require_linux()
    from .sandbox.probe import report

    return await report(policy_of(settings or Settings()))


def environments(settings: Settings, tell: Callable[[str], None]) -> "Environments":
    """Return the named environments for guests. New ones are made from the package source of the settings."""
    from .sandbox.named_environments import Environments

    return Environments(packages_of(settings.Packages), tell)


def _is_remote(settings: Settings) -> bool:
    return bool(settings.SessionsHttpClient.Endpoint)


def _settings(settings: Settings | None, endpoint: str | None, max_concurrent_sessions: int | None) -> Settings:
    """Return the settings with the values that were given by name. `endpoint` and `max_concurrent_sessions` override the settings."""
    named: dict[str, Any] = {}
    if endpoint is not None:
        named["SessionsHttpClient"] = {"Endpoint": endpoint}
    if max_concurrent_sessions is not None:
        named["SessionPool"] = {"MaxConcurrentSessions": max_concurrent_sessions}
    given = settings.model_dump(exclude_unset=True) if settings is not None else {}
    if settings is not None and not named:
        return settings
    return Settings(**(given | {section: given.get(section, {}) | values for section, values in named.items()}))


async def _open_interpreter(settings: Settings, policy: "Policy | None", hosting: Hosting, stack: Stack) -> CodeInterpreter:
    if not version_named(settings.SessionsHttpClient.ApiVersion).has_sessions:
        _logger.info("api-version %s cannot end sessions: they expire by themselves", settings.SessionsHttpClient.ApiVersion)
    http = await _open_http(settings, policy, hosting, stack)
    return await stack.enter_async_context(CodeInterpreter(http))


async def _open_http(settings: Settings, policy: "Policy | None", hosting: Hosting, stack: Stack) -> SessionsHttpClient:
    client = await _remote(settings, stack) if _is_remote(settings) else await _embedded(settings, policy, hosting, stack)
    return SessionsHttpClient(client, api_version=settings.SessionsHttpClient.ApiVersion, **_timeouts(settings))


async def _embedded(settings: Settings, policy: "Policy | None", hosting: Hosting, stack: Stack) -> httpx.AsyncClient:
    _logger.info("no ACASessions:SessionsHttpClient:Endpoint is set: sessions run in the embedded sandbox of this process")
    hosting = replace(hosting, max_starting=hosting.max_sessions)  # the callers are in this process and can wait
    opening = _open_server(settings, policy, hosting, alone=False)
    app = await stack.enter_async_context(opening)
    stack.at_once.append(opening.abandon)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://embedded")


async def _remote(settings: Settings, stack: Stack) -> httpx.AsyncClient:
    options = settings.SessionsHttpClient
    endpoint = options.Endpoint or ""
    auth = await _auth(settings, stack)
    if endpoint.startswith(_UNIX):
        transport = httpx.AsyncHTTPTransport(uds=endpoint.removeprefix(_UNIX))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", auth=auth)
    return httpx.AsyncClient(base_url=endpoint, auth=auth)


async def _auth(settings: Settings, stack: Stack) -> httpx.Auth | None:
    """Return the authentication: a key if one is configured, none for a socket file, else Azure's own sign-in."""
    from .client.auth import ApiKeyAuth, BearerAuth

    options = settings.SessionsHttpClient
    if options.ApiKey is not None and httpx.URL(options.Endpoint or "").host.endswith(_AZURE):
        _logger.warning("ACASessions:SessionsHttpClient:ApiKey is sent to Azure, which takes tokens: leave it out to sign in")
    if options.ApiKey is not None:
        return ApiKeyAuth(options.ApiKey.get_secret_value())
    endpoint = httpx.URL(options.Endpoint or "")
    if (options.Endpoint or "").startswith(_UNIX):
        return None
    if not endpoint.host.endswith(_POOLS):
        raise ConfigurationError(
            "ACASessions:SessionsHttpClient:ApiKey is missing: an Endpoint that is not Azure's needs the key of its server "
            "(aca-sessions serve prints it)"
        )
    return BearerAuth(await _azure_tokens(settings, stack))


async def _azure_tokens(settings: Settings, stack: Stack) -> "AzureTokenProvider":
    from azure.identity.aio import DefaultAzureCredential

    from .client.auth import AzureTokenProvider

    credential = await stack.enter_async_context(DefaultAzureCredential())
    options = settings.AzureTokenProvider
    return AzureTokenProvider(credential, scopes=options.Scopes, refresh_before=60 * options.RefreshBeforeMinutes)


def _pool(interpreter: CodeInterpreter, settings: Settings, on_event: Callable[[PoolEvent], None] | None) -> SessionPool:
    return SessionPool(
        interpreter,
        max_concurrent_sessions=settings.SessionPool.MaxConcurrentSessions,
        session_timeout=_session_seconds(settings),
        acquire_timeout=settings.SessionPool.AcquireTimeoutSeconds,
        on_event=on_event,
    )


def _session_seconds(settings: Settings) -> float:
    return 60 * settings.SessionPool.SessionTimeoutMinutes


def _timeouts(settings: Settings) -> dict[str, float]:
    options = settings.SessionsHttpClient
    return {
        "connect_timeout": options.ConnectTimeoutSeconds,
        "request_timeout": options.RequestTimeoutSeconds,
        "patience": options.PatienceSeconds,
    }


def _require_linux() -> None:
    if sys.platform != "linux":
        from .sandbox.remedy import elsewhere

        raise NotSupportedError(f"the embedded sandbox needs Linux. {elsewhere(sys.platform)}")
