"""How sessions are given to MCP clients. Every default is written here, and only here."""

from dataclasses import dataclass
from typing import Literal

MB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a client may have, and what is left when it goes."""

    tools: Literal["session", "all"] = "session"
    sessions_per_client: int = 20
    clients: int = 100  # connections over HTTP
    idle_seconds: float = 1800.0  # after so long without a request a client over HTTP counts as gone
    keep_shared: bool = True  # sessions that were made to be shared outlive their maker, until they are idle for too long
    outputs_size: int = 64 * MB  # of what a client's sessions hand on through outputs/, kept in this process; 0 keeps them apart
    max_output: int = 10_000  # characters of a result that a model reads, about
