"""The entry point of the command line `aca-sessions`. It imports little, so that Ctrl-C is quiet from the beginning."""

import sys
from collections.abc import Sequence

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, by default the one of this process's command line, and exit with its exit code.

    The code is 2 if the command could not run, and 130 after Ctrl-C.
    """
    try:
        from .commands import execute  # takes up to a second

        status = execute(arguments)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    sys.exit(status)


if __name__ == "__main__":
    main()
