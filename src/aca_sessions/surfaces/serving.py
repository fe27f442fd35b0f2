"""`aca-sessions serve`: the service on a port or a socket file, behind a key."""

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from ..connect import open_server
from ..errors import ConfigurationError
from ..hosting import Hosting
from ..settings import Settings
from .certificate import certificate
from .connections import PACE, Connection, Connections, Listener, Pace, most_connections
from .keys import api_key

Drain = Callable[[float], Awaitable[None]]
Welcome = Callable[[str, str | None], None]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_EVERY_INTERFACE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104
_logger = logging.getLogger("aca_sessions")
GRACE_SECONDS = 5


async def serve(options: argparse.Namespace, welcome: Welcome | None = None) -> int:
    """Serve until a signal ends it. Once the server can be reached, print its address and key, or pass them to `welcome`."""
    key = _key(options)
    listener = _listen_on_file(options.socket) if options.socket else listen_on_port(options.host, options.port)
    if options.access_log:
        logging.getLogger("aca_sessions.access").setLevel(logging.DEBUG)
    try:
        async with open_server(_settings(options), hosting=_hosting(options, key)) as service:
            where = _endpoint(options, listener)
            greet = partial(welcome, where, key) if welcome else partial(print, _greeting(options, where, key), flush=True)
            leaving = Leaving(service, options.drain_seconds) if options.drain_seconds else None
            tls = certificate(options.tls_dir, options.host) if options.tls else None
            await Server(service, service.drain, greet, leaving=leaving, tls=tls).serve(sockets=[listener])
    finally:
        _stop_listening(listener, options.socket)
    return 0


class Left(Protocol):
    """The service that is left by its sessions one after the other."""

    def take_no_more(self) -> None: ...  # noqa: D102 - each is described where it is written
    @property
    def has_sessions(self) -> bool: ...  # noqa: D102


class Leaving:
    """The time between a first SIGTERM and the end: until the last session has ended, but at most a number of seconds."""

    def __init__(self, service: Left, seconds: float) -> None:
        self._service = service
        self._seconds = seconds
        self._ends: float | None = None

    def begin(self) -> bool:
        """Begin to leave, unless that has begun before. Return whether it began now."""
        begins = self._ends is None
        if begins:
            self._ends = time.monotonic() + self._seconds
            self._service.take_no_more()
        return begins

    @property
    def is_over(self) -> bool:
        """Return whether there is nothing more to wait for."""
        return self._ends is not None and (not self._service.has_sessions or time.monotonic() >= self._ends)


class Server(uvicorn.Server):
    """A server that prints its address once it can be reached, and ends on a signal by returning.

    uvicorn would raise the signal again at its end. Returning lets the caller end sessions and remove the socket file.
    """

    def __init__(
        self,
        app: ASGIApp,
        drain: Drain,
        greet: Callable[[], None],
        *,
        leaving: Leaving | None = None,
        tls: tuple[Path, Path] | None = None,
        pace: Pace = PACE,
    ) -> None:
        """Prepare to serve an application.

        Args:
            app: The application that answers requests.
            drain: Called before the end, with the seconds that it may take.
            greet: Called once the server can be reached.
            leaving: How long the server continues after a first SIGTERM.
            tls: The files of a certificate and its key.
            pace: How slow a client may be.
        """
        cert, key = tls or (None, None)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",  # websockets are not used, and such a connection would have no limits
            log_level="warning",
            access_log=False,  # it would contain identifiers, which are secrets
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
            ssl_certfile=cert,
            ssl_keyfile=key,
        )
        super().__init__(config)
        self._connections = Connections(pace, most_connections())
        self.server_state = self._connections
        self._drain = drain
        self._greet = greet
        self._leaving = leaving

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give cells that run 5 s to end. Then end them, which their callers get as a result, and close the connections."""
        await self._drain(GRACE_SECONDS)
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections and announce it."""
        for listener in sockets or []:
            if isinstance(listener, Listener):
                listener.connections = self._connections
        self.config.limit_concurrency = self._connections.most + 1  # uvicorn answers 503 to what comes beyond the limit
        await super().startup(sockets)
        self._greet()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM for the block. uvicorn's own method would raise the signal once more at the end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.handle_exit, signal.SIGINT, None)
        loop.add_signal_handler(signal.SIGTERM, self._leave)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _leave(self) -> None:
        """Begin to leave, or end at once if that has begun before."""
        if self._leaving is None or not self._leaving.begin():
            self.handle_exit(signal.SIGTERM, None)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end. uvicorn calls this ten times a second; once a second slow connections are closed."""
        if counter % 10 == 0:
            self._connections.close_slow()
        return await super().on_tick(counter) or (self._leaving is not None and self._leaving.is_over)


def _key(options: argparse.Namespace) -> str | None:
    """Return the key that callers must send: the given one or a new one. It is None on a socket file, and with --no-api-key."""
    given = api_key(options)
    if options.no_api_key and given:
        raise ConfigurationError("--no-api-key contradicts --api-key-file, --api-key or $ACA_SESSIONS_API_KEY: keep one of them")
    if options.no_api_key:
        _logger.warning("--no-api-key: whoever reaches this port may use every session; something in front has to check callers")
        return None
    return given or (None if options.socket else secrets.token_urlsafe(24))


def _settings(options: argparse.Namespace) -> Settings:
    sandbox = {"Sandbox": {"Network": options.network}} if options.network else {}
    audit = {name: value for name, value in {"File": options.audit, "Code": options.audit_code or None}.items() if value}
    return Settings(**sandbox, **({"Audit": audit} if audit else {}))


def _hosting(options: argparse.Namespace, key: str | None) -> Hosting:
    given = {"max_sessions": options.max_sessions, "cooldown": options.cooldown}
    own = {name: value for name, value in given.items() if value is not None}
    return Hosting(
        api_key=key,
        allowed_hosts=frozenset() if options.socket else allowed_hosts(options),
        plain=options.plain,
        shell=options.shell,
        lenient=options.lenient,
        page=not (options.no_page or options.shell or options.socket),
        metrics=_metrics(options),
        metrics_key=options.metrics_key,
        **own,
    )


def _metrics(options: argparse.Namespace) -> Callable[[], bytes] | None:
    if not options.metrics:
        return None
    from .metrics import prometheus

    return prometheus()


def _endpoint(options: argparse.Namespace, listener: socket.socket) -> str:
    if options.socket:
        return f"unix://{options.socket.absolute()}"
    return f"{'https' if options.tls else 'http'}://{address(listener)}"


def _greeting(options: argparse.Namespace, endpoint: str, key: str | None) -> str:
    told = "(as given)" if options.api_key or options.api_key_file else key or "(none)"
    return f"Endpoint: {endpoint}" + ("" if options.socket else f"\nApiKey: {told}")


def address(listener: socket.socket) -> str:
    """Return the address at which a client on this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in _EVERY_INTERFACE else host
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def allowed_hosts(options: argparse.Namespace) -> frozenset[str]:
    """Return the host names that requests may name. An empty set allows all.

    A page in a browser on this machine could reach the server under a name of its own (DNS rebinding), so only known names are answered.
    """
    if "*" in options.allowed_host:
        return frozenset()
    own = {options.host} - _EVERY_INTERFACE
    return _LOOPBACK | own | {name.lower() for name in options.allowed_host}


def listen_on_port(host: str, port: int) -> Listener:
    """Return a socket that is bound to a port. Raise ConfigurationError if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # without the last asyncio leaves TCP_NODELAY off: 40 ms an answer
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {host} port {port} ({error}): choose another --port or --host") from None
    return listener


def _listen_on_file(path: Path) -> Listener:
    """Return a socket on a file that only this user may open. A file that a dead server left is replaced, but nothing else."""
    listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen()  # at once: a second server that probes the file must get an answer, or it would replace it
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on --socket {path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _stop_listening(listener: socket.socket, path: Path | None) -> None:
    """Close the socket and remove its file, unless another server uses that by now."""
    listener.close()
    if path is not None and path.exists() and not _answers(path):
        path.unlink()
