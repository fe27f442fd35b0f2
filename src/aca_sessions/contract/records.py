"""Data that all versions of the API have in common, whatever their bodies look like."""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

from ..errors import AuthenticationError, NotFoundError, RateLimitedError, ServiceError, SnapshotError
from ..models import CodeExecutionResult

SNAPSHOT_REFUSED = "SnapshotRefused"
DRAINING = "ServerDraining"
TOO_MANY_STARTING = "TooManySessionsStarting"
NO_SESSION = "SessionWithIdentifierNotFound"
PROPERTIES_MISSING = "SessionPropertiesMissing"
API_VERSION = "2025-10-02-preview"
MAX_SYNCHRONOUS_SECONDS = 220.0
MAX_ASYNCHRONOUS_SECONDS = 86_400.0

IDENTIFIER = re.compile(r"[\w|}{\[\]:\";'<>?/.,@#$%^&*()\-+=!~` ]{1,256}", re.ASCII)

_SECONDS = re.compile(r"\d{1,9}(\.\d+)?", re.ASCII)  # this project's server and some proxies send a fraction
_MALFORMED = "One or more validation errors occurred."
_ROOT = ["mnt", "data"]
Status = Literal["NotStarted", "Running", "Succeeded", "Failed", "Canceled"]


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments and its standard input."""

    arguments: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionCall:
    """A request to run a cell, or a command in its place. A limit that is absent means Azure's own."""

    code: str
    command: Command | None = None
    asynchronous: bool = False
    answered: tuple[str, ...] = ()  # the kinds of questions of the cell that its caller answers
    transactional: bool = False  # undo all effects of the cell if it fails
    timeout: float | None = None
    output_limit: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One run of a cell on the server. It has a result once it has finished."""

    id: str
    identifier: str
    status: Status
    asynchronous: bool = False
    result: CodeExecutionResult | None = None


def split_path(path: str) -> tuple[str, str]:
    """Return the folders and the name of a file, relative to /mnt/data; the name of a folder is empty.

    Raise ValueError for a path that is elsewhere: it must never be moved below /mnt/data.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") and parts:
        if parts[:2] != _ROOT:
            raise ValueError("a path must be relative to /mnt/data, or begin with /mnt/data/")
        del parts[:2]
    if ".." in parts:
        raise ValueError("a path must not contain '..'")
    if not parts or path.rpartition("/")[2] in ("", "."):
        return "/".join(parts), ""
    return "/".join(parts[:-1]), parts[-1]


class ProblemError(Exception):
    """An error response: the server raises it to send one, and the client reads one into it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class MalformedBodyError(ProblemError):
    """A body that could not be parsed. Azure's framework reports it in a form of its own."""

    def __init__(self, key: str, message: str) -> None:
        """Keep which key is wrong and why; `$` is the whole body."""
        super().__init__(400, "RequestMalformed", message)
        self.key = key


def encode_problem(problem: ProblemError) -> dict[str, object]:
    """Return an error in Azure's form. A full pool (429) and a malformed body have forms of their own."""
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
    """Return the exception to raise for an error response.

    Args:
        status: The HTTP status.
        body: The parsed JSON, or anything else that came.
        headers: The headers, which are looked up by lower-case names.
    """
    code, message = _code_and_message(body)
    match status:
        case 401:
            return AuthenticationError("the service refused the credentials (401): check ACASessions:SessionsHttpClient:ApiKey, or sign in")
        case 403 if code in _OURS:
            return ServiceError(status, code, message)
        case 403:
            return AuthenticationError(
                "the service refused the credentials (403): they lack the role 'Azure ContainerApps Session Executor' on the session pool"
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


_OURS = ("HostNotAllowed", "FileNotAccessible")  # codes of this project's server, which do not concern the credentials


def _code_and_message(body: object) -> tuple[str, str]:
    content = body.get("error", body) if isinstance(body, Mapping) else None
    if not isinstance(content, Mapping):
        return "Unreadable", "the answer is not in the API's error form; is the endpoint a session pool?"
    code, message = content.get("code"), content.get("message") or _validation_message(content)
    return str(code or "Unknown"), str(message or "no message")


def _validation_message(content: Mapping[str, object]) -> str | None:
    """Return the message of application/problem+json: its errors if it has any, else its title."""
    errors = content.get("errors")
    lines = [str(line) for of_key in errors.values() if isinstance(of_key, list) for line in of_key] if isinstance(errors, Mapping) else []
    title = content.get("title")
    return " ".join(lines) or (str(title) if title else None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a service asks its callers to wait: Retry-After holds them, or a date (RFC 9110, 10.2.3)."""
    header = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(header):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
