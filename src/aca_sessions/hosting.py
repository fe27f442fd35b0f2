"""How a server hosts sessions: how many, for how long, for whom, and what it logs. The defaults are those of `aca-sessions serve`."""

from collections.abc import Callable
from dataclasses import dataclass, field

KNOWS_KEY = "knows_key"  # set in the state of a request that had the right key
METRICS_PATH = "metrics"


@dataclass(frozen=True, slots=True)
class Hosting:
    """The options of a server, but not those of its sandboxes. Without `cooldown`, sessions do not expire, so their owner must end them."""

    max_sessions: int = 100
    max_starting: int = 64  # sessions whose first interpreter has not started; more are refused with 503
    evicts: bool = True  # whether a full server ends the least recently used session for a new one; otherwise it refuses the new one
    # Seconds after the last use at which a session ends.
    cooldown: float | None = 300.0
    # Bytes of an uploaded file, and of a request with a cell.
    max_upload: int = 128 << 20
    max_request: int = 64 << 20
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: frozenset[str] = frozenset()
    plain: bool = False  # Azure's API only: no extension is offered or accepted
    shell: bool = False  # a pool of shells: executions are commands
    page: bool = False  # serve the playground at the root
    lenient: bool = False  # accept requests that Azure refuses but some of its clients send
    audit: str | None = None  # the file of the audit log
    audit_code: bool = False  # write the source of cells to the audit log
    metrics: Callable[[], bytes] | None = None  # returns the body of GET /metrics, in Prometheus's text format
    metrics_key: str | None = field(default=None, repr=False)  # a key that is accepted for /metrics only
