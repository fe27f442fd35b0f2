"""Limits of MCP clients, and what stays when a client leaves."""

from dataclasses import dataclass
from typing import Literal

from ...settings import McpSettings

MB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a client may have, and what stays when it leaves."""

    sessions_per_client: int
    clients: int
    idle_seconds: float
    keep_shared: bool
    outputs_size: int  # bytes of outputs/ kept in this process; 0 keeps the sessions of a client apart
    tools: Literal["session", "all"] = "session"
    max_output: int = 10_000  # about how many characters of a result a model reads

    @classmethod
    def of(cls, settings: McpSettings, tools: Literal["session", "all"] = "session") -> "Options":
        """Return the settings' options, in seconds and bytes."""
        return cls(
            sessions_per_client=settings.SessionsPerClient,
            clients=settings.Clients,
            idle_seconds=60 * settings.ClientIdleMinutes,
            keep_shared=settings.KeepShared,
            outputs_size=settings.OutputsMegabytes * MB,
            tools=tools,
        )
