"""The api-versions of Azure: the paths, bodies and features of each.

Other modules look up a version here instead of comparing versions.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from ..models import RemoteFile
from . import flat, nested
from .records import Body, ExecutionRequest, ExecutionResponse, ProblemError


class Dialect(Protocol):
    """The paths and bodies of one generation of the API, for client and server. The modules `nested` and `flat` implement it."""

    EXECUTE_PATH: str
    UPLOAD_PATH: str
    HAS_EXECUTIONS: bool
    DELETED: dict[str, object] | None

    def content_path(self, name: str) -> str: ...  # noqa: D102 - each is described where it is written
    def parse_content_path(self, path: str) -> str | None: ...  # noqa: D102
    def encode_request(self, call: ExecutionRequest) -> dict[str, object]: ...  # noqa: D102
    def decode_execution(self, body: Body, *, id: str = "", identifier: str = "") -> ExecutionResponse: ...  # noqa: D102
    def decode_upload(self, body: Body) -> RemoteFile: ...  # noqa: D102
    def decode_files(self, body: Body) -> list[RemoteFile]: ...  # noqa: D102
    def decode_request(self, body: object, *, lenient: bool = False) -> ExecutionRequest: ...  # noqa: D102
    def encode_execution(self, execution: ExecutionResponse, output_limit: int, *, full: bool) -> dict[str, object]: ...  # noqa: D102
    def encode_upload(self, file: RemoteFile) -> dict[str, object]: ...  # noqa: D102
    def encode_file(self, file: RemoteFile) -> dict[str, object]: ...  # noqa: D102
    def encode_files(self, files: list[RemoteFile]) -> dict[str, object]: ...  # noqa: D102


_ANY_SIGN = r"[\w|}{\[\]:\";'<>?/.,@#$%^&*()\-+=!~`]"


@dataclass(frozen=True, slots=True)
class Version:
    """An api-version: its dialect (paths and bodies), whether it can list and end sessions, and which identifiers Azure accepts in it."""

    name: str
    dialect: Dialect
    has_sessions: bool
    identifier: re.Pattern[str]  # the identifiers that Azure takes; this project's server takes more unless it runs with --plain


class _Versions(dict[str, Version]):
    """The api-versions by name. Looking up an unknown name raises ProblemError (400)."""

    def __missing__(self, name: str) -> Version:
        raise ProblemError(400, "InvalidApiVersion", f"the api-version must be one of {', '.join(self)}, got {name!r:.60}")


VERSIONS = _Versions(
    (version.name, version)
    for version in (
        Version("2024-02-02-preview", nested, False, re.compile(_ANY_SIGN[:-1] + " ]{4,128}", re.ASCII)),
        Version("2024-08-02-preview", nested, False, re.compile(_ANY_SIGN[:-1] + " ]{4,128}", re.ASCII)),
        Version("2024-10-02-preview", flat, False, re.compile(r"[A-Za-z0-9_-]{1,256}")),
        Version("2025-02-02-preview", flat, True, re.compile(_ANY_SIGN + "{4,128}", re.ASCII)),
        Version("2025-10-02-preview", flat, True, re.compile(_ANY_SIGN + "{4,128}", re.ASCII)),
    )
)
