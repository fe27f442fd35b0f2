"""The code that all routes share: it parses requests, adds headers to responses, turns exceptions into errors, and writes log lines."""

import errno
import logging
import re
import time
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..contract.flat import GUID_HEADER, parse_json
from ..contract.records import IDENTIFIER, NO_STORE, SNAPSHOT_REFUSED, UNBEGUN, MalformedBodyError, ProblemError, encode_problem, invalid
from ..contract.versions import VERSIONS, Version
from ..errors import FencedError, GuestDiedError, IsolationError, SaveTooLargeError, SnapshotError, StorageError
from ..hosting import key_digits
from ..lifetime import log_failure
from ..sandbox.session.files import UnusableNameError
from ..telemetry import hash_name
from .journal import Journal, current_caller, current_request

_UNEXPECTED = "InternalError"
_NO_FILE = "the session has no file at this path: list its files to see those that it has"
_BY_ERRNO = {
    errno.ENOENT: (404, "FileNotFound", _NO_FILE),
    errno.ENOTDIR: (404, "FileNotFound", _NO_FILE),
    errno.EISDIR: (400, "FilePathInvalid", "expected a file, got a folder: use the path of a file in it"),
    errno.ENOTEMPTY: (400, "FilePathInvalid", "the folder must be empty to be deleted: delete its files first"),
    errno.ENAMETOOLONG: (400, "FilePathInvalid", "each name of the path must have at most 255 bytes: choose a shorter one"),
    errno.ELOOP: (400, "FilePathInvalid", "the path must not lead over a symbolic link: use the path that the link leads to"),
    errno.EXDEV: (400, "FilePathInvalid", "the path must stay below /mnt/data"),
    errno.EACCES: (
        403,
        "FileNotAccessible",
        "the session's code removed the permission to use this file: restore it in a cell, with chmod",
    ),
    errno.EAGAIN: (409, "FileBusy", "the session's code holds this file: try again"),
    errno.EMFILE: (
        500,
        "SandboxUnavailable",
        "the server has no file descriptor left: end some sessions or raise `ulimit -n`",
    ),
    errno.ENFILE: (500, "SandboxUnavailable", "the server's host has no file descriptor left: end some programs"),
    errno.EDQUOT: (
        507,
        "SessionStorageFull",
        "the session, its branches and its checkpoints cannot have more files or more memory together: "
        "delete files, branches, checkpoints or variables",
    ),
    errno.ENOSPC: (507, "SessionStorageFull", "the session's /mnt/data is full: delete files first"),
}


def to_problem(error: Exception) -> ProblemError:
    """Convert an exception that a handler raised to the ProblemError that is sent to the client. Unexpected exceptions become a 500."""
    match error:
        case ProblemError():
            return error
        case UnusableNameError():
            return ProblemError(400, "FileNameInvalid", str(error))
        case OSError(errno=number) if number in _BY_ERRNO:
            return ProblemError(*_BY_ERRNO[number])
        case SnapshotError() | FencedError() | SaveTooLargeError():
            return ProblemError(409, SNAPSHOT_REFUSED, str(error))
        case StorageError():
            return ProblemError(503, NO_STORE, str(error))
        case IsolationError() | GuestDiedError():
            # Not 503: a proxy retries that elsewhere, so it is only for what was not started.
            return ProblemError(500, "SandboxUnavailable", str(error))
        case HTTPException(status_code=404):
            return ProblemError(404, "NotFound", "this server has nothing at this path: check the path of the request")
        case HTTPException(status_code=405):
            return ProblemError(405, "MethodNotAllowed", "this path does not accept this method: check the method of the request")
        case HTTPException():
            return ProblemError(error.status_code, "RequestInvalid", str(error.detail))
    return ProblemError(500, _UNEXPECTED, "the server failed")


_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)
_SKIP = re.compile(r"\d{1,9}", re.ASCII)


def read_address(request: Request, *, plain: bool) -> tuple[Version, str]:
    """Return the api-version and the session identifier in a request's query. Raise ProblemError (400) if one is invalid.

    If `plain` is true, accept only identifiers that Azure accepts.
    """
    version = VERSIONS[request.query_params.get("api-version", "")]
    allowed = version.identifier if plain else IDENTIFIER
    return version, check_identifier(request.query_params.get("identifier", ""), allowed)


def check_identifier(identifier: str, allowed: re.Pattern[str] = IDENTIFIER, *, name: str = "identifier") -> str:
    """Return a session identifier unchanged. Raise ProblemError (400) unless it matches the regular expression `allowed` as a whole.

    `name` is the name of the parameter, for the error's message.
    """
    if not allowed.fullmatch(identifier):
        # The length and not the identifier, which is a secret.
        got = f"other text of {len(identifier)} characters" if identifier else "nothing"
        usual = r"1 to 256 letters, digits, spaces and punctuation marks of ASCII, except '\'"
        expected = usual if allowed is IDENTIFIER else f"text that matches the regular expression {allowed.pattern}"
        said = f"'{name}', the session's identifier, must be {expected}, got {got}"
        raise ProblemError(400, "SessionRequestValidationFailed", said)
    return identifier


def check_has_sessions(request: Request) -> None:
    """Raise ProblemError (404) if the request's api-version is so early that it has no requests about sessions."""
    version = VERSIONS[request.query_params.get("api-version", "")]
    if not version.has_sessions:
        raise ProblemError(404, "NotFound", f"{version.name} has no requests about sessions: use 2025-02-02-preview or later")


def check_route(request: Request, path: str, *, whole: bool = True) -> None:
    """Raise ProblemError (404) unless the request's path ends in `path`, which is the right one for its api-version.

    Api-versions have different paths for the same request, such as `code/execute` and `executions`. The server routes all of them to one
    handler, which must refuse the wrong one. If `whole` is false, more must follow `path`, such as the name of a file.
    """
    found = request.url.path.rstrip("/")
    if not (found.endswith(f"/{path}") if whole else f"/{path}/" in found):
        raise ProblemError(404, "NotFound", f"this api-version has this request at {path}: use that path, or another api-version")


def read_skip(request: Request) -> int:
    """Return the query's `skip`: how many sessions come before a page of a list, by default 0.

    Raise ProblemError (400) if it is not a number.
    """
    skip = request.query_params.get("skip", "0")
    if not _SKIP.fullmatch(skip):
        said = f"'skip' must be a whole number of at most 9 digits, got {skip!r:.80}"
        raise ProblemError(400, "SessionRequestValidationFailed", said)
    return int(skip)


def read_after_number(request: Request) -> int:
    """Return the query's `after`: the number after which a page begins, by default 0. Raise ProblemError (400) if it is not a number."""
    text = request.query_params.get("after", "0")
    if not text.isdecimal() or len(text) > 18:
        raise invalid(f"'after' must be the number of an event or 0, got {text!r:.80}: send the 'after' of the previous response")
    return int(text)


def check_if_match(request: Request, version: str) -> None:
    """Raise ProblemError (412) if the request's If-Match header does not contain `version`, the file's current entity tag.

    A weak entity tag never matches. If the header is `*` or missing, every version is accepted.
    """
    wanted = request.headers.get("if-match")
    if wanted is not None and wanted.strip() != "*" and not _matches_tag(wanted, version):
        raise ProblemError(412, "FileChanged", "the file has another version now: read it again from its beginning")


def is_range_outdated(request: Request, version: str) -> bool:
    """Return whether the request's If-Range header has another entity tag than `version`, the file's current one.

    If so, the client has parts of an old version of the file, and must get the whole file instead of the requested part.
    """
    wanted = request.headers.get("if-range")
    return wanted is not None and not _matches_tag(wanted, version)


def _matches_tag(wanted: str, version: str) -> bool:
    return not version.startswith("W/") and version in (tag.strip() for tag in wanted.split(","))


def read_range(request: Request) -> tuple[int, int | None]:
    """Return the first byte and the number of bytes of the part of a file that a request's Range header names.

    The number is None if the part extends to the end of the file. Return (0, None), the whole file, if there is no Range header, or it has
    another unit than bytes, several ranges or a suffix (RFC 9110, 14.2).
    """
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if not wanted:
        return 0, None
    start, end = int(wanted[1]), wanted[2]
    return start, max(0, int(end) - start + 1) if end else None


async def read_json(request: Request, max_bytes: int, *, default: bytes = b"") -> object:
    """Return the parsed JSON of a request's body. If the body is empty, parse `default` instead.

    Raise ProblemError: 400 if the body is not JSON, 413 if its Content-Length or the body itself exceeds `max_bytes`.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large_problem(max_bytes)
    chunks, received = [], 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise too_large_problem(max_bytes)
        chunks.append(chunk)
    return parse_json(b"".join(chunks) or default)


def too_large_problem(max_bytes: int) -> ProblemError:
    """Return the error (413) for a request that has more than `max_bytes`."""
    return ProblemError(413, "RequestTooLarge", f"the request must have at most {_size(max_bytes)}, got more: send less at once")


def too_large_file_problem(max_bytes: int) -> ProblemError:
    """Return the error (413) for an uploaded file that has more than `max_bytes`."""
    advice = "split it, or have the session's operator mount its folder (ACASessions:Sandbox:Mounts)"
    return ProblemError(413, "RequestTooLarge", f"an uploaded file must have at most {_size(max_bytes)}, got more: {advice}")


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size and size % (1 << 20) == 0 else f"{size} bytes"


Handler = Callable[[Request], Awaitable[Response]]
RouteSpec = tuple[str, str, Handler]  # path, method, handler
Routes = list[RouteSpec]

_logger = logging.getLogger("aca_sessions")
_access = logging.getLogger("aca_sessions.access")


def build_route(route: RouteSpec, headers: dict[str, str], journal: Journal) -> Route:
    """Build starlette's route for a handler of requests.

    If the handler raises an exception, send an error response and record it in the journal. Add `headers` to each response. If the handler
    stored a session in `request.state.session`, add Azure's headers about it.
    """

    path, method, handler = route

    async def endpoint(request: Request) -> Response:
        token = current_request.set(request.scope)
        try:
            return await handle(request)
        finally:
            current_request.reset(token)

    async def handle(request: Request) -> Response:
        started = time.perf_counter()
        try:
            response = await handler(request)
        except ClientDisconnect:
            response = Response(status_code=400)  # the client has gone and does not read it
        except Exception as error:
            problem = to_problem(error)
            journal.record_refusal(problem, f"{method} {path}", request.query_params.get("identifier"))
            response = problem_response(error)
        response.headers.update(headers)
        seconds = time.perf_counter() - started
        session, audit_event = getattr(request.state, "session", None), getattr(request.state, "audit_event", None)
        if session is not None:
            # Azure sends these with each response about a session. Only the first one marks it as new.
            response.headers[GUID_HEADER] = session.etag
            response.headers["x-ms-new-allocation"] = str(session.is_new).lower()
            session.is_new = False
            if audit_event is not None:
                journal.record_request(audit_event[0], session.identifier, seconds, audit_event[1])
        # The pattern of the route but not its path: identifiers are secrets, and names of files may be.
        name = request.query_params.get("identifier")
        if _access.isEnabledFor(logging.DEBUG):
            log_access(request.method, f"/{path}", response.status_code, hash_name(name) if name else "-", seconds)
        return response

    return Route(f"/{path}", endpoint, methods=[method])


def log_access(method: str, route: str, status: int, session: str, seconds: float) -> None:
    """Log the current request with its client and the digits of its key, as a line of text or with fields for JSON.

    No argument may be text that a client chose.
    """
    if not _access.isEnabledFor(logging.DEBUG):  # so that a program with an embedded server has these lines only if it asks for them
        return
    caller = current_caller()
    client, key = caller.address or "-", key_digits(caller.key) if caller.key else "-"
    fields = {"method": method, "route": route, "status": status, "session": session, "milliseconds": round(seconds * 1000)}
    shown = (method, route, status, session, seconds * 1000, client, key)
    more = {"event": "request", "fields": fields | {"client": client, "key": key}}
    _access.info("%s %s %s session %s %.0f ms client %s key %s", *shown, extra=more)


def set_audit_event(request: Request, event: str, **fields: object) -> None:
    """Store an event about a session, such as an upload, to be written to the audit log after the handler has succeeded.

    `event` is the event's name in the log, such as `upload`. `fields` are further values.
    """
    request.state.audit_event = (event, fields)


def problem_response(error: Exception) -> Response:
    """Return the error response for an exception that a handler raised, in Azure's format. Log it if the status is 500."""
    problem = to_problem(error)
    if problem.status == 500:
        id = log_failure("a request failed", error)
        if problem.code == _UNEXPECTED:
            problem = ProblemError(500, _UNEXPECTED, f"{problem.message}: its log has the cause under the id {id}")
    retry_headers = {"retry-after": "1"} if problem.status == 429 or problem.code in UNBEGUN else {}
    if isinstance(problem, MalformedBodyError):  # Azure refuses these before the service, so they have no error code
        body = encode_problem(problem)
        _logger.debug("a body was refused as malformed, trace %s", body["traceId"])
        return JSONResponse(body, problem.status, media_type="application/problem+json")
    return JSONResponse(encode_problem(problem), problem.status, headers={"x-ms-error-code": problem.code} | retry_headers)
