"""The API keys of a server: read them from a file or from the environment.

A key in the command line is moved to the environment, because all users of the machine can read command lines.
"""

import argparse
import logging
import os
import secrets
import stat
import sys
import time
from pathlib import Path

from .. import telemetry
from ..errors import ConfigurationError
from ..hosting import Keys, key_digits, log_event
from .streams import write_error

API_KEY, METRICS_KEY = "ACA_SESSIONS_API_KEY", "ACA_SESSIONS_METRICS_KEY"
_VARIABLES = {"--api-key": API_KEY, "--metrics-key": METRICS_KEY}
_MOST_BYTES, _MOST_KEYS = 1 << 16, 100  # each request is compared with every key
_SHORTEST = 8  # characters of a key in a file: a shorter line is more likely a mistake, and can be guessed
_SETTLED_SECONDS = 2.0  # file systems count time in steps of up to this, so a second change within one has the same time
_logger = logging.getLogger("aca_sessions")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options for the server's API key: `--api-key-file` and `--api-key`."""
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"a file with the keys of callers, one a line, read again when it changes; by default ${API_KEY}, or else a new key",
    )
    keys.add_argument(
        "--api-key",
        default=os.environ.get(API_KEY),
        metavar="KEY",
        help="the key; other users of this machine can read it in the command line",
    )


def api_keys(options: argparse.Namespace) -> Keys | None:
    """Return a function that returns the accepted keys, or None if the options and the environment have no key.

    Raise ConfigurationError if the key file is unusable.
    """
    if options.api_key_file is not None:
        return KeyFile(options.api_key_file)
    key = options.api_key
    return (lambda: (key,)) if key else None


def given_or_new(options: argparse.Namespace) -> tuple[Keys, str]:
    """Return a function that returns the accepted keys, and a text about them to print: a new key itself, or "(as given)".

    If the options and the environment have no key, create a new one. A given key is never printed.
    """
    given = api_keys(options)
    if given is not None:
        return given, "(as given)"
    key = secrets.token_urlsafe(24)
    return (lambda: (key,)), key


class KeyFile:
    """A file of API keys, one a line, which is read again when it has changed. Lines that begin with `#` are comments.

    If the changed file is unusable, the keys that were read before stay accepted.
    """

    def __init__(self, path: Path) -> None:
        """Read the keys in `path`. Raise ConfigurationError if the file is unusable."""
        self._path = path
        self.problem: str | None = None  # why the file is unusable now
        self._is_open = False
        self._is_pipe = path.exists() and not path.is_file()  # of a shell, as in `--api-key-file <(…)`: it can be read once only
        self._stamp = None if self._is_pipe else self._read_stamp()
        self._keys = self._read()

    def __call__(self) -> tuple[str, ...]:
        """Return the accepted keys. Read the file again first if it has changed."""
        if self._is_pipe:
            return self._keys
        try:
            stamp = self._read_stamp()
            if stamp is None or stamp != self._stamp or self.problem is not None:
                self._replace(self._read())
                self._stamp = stamp
        except ConfigurationError as error:
            if str(error) != self.problem:  # once, and not with every request
                telemetry.count_unusable_key_file(int(self.problem is None))
                self.problem = str(error)
                _logger.error("%s. Until then the keys that were read before are accepted", error)
        return self._keys

    def _replace(self, keys: tuple[str, ...]) -> None:
        if keys != self._keys or self.problem is not None:
            log_event("keys_read", keys=len(keys), added=len({*keys} - {*self._keys}), removed=len({*self._keys} - {*keys}))
        telemetry.count_unusable_key_file(-int(self.problem is not None))
        self._keys, self.problem = keys, None

    def _read_stamp(self) -> tuple[int, ...] | None:
        """Return the file's device, inode, size and times. If they have changed, the file has changed.

        Return None if it changed less than 2 s ago. A further change could then leave all of these values equal, because the file system
        counts time in coarse steps. So the caller must read the file again.
        """
        try:
            found = self._path.stat()
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):  # a pipe would block this server
            raise self._unusable("must be a regular file")
        is_settled = abs(time.time() - max(found.st_mtime, found.st_ctime)) > _SETTLED_SECONDS
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if is_settled else None

    def _read(self) -> tuple[str, ...]:
        try:
            with self._path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(_MOST_BYTES + 1).decode()
        except (OSError, UnicodeError) as error:
            raise self._unusable(f"cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from error
        lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1)}
        lines = {number: line for number, line in lines.items() if line and not line.startswith("#")}
        keys = tuple(dict.fromkeys(lines.values()))
        if len(text) > _MOST_BYTES or len(keys) > _MOST_KEYS:
            raise self._unusable(f"must have at most {_MOST_KEYS} keys and {_MOST_BYTES} bytes")
        if not keys:
            raise self._unusable("must hold a key, and is empty")
        if not all(key.isascii() and key.isprintable() for key in keys):
            raise self._unusable("must hold only characters that an HTTP header can hold")
        for number, key in lines.items():  # the number and not the line, which may be a secret all the same
            if len(key) < _SHORTEST or " " in key:
                raise self._unusable(f"must hold keys of at least {_SHORTEST} characters without spaces, and line {number} is none")
        was_open, self._is_open = self._is_open, stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)
        if self._is_open and not was_open:  # not refused: containers mount secrets with such a mode
            _logger.warning("every user of this machine can read the keys in %s: run chmod o= on it", self._path)
        return keys

    def _unusable(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"--api-key-file {self._path} {why}: write one key a line to it, and '#' before a comment")


def show(options: argparse.Namespace) -> int:
    """Print a line for each key in a file: its digits in audit log and access log, and the comment in the line above it."""
    KeyFile(options.file)()  # raises if the file is unusable
    comment = ""
    for line in map(str.strip, options.file.read_text().splitlines()):
        if line and not line.startswith("#"):
            print(f"{key_digits(line)}  {comment}".rstrip())
        comment = line if line.startswith("#") else ""
    return 0


def hide() -> None:
    """If the command line contains a key, restart this program with the key in its environment instead.

    Other users can read a process's command line, but not its environment (proc(5)).
    """
    arguments, variables, remedies = [], dict(os.environ), []
    words = iter(sys.orig_argv[1:])
    for word in words:
        name, equals, value = word.partition("=")
        if name in _VARIABLES:
            variables[_VARIABLES[name]] = value if equals else next(words, "")
            remedies.append(f"${_VARIABLES[name]}" + (" or --api-key-file" if name == "--api-key" else "") + f" in place of {name}")
        else:
            arguments.append(word)
    if len(arguments) == len(sys.orig_argv) - 1:
        return
    write_error(
        f"aca-sessions: until now other users of this machine could read the key in the command line: use {', and '.join(remedies)}"
    )
    os.execve(sys.executable, [sys.orig_argv[0], *arguments], variables)  # noqa: S606
