"""The settings of a session's network with rules, and of the secrets that its rules refer to."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, SecretStr, Tag, field_validator, model_validator
from pydantic_settings import NoDecode

from ..errors import ConfigurationError
from ..network.rules import Network, NetworkLimits, Rule, names_in
from ..network.secrets import Secret
from .section import Count, Section, Words, parse_json, split_words

_WORDS, _RULES = TAGS = ("<words>", "<rules>")  # pydantic adds them to the location of an error, and `Settings` removes them


class RuleSettings(Section):
    """A host that sessions reach, with the requests that they may send to it, and the headers that this program adds."""

    Host: str
    """A domain, `*.example.org` for all domains below it, `*` for all, an IP address, or `localhost`. `:port` replaces 80 and 443."""
    Methods: tuple[str, ...] = ()
    """The allowed methods, such as `["GET", "HEAD"]`. Empty: all."""
    Paths: tuple[str, ...] = ()
    """Patterns of allowed paths: `*` is a part of one segment, `**` any number of segments, as in `["/repos/**"]`. Empty: all."""
    Headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Headers that replace those of requests. `${secret:NAME}` in a value refers to one of `Secrets`. The values are never shown."""
    Identity: str | None = None
    """The scope of an Azure token that is sent as `Authorization`, such as `https://storage.azure.com/.default`."""
    Addresses: tuple[str, ...] = ()
    """Networks that are not public, such as `["10.0.0.0/8"]`, to which the host's name may resolve."""
    Requests: Count | None = None
    """Requests that each session may send by this rule."""
    Megabytes: Count | None = None
    """Megabytes that each session may send and receive by this rule."""
    Connections: Count | None = None
    """Connections that each session may have to this host at a time."""

    _split = field_validator("Methods", "Addresses", mode="before")(split_words)

    @field_validator("Paths", mode="before")
    @classmethod
    def _one_path(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _valid(self) -> Self:
        _as_value_error(self.rule)
        return self

    def rule(self) -> Rule:
        """Return the rule. Raise ConfigurationError if it is invalid."""
        values: dict[str, Any] = {name.lower(): getattr(self, name) for name in type(self).model_fields}
        return Rule(**values | {"headers": {name: value.get_secret_value() for name, value in self.Headers.items()}})


class NetworkSettings(Section):
    """A network with rules, instead of `none`, `host` or domains: `{"Rules": [{"Host": "api.github.com", "Methods": ["GET"]}]}`.

    Of the rules that match a host, those with the most specific `Host` count, and one of them must allow the request.
    """

    Rules: tuple[RuleSettings, ...]
    """The hosts that sessions reach."""
    Requests: Count | None = None
    """Requests that each session may send."""
    Megabytes: Count | None = None
    """Megabytes that each session may send and receive."""
    Connections: Count = NetworkLimits().connections
    """Connections that each session may have at a time."""

    @field_validator("Rules")
    @classmethod
    def _not_empty(cls, rules: tuple[RuleSettings, ...]) -> tuple[RuleSettings, ...]:
        if not rules:
            raise ValueError("must have a rule: write one, or set Network to none")
        return rules

    def network(self, secrets: Mapping[str, Secret]) -> Network:
        """Return the network. Raise ConfigurationError if a rule refers to a secret that is not in `secrets`."""
        limits = NetworkLimits(requests=self.Requests, megabytes=self.Megabytes, connections=self.Connections)
        return Network.rules([rule.rule() for rule in self.Rules], secrets=secrets, limits=limits)


NetworkValue = Annotated[
    Annotated[Words, Tag(_WORDS)] | Annotated[NetworkSettings, Tag(_RULES)],
    Discriminator(lambda value: _RULES if isinstance(value, Mapping | NetworkSettings) else _WORDS),
    NoDecode,
]


def parse_network(value: object) -> object:
    """Parse a text as words or as a JSON object. Return other values unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return parse_json(value, "none, host, domains or a JSON object with Rules, got text that begins with '{'")
    return split_words(value)


class _AnyCase(Section):
    @model_validator(mode="before")
    @classmethod
    def _restore_case(cls, values: object) -> object:
        """Accept keys in any case: pydantic-settings lowers those of environment variables below the name of a secret."""
        names = {name.lower(): name for name in cls.model_fields}
        return {names.get(str(key).lower(), key): value for key, value in values.items()} if isinstance(values, Mapping) else values


class KeyringSettings(_AnyCase):
    """An entry of the keyring of this program's user, as `keyring set SERVICE USER` creates it. It needs the extra `keyring`."""

    Service: Annotated[str, Field(min_length=1)]
    """The service of the entry."""
    User: Annotated[str, Field(min_length=1)]
    """The user of the entry."""


class SecretSettings(_AnyCase):
    """The source of a secret: exactly one of these keys. It is read when a rule needs it, and never shown."""

    Environment: str | None = None
    """The environment variable of this program that contains the secret."""
    File: str | None = None
    """The file of this host that contains the secret. It is read again after it has changed."""
    Keyring: KeyringSettings | None = None
    """The entry of the secret in the keyring."""
    KeyVault: str | None = None
    """The identifier of the secret in Azure Key Vault: `https://VAULT.vault.azure.net/secrets/NAME`. It needs the extra `azure`."""

    @field_validator("Keyring", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        return parse_json(value, "an object with Service and User, got text that") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"must have one of {', '.join(type(self).model_fields)}, got {' and '.join(given) or 'none'}")
        _as_value_error(self.secret)
        return self

    def secret(self) -> Secret:
        """Return the secret. Raise ConfigurationError if its source is invalid."""
        if self.Environment is not None:
            return Secret.environment(self.Environment)
        if self.File is not None:
            return Secret.file(self.File)
        if self.Keyring is not None:
            return Secret.keyring(self.Keyring.Service, self.Keyring.User)
        return Secret.key_vault(self.KeyVault or "")


def check_names(secrets: Mapping[str, SecretSettings]) -> Mapping[str, SecretSettings]:
    """Return the secrets. Raise ValueError if a name is not possible in `${secret:NAME}`."""
    for name in secrets:
        if names_in([f"${{secret:{name}}}"]) != [name]:
            raise ValueError(f"the name of a secret must have at most 100 letters, digits and '_.-', got {name!r:.80}")
    return secrets


def _as_value_error(make: Any) -> None:
    """Call a function. Convert its ConfigurationError to a ValueError, for which pydantic reports the key."""
    try:
        make()
    except ConfigurationError as error:
        problem = re.sub(r"^ACASessions:Sandbox:Network: ", "", str(error))
    else:
        return
    raise ValueError(problem)
