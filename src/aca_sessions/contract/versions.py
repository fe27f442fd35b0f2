"""The api-versions, with their dialects and features. No other module compares versions."""

import re
from dataclasses import dataclass
from typing import Protocol

from ..models import RemoteFile
from . import flat, nested
from .records import Execution, ExecutionCall, ProblemError
from .values import Body


class Dialect(Protocol):
    """The bodies and paths of one generation of the API, both halves. The modules `nested` and `flat` are dialects."""

    EXECUTE_PATH: str
    UPLOAD_PATH: str
    HAS_EXECUTIONS: bool
    DELETED: dict[str, object] | None

    def content_path(self, name: str) -> str: ...  # noqa: D102 - each is described where it is written
    def content_named(self, path: str) -> str | None: ...  # noqa: D102
    def encode_call(self, call: ExecutionCall) -> dict[str, object]: ...  # noqa: D102
    def decode_execution(self, body: Body, *, id: str = "", identifier: str = "") -> Execution: ...  # noqa: D102
    def decode_upload(self, body: Body) -> RemoteFile: ...  # noqa: D102
    def decode_files(self, body: Body) -> list[RemoteFile]: ...  # noqa: D102
    def decode_call(self, body: object, *, lenient: bool = False) -> ExecutionCall: ...  # noqa: D102
    def encode_execution(self, execution: Execution, output_limit: int, *, rich: bool) -> dict[str, object]: ...  # noqa: D102
    def encode_upload(self, file: RemoteFile) -> dict[str, object]: ...  # noqa: D102
    def encode_file(self, file: RemoteFile) -> dict[str, object]: ...  # noqa: D102
    def encode_files(self, files: list[RemoteFile]) -> dict[str, object]: ...  # noqa: D102


_ANY_SIGN = r"[\w|}{\[\]:\";'<>?/.,@#$%^&*()\-+=!~`]"


@dataclass(frozen=True, slots=True)
class Version:
    """One api-version."""

    name: str
    dialect: Dialect
    has_sessions: bool
    identifier: re.Pattern[str]  # the identifiers that Azure takes; this project's server takes more unless it runs with --plain


VERSIONS = {
    version.name: version
    for version in (
        Version("2024-02-02-preview", nested, False, re.compile(_ANY_SIGN[:-1] + " ]{4,128}", re.ASCII)),
        Version("2024-08-02-preview", nested, False, re.compile(_ANY_SIGN[:-1] + " ]{4,128}", re.ASCII)),
        Version("2024-10-02-preview", flat, False, re.compile(r"[A-Za-z0-9_-]{1,256}")),
        Version("2025-02-02-preview", flat, True, re.compile(_ANY_SIGN + "{4,128}", re.ASCII)),
        Version("2025-10-02-preview", flat, True, re.compile(_ANY_SIGN + "{4,128}", re.ASCII)),
    )
}


def version_named(name: str | None) -> Version:
    """Return an api-version that is served. Raise ProblemError (400) for any other name."""
    version = VERSIONS.get(name or "")
    if version is None:
        raise ProblemError(400, "InvalidApiVersion", f"the query names no api-version that is served here; there are {', '.join(VERSIONS)}")
    return version
