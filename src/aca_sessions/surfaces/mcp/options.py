"""How sessions are given to MCP clients."""

from dataclasses import dataclass
from typing import Literal

from ...settings import McpSettings

MB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a client may have, and what is left when it goes."""

    sessions_per_client: int
    clients: int
    idle_seconds: float
    keep_shared: bool
    outputs_size: int  # in bytes, kept in this process; 0 keeps the sessions of a client apart
    tools: Literal["session", "all"] = "session"
    max_output: int = 10_000  # characters of a result that a model reads, about

    @classmethod
    def of(cls, settings: McpSettings, tools: Literal["session", "all"] = "session") -> "Options":
        """Return what the settings say, in seconds and bytes."""
        return cls(
            sessions_per_client=settings.SessionsPerClient,
            clients=settings.Clients,
            idle_seconds=60 * settings.ClientIdleMinutes,
            keep_shared=settings.KeepShared,
            outputs_size=settings.OutputsMegabytes * MB,
            tools=tools,
        )
