"""Configure how a server hosts sessions: how many, for how long, for whom, and what it logs.

The defaults are those of `aca-sessions serve`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

ACCEPTED_KEY = "knows_key"  # in the state of a request that had an accepted key: that key
SESSIONS_PER_LEASE = 20  # sessions that an embedded pool keeps at most for each of its leases
METRICS_PATH = "metrics"
Keys = Callable[[], Sequence[str]]  # returns the keys that are accepted now
EVENTS = "aca_sessions.server"  # the logger of `log_event`
_logger = logging.getLogger(EVENTS)


def log_event(event: str, level: int = logging.INFO, /, **fields: object) -> None:
    """Log an event of a server as one line: the event's name, then its fields as `name=value`.

    The log record also has the attributes `event` and `fields`, for a formatter. An embedded server logs events of the level INFO only if
    the program enables INFO. The fields must not hold secrets, or text that a caller or a session chose.
    """
    shown = "".join(f" {name}={_format_value(value)}" for name, value in fields.items() if value is not None)
    _logger.log(level, "%s%s", event, shown, extra={"event": event, "fields": fields})


@lru_cache(128)
def key_digits(key: str) -> str:
    """Return the 12 hex digits that stand for an API key in the audit log and the access log.

    They are a hash by scrypt, which is slow to compute. So a reader of a log cannot find a weak key by trying many keys.
    """
    return hashlib.scrypt(key.encode(), salt=b"aca-sessions audit", n=1 << 14, r=8, p=1, dklen=6).hex()


def _format_value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if not text or set(text) & set(' "=') else text


@dataclass(frozen=True, slots=True)
class Hosting:
    """The options of a server: how many sessions it hosts, for how long and for whom. The limits of sandboxes are in `Policy`.

    If `cooldown` is None, sessions do not expire, so the program that starts them must end them.
    """

    max_sessions: int = 100
    max_starting: int = 64  # sessions whose first interpreter has not started; more are refused with 503
    evicts: bool = True  # whether a full server ends the least recently used session for a new one; otherwise it refuses the new one
    # Seconds after the last use at which a session ends.
    cooldown: float | None = 300.0
    # Bytes of an uploaded file, and of a request with a cell.
    max_upload: int = 128 << 20
    max_request: int = 64 << 20
    max_save: int = 4096 << 20  # bytes of an exported session
    api_key: str | None = field(default=None, repr=False)
    api_keys: Keys | None = field(default=None, repr=False)  # in place of `api_key`, for keys that change while the server runs
    allowed_hosts: frozenset[str] = frozenset()
    plain: bool = False  # Azure's API only: no extension is offered or accepted
    shell: bool = False  # a pool of shells: executions are commands
    page: bool = False  # serve the playground at the root
    lenient: bool = False  # accept requests that Azure refuses but some of its clients send
    session_rules: bool = False  # accept networks that clients give to their sessions; without this, only `none`
    session_addresses: bool = False  # accept rules in them for addresses that are not public
    audit: str | None = None  # the file of the audit log
    audit_code: bool = False  # write the source of cells to the audit log
    metrics: Callable[[], bytes] | None = None  # returns the body of GET /metrics, in Prometheus's text format
    metrics_key: str | None = field(default=None, repr=False)  # a key that is accepted for /metrics only

    @property
    def accepted_keys(self) -> Keys | None:
        """Return a function that returns the keys which requests may use. Return None if requests need no key."""
        key = self.api_key
        return self.api_keys or ((lambda: (key,)) if key else None)
