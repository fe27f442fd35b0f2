"""All exceptions that this package raises on purpose.

Each message names what failed and then what to do. No message holds a token, a secret or user code.

ACASessionsError
├── MissingExtraError           a library of an optional part of this package is missing; has the line that installs it
├── ConfigurationError          a setting is missing or contradicts another; names the key
│   └── SecretError             a secret or an Azure token of the network rules cannot be read
├── InvalidArgumentError        a name, a time limit or data that cannot be sent
├── AuthenticationError         no token, or refused (401, 403)
├── NotSupportedError           the endpoint or the operating system does not support this
├── ServiceError                the service answered with an error
│   ├── NotFoundError           no such session, file or execution
│   └── RateLimitedError        too many sessions or requests
├── ServiceUnavailableError     no usable answer; `.sent` is whether the cell may have run
│   └── CertificateError        the endpoint's certificate is not trusted, has expired or names another host
├── PoolError
│   ├── PoolTimeoutError        no session became free in time
│   └── PoolClosedError
├── SandboxError
│   ├── IsolationError          this host cannot give the promised isolation
│   ├── GuestDiedError          an interpreter or the fork server ended
│   └── SnapshotError           a checkpoint, rollback or branch is not possible now
│       └── PartlyRestoredError the files are neither as they were nor as at the checkpoint
├── ForkedProcessError          a forked process used what its parent opened
├── StorageError                a storage of skills, artifacts, dependencies or saved sessions cannot be read or written
│   ├── RecordNotFoundError     the store has no such record
│   ├── SaveCorruptedError      a saved session was changed, cut or mixed up; nothing of it was used
│   ├── SaveKeyError            a saved session is encrypted with another key, or not encrypted
│   ├── SaveTooLargeError       the session is larger than a save may be
│   └── FencedError             another server has taken the session
├── PathError                   a path in a session cannot be read or changed; also an OSError, such as FileNotFoundError
└── ExecutionError              only from result.raise_for_error()
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class ACASessionsError(Exception):
    """The base of all exceptions that this package raises on purpose."""


class MissingExtraError(ACASessionsError, ImportError):
    """A library of an optional part of this package is missing. `.extra` is the extra that has it, `.name` the library.

    The message has the line that installs it.
    """

    def __init__(self, extra: str, library: str) -> None:
        super().__init__(f"{library} is not installed: pip install 'aca-sessions-core[{extra}]'", name=library)
        self.extra = extra


@contextmanager
def imports_of(extra: str) -> Iterator[None]:
    """Raise MissingExtraError if an import in this block finds a library missing. Import only libraries of `extra` in it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(extra, error.name or extra) from error


class ConfigurationError(ACASessionsError):
    """A setting is missing or contradicts another. The message names the key."""


class SecretError(ConfigurationError):
    """A secret or an Azure token of the network rules cannot be read. The message names the secret, but never contains its value."""


class InvalidArgumentError(ACASessionsError, ValueError):
    """An argument cannot be sent: a name, a time limit or data. Nothing was sent."""


class AuthenticationError(ACASessionsError):
    """The service refused the API key or the token, or no token could be obtained. The message says what to check."""


class NotSupportedError(ACASessionsError):
    """The endpoint or the operating system does not support the operation."""


class ServiceError(ACASessionsError):
    """The service responded with an error."""

    def __init__(self, status_code: int, code: str, message: str) -> None:
        super().__init__(f"the service answered {status_code} {code}: {message}")
        self.status_code = status_code
        self.code = code
        self.message = message


class NotFoundError(ServiceError):
    """The session, file or execution does not exist."""


class RateLimitedError(ServiceError):
    """There are too many sessions or requests. `.retry_after` is how many seconds to wait, or None if the service did not give it."""

    def __init__(self, status_code: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(status_code, code, message)
        self.retry_after = retry_after


class ServiceUnavailableError(ACASessionsError):
    """The service sent no usable response. `.sent` is True if the request was sent: the cell may have run then."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class CertificateError(ServiceUnavailableError):
    """The certificate of the endpoint was refused, because it is not trusted, has expired or names another host. Nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class PoolError(ACASessionsError):
    """The pool cannot be used, because it belongs to another event loop, is full, or was closed."""


class PoolTimeoutError(PoolError):
    """No session of the pool became free within the time-out."""


class PoolClosedError(PoolError):
    """The pool was closed before this call, or while it waited for a session."""


class SandboxError(ACASessionsError):
    """The embedded sandbox failed."""


class IsolationError(SandboxError):
    """This host cannot give the promised isolation. `.part` is what is missing, `.reason` is why, `.remedy` is how to enable it."""

    def __init__(self, part: str, reason: str, remedy: str) -> None:
        super().__init__(f"this host cannot isolate sessions: {part}: {reason}. {remedy}")
        self.part = part
        self.reason = reason
        self.remedy = remedy


class GuestDiedError(SandboxError):
    """An interpreter or the fork server ended, or does not respond."""


class SnapshotError(SandboxError):
    """A checkpoint, rollback or branch is not possible now. The message names the reason."""


class PartlyRestoredError(SnapshotError):
    """A rollback failed half-way: the files are neither as they were nor as at the checkpoint."""


class ForkedProcessError(ACASessionsError):
    """A forked process used something that its parent process had opened."""


class StorageError(ACASessionsError):
    """A storage of skills, artifacts, dependencies or saved sessions cannot be read or written. No record is left half written."""


class RecordNotFoundError(StorageError):
    """The store has no record of this key."""


class SaveCorruptedError(StorageError):
    """A saved session was changed, cut off or put in the place of another one. It cannot be restored."""


class SaveKeyError(StorageError):
    """A saved session is encrypted and the key is missing or another one, or it is not encrypted although there is a key."""


class SaveTooLargeError(StorageError):
    """The session is larger than a save may be. Nothing was saved."""


class FencedError(StorageError):
    """Another server has taken this session, or its saves were deleted. This server may not save it any more."""


class ExecutionError(ACASessionsError):
    """A cell failed, and the caller called `raise_for_error` on its result."""


class PathError(ACASessionsError, OSError):
    """A path in a session cannot be read or changed. `errno` says why. If Python has a class for it, this error is of that class, too."""

    @classmethod
    def of(cls, code: int, message: str, path: str) -> "PathError":
        """Return the error for an error number, such as one that is a FileNotFoundError as well."""
        builtin = type(OSError(code, message))
        kind: type[PathError] = cls if builtin is OSError else type("PathError", (cls, builtin), {})
        return kind(code, f"{message}: {os.strerror(code)}", path)

    def __str__(self) -> str:
        return str(self.strerror)
