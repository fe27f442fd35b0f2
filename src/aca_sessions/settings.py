"""The ACASessions section of appsettings.json and of the environment.

Order: arguments, environment (`ACASessions__SessionPool__MaxConcurrentSessions`, any case), `appsettings.{ACA_ENVIRONMENT}.json`,
`appsettings.json`. What is unset here has its default elsewhere, where it is used: no default is written twice.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from .errors import ConfigurationError
from .variables import check_variables, suggestion

SECTION = "ACASessions"
_FLAT = {
    "Endpoint": ("SessionsHttpClient", "Endpoint"),
    "ApiKey": ("SessionsHttpClient", "ApiKey"),
    "MaxConcurrentSessions": ("SessionPool", "MaxConcurrentSessions"),
    "SessionTimeoutMinutes": ("SessionPool", "SessionTimeoutMinutes"),
}
_PLACEHOLDER = re.compile(r"[<>{}]|\[[^\]:]*\]|YOUR[_-]?[A-Z]")  # in brackets with a colon is an address of IPv6
Positive = Annotated[float, Field(gt=0, le=31_536_000)]  # a year of seconds, and more of minutes than anyone waits
Count = Annotated[int, Field(gt=0)]
Words = Annotated[tuple[str, ...], NoDecode]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_web_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _split(value: object) -> object:
    """A list may be given as text, with any usual delimiter or as JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("is no JSON list: write one, or words with commas between them") from None
    return tuple(word for word in re.split(r"[,;\s]+", value) if word)


class SessionsHttpClientSettings(_Section):
    """Where the sessions are. Without an Endpoint they are in the embedded sandbox."""

    Endpoint: str | None = None
    ApiVersion: Literal["2025-10-02-preview", "2025-02-02-preview", "2024-10-02-preview", "2024-08-02-preview", "2024-02-02-preview"] = (
        "2025-10-02-preview"
    )
    ApiKey: SecretStr | None = None
    ConnectTimeoutSeconds: Positive | None = None
    RequestTimeoutSeconds: Positive | None = None
    PatienceSeconds: Annotated[float, Field(ge=0, le=3600)] | None = None

    @field_validator("Endpoint")
    @classmethod
    def _usable(cls, endpoint: str | None) -> str | None:
        if endpoint is None or not endpoint.strip():
            return None
        if _PLACEHOLDER.search(endpoint):
            raise ValueError("still holds a placeholder: put in the pool's own value, or leave the key out for the embedded sandbox")
        endpoint = re.sub(r"(/python/execute)?/*(\?.*)?$", "", endpoint.strip())
        if not re.fullmatch(r"unix:///[^\s]+", endpoint) and not _is_web_address(endpoint):
            raise ValueError("is no URL: begin it with https://, http:// or unix:///, and write the port as a number")
        if "@" in urlsplit(endpoint).netloc:  # it would be shown wherever settings are, and no request would use it
            raise ValueError("must hold no user name or password: put the server's key into ApiKey")
        return endpoint

    @field_validator("ApiKey")
    @classmethod
    def _not_empty(cls, key: SecretStr | None) -> SecretStr | None:
        text = key.get_secret_value().strip() if key else ""
        if not text.isprintable() or not text.isascii():
            raise ValueError("holds characters that no HTTP header can: copy the key alone")
        if text.startswith(("<", "{", "YOUR_", "YOUR-")):
            raise ValueError("still holds a placeholder: put in the server's own key")
        return SecretStr(text) if text else None


class AzureTokenProviderSettings(_Section):
    """Which tokens are asked for, and how early they are renewed."""

    RefreshBeforeMinutes: Annotated[float, Field(ge=0)] | None = None
    Scopes: Words | None = None

    _split_scopes = field_validator("Scopes", mode="before")(_split)


class SessionPoolSettings(_Section):
    """How many sessions are held at the same moment, and for how long an idle one lives."""

    MaxConcurrentSessions: Count | None = None
    SessionTimeoutMinutes: Positive | None = None
    AcquireTimeoutSeconds: Positive | None = None


class LimitsSettings(_Section):
    """What one embedded session may use; see `sandbox/policy.py` for the defaults."""

    MemoryMegabytes: Annotated[int, Field(ge=64, le=1 << 22)] | None = None
    DiskMegabytes: Annotated[int, Field(gt=0, le=1 << 22)] | None = None
    TemporaryMegabytes: Annotated[int, Field(gt=0, le=1 << 22)] | None = None
    Processes: Annotated[int, Field(ge=8, le=1 << 20)] | None = None
    OpenFiles: Annotated[int, Field(ge=64, le=1 << 20)] | None = None
    Cpu: Annotated[float, Field(gt=0, le=4096)] | None = None
    CellTimeoutSeconds: Annotated[float, Field(gt=0, le=220)] | None = None
    OutputKilobytes: Annotated[int, Field(gt=0, le=1 << 16)] | None = None
    History: Annotated[int, Field(gt=0, le=1 << 20)] | None = None
    Checkpoints: Annotated[int, Field(gt=0, le=1000)] | None = None
    CheckpointMegabytes: Annotated[int, Field(gt=0, le=1 << 20)] | None = None


class TogetherSettings(_Section):
    """What all embedded sessions of this process may use together; see `sandbox/policy.py` for the defaults."""

    MemoryShare: Annotated[float, Field(gt=0, le=1)] | None = None
    Processes: Annotated[int, Field(ge=32, le=1 << 22)] | None = None
    CpuWeight: Annotated[float, Field(gt=0, le=100)] | None = None


class MountSettings(_Section):
    """A folder of this host that every embedded session sees."""

    Host: str
    Guest: str
    Shared: Literal["read-only", "writable"] = "read-only"


class PackagesSettings(_Section):
    """Where packages that embedded sessions ask for come from, and where this host keeps them; see `sandbox/policy.py` for the defaults."""

    IndexUrl: SecretStr | None = None  # it may hold a password; unset, the host's own configuration of pip says which index
    WheelFolder: str | None = None  # without an IndexUrl the only source: nothing is fetched from anywhere
    CacheFolder: str | None = None
    CacheMegabytes: Annotated[int, Field(gt=0, le=1 << 22)] | None = None

    @field_validator("IndexUrl")
    @classmethod
    def _address(cls, address: SecretStr | None) -> SecretStr | None:
        text = address.get_secret_value().strip() if address else ""
        if text and (not _is_web_address(text) or _PLACEHOLDER.search(text)):
            raise ValueError("is no address of an index: begin it with https:// or http://")
        return SecretStr(text) if text else None

    @field_validator("WheelFolder")
    @classmethod
    def _there(cls, folder: str | None) -> str | None:
        if folder and not os.path.isdir(folder):
            raise ValueError("is no folder of this host: put the wheels into one and name it")
        return os.path.abspath(folder) if folder else None


class SandboxSettings(_Section):
    """The embedded sandbox."""

    Limits: LimitsSettings = LimitsSettings()
    Together: TogetherSettings = TogetherSettings()
    Network: Words | None = None  # none, host, or the domains that are allowed
    Mounts: tuple[MountSettings, ...] = ()
    Preload: Words | None = None  # an empty list preloads nothing
    Spares: Annotated[int, Field(ge=0, le=1000)] | None = None
    Python: str | None = None
    Isolation: Literal["full", "no-namespaces"] | None = None
    Tenant: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    Environment: str | None = None  # the name of one that `aca-sessions env create` made; in the place of Python

    _split_words = field_validator("Preload", "Network", mode="before")(_split)

    @field_validator("Network")
    @classmethod
    def _one_kind(cls, words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        alone = words in (None, (), ("none",), ("host",))
        if not alone and not all("." in word or word == "*" for word in words or ()):
            raise ValueError("is none, host, or a list of domains such as example.org and *.example.org")
        return words


class McpSettings(_Section):
    """What MCP clients may have; see `surfaces/mcp/options.py` for the defaults."""

    SessionsPerClient: Count | None = None
    Clients: Count | None = None
    ClientIdleMinutes: Positive | None = None
    KeepShared: bool | None = None
    OutputsMegabytes: Annotated[int, Field(ge=0, le=1 << 14)] | None = None


class AuditSettings(_Section):
    """What of embedded sessions is written down for their operator."""

    File: str | None = None  # none is written
    Code: bool | None = None  # cells as they are; only their sizes otherwise


_SECTIONS = ("SessionsHttpClient", "AzureTokenProvider", "SessionPool", "Sandbox", "Packages", "Mcp", "Audit")


class Settings(BaseSettings):
    """The whole section; every value may be given by name, as in the file: `Settings(MaxConcurrentSessions=320)`."""

    model_config = SettingsConfigDict(
        env_prefix=f"{SECTION}__",
        env_nested_delimiter="__",
        case_sensitive=False,
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    SessionsHttpClient: SessionsHttpClientSettings = SessionsHttpClientSettings()
    AzureTokenProvider: AzureTokenProviderSettings = AzureTokenProviderSettings()
    SessionPool: SessionPoolSettings = SessionPoolSettings()
    Sandbox: SandboxSettings = SandboxSettings()
    Packages: PackagesSettings = PackagesSettings()
    Mcp: McpSettings = McpSettings()
    Audit: AuditSettings = AuditSettings()
    ContainerImage: str | None = None

    # Accepted at the top as well, and moved to where they belong.
    Endpoint: str | None = Field(None, exclude=True, repr=False)
    ApiKey: SecretStr | None = Field(None, exclude=True, repr=False)
    MaxConcurrentSessions: int | None = Field(None, exclude=True, repr=False)
    SessionTimeoutMinutes: float | None = Field(None, exclude=True, repr=False)

    def __init__(self, **values: Any) -> None:
        """Reads all sources; ConfigurationError names the key that is wrong."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError("; ".join(_told(problem) for problem in error.errors())) from None
        except SettingsError as error:
            raise ConfigurationError(f"{SECTION}: a section in the environment is not JSON ({error})") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Each source is brought into sections by itself: a flat name in the environment overrides a section in a file."""
        del dotenv_settings, file_secret_settings
        check_variables(SECTION, _variables())
        given = cast(InitSettingsSource, init_settings).init_kwargs
        environment = cast(EnvSettingsSource, env_settings)()
        sources = [("arguments", given), ("environment", environment), *((str(path), _read(path)) for path in _paths())]
        return tuple(InitSettingsSource(settings_cls, _into_sections(values, origin)) for origin, values in sources)


def _paths() -> Iterator[Path]:
    environment = os.environ.get("ACA_ENVIRONMENT")
    if environment:
        path = Path(f"appsettings.{environment}.json")
        if not path.is_file():
            raise ConfigurationError(f"ACA_ENVIRONMENT names {path}, which is not in {Path.cwd()}: create it or unset the variable")
        yield path
    if Path("appsettings.json").exists():
        yield Path("appsettings.json")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON ({error})") from None
    section = content.get(SECTION, {}) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ConfigurationError(f"{path}: {SECTION} is not an object of settings")
    for key in content.keys() - {SECTION}:
        if difflib.get_close_matches(key.lower(), [SECTION.lower()], cutoff=0.85):
            raise ConfigurationError(f"{path}: {key} is no section: did you mean {SECTION}?")
    return section


def _into_sections(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    for key in values.keys() - Settings.model_fields.keys():
        raise ConfigurationError(f"{SECTION}:{key} in the {origin} is no setting{suggestion(key, Settings.model_fields)}")
    result = dict(values)
    for flat, (section, key) in _FLAT.items():
        value = result.pop(flat, None)
        if value is None:
            continue
        own = result.get(section, {})
        if isinstance(own, BaseModel):
            own = own.model_dump(exclude_unset=True)
        if not isinstance(own, Mapping):
            raise ConfigurationError(f"{SECTION}:{section} in the {origin} is not an object of settings")
        if own.get(key, value) != value:
            raise ConfigurationError(f"{SECTION}:{flat} and {SECTION}:{section}:{key} contradict each other in the {origin}: keep one")
        result[section] = {**own, key: value}
    return {key: value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value for key, value in result.items()}


def _variables() -> dict[str, list[str]]:
    """Return the names that variables may have, each with the keys below it."""
    return {name: [*_keys_at([name])] if name in _SECTIONS else [] for name in Settings.model_fields}


def _told(problem: ErrorDetails) -> str:
    """What is wrong with a key. Its value is not repeated: it may be a secret."""
    location = [str(part) for part in problem["loc"]]
    key = ":".join([SECTION, *location])
    if problem["type"] == "extra_forbidden":
        return f"{key} is no setting{suggestion(location[-1], _keys_at(location[:-1]))}"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"


def _keys_at(location: list[str]) -> Iterable[str]:
    model: type[BaseModel] = Settings
    for part in location:
        annotation = model.model_fields[part].annotation
        options = (annotation, *get_args(annotation))
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return model.model_fields
