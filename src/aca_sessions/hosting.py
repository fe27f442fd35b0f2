"""How a server hosts sessions: how many, how long, for whom, and what is written down. Data, with the defaults of `aca-sessions serve`."""

from collections.abc import Callable
from dataclasses import dataclass, field

KNOWS_KEY = "knows_key"  # in the state of a request that brought the key


@dataclass(frozen=True, slots=True)
class Hosting:
    """What is the server's own, and not each sandbox's. An unset cool-down means that whoever uses the server ends its sessions."""

    max_sessions: int = 100
    max_starting: int = 64  # of them, those whose first interpreter is still to start; further ones are refused with 503
    evicts: bool = True  # the longest unused session ends where a new one finds no room; else the new one is refused
    cooldown: float | None = 300.0
    max_upload: int = 128 << 20
    max_request: int = 64 << 20
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: frozenset[str] = frozenset()
    plain: bool = False  # what Azure has and no more: no extension is offered or answered
    shell: bool = False  # a pool of shells: executions are commands
    page: bool = False  # the playground at the root
    lenient: bool = False  # requests that Azure refuses, as some of its clients send them
    audit: str | None = None  # the file of the audit log
    audit_code: bool = False  # cells are written there as they are
    metrics: Callable[[], bytes] | None = None  # what GET /metrics answers, in Prometheus's text
    metrics_key: str | None = field(default=None, repr=False)  # opens /metrics and nothing else
