"""The network of one session: its current rules, its use of limits, and decisions about refused requests."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...network.denials import Decision, Denial
from ...network.rules import PORTS, Network, Rule, is_address, normal_path

if TYPE_CHECKING:
    from ...network.secrets import SecretStore

Decide = Callable[[Denial], Awaitable[Decision]]
# The function that decides about the denials of the connection that the current task serves.
deciding: ContextVar[Decide | None] = ContextVar("deciding", default=None)
_MB = 1 << 20
_MAX_ALLOWED = 1000  # requests that were allowed with `always`
_MAX_WAITING = 16  # denials that wait for a decision
# With these headers, servers use another method or path than the one that was checked.
_METHOD_OVERRIDES = frozenset((b"x-http-method-override", b"x-http-method", b"x-method-override"))
_PATH_OVERRIDES = frozenset((b"x-original-url", b"x-rewrite-url", b"x-original-uri", b"x-forwarded-prefix"))


class DeniedError(Exception):
    """Raised for a request that the network of the session does not allow. The message gives the reason and is sent to the session."""

    status, reason = 403, "rule"


class PrivateAddressError(DeniedError):
    """Raised for an allowed domain that has an address which is not public."""

    reason = "address"


class MalformedError(DeniedError):
    """Raised for a request whose headers are malformed or ambiguous, so that two servers could read it in different ways."""

    status, reason = 400, "malformed"


class LimitReachedError(DeniedError):
    """Raised when a limit of the session's network, or of a rule, is used up."""

    status, reason = 429, "limit"


@dataclass(slots=True)
class Usage:
    """The use of the limits of a session, or of one rule."""

    requests: int = 0
    size: int = 0
    connections: int = 0


@dataclass(slots=True, kw_only=True)
class NetworkRecord:
    """The record of a request, or of a connection that is not inspected, for the audit log. It has no path and no headers.

    Attributes:
        host: The host.
        port: The port.
        method: The method, or None for a connection.
        pattern: The pattern that allowed the path, or None.
        decision: `allowed` by a rule, `approved` by a decision about a denial, or `refused`.
        status: The status that the session got, or None.
        reason: Why it was refused: `rule`, `address`, `malformed`, `limit` or `tls`; or `unreachable`.
        sent: The bytes of the request's body, or of all that a connection sent.
        received: The bytes of the response's body, or of all that a connection received.
        seconds: The duration.
    """

    host: str
    port: int
    method: str | None = None
    pattern: str | None = None
    decision: str = "allowed"
    status: int | None = None
    reason: str | None = None
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)


class SessionNetwork:
    """The current rules of one session, which can be replaced while the session runs.

    `record` is called for each allowed or refused request. `secrets` has the secrets that the rules name. `deciding` holds the function
    that is called with each denial that a person may allow.
    """

    def __init__(
        self,
        network: Network,
        *,
        record: Callable[[NetworkRecord], None] = lambda _record: None,
        secrets: "SecretStore | None" = None,
    ) -> None:
        self.network = network
        self.secrets = secrets
        self.record = record
        self._usage = Usage()
        self._usage_by_rule: dict[int, Usage] = {}
        # With `always`: host, port, method, path and the names of the added headers.
        self._allowed: list[tuple[str, int, str | None, str | None, tuple[str, ...]]] = []
        self._closing: dict[object, tuple[str, int, Callable[[], object]]] = {}  # host, port, and what closes a connection to it
        self._asking = asyncio.Lock()
        self._waiting = 0

    def replace(self, network: Network, secrets: "SecretStore | None" = None) -> None:
        """Use other rules from now on. What was used of the session's limits still counts; the limits of rules begin again.

        Close connections to hosts whose rules have changed. The new rules cannot use the earlier secrets: they may be those of a client.
        """
        before, self.network, self.secrets = self.network, network, secrets
        self._usage_by_rule.clear()
        for host, port, close in [*self._closing.values()]:
            rules = before.rules_for(host, port)
            if rules and rules != network.rules_for(host, port):  # without rules, a person has allowed it
                close()

    @contextlib.contextmanager
    def close_if_replaced(self, host: str, port: int, close: Callable[[], object]) -> Iterator[None]:
        """While the block runs, call `close` if the rules for a host are replaced by other ones."""
        key = object()
        self._closing[key] = host, port, close
        try:
            yield
        finally:
            del self._closing[key]

    def reaches(self, host: str) -> bool:
        """Return whether port 443 or 80 of a host has a rule, or was allowed with `always`."""
        return any(self._rules_for(host, port) for port in PORTS)

    async def rules_for(self, host: str, port: int) -> tuple[Rule, ...]:
        """Return the rules for a host. If it has no rule, ask for a decision. Raise DeniedError if it is refused."""
        if rules := self._rules_for(host, port):
            return rules
        hosts = ", ".join(self.network.domains) or "none"
        denial = Denial(host=host, port=port, allowed=f"the hosts {hosts}")
        # Only rules allow addresses and `localhost`: a person cannot know which server they belong to.
        if is_address(host) or "." not in host or not 0 < port < 1 << 16:
            raise _refusal(denial)
        decision = await self._decide(denial, lambda: bool(self._rules_for(host, port)))
        if decision == "always":
            self._allow(host, port, None, None, ())
        return self._rules_for(host, port) or (_plain_rule(host, port),)

    async def rule_for(self, rules: tuple[Rule, ...], host: str, port: int, request: tuple[str, str], names: set[bytes]) -> Rule:
        """Return the rule that allows a request. If no rule does, ask for a decision. Raise DeniedError if it is refused.

        Args:
            rules: The rules of the host.
            host: The host.
            port: The port.
            request: The method and the target.
            names: The names of the request's headers, in lower case.
        """
        method, target = request
        names = {name.replace(b"_", b"-") for name in names}  # some servers read '_' as '-'
        if method in ("TRACE", "CONNECT"):
            raise DeniedError(f"{method} is not allowed to hosts that the proxy inspects: use another method")
        if any(rule.methods for rule in rules) and (found := names & _METHOD_OVERRIDES):
            raise MalformedError(
                f"the header {min(found).decode()} is not allowed: it replaces the method. Send the request with that method"
            )
        path = target.partition("?")[0]
        if any(rule.paths for rule in rules):
            if found := names & _PATH_OVERRIDES:
                raise MalformedError(
                    f"the header {min(found).decode()} is not allowed: it replaces the path. Send the request to that path"
                )
            normal = normal_path(target)
            if normal is None:
                raise MalformedError("the path must have at most 2048 characters, without `..`, backslashes and encoded slashes")
            path = normal
        for rule in rules:
            if rule.allows(method, path):
                return rule
        if (allowed := self._find_allowed(rules, host, port, method, path)) is not None:
            return allowed
        described = ", ".join(rule.described() for rule in rules)
        approved = _approved_rule(rules)
        denial = Denial(host=host, port=port, method=method, path=path, allowed=described, headers=approved.sets)
        decision = await self._decide(denial, lambda: self._find_allowed(self._rules_for(host, port), host, port, method, path) is not None)
        if self._rules_for(host, port) != rules:  # the rules changed meanwhile, and with them the headers that were allowed
            raise _refusal(denial)
        if decision == "always":
            self._allow(host, port, method, path, approved.sets)
        return approved

    def count_request(self, rule: Rule) -> None:
        """Count a request, or a connection that is not inspected. Raise LimitReachedError if a limit is used up."""
        own, limits = self._usage_of(rule), self.network.limits
        for usage, requests, megabytes in (
            (self._usage, limits.requests, limits.megabytes),
            (own, rule.requests, rule.megabytes),
        ):
            if requests is not None and usage.requests >= requests:
                raise LimitReachedError(_used_up(f"{requests} requests", rule, usage is own))
            if megabytes is not None and usage.size >= megabytes * _MB:
                raise LimitReachedError(_used_up(f"{megabytes} MB", rule, usage is own))
        self._usage.requests += 1
        own.requests += 1

    def count_bytes(self, rule: Rule, size: int) -> None:
        """Count bytes that are sent or received. Raise LimitReachedError if a limit is used up: the caller then ends the connection."""
        own, limits = self._usage_of(rule), self.network.limits
        self._usage.size += size
        own.size += size
        for usage, limit in ((self._usage, limits.megabytes), (own, rule.megabytes)):
            if limit is not None and usage.size > limit * _MB:
                raise LimitReachedError(_used_up(f"{limit} MB", rule, usage is own))

    @contextlib.contextmanager
    def open_connection(self, rule: Rule) -> Iterator[None]:
        """Count a connection to the host of a rule while the block runs. Raise LimitReachedError if there are too many."""
        own, most = self._usage_of(rule), self.network.limits.connections
        if self._usage.connections >= most:  # one connection of HTTP/2 from the session may need many to hosts
            raise LimitReachedError(f"this session's network allows {most} connections at a time: close others")
        if rule.connections is not None and own.connections >= rule.connections:
            raise LimitReachedError(f"this session's network allows {rule.connections} connections to {rule.host} at a time: close others")
        own.connections += 1
        self._usage.connections += 1
        try:
            yield
        finally:
            own.connections -= 1
            self._usage.connections -= 1

    def _rules_for(self, host: str, port: int) -> tuple[Rule, ...]:
        rules = self.network.rules_for(host, port)
        return rules or ((_plain_rule(host, port),) if (host, port, None, None, ()) in self._allowed else ())

    def _find_allowed(self, rules: tuple[Rule, ...], host: str, port: int, method: str, path: str) -> Rule | None:
        if not rules:
            return None
        approved = _approved_rule(rules)
        found = (host, port, method, path, approved.sets) in self._allowed or any(rule.allows(method, path) for rule in rules)
        return approved if found else None

    def _allow(self, host: str, port: int, method: str | None, path: str | None, headers: tuple[str, ...]) -> None:
        self._allowed.append((host, port, method, path, headers))
        del self._allowed[:-_MAX_ALLOWED]

    async def _decide(self, denial: Denial, is_allowed_now: Callable[[], bool]) -> Decision:
        """Return the decision about a denial. Raise DeniedError if it is refused. Denials are decided one after the other."""
        refusal, decide = _refusal(denial), deciding.get()
        if decide is None or self._waiting >= _MAX_WAITING:
            raise refusal
        self._waiting += 1
        try:
            async with self._asking:
                if is_allowed_now():  # after the decision about an earlier denial
                    return "once"
                decision = await decide(denial)
        finally:
            self._waiting -= 1
        if decision == "refuse":
            raise refusal
        return decision

    def _usage_of(self, rule: Rule) -> Usage:
        # By its place among the rules. A rule that was made for an approved request is not among them: they share one Usage.
        place = next((number for number, one in enumerate(self.network.hosts) if one is rule), -1)
        return self._usage_by_rule.setdefault(place, Usage())


def _refusal(denial: Denial) -> DeniedError:
    return DeniedError(f"blocked by this session's network rules: {denial}; allowed: {denial.allowed}")


def _plain_rule(host: str, port: int) -> Rule:
    return Rule(f"[{host}]:{port}" if is_address(host) and ":" in host else f"{host}:{port}")


def _approved_rule(rules: tuple[Rule, ...]) -> Rule:
    """Return the rule for a request that a person allowed. It has the headers of the host's rules if all have the same."""
    first = next((rule for rule in rules if rule.has_secrets), rules[0])
    agree = all((rule.headers, rule.identity) == (first.headers, first.identity) for rule in rules)
    return replace(first, methods=(), paths=()) if agree else replace(first, methods=(), paths=(), headers={}, identity=None)


def _used_up(limit: str, rule: Rule, own: bool) -> str:
    return f"this session's network allows {limit}{f' to {rule.host}' if own else ''}, and they are used up"
