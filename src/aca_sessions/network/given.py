"""The network that a client gives to a session. The client reads its secrets and identities, and sends their values to the server."""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from ..errors import InvalidArgumentError
from .calls import Hidden
from .rules import Network, Rule, names_in
from .secrets import SecretStore

_KEPT_SECONDS = 60.0  # after this time, values are read again before they are used


Resolved = tuple[Network, dict[str, str]]


class GivenNetwork:
    """A network that a client gives to a session, with the latest values of its secrets.

    Attributes:
        network: The network as the program wrote it.
        version: An identifier of the rules and values, which changes when one of them changes. Requests name it to the server.
        sent: The version that was sent last.
        sending: Held while the values are read and sent.
    """

    def __init__(self, network: Network, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare a network. Raise InvalidArgumentError if it cannot be given to a session."""
        if not isinstance(network, Network):
            raise InvalidArgumentError(f"`network` must be a Network such as Network.allow('example.org'), got {type(network).__name__}")
        if network.kind == "host":
            raise InvalidArgumentError("the network of one session cannot be Network.host(): use it in the policy, or write rules")
        self.network = network
        self.version = uuid.uuid4().hex  # not sent yet: until then, the server refuses requests that name it
        self.sent: str | None = None
        self.sending = asyncio.Lock()
        self._clock = clock
        self._store = SecretStore(network.secrets)
        self._read_at: float | None = None
        self._resolved: Hidden[Resolved] | None = None

    def __repr__(self) -> str:
        return f"<GivenNetwork {', '.join(self.network.described)}>"

    @property
    def is_fresh(self) -> bool:
        """Return whether the values were read so recently that they need not be read again."""
        has_values = any(rule.has_secrets for rule in self.network.hosts)
        return self._read_at is not None and (not has_values or self._clock() - self._read_at < _KEPT_SECONDS)

    def adopt(self, other: "GivenNetwork") -> None:
        """Copy the state of another network, which was sent instead of this one."""
        self.network, self.version, self.sent = other.network, other.version, other.sent
        self._store, self._read_at, self._resolved = other._store, other._read_at, other._resolved

    async def resolve(self) -> Resolved:
        """Return the network with its identities replaced by secrets, and the values of all secrets. Read them at most once a minute.

        If a value has changed, change `version`. Raise SecretError if a value cannot be read. The caller must hold `sending`.
        """
        if self._resolved is None or not self.is_fresh:
            began = self._clock()
            resolved = await self._read()
            if self._resolved is None or self._resolved.value != resolved:
                self._resolved, self.version = Hidden(resolved), uuid.uuid4().hex
            self._read_at = began
        return self._resolved.value

    async def _read(self) -> Resolved:
        used = names_in(value for rule in self.network.hosts for value in rule.headers.values())
        values = {name: await self._store.get(name) for name in dict.fromkeys(used)}
        rules: list[Rule] = []
        for rule in self.network.hosts:
            if rule.identity is None:
                rules.append(rule)
                continue
            name = _free_name(values)
            values[name] = await self._store.token(rule.identity)
            rules.append(replace(rule, identity=None, headers={**rule.headers, "Authorization": f"Bearer ${{secret:{name}}}"}))
        return replace(self.network, hosts=tuple(rules), secrets={}), values


def _free_name(taken: dict[str, str]) -> str:
    number = len(taken)
    while (name := f"identity-{number}") in taken:
        number += 1
    return name
