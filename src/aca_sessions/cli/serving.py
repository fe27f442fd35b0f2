"""The commands `aca-sessions serve`, which serves sessions over HTTP behind a key, and `aca-sessions playground`.

`playground` serves sessions to this machine only, and opens a page that uses them.
"""

import argparse
import asyncio
import contextlib
import html
import ipaddress
import logging
import os
import platform
import re
import shlex
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import uvicorn
from opentelemetry import metrics
from starlette.types import ASGIApp

from .. import __version__
from ..connect import network_of, open_server
from ..errors import ACASessionsError, ConfigurationError, imports_of
from ..hosting import Hosting, Keys, log_event
from ..lifetime import Tasks
from ..settings import Settings
from . import logs
from .certificate import ServedCertificate, certificate, is_self_signed
from .connections import CONNECTION_LIMITS, Connection, ConnectionLimits, Connections, Listener, most_connections
from .keys import METRICS_KEY, KeyFile, api_keys, given_or_new

Welcome = Callable[[str, str], None]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)
_TLS_FOLDER = Path(".aca-sessions")  # the default of --tls-dir
_EVERY_INTERFACE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104
_logger = logging.getLogger("aca_sessions")
GRACE_SECONDS = 5
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
_NOT_THE_ENDPOINT = (
    "The Endpoint of the settings is not used: these sessions run in this machine's sandbox. A server of `aca-sessions serve` has a "
    "playground of its own, at its Endpoint."
)
_REDIRECT = (
    '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>aca-sessions playground</title>'
    '<meta http-equiv="refresh" content="0; url={address}"><a href="{address}">The playground</a>'
)


async def serve(options: argparse.Namespace, welcome: Welcome | None = None) -> int:
    """Serve sessions over HTTP until a signal arrives, and return the exit code.

    Once clients can connect, call `welcome` with the URL and the key. Print them instead if `welcome` is None.
    """
    if welcome is None:
        logs.configure(options.log_format)
    keys, shown_key = _keys(options)
    listener = _listen_on_file(options.socket) if options.socket else listen_on_port(options.host, options.port)
    if options.access_log:
        logging.getLogger("aca_sessions.access").setLevel(logging.DEBUG)
    try:
        settings = _settings(options)
        _check_options(options, settings)
        hosting = _hosting(options, keys)
        if not options.tls:
            warn_if_exposed(listener)
        async with open_server(settings, hosting=hosting) as service:
            where = _endpoint(options, listener)
            tls = certificate(options.tls_dir, options.host, *{*options.allowed_host} - {"*"}) if options.tls else None
            draining, starting = None, Tasks()
            if options.drain_seconds:
                draining = Draining(service.refuse_new_sessions, lambda: service.session_count, options.drain_seconds)

            def greet() -> None:
                if welcome:
                    welcome(where, shown_key)
                else:
                    print(_greeting(options, where, shown_key, tls), flush=True)
                starting.start(_log_start(service.examine_host, options, listener, settings, hosting))

            server = Server(service, service.drain, greet, draining=draining, tls=tls, keys=keys, trusted_proxies=options.trusted_proxy)
            await server.serve(sockets=[listener])
            await starting.finish()
    finally:
        _stop_listening(listener, options.socket)
    log_event("stopped")
    return 0


async def playground(options: argparse.Namespace) -> int:
    """Serve the playground page and its sessions until a signal ends the server, and open the page in a browser. Return the exit code."""
    if Settings().SessionsHttpClient.Endpoint:
        print(_NOT_THE_ENDPOINT, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="aca-sessions-") as folder:
        return await serve(options, partial(_show_playground, Path(folder), browse=not options.no_browser))


def _show_playground(folder: Path, endpoint: str, key: str, *, browse: bool) -> None:
    # A browser sends the part after `#` to no server (RFC 9110, 7.1), and the page removes it from the address bar.
    address = f"{endpoint}/#key={key}"
    print(f"Playground: {address}\nCtrl-C ends it, with its sessions and their files.", flush=True)
    if browse and any(name in os.environ for name in _DISPLAYS):
        threading.Thread(target=_open_in_browser, args=(folder, address), daemon=True).start()


def _open_in_browser(folder: Path, address: str) -> None:
    """Open `address` in a browser, through an HTML file in the private `folder` that redirects to it.

    `address` contains the key. As an argument of the browser's process it could be read by any user (proc(5)).
    """
    # The folder comes from `tempfile`, with mode 0700.
    file = folder / "playground.html"
    file.write_text(_REDIRECT.format(address=html.escape(address)))
    webbrowser.open(file.as_uri())


class Draining:
    """The period after a first SIGTERM in which a server refuses new sessions. It is over when no session is left, or after `seconds`."""

    def __init__(self, refuse_new_sessions: Callable[[], None], session_count: Callable[[], int], seconds: float) -> None:
        self._refuse_new_sessions = refuse_new_sessions
        self._session_count = session_count
        self._seconds = seconds
        self._ends: float | None = None

    def start(self) -> bool:
        """Make the server refuse new sessions, and return True. Do nothing and return False if this was called before."""
        if self._ends is not None:
            return False
        self._ends = time.monotonic() + self._seconds
        self._refuse_new_sessions()
        log_event("draining", sessions=self._session_count(), seconds=self._seconds)
        return True

    @property
    def is_over(self) -> bool:
        """Return whether draining has started, and the last session has ended or the time is up."""
        return self._ends is not None and (not self._session_count() or time.monotonic() >= self._ends)


class Server(uvicorn.Server):
    """A uvicorn server whose `serve` returns after SIGINT or SIGTERM. It calls `greet` once clients can connect.

    uvicorn's own class raises the signal again at the end. That could end the process before the caller of `serve` has ended the sessions
    and removed the socket file.
    """

    def __init__(
        self,
        app: ASGIApp,
        drain: Callable[[float], Awaitable[None]],
        greet: Callable[[], None],
        *,
        draining: Draining | None = None,
        tls: tuple[Path, Path] | None = None,
        keys: Keys | None = None,
        trusted_proxies: Sequence[str] = (),
        limits: ConnectionLimits = CONNECTION_LIMITS,
    ) -> None:
        """Prepare to serve an application.

        Args:
            app: The application.
            drain: Called when the server stops, before it closes connections. Gets how many seconds running cells may continue.
            greet: Called once clients can connect.
            draining: The period between a first SIGTERM and the end of the server. If None, a SIGTERM ends the server at once.
            tls: The files of a certificate and its key. They are loaded again when they change.
            keys: Called every two seconds, and on SIGHUP, to read a changed key file.
            trusted_proxies: Addresses and networks of proxies. The server believes the address of a client in their X-Forwarded-For
                headers. `unix` is a proxy on a socket file.
            limits: How slow a client may be.
        """
        cert, key = tls or (None, None)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",  # websockets are not used, and such a connection would have no limits
            log_config=None,  # the lines have the same format as those of other loggers
            log_level="warning",
            access_log=False,  # it would contain identifiers, which are secrets
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
            ssl_certfile=cert,
            ssl_keyfile=key,
            forwarded_allow_ips=[*trusted_proxies],  # by default uvicorn trusts every process of this machine
        )
        super().__init__(config)
        self._connections = Connections(limits, most_connections())
        self.server_state = self._connections
        self._drain = drain
        self._greet = greet
        self._draining = draining
        self._keys = keys
        self._certificate = ServedCertificate(*tls) if tls else None
        self._terminals = [number for number in range(3) if os.isatty(number)]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for `drain`, which gives running cells up to 5 s, and then close the connections."""
        _notify_systemd("STOPPING=1")
        log_event("stopping", connections=len(self.server_state.connections))
        await self._drain(GRACE_SECONDS)
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, and then call `greet`."""
        for listener in sockets or []:
            if isinstance(listener, Listener):
                listener.connections = self._connections
        self.config.limit_concurrency = self._connections.most + 1  # uvicorn answers 503 to what comes beyond the limit
        await super().startup(sockets)
        self._greet()
        _notify_systemd("READY=1")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGHUP during a `with` block. uvicorn's own method would raise the signal again afterwards."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.handle_exit, signal.SIGINT, None)
        loop.add_signal_handler(signal.SIGTERM, self._start_draining)
        loop.add_signal_handler(signal.SIGHUP, self._handle_hangup)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _start_draining(self) -> None:
        """Handle a SIGTERM: the first one starts draining, and the second one ends the server. Without draining, the first one ends it."""
        if self._draining is None or not self._draining.start():
            self.handle_exit(signal.SIGTERM, None)

    def _handle_hangup(self) -> None:
        """Handle a SIGHUP: read the key file and the certificate again. But if the terminal was closed, end the server."""
        if not all(os.isatty(number) for number in self._terminals):
            self.handle_exit(signal.SIGTERM, None)
            return
        self._reload()
        parts = (self._keys if isinstance(self._keys, KeyFile) else None, self._certificate)
        problems = [part.problem for part in parts if part is not None and part.problem is not None]
        log_event("reloaded", keys=len(self._keys()) if self._keys is not None else 0, problem="; ".join(problems) or None)

    def _reload(self) -> None:
        """Read the key file and the certificate again if they have changed."""
        if self._keys is not None:
            self._keys()
        if self._certificate is not None and self.config.ssl is not None:
            self._certificate.reload(self.config.ssl)

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server must end. uvicorn calls this ten times a second.

        Once a second, also close connections whose clients are too slow. Every two seconds, read changed keys and certificates.
        """
        if counter % 20 == 0:
            self._reload()
        if counter % 10 == 0:
            self._connections.close_slow()
        return await super().on_tick(counter) or (self._draining is not None and self._draining.is_over)


def _notify_systemd(state: str) -> None:
    """Report a state of this process to systemd, if it waits for that: the unit has Type=notify (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, contextlib.suppress(OSError):
            systemd.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


async def _log_start(
    examine: Callable[[], Awaitable[tuple[str, list[str], tuple[int, str] | None]]],
    options: argparse.Namespace,
    listener: socket.socket,
    settings: Settings,
    hosting: Hosting,
) -> None:
    """Wait until `examine` returns how sessions are isolated. Then log the event `started`, with the isolation and the server's limits.

    If the server stops before that, log the event with "not examined" as the isolation.
    """
    import resource  # not on Windows, where `aca-sessions mcp` imports this module

    isolation: dict[str, object] = {"isolation": "not examined"}
    capacity = None
    try:
        level, missing, capacity = await examine()
        isolation = {"isolation": f"{level}, but not all" if missing else level, "missing": missing or None}
    except ACASessionsError:
        pass  # the server stops
    finally:
        limits = settings.Sandbox.Limits
        log_event(
            "started",
            version=__version__,
            python=platform.python_version(),
            endpoint=_endpoint(options, listener),
            address=bound_address(listener),
            **isolation,
            network=",".join(network_of(settings).described),
            keys=len(hosting.accepted_keys()) if hosting.accepted_keys else 0,
            sessions=hosting.max_sessions,
            cooldown_seconds=hosting.cooldown,
            drain_seconds=options.drain_seconds,
            connections=most_connections(),
            descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            memory_megabytes=limits.MemoryMegabytes,
            disk_megabytes=limits.DiskMegabytes,
            processes=limits.Processes,
            cell_seconds=limits.CellTimeoutSeconds,
        )
    if capacity is not None and capacity[0] < hosting.max_sessions:
        _logger.warning(
            "--max-sessions is %d, but only %d sessions fit on this machine: %s. Lower it, or give this machine more of what is short",
            hosting.max_sessions,
            *capacity,
        )


def _keys(options: argparse.Namespace) -> tuple[Keys | None, str]:
    """Return a function that returns the accepted keys, and a text about them to print: a new key itself, "(as given)" or "(none)".

    With --no-api-key, and on a socket file if no key was given, return None instead of a function: every request is accepted. Raise
    ConfigurationError if a key is given together with --no-api-key.
    """
    if options.no_api_key and api_keys(options):
        raise ConfigurationError(
            "--no-api-key cannot be combined with --api-key-file, --api-key or $ACA_SESSIONS_API_KEY: leave one of them out"
        )
    if options.no_api_key:
        _logger.warning("--no-api-key: everyone who reaches this port can use every session: put a proxy in front that checks callers")
        return None, "(none)"
    return (None, "(none)") if options.socket and api_keys(options) is None else given_or_new(options)


def _check_options(options: argparse.Namespace, settings: Settings) -> None:
    """Raise ConfigurationError if an option would have no effect, because another one is missing or excludes it."""
    if options.store and (options.plain or options.shell):
        raise ConfigurationError("--store cannot be combined with --plain or --shell: leave one of them out")
    for given, option, has_effect, needed in (
        (options.tls_dir != _TLS_FOLDER, "--tls-dir", options.tls, "--tls"),
        (options.audit_code, "--audit-code", settings.Audit.File, "--audit FILE"),
        (options.metrics_key, f"--metrics-key (or ${METRICS_KEY})", options.metrics, "--metrics"),
    ):
        if given and not has_effect:
            raise ConfigurationError(f"{option} has no effect without {needed}: add {needed}, or leave it out")


def _settings(options: argparse.Namespace) -> Settings:
    sandbox = {"Sandbox": {"Network": options.network}} if options.network else {}
    audit = {name: value for name, value in {"File": options.audit, "Code": options.audit_code or None}.items() if value}
    durable = {"Durable": {"Store": options.store}} if options.store else {}
    return Settings(**sandbox, **durable, **({"Audit": audit} if audit else {}))


def _hosting(options: argparse.Namespace, keys: Keys | None) -> Hosting:
    given = {"max_sessions": options.max_sessions, "cooldown": options.cooldown}
    own = {name: value for name, value in given.items() if value is not None}
    return Hosting(
        api_keys=keys,
        allowed_hosts=frozenset() if options.socket else allowed_hosts(options),
        plain=options.plain,
        shell=options.shell,
        session_rules=options.session_rules,
        lenient=options.lenient,
        page=not (options.no_page or options.shell or options.socket),
        metrics=prometheus() if options.metrics else None,
        metrics_key=options.metrics_key,
        **own,
    )


def prometheus() -> Callable[[], bytes]:
    """Start to collect OpenTelemetry's metrics. Return a function that returns their current values in Prometheus's text format.

    Raise ConfigurationError if OpenTelemetry is configured to send metrics elsewhere.
    """
    with imports_of("metrics"):
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from prometheus_client import REGISTRY, generate_latest
    if isinstance(metrics.get_meter_provider(), MeterProvider):
        raise ConfigurationError(
            "--metrics cannot be used, because OpenTelemetry is configured to send metrics elsewhere: leave --metrics out"
        )
    own = Resource.create({"service.name": "aca-sessions", "service.version": __version__})
    named = own.merge(OTELResourceDetector().detect())  # $OTEL_SERVICE_NAME and $OTEL_RESOURCE_ATTRIBUTES replace these
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()], named))
    return lambda: generate_latest(REGISTRY)


def _endpoint(options: argparse.Namespace, listener: socket.socket) -> str:
    if options.socket:
        return f"unix://{options.socket.absolute()}"
    return f"{'https' if options.tls else 'http'}://{address(listener)}"


def _greeting(options: argparse.Namespace, endpoint: str, key: str, tls: tuple[Path, Path] | None) -> str:
    lines = [f"Endpoint: {endpoint}", *([] if options.socket else [f"ApiKey: {key}"])]
    if tls is not None:
        file = tls[0].absolute()
        lines.append(f"Certificate: {file}")
        if is_self_signed(file):
            lines.append(f"Clients trust it with: export SSL_CERT_FILE={shlex.quote(str(file))}")
    return "\n".join(lines)


def address(listener: socket.socket) -> str:
    """Return the `HOST:PORT` at which a client on this machine can reach a listening socket."""
    host, port = listener.getsockname()[:2]
    return _join("127.0.0.1" if host in _EVERY_INTERFACE else host, port)


def bound_address(listener: socket.socket) -> str:
    """Return the address to which a listening socket is bound: `HOST:PORT`, such as `0.0.0.0:8080`, or the path of a socket file."""
    name = listener.getsockname()
    return str(Path(name).absolute()) if isinstance(name, str) else _join(*name[:2])


def warn_if_exposed(listener: socket.socket) -> None:
    """Log a warning if a socket that is served without TLS can be reached from other machines."""
    name = listener.getsockname()
    if not isinstance(name, str) and not ipaddress.ip_address(name[0].partition("%")[0]).is_loopback:
        _logger.warning(
            "without TLS at %s, everyone on the network between can read keys, code and files: put a proxy with TLS in front (for example "
            "deploy/nginx-single.conf), and let only that reach this port. `serve` also has --tls",
            bound_address(listener),
        )


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def allowed_hosts(options: argparse.Namespace) -> frozenset[str]:
    """Return the host names that requests may have in Host and Origin headers, as a protection against DNS rebinding.

    An empty set means that all names are accepted. Raise ConfigurationError if an option holds more than a name, such as a URL.
    """
    for name in {*options.allowed_host} - {"*"}:
        if not _HOST_NAME.fullmatch(name) and not _is_address(name):
            raise ConfigurationError(
                f"--allowed-host must be a host name or an IP address, without scheme, port and path, got {name!r:.80}: "
                "for example sessions.example.org"
            )
    if "*" in options.allowed_host:
        return frozenset()
    own = {options.host} - _EVERY_INTERFACE
    return _LOOPBACK | own | {name.lower() for name in options.allowed_host}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def listen_on_port(host: str, port: int) -> Listener:
    """Return a socket that is bound to a port. Raise ConfigurationError if it cannot be bound, for example because the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # without the last asyncio leaves TCP_NODELAY off: 40 ms an answer
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {host} port {port} ({error}): choose another --port or --host") from error
    return listener


def _listen_on_file(path: Path) -> Listener:
    """Create a socket file that only this user may open, and return the socket that listens on it.

    Replace an existing socket file if no server listens on it any more.
    """
    listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen()  # at once: a second server that probes the file must get an answer, or it would replace it
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on --socket {path} ({error.strerror or error}): choose another path") from error
    finally:
        os.umask(mask)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _stop_listening(listener: socket.socket, path: Path | None) -> None:
    """Close a listening socket and remove its socket file. Keep the file if another server listens on it by now."""
    listener.close()
    if path is not None and path.exists() and not _answers(path):
        path.unlink()
