"""The settings of this package, from the section ACASessions of appsettings.json and from environment variables.

There are four sources, and the first that has a value wins: arguments, the environment (`ACASessions__SessionPool__MaxConcurrentSessions`,
in upper or lower case), `appsettings.{ACA_ENVIRONMENT}.json`, `appsettings.json`. A value that is unset or null has its default.
Defaults are imported from the modules that use them, so that no default is written twice.
"""

import difflib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ..client.http import DEFAULT_CONNECT_SECONDS, DEFAULT_PATIENCE_SECONDS, DEFAULT_REQUEST_SECONDS
from ..client.pool import DEFAULT_ACQUIRE_SECONDS, DEFAULT_SESSION_SECONDS, DEFAULT_SESSIONS
from ..errors import ConfigurationError
from ..network.rules import names_in
from ..network.tokens import DEFAULT_REFRESH_SECONDS, DEFAULT_SCOPE
from ..sandbox.policy import KB, MB, Limits, PackageSource, Policy, Together
from .json_file import JsonFile
from .network import TAGS, NetworkSettings, NetworkValue, SecretSettings, check_names, parse_network
from .section import Count, Positive, Section, Words, split_words


def check_variables(section: str, known: Mapping[str, Collection[str]]) -> None:
    """Raise ConfigurationError if an environment variable of a section is not a setting, or if two contradict each other.

    Args:
        section: The name of the section, such as `ACASessions`. Its variables begin with this name, in upper or lower case.
        known: The names of all settings, each with the names of the keys below it.
    """
    prefix, found = f"{section}__".lower(), dict[str, tuple[str, str]]()
    for variable, value in os.environ.items():
        name = variable.lower()
        if not name.startswith(prefix):
            _check_separator(variable, section, known)
            continue
        key = variable[len(prefix) :]
        first = key.partition("__")[0]
        if first.lower() not in {one.lower() for one in known}:
            raise ConfigurationError(f"the environment variable {variable} is not a setting{suggestion(first, known)}")
        earlier, its_value = found.setdefault(name, (variable, value))
        if its_value != value:
            raise ConfigurationError(f"the environment variables {earlier} and {variable} contradict each other: keep one")
    _check_sections(found)


def suggestion(key: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown key: the key that the user probably meant, or all keys."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(key.lower(), names, n=1)
    return f": did you mean {names[close[0]]}?" if close else f": expected one of {', '.join(names.values())}"


def _check_separator(variable: str, section: str, known: Mapping[str, Collection[str]]) -> None:
    """Raise ConfigurationError if a variable names a setting with a wrong separator, such as ACASessions_Endpoint or ACASessions:Endpoint.

    Names that Kubernetes defines for a service are not refused, such as ACASESSIONS_MCP_SERVICE_HOST.
    """
    if not variable.lower().startswith(section.lower()):
        return
    parts = re.split(r"[_:.]+", variable[len(section) :])
    if len(parts) < 2 or parts[0]:
        return
    keys = {name.lower(): {key.lower() for key in below} for name, below in known.items()}.get(parts[1].lower())
    if keys is not None and ((len(parts) == 2 and not keys) or (len(parts) > 2 and parts[2].lower() in keys)):
        meant = "__".join([section, *parts[1:]])
        raise ConfigurationError(f"the environment variable {variable} is not a setting: did you mean {meant}?")


def _check_sections(found: Mapping[str, tuple[str, str]]) -> None:
    """Raise ConfigurationError if a variable for a section contradicts a variable for a key in the same section.

    The variable for a section holds JSON: `ACASessions__SessionPool={"MaxConcurrentSessions": 5}`.
    """
    for name, (variable, value) in found.items():
        for key, inner in _leaves(name, value):
            other, text = found.get(key, (variable, value))
            if other != variable and text != inner:
                raise ConfigurationError(f"the environment variables {variable} and {other} contradict each other: keep one")


def _leaves(name: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        content = json.loads(text) if text.lstrip().startswith("{") else None
    except ValueError:
        return  # pydantic-settings raises for invalid JSON
    for key, value in content.items() if isinstance(content, dict) else ():
        inner = value if isinstance(value, str) else json.dumps(value)
        yield f"{name}__{key.lower()}", inner
        yield from _leaves(f"{name}__{key.lower()}", inner)


def _find_no_json(source: EnvSettingsSource) -> str | None:
    """Return the name of the first environment variable that must be JSON and is not. pydantic-settings names its section only."""
    for name, value in source.env_vars.items():
        source.env_vars = {name: value}
        try:
            source()
        except SettingsError:
            return next((variable for variable in os.environ if variable.lower() == name), name)
    return None


SECTION = "ACASessions"
_EXAMPLE = f'{{"{SECTION}": {{"MaxConcurrentSessions": 10}}}}'
_COMPARED = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "literal_error")
_FLAT = {
    "Endpoint": ("SessionsHttpClient", "Endpoint"),
    "ApiKey": ("SessionsHttpClient", "ApiKey"),
    "MaxConcurrentSessions": ("SessionPool", "MaxConcurrentSessions"),
    "SessionTimeoutMinutes": ("SessionPool", "SessionTimeoutMinutes"),
}
_PLACEHOLDER = re.compile(r"[<>{}]|\[[^\]:]*\]|YOUR[_-]?[A-Z]")  # brackets with a colon in them are an IPv6 address
_LIMITS, _TOGETHER, _POLICY = Limits(), Together(), Policy()


def _is_web_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


class SessionsHttpClientSettings(Section):
    """The endpoint of the sessions, and how requests to it are made. Without an Endpoint, sessions run in the embedded sandbox."""

    Endpoint: str | None = None
    """The server or pool that runs the sessions: `https://…`, `http://…` or `unix:///path`. Unset: the embedded sandbox."""
    ApiVersion: Literal["2025-10-02-preview", "2025-02-02-preview", "2024-10-02-preview", "2024-08-02-preview", "2024-02-02-preview"] = (
        "2025-10-02-preview"
    )
    """The version of Azure's API that the client speaks."""
    ApiKey: SecretStr | None = None
    """The key of `aca-sessions serve`. It is never shown. Unset: sign in to Azure, with `DefaultAzureCredential`."""
    ConnectTimeoutSeconds: Positive = DEFAULT_CONNECT_SECONDS
    """Seconds that the client waits for a connection."""
    RequestTimeoutSeconds: Positive = DEFAULT_REQUEST_SECONDS
    """Seconds that the client waits for a response. Cells have a time limit of their own."""
    PatienceSeconds: Annotated[float, Field(ge=0, le=3600)] = DEFAULT_PATIENCE_SECONDS
    """Seconds after its first attempt for which a request may be retried. A cell that the service may have begun is never sent again."""

    @field_validator("Endpoint")
    @classmethod
    def _usable(cls, endpoint: str | None) -> str | None:
        if endpoint is None or not endpoint.strip():
            return None
        if _PLACEHOLDER.search(endpoint):
            raise ValueError("still holds a placeholder: put in the pool's own value, or leave the key out for the embedded sandbox")
        endpoint = re.sub(r"(/python/execute)?/*(\?.*)?$", "", endpoint.strip())
        if not re.fullmatch(r"unix:///[^\s]+", endpoint) and not _is_web_address(endpoint):
            raise ValueError("must be a URL: begin it with https://, http:// or unix:///, and write the port as a number")
        if "@" in urlsplit(endpoint).netloc:  # a password in it would be shown with the settings, and no request would use it
            raise ValueError("must hold no user name or password: put the server's key into ApiKey")
        return endpoint

    @field_validator("ApiKey")
    @classmethod
    def _not_empty(cls, key: SecretStr | None) -> SecretStr | None:
        text = key.get_secret_value().strip() if key else ""
        if not text.isprintable() or not text.isascii():
            raise ValueError("must have only characters that an HTTP header can hold: copy the key alone")
        if text.startswith(("<", "{", "YOUR_", "YOUR-")):
            raise ValueError("still holds a placeholder: put in the server's own key")
        return SecretStr(text) if text else None


class AzureTokenProviderSettings(Section):
    """The scopes of tokens, and how early tokens are renewed."""

    RefreshBeforeMinutes: Annotated[float, Field(ge=0)] = DEFAULT_REFRESH_SECONDS / 60
    """Minutes before a token expires at which it is renewed."""
    Scopes: Words = (DEFAULT_SCOPE,)
    """The scopes that tokens are requested for."""

    _split_scopes = field_validator("Scopes", mode="before")(split_words)


class SessionPoolSettings(Section):
    """How many sessions can be leased at the same time, how long an idle one lives, and how long a caller waits for a lease."""

    MaxConcurrentSessions: Count = DEFAULT_SESSIONS
    """Sessions that may be leased at the same time. An embedded pool keeps at most 20 times as many in all, and refuses one more."""
    SessionTimeoutMinutes: Positive = DEFAULT_SESSION_SECONDS / 60
    """Minutes after which an idle named session ends."""
    AcquireTimeoutSeconds: Positive = DEFAULT_ACQUIRE_SECONDS
    """Seconds that a caller waits for a lease. Then PoolTimeoutError is raised."""


class LimitsSettings(Section):
    """The limits of one embedded session.

    Files are in memory, so DiskMegabytes is lowered to at most half of the memory, and TemporaryMegabytes to a quarter.
    """

    MemoryMegabytes: Annotated[int, Field(ge=64, le=1 << 22)] = _LIMITS.memory // MB
    """Megabytes of memory of all processes of the session.

    A process that asks for more gets a MemoryError. If all of them need more together, they are killed.
    """
    DiskMegabytes: Annotated[int, Field(gt=0, le=1 << 22)] = _LIMITS.disk // MB
    """Megabytes of /mnt/data, which is in memory. Code may write one file of this size. Lowered to at most half of `MemoryMegabytes`."""
    TemporaryMegabytes: Annotated[int, Field(gt=0, le=1 << 22)] = _LIMITS.temporary // MB
    """Megabytes of /tmp, and of /dev/shm, which are in memory. Lowered to at most a quarter of `MemoryMegabytes`."""
    Processes: Annotated[int, Field(ge=8, le=1 << 20)] = _LIMITS.processes
    """Processes and threads of the session."""
    OpenFiles: Annotated[int, Field(ge=64, le=1 << 20)] = _LIMITS.open_files
    """Open file descriptors of each process."""
    Cpu: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Processors whose time the session may use: 1.5 is the time of one and a half. It needs control groups. Unset: all, shared fairly."""
    CellTimeoutSeconds: Annotated[float, Field(gt=0, le=220)] = _LIMITS.cell_timeout
    """Seconds of wall-clock time that a cell may run, if its call gives no time. Waiting for a processor counts, waiting for the host to
    reply does not. A call may ask for more: `timeout=`, up to 86,400 seconds embedded and with `serve`, up to 220 at Azure."""
    OutputKilobytes: Annotated[int, Field(gt=0, le=1 << 16)] = _LIMITS.output // KB
    """Kilobytes of stdout and of stderr that a result keeps: the beginning and the end of each."""
    History: Annotated[int, Field(gt=0, le=1 << 20)] = _LIMITS.history
    """Cells that are kept in `In`, and values that are kept in `Out`. A value in `Out` stays in memory."""
    Checkpoints: Annotated[int, Field(gt=0, le=1000)] = _LIMITS.checkpoints
    """Checkpoints of the session. If there are more, the oldest is removed."""
    CheckpointMegabytes: Annotated[int, Field(gt=0, le=1 << 20)] = _LIMITS.checkpoint_files // MB
    """Megabytes of files that a checkpoint copies. If /mnt/data has more, a checkpoint cannot be taken."""

    @model_validator(mode="after")
    def _lower(self) -> Self:
        given = Limits(memory=self.MemoryMegabytes * MB, disk=self.DiskMegabytes * MB, temporary=self.TemporaryMegabytes * MB)
        # Through `__dict__`, because the model is frozen.
        self.__dict__.update(DiskMegabytes=given.disk // MB, TemporaryMegabytes=given.temporary // MB)
        return self


class TogetherSettings(Section):
    """The limits of all embedded sessions of this process in total."""

    MemoryShare: Annotated[float, Field(gt=0, le=1)] = _TOGETHER.memory_share
    """The share of the machine's memory that all sessions may use."""
    Processes: Annotated[int, Field(ge=32, le=1 << 22)] = _TOGETHER.processes
    """Processes and threads of all sessions. Without control groups, all other processes of this user count as well."""
    CpuWeight: Annotated[float, Field(gt=0, le=100)] = _TOGETHER.cpu_weight
    """The weight of all sessions on each processor, if another process has 1. Without control groups each session has this weight.

    A larger weight makes sessions faster on a busy machine, and makes this program slower beside a fork bomb.
    """


class MountSettings(Section):
    """A folder of this host that every embedded session can read, and also write if `Shared` is "writable"."""

    Host: str
    """The folder of this host, which must exist."""
    Guest: str
    """The path in the session, under /mnt and outside of /mnt/data."""
    Shared: Literal["read-only", "writable"] = "read-only"
    """Whether sessions may write. They have the rights of their user: if this program is root, they write where every user can."""


class PackagesSettings(Section):
    """Where embedded sessions get the packages that they install, and where this host caches them."""

    IndexUrl: SecretStr | None = None
    """The URL of the index. It may hold a password, and is never shown. Unset: what this host configures for pip."""
    WheelFolder: str | None = None
    """A folder of wheels. Without an `IndexUrl` it is the only source: nothing is downloaded."""
    CacheFolder: str | None = Field(default_factory=lambda: PackageSource().folder or None)
    """The folder of unpacked packages, for all sessions. Unset: `aca-sessions/packages` in the user's cache folder, such as `~/.cache`."""
    CacheMegabytes: Annotated[int, Field(gt=0, le=1 << 22)] = PackageSource().cache_size // MB
    """Megabytes of that folder. The least recently used packages are removed first, those in use never."""
    InstallFunction: bool = False
    """Whether tools for models, such as the plugin of Semantic Kernel, have a function `install_packages`."""

    @field_validator("IndexUrl")
    @classmethod
    def _address(cls, address: SecretStr | None) -> SecretStr | None:
        text = address.get_secret_value().strip() if address else ""
        if text and (not _is_web_address(text) or _PLACEHOLDER.search(text)):
            raise ValueError("must be the URL of an index: begin it with https:// or http://")
        return SecretStr(text) if text else None

    @field_validator("WheelFolder")
    @classmethod
    def _there(cls, folder: str | None) -> str | None:
        if folder and not os.path.isdir(folder):
            raise ValueError(f"must be a folder of this host, got {folder!r:.200}: put the wheels into one and name it")
        return os.path.abspath(folder) if folder else None


class SandboxSettings(Section):
    """The embedded sandbox: its network, folders, Python and isolation."""

    Limits: LimitsSettings = LimitsSettings()
    """The limits of one session."""
    Together: TogetherSettings = TogetherSettings()
    """The limits of all sessions in total."""
    Network: NetworkValue = ("none",)
    """What sessions reach: `none`, a list of domains, an object with `Rules`, or `host` (`serve --network`).

    Domains such as `["pypi.org", "*.example.org"]` allow HTTP and HTTPS to their public addresses, through a proxy. Rules also limit
    methods and paths. `host` is everything that this host reaches, including its own services.
    """
    Mounts: tuple[MountSettings, ...] = ()
    """Folders of this host that sessions see: `[{"Host": "/srv/models", "Guest": "/mnt/models"}]`."""
    Preload: Words | None = None
    """Modules that every session has imported already. `[]` is none. Unset: numpy, pandas and matplotlib, if they are installed.

    Those three are loaded in the background. A session has them if it begins after that.
    """
    Spares: Annotated[int, Field(ge=0, le=1000)] = _POLICY.spares
    """Sessions that are kept ready before they are needed, about 6 MB each."""
    Python: str | None = None
    """The path of an interpreter whose environment has IPython; with a `ContainerImage`, one of the image. Unset: the host program's."""
    Isolation: Literal["full", "no-namespaces"] = _POLICY.isolation
    """`no-namespaces` is less isolation, for hosts that refuse namespaces, such as default containers.

    It has no /mnt/data: files are in the working directory.
    """
    Tenant: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A name, for tenants that are hostile to each other. Sessions of two tenants share no fork server, and so no address layout."""
    Environment: str | None = None
    """The name of an environment that `aca-sessions env create` made, instead of `Python`. Sessions see its packages alone."""

    _split_words = field_validator("Preload", mode="before")(split_words)
    _parse_network = field_validator("Network", mode="before")(parse_network)

    @field_validator("Network")
    @classmethod
    def _one_kind(cls, words: tuple[str, ...] | NetworkSettings) -> tuple[str, ...] | NetworkSettings:
        if isinstance(words, NetworkSettings) or words in (("none",), ("host",)):
            return words
        if wrong := [word for word in words if "." not in word and word != "*"]:
            got = f"{wrong[0]!r:.80}{' in a list' if len(words) > 1 else ''}"
            raise ValueError(f"must be none, host, or a list of domains such as example.org and *.example.org, got {got}")
        return words or ("none",)


class McpSettings(Section):
    """The limits of sessions and files for clients of the MCP server."""

    SessionsPerClient: Count = 20
    """Sessions that one client may have."""
    Clients: Count = 100
    """Clients that may be connected over HTTP."""
    ClientIdleMinutes: Positive = 30
    """Minutes without a request after which an HTTP client counts as disconnected."""
    KeepShared: bool = True
    """Whether sessions that a client created as shared outlive it, until they are idle for too long."""
    OutputsMegabytes: Annotated[int, Field(ge=0, le=1 << 14)] = 64
    """Megabytes that a client's sessions may pass on through `outputs/`. 0 passes on nothing."""


class DurableSettings(Section):
    """The store in which embedded sessions are saved, so that they outlive the idle time, the program and the machine."""

    Store: SecretStr | None = None
    """The URL of the store: `file:///folder`, `redis://…` or `azure-blob://account/container`. Unset: sessions are not saved."""
    Save: Literal["never", "idle", "cell"] = "idle"
    """When sessions are saved: `idle`, when they are idle or the program closes; `cell`, also after cells; `never`, only on request."""
    CloseSeconds: Annotated[int, Field(ge=1, le=86_400)] = 60
    """The most seconds in which a program that closes saves its sessions. Those that are left then go on from earlier saves."""
    Key: SecretStr | None = None
    """The key that encrypts saved sessions: 32 bytes as base64 or hex digits. Unset: they are stored as they are."""
    MaxMegabytes: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    """The most megabytes of one saved session."""


class AuditSettings(Section):
    """The audit log of embedded sessions, for their operator: its file, and whether it records the source of cells."""

    File: str | None = None
    """The file, to which each event is written as a line of JSON, with hashed names (`serve --audit`). Unset: no audit log."""
    Code: bool = False
    """Whether the source of cells is written, too (`serve --audit-code`). Otherwise only its size is."""


_SECTIONS = ("SessionsHttpClient", "AzureTokenProvider", "SessionPool", "Sandbox", "Packages", "Mcp", "Audit", "Durable")


class Settings(BaseSettings):
    """All settings of this package, from the section ACASessions of appsettings.json and from the environment.

    The names of environment variables begin with `ACASessions__`, for example `ACASessions__MaxConcurrentSessions`. A setting can also be
    given as an argument: `Settings(MaxConcurrentSessions=320)`. If a setting is wrong, ConfigurationError is raised and names its key.
    """

    model_config = SettingsConfigDict(
        env_prefix=f"{SECTION}__",
        env_nested_delimiter="__",
        case_sensitive=False,
        extra="forbid",
        frozen=True,
    )

    SessionsHttpClient: SessionsHttpClientSettings = SessionsHttpClientSettings()
    """The endpoint, and how requests to it are made."""

    AzureTokenProvider: AzureTokenProviderSettings = AzureTokenProviderSettings()
    """The tokens for Azure."""

    SessionPool: SessionPoolSettings = SessionPoolSettings()
    """The sizes and times of a pool."""

    Sandbox: SandboxSettings = SandboxSettings()
    """The embedded sandbox."""

    Packages: PackagesSettings = Field(default_factory=PackagesSettings)
    """Where embedded sessions get packages."""

    Mcp: McpSettings = McpSettings()
    """The MCP server."""

    Audit: AuditSettings = AuditSettings()
    """The audit log."""

    Durable: DurableSettings = DurableSettings()
    """The store of saved sessions."""

    Secrets: Mapping[str, SecretSettings] = Field(default_factory=dict)
    """The secrets that rules of `Sandbox:Network` refer to, by their names: `{"github": {"Environment": "GITHUB_TOKEN"}}`."""

    ContainerImage: str | None = None
    """Where the sessions' root and Python come from. Unset: this host's own.

    It is a root folder, the tar of one, or an image that Podman or Docker has here or pulls.
    """

    _check_names = field_validator("Secrets")(check_names)

    # These are accepted at the top level too. They are moved to their section, and can be read here.
    Endpoint: str | None = Field(None, exclude=True, repr=False)
    """The same as `SessionsHttpClient:Endpoint`."""

    ApiKey: SecretStr | None = Field(None, exclude=True, repr=False)
    """The same as `SessionsHttpClient:ApiKey`."""

    MaxConcurrentSessions: int = Field(DEFAULT_SESSIONS, exclude=True, repr=False)
    """The same as `SessionPool:MaxConcurrentSessions`."""

    SessionTimeoutMinutes: float = Field(DEFAULT_SESSION_SECONDS / 60, exclude=True, repr=False)
    """The same as `SessionPool:SessionTimeoutMinutes`."""

    def __init__(self, **values: Any) -> None:
        problems, no_json = list[ErrorDetails](), ""
        try:
            super().__init__(**values)
            problems = self._problems_of_secrets()
        except ValidationError as error:
            problems = error.errors()
        except SettingsError:
            no_json = _find_no_json(EnvSettingsSource(type(self))) or SECTION
        # Raised outside of the `except` blocks: errors of pydantic and pydantic-settings contain the values, and would be the context.
        if no_json:
            raise ConfigurationError(f"the environment variable {no_json} must be JSON: correct it or unset it")
        if problems:
            sources = _sources(values, EnvSettingsSource(type(self))())
            raise ConfigurationError("; ".join(_problem_text(problem, sources) for problem in problems))

    def _problems_of_secrets(self) -> list[ErrorDetails]:
        """Return an error for each header of a network rule that refers to a secret which is not in `Secrets`."""
        network = self.Sandbox.Network
        return [
            {
                "type": "value_error",
                "loc": ("Sandbox", "Network", "Rules", number, "Headers", header),
                "msg": f"the secret {name!r} is not in ACASessions:Secrets{suggestion(name, self.Secrets) if self.Secrets else ': add it'}",
                "input": None,
            }
            for number, rule in enumerate(network.Rules if isinstance(network, NetworkSettings) else ())
            for header, value in rule.Headers.items()
            for name in names_in([value.get_secret_value()])
            if name not in self.Secrets
        ]

    @model_validator(mode="after")
    def _read_back(self) -> Self:
        for flat, (section, key) in _FLAT.items():
            self.__dict__[flat] = getattr(getattr(self, section), key)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings. Move short names like `Endpoint` into their sections, such as `SessionsHttpClient`.

        An earlier source then overrides a later one, even if one uses the short name of a setting and the other the full name. Raise
        ConfigurationError if an environment variable of the section is not a setting.
        """
        del dotenv_settings, file_secret_settings
        check_variables(SECTION, _variables())
        given = cast(InitSettingsSource, init_settings).init_kwargs
        environment = cast(EnvSettingsSource, env_settings)()
        return tuple(InitSettingsSource(settings_cls, _into_sections(source)) for source in _sources(given, environment))


@dataclass(frozen=True, slots=True)
class _Source:
    """The settings from one source, such as a file, with the name of the source for error messages."""

    values: Mapping[str, Any]
    name: str = ""
    file: JsonFile | None = None

    def depth(self, keys: Sequence[str | int]) -> int:
        """Return how many leading keys of the path `keys` exist in this source.

        An error about a key names the source in which most of its path exists.
        """
        value: Any = self.values
        for number, key in enumerate(keys):
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):  # TypeError: neither an object nor a list
                return number
        return len(keys)

    def place_of(self, *keys: str | int) -> str:
        """Return where this source has a key, as the beginning of an error message: the source's name and, in a file, the line.

        Return '' for arguments of Settings.
        """
        return f"{self.name}, line {self.file.line_of([SECTION, *keys])}: " if self.file else self.name and f"{self.name}: "


def _sources(given: Mapping[str, Any], environment: Mapping[str, Any]) -> list[_Source]:
    """Return all sources of settings. Earlier sources take precedence.

    `given` are the arguments of Settings, and `environment` are the values from environment variables.
    """
    return [_Source(given), _Source(environment, "the environment"), *(_read(path) for path in _paths())]


def _paths() -> Iterator[Path]:
    environment = os.environ.get("ACA_ENVIRONMENT")
    if environment:
        path = Path(f"appsettings.{environment}.json")
        if not path.is_file():
            raise ConfigurationError(f"ACA_ENVIRONMENT names {path}, which is not in {Path.cwd()}: create it or unset the variable")
        yield path
    if Path("appsettings.json").exists():
        yield Path("appsettings.json")


def _read(path: Path) -> _Source:
    file = JsonFile.read(path)
    section = file.content.get(SECTION, {}) if isinstance(file.content, dict) else None
    if not isinstance(section, dict):
        raise ConfigurationError(f"{path}, line {file.line_of([SECTION])}: {SECTION} must be an object of settings, as in {_EXAMPLE}")
    for key in file.content.keys() - {SECTION}:
        if difflib.get_close_matches(key.lower(), [SECTION.lower()], cutoff=0.85):
            raise ConfigurationError(f"{path}, line {file.line_of([key])}: {key} is not a section: did you mean {SECTION}?")
    return _Source(section, str(path), file)


def _into_sections(source: _Source) -> dict[str, Any]:
    for key in source.values.keys() - Settings.model_fields.keys():
        raise ConfigurationError(f"{source.place_of(key)}{SECTION}:{key} is not a setting{suggestion(key, Settings.model_fields)}")
    result = dict(source.values)
    for flat, (section, key) in _FLAT.items():
        value = result.pop(flat, None)
        if value is None:
            continue
        own = result.get(section, {})
        if isinstance(own, BaseModel):
            own = own.model_dump(exclude_unset=True)
        if not isinstance(own, Mapping):
            raise ConfigurationError(
                f"{source.place_of(section)}{SECTION}:{section} must be an object of settings, got {type(own).__name__}"
            )
        if own.get(key) not in (None, value):
            message = f"{SECTION}:{flat} and {SECTION}:{section}:{key} contradict each other: keep one"
            raise ConfigurationError(source.place_of(flat) + message)
        result[section] = {**own, key: value}
    return {key: value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value for key, value in result.items()}


def _variables() -> dict[str, list[str]]:
    """Return the names of all settings, each with the names of the keys below it, for `check_variables`."""
    return {name: [*_keys_at([name])] if name in _SECTIONS else [] for name in Settings.model_fields}


def _problem_text(problem: ErrorDetails, sources: list[_Source]) -> str:
    """Describe which key is wrong and why, without values that may be secret."""
    loc = tuple(part for part in problem["loc"] if part not in TAGS)
    location = [str(part) for part in loc]
    key = _place(loc, sources) + ":".join([SECTION, *location])
    if problem["type"] == "extra_forbidden":
        return f"{key} is not a setting{suggestion(location[-1], _keys_at(location[:-1]))}"
    return f"{key}: {_rule_text(problem['type'], problem['msg'], problem['input'])}"


def _rule_text(kind: str, message: str, value: object) -> str:
    """Return the part of an error message that says what was expected and what was given.

    Show the given value only if a number or one of a few fixed words was expected. Any other value may be secret, so show at most its type.
    """
    if kind == "missing":
        return "must be set"
    if kind == "model_type":
        return f"must be an object of settings, got {type(value).__name__}"
    text = message.removeprefix("Value error, ").replace("Input should be", "must be", 1).partition(", unable to parse")[0]
    if kind in _COMPARED:  # a number, or one of a few words
        return f"{text}, got {value!r:.80}"
    return f"{text}, got {type(value).__name__}" if kind.endswith(("_type", "_parsing")) else text


def _place(keys: tuple[str | int, ...], sources: list[_Source]) -> str:
    """Return where a setting comes from, as the beginning of an error message: the name of its source and, in a file, the line.

    A source may set the key by its short name, such as `Endpoint`, or by its full name.
    """
    flat = next(((name,) for name, path in _FLAT.items() if path == keys[:2]), keys)
    found = max(((source, names) for source in sources for names in (flat, keys)), key=lambda one: one[0].depth(one[1]) / len(one[1]))
    return found[0].place_of(*found[1])


def _keys_at(location: Sequence[str]) -> Iterable[str]:
    """Return the keys of the section at a path. Steps of the path may be the numbers of list entries and the names of secrets."""
    model, is_entry = cast(type[BaseModel], Settings), False
    for part in location:
        if is_entry:
            is_entry = False
            continue
        annotation = model.model_fields[part].annotation
        model = next(one for one in _types_in(annotation) if issubclass(one, BaseModel))
        is_entry = any(issubclass(one, (tuple, Mapping)) for one in _types_in(annotation)) and model is not NetworkSettings
    return model.model_fields


def _types_in(annotation: Any) -> Iterator[type]:
    """Yield the types that an annotation names, such as those of a union and of the entries of a list."""
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type):
        yield origin
    for argument in get_args(annotation):
        yield from _types_in(argument)
