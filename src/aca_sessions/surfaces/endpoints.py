"""Settings of the commands: where they find their sessions."""

from ..errors import ConfigurationError
from ..settings import Settings


def settings_at(endpoint: str | None) -> Settings:
    """Return the settings. If an endpoint is given, it replaces theirs."""
    return Settings(**({"Endpoint": endpoint} if endpoint else {}))


def lasting(endpoint: str | None, what: str) -> Settings:
    """Return the settings for a command that needs sessions which outlive it. Raise ConfigurationError if they name no Endpoint."""
    settings = settings_at(endpoint)
    if not settings.SessionsHttpClient.Endpoint:
        raise ConfigurationError(
            f"{what} needs sessions that outlive this command: start `aca-sessions serve` and set its Endpoint and ApiKey"
        )
    return settings
