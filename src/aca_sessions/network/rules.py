"""The rules of a session's network: which hosts, methods and paths its code reaches, and which headers are added to its requests."""

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from ..errors import ConfigurationError

PORTS = (80, 443)  # of a rule without a port
_DOMAIN = re.compile(r"\*|localhost|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)+", re.ASCII)
_PORT = re.compile(r"[1-9]\d{0,4}", re.ASCII)
_METHOD = re.compile(r"[A-Z][A-Z-]{0,19}", re.ASCII)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)
SECRET = re.compile(r"\$\{secret:([A-Za-z0-9_.-]{1,100})\}", re.ASCII)
_NOT_TO_SET = frozenset(("connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"))
_MANY_STARS = re.compile(r"(\*[^/*]+){2}\*|\*\*[^/*]+\*|(?<!\*)\*[^/*]+\*\*")
_MAX_PATH = 2048  # characters
_WHERE = "ACASessions:Sandbox:Network"
# Servers decode these again, or read them as a separator: one server would see another path than the pattern did.
_AMBIGUOUS = re.compile(r"%(?![0-9a-f]{2})|%(2f|5c|[01][0-9a-f]|7f)|%25(2e|2f|5c)|[\\#\x00-\x20\x7f]", re.ASCII | re.IGNORECASE)


def _check_positive(limits: Mapping[str, int | None]) -> None:
    for name, value in limits.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"{_WHERE}: {name} must be a positive number, got {value!r:.40}")


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """How much one session may use its network. None means unlimited.

    Attributes:
        requests: Requests to hosts that the proxy inspects, and connections to others.
        megabytes: Megabytes that are sent and received.
        connections: Connections at a time.
    """

    requests: int | None = None
    megabytes: int | None = None
    connections: int = 64

    def __post_init__(self) -> None:
        """Raise ConfigurationError if a limit is not positive."""
        _check_positive({"Requests": self.requests, "Megabytes": self.megabytes, "Connections": self.connections})


class HiddenHeaders(Mapping[str, str]):
    """Headers of a rule. Their values may be secrets, so `repr`, dumps and pickles do not contain them."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict.fromkeys(self._values, "…"))

    def __deepcopy__(self, _: object) -> "HiddenHeaders":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("headers of a rule cannot be pickled: create the rule in each process")


@dataclass(frozen=True, slots=True)
class Rule:
    """A host that sessions reach, with the requests that they may send to it, and the headers that the program on the host adds.

    If a rule has methods, paths, headers, an identity or a number of requests, the proxy reads the requests to its host. For HTTPS, it then
    answers with a certificate of its own authority, which the session trusts. For other hosts, it carries all bytes unread.

    Attributes:
        host: A domain such as `api.github.com`, `*.example.org` for every domain below it, `*` for every domain, an IP address, or
            `localhost` for this machine. `:port` at the end replaces the ports 80 and 443.
        methods: The allowed methods, such as `GET`. Empty allows all.
        paths: Patterns of the allowed paths: `*` is a part of one segment, `**` is any number of segments. Empty allows all.
        headers: Headers that replace those of the request. `${secret:name}` in a value is replaced by the secret.
        identity: The scope of an Azure token that is sent as `Authorization: Bearer …`, such as `https://storage.azure.com/.default`.
        addresses: Networks that are not public, such as `10.0.0.0/8`, to which the host's name may resolve.
        requests: How many requests a session may send by this rule.
        megabytes: How many megabytes a session may send and receive by this rule.
        connections: How many connections a session may have to this host at a time.
    """

    host: str
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    identity: str | None = None
    addresses: tuple[str, ...] = ()
    requests: int | None = None
    megabytes: int | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        """Bring the values into their normal form. Raise ConfigurationError if one is invalid."""
        object.__setattr__(self, "host", _checked_host(self.host))
        for name in ("methods", "paths", "addresses"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not isinstance(self.headers, Mapping):
            raise ConfigurationError(f"{_WHERE}: Headers of {self.host} must be names and values, got {type(self.headers).__name__}")
        object.__setattr__(self, "headers", HiddenHeaders(self.headers))
        for method in self.methods:
            if not _METHOD.fullmatch(method) or method in ("CONNECT", "TRACE"):
                raise ConfigurationError(f"{_WHERE}: Methods of {self.host} must be methods such as GET or POST, got {method!r:.40}")
        for path in self.paths:
            # At most two `**`, and two `*` or one `**` in a segment: with more, code could choose a path that takes very long to match.
            if "?" in path or path.count("**") > 2 or "***" in path or _MANY_STARS.search(path) or normal_path(path) is None:
                raise ConfigurationError(
                    f"{_WHERE}: Paths of {self.host} must begin with '/', such as /repos/**, and have `**` at most twice, got {path!r:.200}"
                )
        self._check_headers()
        for address in self.addresses:
            try:
                ipaddress.ip_network(address)
            except ValueError:
                raise ConfigurationError(
                    f"{_WHERE}: Addresses of {self.host} must be networks such as 10.0.0.0/8, got {address!r:.80}"
                ) from None
        _check_positive({"Requests": self.requests, "Megabytes": self.megabytes, "Connections": self.connections})

    @property
    def is_inspected(self) -> bool:
        """Return whether the proxy must read the requests to this host."""
        return bool(self.methods or self.paths or self.requests or self.has_secrets)

    @property
    def reachable(self) -> tuple[str, ...]:
        """Return the networks that are not public and to which the host may resolve."""
        return (*self.addresses, *(("127.0.0.0/8", "::1/128") if split_host(self.host)[0] == "localhost" else ()))

    @property
    def has_secrets(self) -> bool:
        """Return whether headers, which may be secrets, are added to requests."""
        return bool(self.headers or self.identity)

    @property
    def sets(self) -> tuple[str, ...]:
        """Return the names of the headers that are added, in lower case."""
        return (*(name.lower() for name in self.headers), *(("authorization",) if self.identity else ()))

    def allows(self, method: str, path: str) -> bool:
        """Return whether this rule allows a request to its host. `path` is in the form that `normal_path` returns."""
        return (not self.methods or method in self.methods) and (not self.paths or any(_pattern(one).fullmatch(path) for one in self.paths))

    def pattern_of(self, path: str) -> str:
        """Return the pattern that a path matches, for records that must not contain the path itself."""
        return next((one for one in self.paths if _pattern(one).fullmatch(path)), "/**")

    def described(self) -> str:
        """Return what the rule allows at its host, such as `GET /repos/**`."""
        methods, paths = "|".join(self.methods) or "all methods", " ".join(self.paths)
        return f"{methods} {paths}".rstrip()

    def __str__(self) -> str:
        """Return the host, the allowed requests, and the names of the added headers, from which a model sees that it needs no key."""
        names = [*self.headers, *(["Authorization"] if self.identity else [])]
        parts = [self.described()] * bool(self.methods or self.paths) + [f"the host adds {', '.join(names)}"] * bool(names)
        return f"{self.host} ({'; '.join(parts)})" if parts else self.host

    def _check_headers(self) -> None:
        for name, value in self.headers.items():
            # Errors do not show the value: it may be a secret itself.
            if not _HEADER_NAME.fullmatch(name) or name.lower() in _NOT_TO_SET or name.lower().startswith("proxy-"):
                raise ConfigurationError(f"{_WHERE}: Headers of {self.host}: {name!r:.80} is invalid or cannot be set by a rule")
            if not isinstance(value, str) or not value.isascii() or not value.isprintable() or value != value.strip():
                raise ConfigurationError(
                    f"{_WHERE}: Headers of {self.host}: the value of {name} must be printable ASCII without spaces at its ends"
                )
            if "${" in SECRET.sub("", value):
                raise ConfigurationError(f"{_WHERE}: Headers of {self.host}: {name} must refer to secrets as ${{secret:name}}")
        if self.identity is not None and (not self.identity or "authorization" in {name.lower() for name in self.headers}):
            raise ConfigurationError(f"{_WHERE}: Identity of {self.host} must be a scope, without a header Authorization")


@dataclass(frozen=True, slots=True)
class Network:
    """What a session can reach on the network, beyond its own loopback interface. Create one with `none`, `allow`, `rules` or `host`.

    Attributes:
        kind: `none` for nothing, `allow` for some domains, `rules` for hosts with rules, `host` for all that this host reaches.
        hosts: The rules of the kinds `allow` and `rules`.
        secrets: The secrets that the rules name.
        limits: How much a session may use the network.
    """

    kind: Literal["none", "allow", "rules", "host"] = "none"
    hosts: tuple[Rule, ...] = ()
    secrets: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    limits: NetworkLimits = NetworkLimits()

    @classmethod
    def none(cls) -> "Network":
        """Return a network that reaches nothing but the session's own loopback interface."""
        return cls()

    @classmethod
    def allow(cls, *domains: str) -> "Network":
        """Return a network that allows HTTP and HTTPS to some domains, at public addresses only.

        `*.example.org` is every domain below example.org, and `*` is every domain. `:port` at the end replaces the ports 80 and 443. Raise
        ConfigurationError if a domain is invalid, or none is given.
        """
        if not domains:
            raise ConfigurationError(f"{_WHERE}: expected at least one domain, got none: name one, or use Network.none() to allow none")
        return cls("allow", tuple(Rule(domain) for domain in domains))

    @classmethod
    def rules(
        cls,
        rules: Iterable[Rule | Mapping[str, Any]],
        *,
        secrets: Mapping[str, Any] | None = None,
        limits: NetworkLimits = NetworkLimits(),
    ) -> "Network":
        """Return a network with a rule for each host. Raise ConfigurationError if a rule is invalid.

        If several rules match a host, those with the most specific host count, as alternatives: `*` does not add to what a rule for
        `api.github.com` allows.

        Args:
            rules: The rules. A dict has the names of the settings, such as `{"Host": "api.github.com", "Methods": ["GET"]}`.
            secrets: The secrets for `${secret:name}` in headers: `Secret`, a function that returns the secret, or a str.
            limits: How much a session may use the network.
        """
        made = tuple(rule if isinstance(rule, Rule) else _rule_of(rule) for rule in rules)
        if not made:
            raise ConfigurationError(f"{_WHERE}: expected at least one rule, got none: write one, or use Network.none()")
        from .secrets import as_secrets  # here, because it imports this module

        known = as_secrets(secrets or {})
        for rule in made:
            for name in names_in(rule.headers.values()):
                if name not in known:
                    raise ConfigurationError(
                        f"{_WHERE}: Headers of {rule.host}: the secret {name!r} is not known: add it to ACASessions:Secrets, or to "
                        "`secrets` of Network.rules"
                    )
        return cls("rules", made, known, limits)

    @classmethod
    def host(cls) -> "Network":
        """Return a network that reaches all that this host reaches, including this host's own services.

        Use this only for code that you trust with those services.
        """
        return cls("host")

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the hosts that have rules."""
        return tuple(dict.fromkeys(rule.host for rule in self.hosts))

    @property
    def is_proxied(self) -> bool:
        """Return whether sessions reach the network through the proxy on the host."""
        return self.kind in ("allow", "rules")

    @property
    def is_inspected(self) -> bool:
        """Return whether the proxy reads requests to any host, so that sessions must trust its certificates."""
        return any(rule.is_inspected for rule in self.hosts)

    @property
    def described(self) -> tuple[str, ...]:
        """Return a line for each rule. Without rules, return the kind: `none` or `host`."""
        return tuple(dict.fromkeys(str(rule) for rule in self.hosts)) or (self.kind,)

    def rules_for(self, host: str, port: int) -> tuple[Rule, ...]:
        """Return the rules that match a host and port and have the most specific host."""
        matching = [rule.host for rule in self.hosts if _matches(rule.host, host, port)]
        if not matching:
            return ()
        best = max(matching, key=_specificity)
        return tuple(rule for rule in self.hosts if rule.host == best)


def names_in(templates: Iterable[str]) -> list[str]:
    """Return the names of the secrets that header values refer to."""
    return [name for template in templates for name in SECRET.findall(template)]


def normal_path(target: str) -> str | None:
    """Return the path of a request's target in the form that is matched: decoded, and without its query.

    Return None if servers could read the path in different ways, for example because it has `..` or an encoded slash.
    """
    path = target.partition("?")[0]
    if not path.startswith("/") or len(path) > _MAX_PATH or _AMBIGUOUS.search(path):
        return None
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return None
    folded = unicodedata.normalize("NFKC", decoded)  # some servers do that after they have checked the path
    if any(folded.count(char) != decoded.count(char) for char in "./\\%"):
        return None
    # Java servers cut parameters (`..;x`) off each segment before they resolve dots.
    return None if any(segment.partition(";")[0] in (".", "..") for segment in decoded.split("/")) else decoded


@lru_cache(4096)  # clients of a server may write patterns
def _pattern(path: str) -> re.Pattern[str]:
    first, *rest = "/".join(map(_segment, (normal_path(path) or "").split("/"))).split("\0")
    # What is between two `**` is matched at its first place only, because the second `**` takes what is left.
    middle = [f"(?>.*?{part})" for part in rest[:-1]]
    return re.compile("".join((first, *middle, *(f".*{part}" for part in rest[-1:]))), re.DOTALL)


def _segment(text: str) -> str:
    """Return the expression for a segment of a path, with NUL for `**`.

    It is atomic: once matched, no other way is tried. With other ways, a path that was made for it could keep the host busy for hours.
    """
    if text == "*":
        return "[^/]++"  # a whole segment is not empty
    if "**" in text or "*" not in text:
        return "\0".join(map(re.escape, text.split("**")))
    start, *middle, end = map(re.escape, text.split("*"))
    return f"(?>{start}{''.join(f'(?>[^/]*?{part})' for part in middle)}[^/]*{end}(?![^/]))"


def _checked_host(host: object) -> str:
    text = host.strip().lower() if isinstance(host, str) else ""
    name, port = split_host(text)
    if (not _DOMAIN.fullmatch(name) and not is_address(name)) or (port and (not _PORT.fullmatch(port) or int(port) > 65_535)):
        got = text.rpartition("@")[2]  # without a user name and password
        raise ConfigurationError(
            f"{_WHERE}: expected a domain such as example.org, *.example.org or example.org:80, or an IP address, got {got!r:.80}"
        )
    name = ipaddress.ip_address(name).compressed if is_address(name) else name
    shown = f"[{name}]" if ":" in name else name
    return f"{shown}:{port}" if port else shown


def split_host(text: str) -> tuple[str, str]:
    """Split `host:port`. Without a port, return '' as the port. An IPv6 address with a port is in brackets."""
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        return name, rest.removeprefix(":")
    if text.count(":") > 1:
        return text, ""
    name, _, port = text.partition(":")
    return name, port


def is_address(name: str) -> bool:
    """Return whether a name is an IP address in its normal form, which all programs read alike."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _matches(pattern: str, host: str, port: int) -> bool:
    name, own_port = split_host(pattern)
    if port != int(own_port) if own_port else port not in PORTS:
        return False
    if is_address(host):
        return is_address(name) and ipaddress.ip_address(name) == ipaddress.ip_address(host)
    return name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))


def _specificity(pattern: str) -> tuple[bool, int, bool]:
    name, port = split_host(pattern)
    return not name.startswith("*"), len(name), bool(port)


_KEYS = {one.name.capitalize(): one.name for one in fields(Rule)}


def _rule_of(values: Mapping[str, Any]) -> Rule:
    unknown = [key for key in values if key not in _KEYS]
    if unknown or "Host" not in values:
        got = f"got {unknown[0]!r:.80}" if unknown else "got no Host"
        raise ConfigurationError(f"{_WHERE}: a rule must have a Host, and may have {', '.join([*_KEYS][1:])}: {got}")
    return Rule(**{_KEYS[key]: value for key, value in values.items() if value is not None})
