"""Where the command line finds its sessions."""

from ..errors import ConfigurationError
from ..settings import Settings


def settings_at(endpoint: str | None) -> Settings:
    """The settings, with an Endpoint in the place of theirs."""
    return Settings(**({"Endpoint": endpoint} if endpoint else {}))


def lasting(endpoint: str | None, what: str) -> Settings:
    """The same for what makes sense only where sessions outlive a command."""
    settings = settings_at(endpoint)
    if not settings.SessionsHttpClient.Endpoint:
        raise ConfigurationError(
            f"{what} needs sessions that outlive this command: start `aca-sessions serve` and set its Endpoint and ApiKey"
        )
    return settings
