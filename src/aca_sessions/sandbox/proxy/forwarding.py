"""Forward requests of sessions to inspected hosts: check the rules, add headers, and mask secrets in the response."""

import asyncio
import contextlib
import logging
import re
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from ...errors import SecretError, imports_of
from ...network.rules import Rule, normal_path
from .addresses import Dialer
from .masking import MaskedStream, Masker
from .messages import BrokenResponseError, Headers, Request, Response, text_response, without_connection
from .session_network import DeniedError, LimitReachedError, MalformedError, NetworkRecord, SessionNetwork
from .upstream import ClosedError, Connection, Pool, Target, UpstreamError

if TYPE_CHECKING:
    from ...network.secrets import SecretStore

with imports_of("network"):
    import h11

_IDLE_SECONDS = 300.0
_LINGER_SECONDS = 5.0  # for the rest of a request after its response: a client of HTTP/2 need not send it
_MOST_KNOWN = 100  # secrets of earlier rules that are still masked
_HOLDS_SECRETS = re.compile(r"auth|cookie|key|token|secret|password|credential|signature", re.IGNORECASE)
_REFERENCE = "${secret:"
_logger = logging.getLogger("aca_sessions")


class Forwarding:
    """Sends the requests of one session to inspected hosts."""

    def __init__(self, network: SessionNetwork, dialer: Dialer) -> None:
        self.network = network
        self.pool = Pool(dialer)
        self._masker = Masker(())
        self._current: tuple[str, ...] | None = ()
        self._known: list[str] = []

    def inspection(self, host: str, port: int, *, is_tls: bool) -> "Inspection":
        """Return the object that handles the requests to one host."""
        return Inspection(self, host, port, is_tls=is_tls)

    async def close(self) -> None:
        """Close the connections that are kept for the next requests."""
        await self.pool.close()

    def masker(self) -> Masker:
        """Return the object that masks secrets: all that were sent, and those in the rules themselves.

        It also masks secrets of earlier rules, which hosts may still send back.
        """
        secrets = self.network.secrets
        values = (*_literal_secrets(self.network.network.hosts), *(secrets.values() if secrets is not None else ()))
        if values != self._current:
            self._current = values
            self._known = [*[one for one in self._known if one not in values][-_MOST_KNOWN:], *values]
            self._masker = Masker(self._known)
        return self._masker

    def note_secrets(self, rule: Rule, secrets: "SecretStore | None") -> None:
        """Mask the secrets of a request that is about to be sent, also if its rule is replaced before the response."""
        sent = {*_literal_secrets([rule]), *(secrets.values() if secrets is not None else ())}
        if new := sent.difference(self._known):
            self._known += new
            self._current = None


class Inspection:
    """Handles the requests of a session to one host, scheme and port, also several at the same time."""

    def __init__(self, forwarding: Forwarding, host: str, port: int, *, is_tls: bool) -> None:
        self.host, self.port, self.is_tls = host, port, is_tls
        self._forwarding = forwarding
        self._network = forwarding.network

    @property
    def authority(self) -> str:
        """Return the value that a request's header Host must have."""
        return Target(self.host, self.port, self.is_tls).authority

    @asynccontextmanager
    async def handle(self, request: Request) -> AsyncIterator[Response]:
        """Send a request to the host if the rules allow it, and yield the response. A refusal or a failure is a response as well.

        The block forwards the response to the session. If it raises, the request is aborted. Otherwise, the rest of the request's body is
        sent to the host after the block. Raise BrokenResponseError if no data moves for 300 s.
        """
        record = NetworkRecord(host=self.host, port=self.port, method=request.method)
        try:
            async with AsyncExitStack() as stack:
                try:
                    response = await self._respond(request, record, stack)
                except DeniedError as denied:
                    record.decision, record.reason = "refused", denied.reason
                    _logger.info("network: refused, a request to %s (%s)", self.host, denied.reason)  # without its path
                    response = text_response(denied.status, str(denied))
                except (UpstreamError, SecretError) as error:
                    record.reason = "unreachable"
                    response = text_response(error.status if isinstance(error, UpstreamError) else 502, str(error))
                except TimeoutError:
                    record.reason = "unreachable"
                    response = text_response(504, f"{self.host} sent no response within {_IDLE_SECONDS:.0f} s")
                record.status = response.status
                yield response
        except TimeoutError as error:
            raise BrokenResponseError(f"no data moved for {_IDLE_SECONDS:.0f} s") from error
        finally:
            record.seconds = time.monotonic() - record.started
            self._network.record(record)

    def refuse(self, error: MalformedError, method: str | None) -> Response:
        """Return the response to a request that could not be parsed, and record it."""
        record = NetworkRecord(host=self.host, port=self.port, method=method, decision="refused", reason=error.reason, status=error.status)
        self._network.record(record)
        return text_response(error.status, str(error))

    async def _respond(self, request: Request, record: NetworkRecord, stack: AsyncExitStack) -> Response:
        """Return the response of the host. Add to the stack what must be closed after it."""
        network = self._network
        names = {name for name, _ in request.headers}
        while True:
            before, secrets = network.network, network.secrets
            rules = await network.rules_for(self.host, self.port)
            rule = await network.rule_for(rules, self.host, self.port, (request.method, request.target), names)
            if network.network is before:  # the rules were not replaced while a person decided
                break
        if not any(rule is one for one in network.network.hosts):
            record.decision = "approved"
        record.pattern = rule.pattern_of(normal_path(request.target) or request.target.partition("?")[0])
        if rule.has_secrets and not self.is_tls:
            raise DeniedError(f"the rule for {self.host} adds headers, which are sent over TLS only: use https:// instead of http://")
        network.count_request(rule)
        async with AsyncExitStack() as own:
            own.enter_context(network.open_connection(rule))
            headers = await self._headers_for(request, rule, secrets)
            self._forwarding.note_secrets(rule, secrets)
            idle = await own.enter_async_context(asyncio.timeout(_IDLE_SECONDS))
            exchange = _Exchange(self._forwarding, request, idle, self._counter(rule, record))
            own.push_async_exit(exchange.end)
            target = Target(self.host, self.port, self.is_tls, tuple(address for one in rules for address in one.addresses))
            response = await exchange.begin(target, rules, headers)
            stack.push_async_exit(own.pop_all())
        return response

    async def _headers_for(self, request: Request, rule: Rule, secrets: "SecretStore | None") -> Headers:
        """Return the headers to send to the host."""
        headers = [
            (name, value)
            for name, value in without_connection(request.headers)
            # Servers that read `_` as `-` would see two headers.
            if name.replace(b"_", b"-").decode("ascii", "replace") not in rule.sets
            and name not in (b"host", b"expect", b"content-length", b"proxy-connection")
            and not (rule.has_secrets and name in (b"accept-encoding", b"sec-websocket-extensions"))  # compressed, cannot be masked
        ]
        for name, template in rule.headers.items():
            value = template
            if _REFERENCE in template:
                if secrets is None:
                    raise UpstreamError(f"the header {name} needs a secret, but this session has no secrets")
                value = await secrets.fill(template)
            headers.append((name.encode(), value.encode()))
        if rule.identity:
            if secrets is None:
                raise UpstreamError("the header Authorization needs an identity, but this session has no identities")
            headers.append((b"Authorization", f"Bearer {await secrets.token(rule.identity)}".encode()))
        if rule.has_secrets:
            headers.append((b"Accept-Encoding", b"identity"))
        if request.is_websocket:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        if request.length is not None:
            headers.append((b"Content-Length", str(request.length).encode()))
        elif request.body is not None:
            headers.append((b"Transfer-Encoding", b"chunked"))
        return [(b"Host", self.authority.encode()), *headers]

    def _counter(self, rule: Rule, record: NetworkRecord) -> Callable[[int, int], None]:
        def count(sent: int, received: int) -> None:
            record.sent += sent
            record.received += received
            self._network.count_bytes(rule, sent + received)

        return count


class _Exchange:
    """A request on its way to the host, and its response."""

    def __init__(self, forwarding: Forwarding, request: Request, idle: asyncio.Timeout, count: Callable[[int, int], None]) -> None:
        self._forwarding = forwarding
        self._request = request
        self._idle = idle
        self._count = count
        self._connection: Connection | None = None
        self._upload: asyncio.Task[None] | None = None
        self._failure: DeniedError | None = None  # of the upload
        self._is_read = False
        self._patience = _IDLE_SECONDS

    async def begin(self, target: Target, rules: tuple[Rule, ...], headers: Headers) -> Response:
        """Send the request, and return the response as soon as its headers are there."""
        connection, status, received = await self._ask(target, rules, headers)
        # All at once: a host may send thousands of headers, and each search has a cost of its own.
        parts = b"\n".join(part for header in without_connection(received) for part in header)
        masked_parts = iter(self._forwarding.masker().mask(parts).split(b"\n"))
        kept = [*zip(masked_parts, masked_parts, strict=False)]
        masked = MaskedStream(self._forwarding.masker)
        if status == 101:
            return Response(status, kept, self._read(connection.read_raw, masked), partial(self._send_raw, connection))
        if self._request.method == "HEAD" or status in (204, 304):
            self._is_read = not await connection.read_body()
        return Response(status, kept, self._read(connection.read_body, masked))

    async def end(self, _: object, error: BaseException | None, __: object) -> None:
        """Return the connection to the pool if the request and the response are complete. Otherwise close it."""
        connection, upload = self._connection, self._upload
        if connection is None:
            return
        try:
            if upload is not None and error is None and self._is_read:
                await self._finish_upload(connection, upload)
        finally:
            if upload is not None and not upload.done():
                upload.cancel()
            if error is None and self._is_read and (upload is None or upload.done()):
                self._forwarding.pool.give_back(connection)
            else:
                connection.abort()
            if upload is not None:
                await asyncio.wait({upload})

    async def _ask(self, target: Target, rules: tuple[Rule, ...], headers: Headers) -> tuple[Connection, int, Headers]:
        """Send the request, and return the connection, the status and the headers of the response.

        Repeat a request only if that is safe, and if the host closed a reused connection at the same time.
        """
        request, pool = self._request, self._forwarding.pool
        while True:
            connection = self._connection = await pool.open(target, rules, fresh=self._connection is not None)
            self._note_progress()
            try:
                await connection.send_head(request.method, request.target, headers, has_body=request.body is not None)
                if request.body is not None:
                    self._upload = asyncio.ensure_future(self._send_body(connection, request.body))
                return connection, *await connection.read_head()
            except h11.LocalProtocolError:
                pass  # its text may contain the value of a header
            except UpstreamError as error:
                if self._failure is not None:
                    raise self._failure from error
                connection.abort()
                is_harmless = request.method in ("GET", "HEAD") and request.body is None
                if not (is_harmless and connection.is_reused and isinstance(error, ClosedError)):
                    raise
                continue
            raise MalformedError("the request cannot be sent as HTTP/1.1: check its method, its target and its headers")

    async def _send_body(self, connection: Connection, body: AsyncIterator[bytes]) -> None:
        try:
            await connection.send_body(self._counted(body))
        except DeniedError as denied:
            self._failure = denied
        except (OSError, h11.LocalProtocolError):
            self._failure = MalformedError("the body of the request is incomplete, or does not have the length in its headers")
        if self._failure is not None:
            connection.abort()  # so that the host cannot take half a request for a whole one

    async def _counted(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in body:
            self._count(len(part), 0)
            self._note_progress()
            yield part
            self._note_progress()

    async def _finish_upload(self, connection: Connection, upload: "asyncio.Task[None]") -> None:
        """Send the rest of a request whose response came early, until the host closes the connection."""
        closed = asyncio.ensure_future(connection.wait_closed())
        self._patience = _LINGER_SECONDS
        self._note_progress()
        try:
            await asyncio.wait({closed, upload}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
            await asyncio.wait({closed})

    async def _read(self, source: Callable[[], Awaitable[bytes]], masked: MaskedStream) -> AsyncIterator[bytes]:
        try:
            while not self._is_read and (data := await source()):
                self._count(0, len(data))
                self._note_progress()
                if kept := masked.feed(data):
                    yield kept
                self._note_progress()
            if rest := masked.finish():
                yield rest
        except (UpstreamError, LimitReachedError, OSError) as error:
            raise BrokenResponseError(str(error)) from error
        self._is_read = True

    async def _send_raw(self, connection: Connection, data: bytes) -> None:
        try:
            self._count(len(data), 0)
            await connection.write_raw(data)
        except (LimitReachedError, OSError) as error:
            raise BrokenResponseError(str(error)) from error
        self._note_progress()

    def _note_progress(self) -> None:
        if not self._idle.expired():
            self._idle.reschedule(asyncio.get_running_loop().time() + self._patience)


def _literal_secrets(rules: Iterable[Rule]) -> Iterator[str]:
    """Return values that look like secrets in the headers of rules, where clients may write them literally."""
    for rule in rules:
        for name, value in rule.headers.items():
            if _HOLDS_SECRETS.search(name) and _REFERENCE not in value:
                yield value
                scheme, _, rest = value.partition(" ")
                yield rest
                if scheme.lower() == "basic":
                    yield from _parts_of_basic(rest)


def _parts_of_basic(encoded: str) -> Iterator[str]:
    """Return the user and password that a header of the scheme Basic has, together and the password alone."""
    with contextlib.suppress(ValueError):  # not base64, or not text
        both = b64decode(encoded, validate=True).decode("ascii")
        yield both
        yield both.partition(":")[2]
