"""The keys of servers: read from a file or the environment, and kept out of the command line, which every user of a machine can read."""

import argparse
import os
import sys
from pathlib import Path

from ..errors import ConfigurationError
from .standard_streams import tell

API_KEY, METRICS_KEY = "ACA_SESSIONS_API_KEY", "ACA_SESSIONS_METRICS_KEY"
_VARIABLES = {"--api-key": API_KEY, "--metrics-key": METRICS_KEY}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options for the key of callers."""
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--api-key-file", type=Path, metavar="FILE", help=f"holds the key of callers; else ${API_KEY}, else one is made")
    keys.add_argument(
        "--api-key", default=os.environ.get(API_KEY), metavar="KEY", help="the key itself; others may see it in the command line"
    )


def api_key(options: argparse.Namespace) -> str | None:
    """Return the key that the options give, or None. Raise ConfigurationError if its file cannot be read or holds no key."""
    file: Path | None = options.api_key_file
    if file is None:
        given: str | None = options.api_key or None
        return given
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"--api-key-file {file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    if not key or not key.isprintable():
        raise ConfigurationError(f"--api-key-file {file} must hold a key in one line: write one to it")
    return key


def hide() -> None:
    """Start this program anew if its command line holds a key.

    The key is then in its environment, which only its user can read (proc(5)).
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
    tell("aca-sessions: others on this machine could read the key in the command line until now: use --api-key-file or the environment")
    os.execve(sys.executable, [sys.orig_argv[0], *arguments], variables)  # noqa: S606
