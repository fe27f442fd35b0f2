"""Exceptions as problems of Azure's API. No path and no content of a session gets into their messages."""

import errno

from starlette.exceptions import HTTPException

from ..contract.records import SNAPSHOT_REFUSED, ProblemError
from ..errors import GuestDiedError, IsolationError, SnapshotError
from ..sandbox.files import UnusableNameError

_BY_ERRNO = {
    errno.ENOENT: (404, "FileNotFound", "there is no such file in the session"),
    errno.ENOTDIR: (404, "FileNotFound", "there is no such file in the session"),
    errno.EISDIR: (400, "FilePathInvalid", "this is a folder"),
    errno.ENOTEMPTY: (400, "FilePathInvalid", "the folder is not empty"),
    errno.ENAMETOOLONG: (400, "FilePathInvalid", "the path is too long"),
    errno.ELOOP: (400, "FilePathInvalid", "links are not followed"),
    errno.EXDEV: (400, "FilePathInvalid", "this leads out of /mnt/data"),
    errno.EACCES: (403, "FileNotAccessible", "the session's code took away its own right to this file"),
    errno.EAGAIN: (409, "FileBusy", "the session's code holds this file: try again"),
    errno.EMFILE: (
        500,
        "SandboxUnavailable",
        "this process has no descriptor left: end some sessions or raise `ulimit -n`",
    ),
    errno.ENFILE: (500, "SandboxUnavailable", "this host has no descriptor left: end some programs"),
    errno.EDQUOT: (
        507,
        "SessionStorageFull",
        "the session, its branches and its checkpoints have as many files as they may have together, or as much memory; "
        "delete files, branches, checkpoints or variables",
    ),
    errno.ENOSPC: (507, "SessionStorageFull", "the session's /mnt/data is full; delete files first"),
}


def problem_of(error: Exception) -> ProblemError:
    """Return the problem that answers an exception which a handler raised."""
    match error:
        case ProblemError():
            return error
        case UnusableNameError():
            return ProblemError(400, "FileNameInvalid", str(error))
        case OSError(errno=number) if number in _BY_ERRNO:
            return ProblemError(*_BY_ERRNO[number])
        case SnapshotError():
            return ProblemError(409, SNAPSHOT_REFUSED, str(error))
        case IsolationError() | GuestDiedError():
            # Not 503: a proxy retries that elsewhere, so it is only for what was not started.
            return ProblemError(500, "SandboxUnavailable", str(error))
        case HTTPException():
            return ProblemError(error.status_code, _CODES.get(error.status_code, "RequestInvalid"), str(error.detail))
    return ProblemError(500, "InternalError", "the server could not do this; its log says where")


_CODES = {404: "NotFound", 405: "MethodNotAllowed"}
