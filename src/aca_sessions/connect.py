"""The one place where settings become objects, and where embedded or remote is decided."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx

from .client.http import SessionsHttpClient
from .client.interpreter import CodeInterpreter
from .client.pool import SessionPool
from .errors import ConfigurationError, NotSupportedError
from .settings import LimitsSettings, Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .client.auth import AzureTokenProvider
    from .sandbox.policy import Limits, Policy
    from .sandbox.probe import IsolationReport

_logger = logging.getLogger("aca_sessions")
_UNIX = "unix://"
_AZURE = ".dynamicsessions.io"


@asynccontextmanager
async def open_pool(
    settings: Settings | None = None,
    *,
    policy: "Policy | None" = None,
    endpoint: str | None = None,
    max_concurrent_sessions: int | None = None,
) -> AsyncIterator[SessionPool]:
    """A pool over what the settings say: an endpoint, or the embedded sandbox where there is none."""
    settings = _settings(settings, endpoint, max_concurrent_sessions)
    async with open_interpreter(settings, policy=policy) as interpreter, _pool(interpreter, settings) as pool:
        yield pool


@asynccontextmanager
async def open_interpreter(
    settings: Settings | None = None, *, policy: "Policy | None" = None, endpoint: str | None = None
) -> AsyncIterator[CodeInterpreter]:
    """The request/result style over what the settings say."""
    settings = _settings(settings, endpoint, None)
    async with AsyncExitStack() as stack:
        client = await _remote(settings, stack) if settings.SessionsHttpClient.Endpoint else await _embedded(settings, policy, stack)
        http = SessionsHttpClient(client, api_version=settings.SessionsHttpClient.ApiVersion, **_timeouts(settings))
        yield await stack.enter_async_context(CodeInterpreter(http))


@asynccontextmanager
async def open_server(
    settings: Settings | None = None,
    *,
    policy: "Policy | None" = None,
    max_sessions: int | None = None,
    cooldown: float | None = None,
    api_key: str | None = None,
    allowed_hosts: frozenset[str] = frozenset(),
) -> AsyncIterator["ASGIApp"]:
    """The service over the embedded sandbox, as an ASGI application; where strangers can reach it, it wants a key."""
    _require_linux()
    from anyio import to_thread

    from .sandbox import policy as defaults
    from .sandbox.forkserver import ForkServer
    from .sandbox.sandbox import Sandbox

    policy = policy or _policy(settings or Settings())
    # The zygote starts while the rest of the server is imported.
    fork_server = await to_thread.run_sync(ForkServer.shared, policy)
    try:
        from .server.app import Service
        from .server.executions import Executions
        from .server.guard import Guard
        from .server.sessions import Sessions

        await to_thread.run_sync(fork_server.wait_until_ready)
        limits = policy.limits
        sessions = Sessions(
            lambda: Sandbox.open(fork_server, limits),
            most=max_sessions or defaults.MAX_SESSIONS,
            cooldown=cooldown or defaults.COOLDOWN,
        )
        executions = Executions(limits.cell_timeout)
        sessions.start()
        try:
            app = Service(sessions, executions, max_upload=defaults.MAX_UPLOAD, max_request=defaults.MAX_REQUEST).app()
            yield Guard(app, api_key=api_key or "", allowed_hosts=allowed_hosts) if api_key or allowed_hosts else app
        finally:
            await executions.close()
            await sessions.close()
    finally:
        await to_thread.run_sync(fork_server.release)


async def isolation_report(settings: Settings | None = None) -> "IsolationReport":
    """What isolation this host gives, item by item, found by trying."""
    _require_linux()
    from .sandbox.probe import report

    return await report(_policy(settings or Settings()))


def _settings(settings: Settings | None, endpoint: str | None, max_concurrent_sessions: int | None) -> Settings:
    given = {"Endpoint": endpoint, "MaxConcurrentSessions": max_concurrent_sessions}
    named = {key: value for key, value in given.items() if value is not None}
    if settings is None:
        return Settings(**named)
    if not named:
        return settings
    return Settings(**(settings.model_dump(exclude_unset=True) | named))


async def _embedded(settings: Settings, policy: "Policy | None", stack: AsyncExitStack) -> httpx.AsyncClient:
    _logger.info("no ACASessions:SessionsHttpClient:Endpoint is set: sessions run in the embedded sandbox of this process")
    if settings.ContainerImage:
        _logger.warning("ACASessions:ContainerImage has no effect yet: embedded sessions run this host's Python")
    app = await stack.enter_async_context(open_server(settings, policy=policy))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://embedded")


async def _remote(settings: Settings, stack: AsyncExitStack) -> httpx.AsyncClient:
    options = settings.SessionsHttpClient
    endpoint = options.Endpoint or ""
    auth = await _auth(settings, stack)
    if endpoint.startswith(_UNIX):
        transport = httpx.AsyncHTTPTransport(uds=endpoint.removeprefix(_UNIX))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", auth=auth)
    return httpx.AsyncClient(base_url=endpoint, auth=auth)


async def _auth(settings: Settings, stack: AsyncExitStack) -> httpx.Auth | None:
    """A key where one is configured, none on a socket file, else Azure's own sign-in."""
    from .client.auth import ApiKeyAuth, BearerAuth

    options = settings.SessionsHttpClient
    if options.ApiKey is not None:
        return ApiKeyAuth(options.ApiKey.get_secret_value())
    endpoint = httpx.URL(options.Endpoint or "")
    if (options.Endpoint or "").startswith(_UNIX):
        return None
    if not endpoint.host.endswith(_AZURE):
        raise ConfigurationError(
            "ACASessions:SessionsHttpClient:ApiKey is missing: an Endpoint that is not Azure's needs the key of its server "
            "(aca-sessions serve prints it)"
        )
    return BearerAuth(await _azure_tokens(settings, stack))


async def _azure_tokens(settings: Settings, stack: AsyncExitStack) -> "AzureTokenProvider":
    from azure.identity.aio import DefaultAzureCredential

    from .client.auth import DEFAULT_SCOPE, AzureTokenProvider

    credential = await stack.enter_async_context(DefaultAzureCredential())
    options = settings.AzureTokenProvider
    minutes = 5.0 if options.RefreshBeforeMinutes is None else options.RefreshBeforeMinutes
    return AzureTokenProvider(credential, scopes=options.Scopes or (DEFAULT_SCOPE,), refresh_before=60 * minutes)


def _pool(interpreter: CodeInterpreter, settings: Settings) -> SessionPool:
    options = settings.SessionPool
    minutes = options.SessionTimeoutMinutes
    given = {
        "max_concurrent_sessions": options.MaxConcurrentSessions,
        "session_timeout": minutes * 60 if minutes else None,
        "acquire_timeout": options.AcquireTimeoutSeconds,
    }
    return SessionPool(interpreter, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _timeouts(settings: Settings) -> dict[str, float]:
    options = settings.SessionsHttpClient
    given = {"connect_timeout": options.ConnectTimeoutSeconds, "request_timeout": options.RequestTimeoutSeconds}
    return {name: value for name, value in given.items() if value is not None}


def _policy(settings: Settings) -> "Policy":
    from .sandbox.policy import Policy

    options = settings.Sandbox
    return Policy(limits=_limits(options.Limits), python=options.Python, preload=options.Preload or ())


def _limits(options: LimitsSettings) -> "Limits":
    from .sandbox.policy import KB, MB, Limits

    given = {
        "memory": options.MemoryMegabytes and options.MemoryMegabytes * MB,
        "disk": options.DiskMegabytes and options.DiskMegabytes * MB,
        "temporary": options.TemporaryMegabytes and options.TemporaryMegabytes * MB,
        "processes": options.Processes,
        "open_files": options.OpenFiles,
        "cell_timeout": options.CellTimeoutSeconds,
        "output": options.OutputKilobytes and options.OutputKilobytes * KB,
    }
    return replace(Limits(), **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _require_linux() -> None:
    if sys.platform != "linux":
        raise NotSupportedError(
            "the embedded sandbox needs Linux: set ACASessions:SessionsHttpClient:Endpoint to `aca-sessions serve` on a Linux host, "
            "or to an Azure pool"
        )
