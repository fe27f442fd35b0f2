"""Everything raised on purpose. Each says what failed, then what to do; none holds a token, a secret or user code.

ACASessionsError
├── ConfigurationError          a setting is missing or contradicts another; names the key
├── InvalidArgumentError        a name, a time or data that cannot be sent
├── AuthenticationError         no token, or refused (401, 403)
├── NotSupportedError           this endpoint cannot do that; says which can
├── ServiceError                the service answered with an error
│   ├── NotFoundError           no such session or file
│   └── RateLimitedError        too many sessions or requests
├── ServiceUnavailableError     no usable answer; `.sent` says whether the cell may have run
├── PoolError
│   ├── PoolTimeoutError        no session became free in time
│   └── PoolClosedError
├── SandboxError
│   ├── IsolationError          this host cannot give the promised isolation
│   ├── GuestDiedError          an interpreter or the fork server ended
│   └── SnapshotError           a session cannot be kept as it is now, or gone back to
│       └── PartlyRestoredError the files are neither as they were nor as at the checkpoint
├── ForkedProcessError          a forked process used what its parent opened
├── StorageError                what outlives a session cannot be read or written
└── ExecutionError              only from result.raise_for_error()
"""


class ACASessionsError(Exception):
    """Whatever this package raises on purpose."""


class ConfigurationError(ACASessionsError):
    """A setting is missing or contradicts another; the text names the key."""


class InvalidArgumentError(ACASessionsError, ValueError):
    """What was given cannot be sent: a name, a time limit or data. Nothing was sent."""


class AuthenticationError(ACASessionsError):
    """No token, or the service refused it."""


class NotSupportedError(ACASessionsError):
    """This endpoint cannot do that."""


class ServiceError(ACASessionsError):
    """The service answered with an error."""

    def __init__(self, status_code: int, code: str, message: str) -> None:
        """Keeps the three things that the service said."""
        super().__init__(f"the service answered {status_code} {code}: {message}")
        self.status_code = status_code
        self.code = code
        self.message = message


class NotFoundError(ServiceError):
    """No such session, file or execution."""


class RateLimitedError(ServiceError):
    """Too many sessions or requests; `.retry_after` in seconds where the service said one."""

    def __init__(self, status_code: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        """Keeps when the service wants to be asked again."""
        super().__init__(status_code, code, message)
        self.retry_after = retry_after


class ServiceUnavailableError(ACASessionsError):
    """No usable answer came; `.sent` says whether the cell may have run."""

    def __init__(self, message: str, *, sent: bool) -> None:
        """Keeps whether anything was sent."""
        super().__init__(message)
        self.sent = sent


class PoolError(ACASessionsError):
    """The pool cannot give a session."""


class PoolTimeoutError(PoolError):
    """No session became free in time."""


class PoolClosedError(PoolError):
    """The pool was closed."""


class SandboxError(ACASessionsError):
    """The embedded sandbox failed."""


class IsolationError(SandboxError):
    """This host cannot give the promised isolation: `.part` is missing, `.reason` says why, `.remedy` enables it."""

    def __init__(self, part: str, reason: str, remedy: str) -> None:
        """Keeps the parts of the message."""
        super().__init__(f"this host cannot isolate sessions: {part}: {reason}. {remedy}")
        self.part = part
        self.reason = reason
        self.remedy = remedy


class GuestDiedError(SandboxError):
    """An interpreter or the fork server ended."""


class SnapshotError(SandboxError):
    """A session cannot be kept as it is now, or gone back to: the text says what is in the way."""


class PartlyRestoredError(SnapshotError):
    """The files are neither as they were nor as at the checkpoint."""


class ForkedProcessError(ACASessionsError):
    """A process used what the process that it was forked from had opened."""


class StorageError(ACASessionsError):
    """What outlives a session cannot be read or written; nothing was half written."""


class ExecutionError(ACASessionsError):
    """A cell failed, for callers who asked for an exception."""
