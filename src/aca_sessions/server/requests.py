"""What a request names: its api-version, its session, a page, a range. A function raises ProblemError if that is missing or invalid."""

import re

from starlette.requests import Request

from ..contract.records import IDENTIFIER, ProblemError
from ..contract.versions import Version, version_named

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)
_SKIP = re.compile(r"\d{1,9}", re.ASCII)


def version_of(request: Request) -> Version:
    """Return the api-version of a request."""
    return version_named(request.query_params.get("api-version"))


def addressed(request: Request, *, plain: bool) -> tuple[Version, str]:
    """Return the api-version and the session identifier. A plain server accepts only identifiers that Azure accepts in that version."""
    version = version_of(request)
    allowed = version.identifier if plain else IDENTIFIER
    return version, checked_identifier(request.query_params.get("identifier", ""), allowed)


def checked_identifier(identifier: str, allowed: re.Pattern[str] = IDENTIFIER) -> str:
    """Return an identifier. Raise ProblemError (400) if it is missing or has other characters or another length than allowed."""
    if not allowed.fullmatch(identifier):
        said = "the identifier is missing, or not of the characters and length allowed here"
        raise ProblemError(400, "SessionRequestValidationFailed", said)
    return identifier


def check_has_sessions(request: Request) -> None:
    """Raise ProblemError (404) if the api-version is one of the earlier ones, which have no requests about sessions."""
    version = version_of(request)
    if not version.has_sessions:
        raise ProblemError(404, "NotFound", f"{version.name} has no sessions to ask for: they came with 2025-02-02-preview")


def check_route(request: Request, path: str, *, whole: bool = True) -> None:
    """Raise ProblemError (404) if the path belongs to another generation of the API. `whole` means that nothing follows the path."""
    found = request.url.path.rstrip("/")
    if not (found.endswith(f"/{path}") if whole else f"/{path}/" in found):
        raise ProblemError(404, "NotFound", f"this api-version has this under another path: {path}")


def skip_of(request: Request) -> int:
    """Return the index at which a page begins. Raise ProblemError (400) if it is not a number."""
    skip = request.query_params.get("skip", "0")
    if not _SKIP.fullmatch(skip):
        raise ProblemError(400, "SessionRequestValidationFailed", "'skip' is not a number")
    return int(skip)


def check_version(request: Request, version: str) -> None:
    """Raise ProblemError (412) if If-Match names another version of a file. Weak tags match nothing (RFC 9110, 13.1.1)."""
    wanted = request.headers.get("if-match")
    if wanted is not None and wanted.strip() != "*" and not _matches(wanted, version):
        raise ProblemError(412, "FileChanged", "the file has another version now: read it again from its beginning")


def wants_whole(request: Request, version: str) -> bool:
    """Return whether If-Range turns a request for a part into one for the whole file, because the part would be of another version."""
    wanted = request.headers.get("if-range")
    return wanted is not None and not _matches(wanted, version)


def _matches(wanted: str, version: str) -> bool:
    return not version.startswith("W/") and version in (tag.strip() for tag in wanted.split(","))


def range_of(request: Request) -> tuple[int, int | None]:
    """Return the first byte and the length of the requested part of a file. The length is None for all that follows.

    Other units than bytes, several ranges and suffixes are ignored: the whole file is returned then (RFC 9110, 14.2).
    """
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if not wanted:
        return 0, None
    start, end = int(wanted[1]), wanted[2]
    return start, max(0, int(end) - start + 1) if end else None
