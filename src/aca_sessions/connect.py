"""Open pools, clients and servers from settings. Only this module decides between embedded and remote sessions."""

import asyncio
import logging
import os
import sys
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx
from anyio import to_thread

from .client.http import EMBEDDED, EmbeddedTransport, SessionsHttpClient
from .client.interpreter import CodeInterpreter
from .client.pool import PoolEvent, SessionPool
from .contract.versions import VERSIONS
from .errors import ConfigurationError, InvalidArgumentError, NotSupportedError, PoolError, imports_of
from .hosting import SESSIONS_PER_LEASE, Hosting
from .lifetime import AsyncBlock, OwnerProcess
from .models import Access, AccessLimits
from .network.denials import OnDenied
from .settings import DurableSettings, LimitsSettings, PackagesSettings, Settings
from .settings.network import NetworkSettings

if TYPE_CHECKING:
    from .network.rules import Network
    from .sandbox.packages.environments import Environments
    from .sandbox.policy import Limits, PackageSource, Policy
    from .sandbox.probe import IsolationReport
    from .server.app import Service
    from .server.saved_sessions import SavedSessions

_logger = logging.getLogger("aca_sessions")
_UNIX = "unix://"
_AZURE = ".dynamicsessions.io"
_POOLS = (_AZURE, ".azurecontainerapps.io")  # pools of custom containers are below the second
_OTHER_LOOP_SECONDS = 10.0  # how long to wait for another thread's event loop to close what it opened
_DAY = 86_400.0  # seconds
Opened = TypeVar("Opened")


def policy_of(settings: Settings) -> "Policy":
    """Build the policy of embedded sessions (their limits, network, packages and isolation) from the settings.

    Raise ConfigurationError if settings contradict each other.
    """
    from .sandbox.packages.environments import find_python
    from .sandbox.policy import Mount, Policy, Together

    options, together = settings.Sandbox, settings.Sandbox.Together
    if options.Python is not None and options.Environment is not None:
        raise ConfigurationError("ACASessions:Sandbox:Python and ACASessions:Sandbox:Environment contradict each other: keep one")
    if settings.ContainerImage and options.Environment is not None:
        raise ConfigurationError("ACASessions:ContainerImage and ACASessions:Sandbox:Environment contradict each other: keep one")
    return Policy(
        limits=_limits_of(options.Limits),
        together=Together(memory_share=together.MemoryShare, processes=together.Processes, cpu_weight=together.CpuWeight),
        network=network_of(settings),
        mounts=tuple(Mount(mount.Host, mount.Guest, mount.Shared) for mount in options.Mounts),
        packages=_package_source(settings.Packages),
        python=options.Python if options.Environment is None else find_python(options.Environment),
        preload=options.Preload,
        spares=options.Spares,
        tenant=options.Tenant,
        isolation=options.Isolation,
        image=settings.ContainerImage or None,
    )


def network_of(settings: Settings) -> "Network":
    """Build the network of embedded sessions from the settings. Raise ConfigurationError if a domain is invalid."""
    from .network.rules import Network

    match settings.Sandbox.Network:
        case NetworkSettings() as given:
            return given.network({name: one.secret() for name, one in settings.Secrets.items()})
        case ("none",):
            return Network.none()
        case ("host",):
            return Network.host()
        case domains:
            return Network.allow(*domains)


def _limits_of(limits: LimitsSettings) -> "Limits":
    from .sandbox.policy import KB, MB, Limits

    return Limits(
        memory=limits.MemoryMegabytes * MB,
        disk=limits.DiskMegabytes * MB,
        temporary=limits.TemporaryMegabytes * MB,
        processes=limits.Processes,
        open_files=limits.OpenFiles,
        cpu=limits.Cpu,
        cell_timeout=limits.CellTimeoutSeconds,
        output=limits.OutputKilobytes * KB,
        history=limits.History,
        checkpoints=limits.Checkpoints,
        checkpoint_files=limits.CheckpointMegabytes * MB,
    )


def access_of(settings: Settings, policy: "Policy | None" = None) -> Access:
    """Return what sessions can reach, whether tools for models offer to install packages, and the limits of sessions.

    Network, folders and limits are those of `policy`, or those of the settings if `policy` is None. They are not known for sessions at an
    endpoint.
    """
    can_install = settings.Packages.InstallFunction
    if settings.SessionsHttpClient.Endpoint:
        return Access(can_install=can_install)
    limits = _limits_of(settings.Sandbox.Limits) if policy is None else policy.limits
    known = AccessLimits(**{field.name: getattr(limits, field.name) for field in fields(AccessLimits)})
    if policy is None:
        mounts = tuple((mount.Guest, mount.Shared) for mount in settings.Sandbox.Mounts)
        return Access(network=network_of(settings).described, can_install=can_install, limits=known, mounts=mounts)
    network = policy.network.described
    mounts = tuple((mount.guest, mount.shared) for mount in policy.mounts)
    return Access(network=network, can_install=can_install, limits=known, mounts=mounts)


def checked_settings(settings: Settings | None) -> Settings | None:
    """Return `settings`. Raise InvalidArgumentError if they are a dict or anything else but Settings."""
    if settings is None or isinstance(settings, Settings):
        return settings
    how = "Settings(**…)" if isinstance(settings, dict) else "Settings(Endpoint=…), and other arguments by name"
    raise InvalidArgumentError(f"settings must be Settings, got {type(settings).__name__}: pass {how}")


def settings_for_notebook() -> tuple[Settings, float | None]:
    """Return the settings for a notebook, and the time limit of its cells or None for the endpoint's.

    In an embedded sandbox, sessions and cells may last a day, unless the settings limit them: a notebook's user does not expect that an
    idle session ends, and can interrupt a cell.
    """
    settings = Settings()
    if settings.SessionsHttpClient.Endpoint:
        return settings, None
    timeout = None if "CellTimeoutSeconds" in settings.Sandbox.Limits.model_fields_set else _DAY
    if "SessionTimeoutMinutes" not in settings.SessionPool.model_fields_set:
        settings = Settings(SessionTimeoutMinutes=_DAY / 60)
    return settings, timeout


def _package_source(options: PackagesSettings) -> "PackageSource":
    from .sandbox.policy import MB, PackageSource

    return PackageSource(
        index_url=options.IndexUrl.get_secret_value() if options.IndexUrl else None,
        wheels=options.WheelFolder,
        cache=options.CacheFolder,
        cache_size=options.CacheMegabytes * MB,
    )


class Opening(AsyncBlock, Generic[Opened]):
    """An `async with` block that opens one object, such as a pool, and closes it at the end, with all that was opened for it.

    This is a class and not an async generator. When an event loop ends, it closes generators that the caller forgot to close. Other objects
    might still use what such a generator opened.
    """

    def __init__(self, opener: str, open_on: "Callable[[Stack], Awaitable[Opened]]") -> None:
        """Create a block that calls `open_on`. `opener` is the name of the function that returns the block, for messages."""
        what = opener.removeprefix("open_")
        super().__init__(
            f"{opener}()",
            f"use `async with {opener}() as {what}:`, or `{what} = await stack.enter_async_context({opener}())` with a "
            "contextlib.AsyncExitStack, which closes it",
        )
        self._open_on = open_on
        self._stack = Stack()
        self._owner = OwnerProcess()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Opened:
        self._owner, self._loop = OwnerProcess(), asyncio.get_running_loop()
        try:
            return await self._open_on(self._stack)
        except BaseException:
            await self._stack.aclose()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Close everything on the event loop that opened it. If that loop is closed, only end the processes of embedded sessions.

        Do nothing in a forked process.
        """
        loop = self._loop
        if not self._owner.is_current:
            self._stack.pop_all()
        elif loop is None or loop is asyncio.get_running_loop():
            await self._stack.aclose()
        elif loop.is_closed():
            self.abandon()
        elif loop.is_running():
            await _close_on_loop(self._stack, loop)
        else:
            await to_thread.run_sync(loop.run_until_complete, self._stack.aclose())

    def abandon(self) -> None:
        """End all processes that were started for the opened object, without awaiting anything.

        Call this if the event loop that started them is closed: nothing can be awaited on it then.
        """
        for end in reversed(self._stack.sync_closers):
            end()
        self._stack.pop_all()


class Stack(AsyncExitStack):
    """The functions that close an opened object, such as a pool, and what was opened for it, the latest first.

    If the event loop is closed already, nothing can be awaited. Then call the functions in `sync_closers` instead, which end the processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sync_closers: list[Callable[[], None]] = []


async def _close_on_loop(stack: Stack, loop: asyncio.AbstractEventLoop) -> None:
    """Close a stack on the event loop that opened it, which runs in another thread.

    Raise PoolError if that takes over 10 s. The event loop then closes the stack later.
    """
    closing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(stack.aclose(), loop))
    done, _ = await asyncio.wait({closing}, timeout=_OTHER_LOOP_SECONDS)
    if not done:
        raise PoolError(
            f"the pool, client or server is not closed after {_OTHER_LOOP_SECONDS:g} s: the event loop that opened it is busy, and closes "
            "it later. Close it in that loop, and do not block that loop"
        )
    await closing


def open_pool(
    settings: Settings | None = None,
    *,
    policy: "Policy | None" = None,
    endpoint: str | None = None,
    max_concurrent_sessions: int | None = None,
    on_event: Callable[[PoolEvent], None] | None = None,
    spares: int | None = None,
    on_denied: OnDenied | None = None,
) -> Opening[SessionPool]:
    """Open a pool of sessions: at the endpoint in the settings, or in the embedded sandbox if the settings have no endpoint.

    Args:
        settings: The settings; by default they are read from appsettings.json and the environment.
        policy: The policy of embedded sessions. It replaces the one in the settings.
        endpoint: The endpoint. It replaces the one in the settings.
        max_concurrent_sessions: How many sessions may be leased at the same time. It replaces the number in the settings.
        on_event: A function that is called with every event of the pool.
        spares: How many sessions an embedded pool keeps ready. It replaces the number in the policy or the settings.
        on_denied: A function that decides about requests of cells that the rules of their session's network refuse. It gets a `Denial` and
            returns `"once"`, `"always"`, or None to refuse it.
    """

    checked_settings(settings)

    async def open_on(stack: Stack) -> SessionPool:
        chosen = _override_settings(settings, endpoint, max_concurrent_sessions)
        options = chosen.SessionPool
        # The pool alone ends idle sessions: one that it keeps must never make room for another at the embedded server.
        hosting = Hosting(max_sessions=SESSIONS_PER_LEASE * options.MaxConcurrentSessions, cooldown=None, evicts=False)
        embedded = policy
        if spares is not None and not chosen.SessionsHttpClient.Endpoint:
            embedded = replace(policy or policy_of(chosen), spares=spares)
        pool = SessionPool(
            await _open_interpreter(chosen, embedded, hosting, stack),
            max_concurrent_sessions=options.MaxConcurrentSessions,
            session_timeout=60 * options.SessionTimeoutMinutes,
            acquire_timeout=options.AcquireTimeoutSeconds,
            on_event=on_event,
            on_denied=on_denied,
            access=access_of(chosen, policy),
        )
        stack.sync_closers.append(pool._abandon)
        return await stack.enter_async_context(pool)

    return Opening("open_pool", open_on)


def open_interpreter(
    settings: Settings | None = None, *, policy: "Policy | None" = None, endpoint: str | None = None
) -> Opening[CodeInterpreter]:
    """Open a client without a pool: each call of its methods names the session to use, and sessions are not leased.

    Args:
        settings: The settings; by default they are read from appsettings.json and the environment.
        policy: The policy of embedded sessions. It replaces the one in the settings.
        endpoint: The endpoint. It replaces the one in the settings.
    """

    checked_settings(settings)

    async def open_on(stack: Stack) -> CodeInterpreter:
        chosen = _override_settings(settings, endpoint, None)
        return await _open_interpreter(chosen, policy, Hosting(cooldown=60 * chosen.SessionPool.SessionTimeoutMinutes), stack)

    return Opening("open_interpreter", open_on)


def open_http(settings: Settings | None = None) -> Opening[SessionsHttpClient]:
    """Open a client that sends single HTTP requests to the endpoint in the settings, or to an embedded server if they have none."""

    checked_settings(settings)

    async def open_on(stack: Stack) -> SessionsHttpClient:
        return await stack.enter_async_context(await _open_http(settings or Settings(), None, Hosting(), stack))

    return Opening("open_http", open_on)


def open_server(
    settings: Settings | None = None, *, policy: "Policy | None" = None, hosting: "Hosting | None" = None
) -> Opening["Service"]:
    """Open a server of embedded sessions, as an ASGI application.

    The `async with` block raises ConfigurationError if this process is one of several workers, because each would have sessions of its own.
    Without a key in `hosting`, everyone who can reach the server can use it.

    Args:
        settings: The settings; by default they are read from appsettings.json and the environment.
        policy: The policy of sessions. It replaces the one in the settings.
        hosting: How many sessions the server hosts, for how long and for whom.
    """
    return _open_server(settings, policy, hosting, single_process=True)


def _open_server(
    settings: Settings | None, policy: "Policy | None", hosting: "Hosting | None", *, single_process: bool
) -> Opening["Service"]:
    checked_settings(settings)

    async def open_on(stack: Stack) -> "Service":
        _require_linux()
        from .sandbox.sandboxes import Sandboxes
        from .server.app import check_single_worker

        if single_process:
            check_single_worker()
        options = settings or Settings()
        chosen = policy or policy_of(options)
        # /mnt/data cannot be private without a mount, and translating paths would not reach C libraries.
        if chosen.isolation != "full" and hosting is not None and hosting.plain:
            raise ConfigurationError(
                "serve --plain needs full isolation, because /mnt/data is not private without namespaces: leave out --plain, or set "
                "ACASessions:Sandbox:Isolation to full"
            )
        # Start the fork server first: it starts while the rest of the server is imported.
        sandboxes = await stack.enter_async_context(Sandboxes(chosen))
        stack.sync_closers.append(sandboxes.abandon)
        from .server.app import Service
        from .server.sessions import Sessions

        await sandboxes.wait_until_ready()
        given = hosting or Hosting()
        host = replace(
            given,
            audit=given.audit or options.Audit.File,
            audit_code=given.audit_code or options.Audit.Code,
            max_save=options.Durable.MaxMegabytes << 20,
        )
        saved = (
            await _open_saved_sessions(options.Durable, chosen.tenant, stack)
            if options.Durable.Store and not (host.plain or host.shell)
            else None
        )
        sessions = Sessions(sandboxes, host, default_timeout=chosen.limits.cell_timeout, saved=saved)
        stack.sync_closers.append(sessions.journal.close)
        return Service(await stack.enter_async_context(sessions), host)

    return Opening("open_server", open_on)


async def _open_saved_sessions(options: DurableSettings, tenant: str | None, stack: Stack) -> "SavedSessions":
    from .durable.saves import Saves
    from .durable.sealing import Sealer, parse_key
    from .durable.store import open_store
    from .server.saved_sessions import SavedSessions

    assert options.Store is not None  # noqa: S101 - the caller looked
    store = await stack.enter_async_context(open_store(options.Store.get_secret_value()))
    key = parse_key(options.Key.get_secret_value()) if options.Key is not None else None
    saves = Saves(store, Sealer(key), max_bytes=options.MaxMegabytes << 20)
    return SavedSessions(saves, server=uuid.uuid4().hex, tenant=tenant or "", when=options.Save, close_seconds=options.CloseSeconds)


async def isolation_report(settings: Settings | None = None) -> "IsolationReport":
    """Check each part of the isolation on this host, and return the findings. Raise NotSupportedError outside Linux."""
    _require_linux()
    from .sandbox.probe import report

    return await report(policy_of(checked_settings(settings) or Settings()))


def environments(settings: Settings, tell: Callable[[str], None]) -> "Environments":
    """Return an object that manages named Python environments. It calls `tell` with each line of progress.

    New environments get their packages from the source in the settings.
    """
    from .sandbox.packages.environments import Environments

    return Environments(_package_source(settings.Packages), tell)


def _override_settings(settings: Settings | None, endpoint: str | None, max_concurrent_sessions: int | None) -> Settings:
    """Return the settings with another endpoint or another limit of sessions. None keeps the value in the settings."""
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
    if not VERSIONS[settings.SessionsHttpClient.ApiVersion].has_sessions:
        _logger.info("api-version %s cannot end sessions: they expire by themselves", settings.SessionsHttpClient.ApiVersion)
    http = await _open_http(settings, policy, hosting, stack)
    return await stack.enter_async_context(CodeInterpreter(http))


async def _open_http(settings: Settings, policy: "Policy | None", hosting: Hosting, stack: Stack) -> SessionsHttpClient:
    options = settings.SessionsHttpClient
    return SessionsHttpClient(
        await (_remote_client(settings, stack) if options.Endpoint else _embedded_client(settings, policy, hosting, stack)),
        api_version=options.ApiVersion,
        connect_timeout=options.ConnectTimeoutSeconds,
        request_timeout=options.RequestTimeoutSeconds,
        patience=options.PatienceSeconds,
    )


async def _embedded_client(settings: Settings, policy: "Policy | None", hosting: Hosting, stack: Stack) -> httpx.AsyncClient:
    _logger.info("no ACASessions:SessionsHttpClient:Endpoint is set: sessions run in the embedded sandbox of this process")
    # The callers are in this process: they can wait, and may give sessions every address that it reaches.
    hosting = replace(hosting, max_starting=hosting.max_sessions, session_rules=True, session_addresses=True)
    opening = _open_server(settings, policy, hosting, single_process=False)
    app = await stack.enter_async_context(opening)
    stack.sync_closers.append(opening.abandon)
    return httpx.AsyncClient(transport=EmbeddedTransport(app), base_url=EMBEDDED)


async def _remote_client(settings: Settings, stack: Stack) -> httpx.AsyncClient:
    endpoint, auth = settings.SessionsHttpClient.Endpoint or "", await _choose_auth(settings, stack)
    try:
        if endpoint.startswith(_UNIX):
            transport = httpx.AsyncHTTPTransport(uds=endpoint.removeprefix(_UNIX))
            return httpx.AsyncClient(transport=transport, base_url="http://localhost", auth=auth)
        return httpx.AsyncClient(base_url=endpoint, auth=auth)
    except OSError as error:  # httpx reads the certificates that it trusts; ssl.SSLError is an OSError
        named = os.environ.get("SSL_CERT_FILE")
        raise ConfigurationError(
            f"the environment variable SSL_CERT_FILE is {named!r}, which cannot be read as certificates ({error.strerror or error}): "
            "name a PEM file, or unset it to trust the usual authorities"
        ) from error


async def _choose_auth(settings: Settings, stack: Stack) -> httpx.Auth | None:
    """Return how to authenticate at the endpoint: with the key in the settings or, at an endpoint in Azure, with an Azure token.

    Without a key, return None for a Unix socket, and raise ConfigurationError for any other endpoint outside Azure.
    """
    from .client.auth import ApiKeyAuth, BearerAuth
    from .network.tokens import AzureTokenProvider

    key, endpoint = settings.SessionsHttpClient.ApiKey, settings.SessionsHttpClient.Endpoint or ""
    host = httpx.URL(endpoint).host
    if key is not None and host.endswith(_AZURE):
        _logger.warning("ACASessions:SessionsHttpClient:ApiKey is sent to Azure, which accepts only tokens: leave it out to sign in")
    if key is not None:
        return ApiKeyAuth(key.get_secret_value())
    if endpoint.startswith(_UNIX):
        return None
    if not host.endswith(_POOLS):
        raise ConfigurationError(
            "ACASessions:SessionsHttpClient:ApiKey is missing: an Endpoint outside Azure needs the key of its server "
            "(aca-sessions serve prints it). Set it, for example with `export ACASessions__ApiKey=KEY`"
        )
    with imports_of("azure"):
        import aiohttp  # noqa: F401 - azure.identity.aio sends its requests by it
        from azure.identity.aio import DefaultAzureCredential

    credential = await stack.enter_async_context(DefaultAzureCredential())
    options = settings.AzureTokenProvider
    return BearerAuth(AzureTokenProvider(credential, scopes=options.Scopes, refresh_before=60 * options.RefreshBeforeMinutes))


def _require_linux() -> None:
    if sys.platform != "linux":
        from .sandbox.hosts import advice_for_platform

        raise NotSupportedError(f"the embedded sandbox needs Linux. {advice_for_platform(sys.platform)}")
