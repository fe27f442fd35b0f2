"""Data, errors and helpers that all versions of the API have in common."""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from ..errors import AuthenticationError, NotFoundError, RateLimitedError, ServiceError, SnapshotError
from ..models import CodeExecutionResult

SNAPSHOT_REFUSED = "SnapshotRefused"
DRAINING = "ServerDraining"
TOO_MANY_STARTING = "TooManySessionsStarting"
UNREACHABLE = "ServerUnreachable"  # deploy/nginx.conf: no server took the request
ELSEWHERE, NO_STORE = "SessionElsewhere", "StoreUnavailable"  # of saved sessions
UNBEGUN = (DRAINING, TOO_MANY_STARTING, UNREACHABLE, ELSEWHERE, NO_STORE)  # codes of 503 that say that the request was not begun
NO_SESSION = "SessionWithIdentifierNotFound"
NETWORK_MISSING = "NetworkMissing"  # with the status 428: the session lacks the network that its client has given to it
PROPERTIES_MISSING = "SessionPropertiesMissing"
API_VERSION = "2025-10-02-preview"
MAX_SYNCHRONOUS_SECONDS = 220.0
MAX_ASYNCHRONOUS_SECONDS = 86_400.0

IDENTIFIER = re.compile(r"[\w|}{\[\]:\";'<>?/.,@#$%^&*()\-+=!~` ]{1,256}", re.ASCII)

_SECONDS = re.compile(r"\d{1,9}(\.\d+)?", re.ASCII)  # this project's server and some proxies send a fraction
_TYPE_NAMES = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
_MALFORMED = "One or more validation errors occurred."
_ROOT = ["mnt", "data"]
Body = Mapping[str, object]
Status = Literal["NotStarted", "Running", "Succeeded", "Failed", "Canceled"]


@dataclass(frozen=True, slots=True)
class RefusedRequests:
    """Requests or connections of a session that its network refused: their number, and the time of the latest.

    `host` is empty if the request could not be read, and `method` is None for a connection.
    """

    host: str
    port: int
    method: str | None
    reason: str
    count: int
    latest: datetime


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run, with its arguments and the text of its standard input."""

    arguments: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRequest:
    """A request to run a cell, or a command if `command` is set.

    `timeout` is in seconds; None means the endpoint's default. `output_limit` is how many characters of stdout and of stderr a result in
    Azure's form has at most.
    """

    code: str
    command: Command | None = None
    asynchronous: bool = False
    answered: tuple[str, ...] = ()  # the kinds of questions of the cell that its caller answers
    transactional: bool = False  # undo all effects of the cell if it fails
    after_success: bool = False  # do not run the cell if one fails that it has waited for
    gentle: bool = False  # an interrupt sends SIGINT once, and does not kill the interpreter if the cell continues
    timeout: float | None = None
    output_limit: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResponse:
    """A response of the server about an execution (one run of a cell). `result` is None until the execution has ended."""

    id: str
    identifier: str
    status: Status
    asynchronous: bool = False
    result: CodeExecutionResult | None = None


def split_path(path: str) -> tuple[str, str]:
    """Split a path into its folder, relative to /mnt/data, and the file's name, which is "" if the path names a folder.

    Raise ValueError if the path contains `..`, or if it is absolute and outside of /mnt/data. The path `/` means /mnt/data.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") and parts:
        if parts[:2] != _ROOT:
            raise ValueError(f"a path must be relative to /mnt/data, or begin with /mnt/data/, got {path!r:.80}")
        del parts[:2]
    if ".." in parts:
        raise ValueError(f"a path must not contain '..', got {path!r:.80}")
    if not parts or path.rpartition("/")[2] in ("", "."):
        return "/".join(parts), ""
    return "/".join(parts[:-1]), parts[-1]


class ProblemError(Exception):
    """An error that the server raises and sends as an error response."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class MalformedBodyError(ProblemError):
    """The error for a body that cannot be parsed.

    Azure's web framework refuses such a body before the service sees it, so the response has another format. See `encode_problem`.
    """

    def __init__(self, key: str, message: str) -> None:
        """Create the error for the member `key` of a body. The key `$` stands for the whole body."""
        super().__init__(400, "RequestMalformed", message)
        self.key = key


def encode_problem(problem: ProblemError) -> dict[str, object]:
    """Encode an error response in Azure's form: an object `error` with code and message.

    Azure sends two other forms: code and message alone with status 429, and application/problem+json for a malformed body.
    """
    if isinstance(problem, MalformedBodyError):
        return {
            "type": "https://tools.ietf.org/html/rfc9110#section-15.5.1",
            "title": _MALFORMED,
            "status": problem.status,
            "errors": {problem.key: [problem.message]},
            "traceId": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00",
        }
    content = {"code": problem.code, "message": problem.message}
    return content if problem.status == 429 else {"error": content}  # type: ignore[return-value]


def decode_problem(status: int, body: object, headers: Mapping[str, str]) -> Exception:
    """Convert an error response of the service to an exception of this package and return it. The caller raises it.

    `body` is parsed JSON, or None if the response has no JSON. `headers` have lower-case names.
    """
    code, message = _code_and_message(body)
    match status:
        case 401:
            return AuthenticationError("the service refused the credentials (401): check ACASessions:SessionsHttpClient:ApiKey, or sign in")
        case 403 if code in _NOT_CREDENTIALS:
            return ServiceError(status, code, message)
        case 403:
            return AuthenticationError(
                "the service refused the credentials (403): they lack the role 'Azure ContainerApps Session Executor' on the session pool, "
                "so assign it to them"
            )
        case 400 if code == NO_SESSION:
            return NotFoundError(status, code, message)
        case 404:
            return NotFoundError(status, code, message)
        case 409 if code == SNAPSHOT_REFUSED:
            return SnapshotError(message)
        case 429 | 503 if status == 429 or code == TOO_MANY_STARTING:
            return RateLimitedError(status, code, message, retry_after=retry_after(headers))
    return ServiceError(status, code, message)


_NOT_CREDENTIALS = ("HostNotAllowed", "OriginNotAllowed", "FileNotAccessible", "NetworkNotAllowed")  # codes of this project's server


def _code_and_message(body: object) -> tuple[str, str]:
    content = body.get("error", body) if isinstance(body, Mapping) else None
    if not isinstance(content, Mapping):
        return "Unreadable", (
            "expected an error in the form of the sessions API, got another body: check that ACASessions:SessionsHttpClient:Endpoint leads "
            "to a session pool, and that no proxy answers for it"
        )
    code, message = content.get("code"), content.get("message") or _validation_message(content)
    return str(code or "Unknown"), str(message or "the response has no message: see the log of the service")


def _validation_message(content: Mapping[str, object]) -> str | None:
    """Return the message of an error response in the format application/problem+json, or None if it has no message.

    The message consists of the texts in the member `errors`. If there are none, it is the member `title`.
    """
    errors = content.get("errors")
    lines = [str(line) for of_key in errors.values() if isinstance(of_key, list) for line in of_key] if isinstance(errors, Mapping) else []
    title = content.get("title")
    return " ".join(lines) or (str(title) if title else None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds to wait according to the Retry-After header (seconds or a date), or None. `headers` have lower-case names."""
    header = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(header):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def is_well_formed(text: object) -> bool:
    """Return whether a value is text that UTF-8 can encode, without lone surrogates."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def type_name(value: object) -> str:
    """Return the name of a value's JSON type. Error messages contain it instead of the value, which may be secret."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def invalid(message: str) -> ProblemError:
    """Return the error (400) for a request with an invalid body or parameter. The caller raises it."""
    return ProblemError(400, "SessionRequestValidationFailed", message)
