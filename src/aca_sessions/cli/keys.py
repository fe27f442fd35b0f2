"""The keys of servers: read them from a file or the environment, and remove them from the command line, which all users can read."""

import argparse
import os
import sys
from pathlib import Path

from ..errors import ConfigurationError
from .streams import write_error

API_KEY, METRICS_KEY = "ACA_SESSIONS_API_KEY", "ACA_SESSIONS_METRICS_KEY"
_VARIABLES = {"--api-key": API_KEY, "--metrics-key": METRICS_KEY}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options for the server's API key: `--api-key-file` and `--api-key`."""
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"a file with the key of callers; by default ${API_KEY}, or else a new key"
    )
    keys.add_argument(
        "--api-key",
        default=os.environ.get(API_KEY),
        metavar="KEY",
        help="the key; other users of this machine can read it in the command line",
    )


def api_key(options: argparse.Namespace) -> str | None:
    """Return the API key from the options or the environment, or None. Raise ConfigurationError if the key file is unusable."""
    file: Path | None = options.api_key_file
    if file is None:
        given: str | None = options.api_key or None
        return given
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(f"--api-key-file {file} cannot be read: {why}: name a file with the key in one line") from error
    if not key or not key.isprintable():
        raise ConfigurationError(f"--api-key-file {file} must hold a key in one line: write a key to it")
    return key


def hide() -> None:
    """If the command line contains a key, restart this program with the key in its environment instead.

    Other users can read a process's command line, but not its environment (proc(5)).
    """
    arguments, variables = [], dict(os.environ)
    words = iter(sys.orig_argv[1:])
    for word in words:
        name, equals, value = word.partition("=")
        if name in _VARIABLES:
            variables[_VARIABLES[name]] = value if equals else next(words, "")
        else:
            arguments.append(word)
    if len(arguments) == len(sys.orig_argv) - 1:
        return
    write_error(
        "aca-sessions: until now other users of this machine could read the key in the command line: use --api-key-file or the environment"
    )
    os.execve(sys.executable, [sys.orig_argv[0], *arguments], variables)  # noqa: S606
