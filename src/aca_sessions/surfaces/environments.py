"""`aca-sessions env`: create, list and remove Python environments for sessions, by name."""

import argparse
import sys
from pathlib import Path

from ..errors import ConfigurationError


async def create(options: argparse.Namespace) -> int:
    """Create an environment and print how to use it."""
    from ..connect import environments
    from ..settings import Settings

    own, missing = environments(Settings(), _tell), list[str]()
    if options.like:
        missing = await own.create_like(options.name, options.like, python=options.python, skip_missing=options.skip_missing)
    else:
        await own.create(options.name, listed_in=_readable(options.requirements), python=options.python)
    if missing:
        print(f"left out, for want of a wheel: {', '.join(missing)}")
    print(f'made: name it in the settings as {{"ACASessions": {{"Sandbox": {{"Environment": "{options.name}"}}}}}}')
    return 0


async def show(_options: argparse.Namespace) -> int:
    """Print one line for each environment."""
    from ..connect import environments
    from ..settings import Settings

    for one in environments(Settings(), _tell).listed():
        print(f"{one.name}  Python {one.python}  {one.packages} packages")
    return 0


async def remove(options: argparse.Namespace) -> int:
    """Remove an environment."""
    from ..connect import environments
    from ..settings import Settings

    environments(Settings(), _tell).remove(options.name)
    return 0


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its subcommands."""
    env = commands.add_parser("env", help="environments of their own for sessions")
    own = env.add_subparsers(required=True, metavar="create|list|remove")
    making = own.add_parser("create", help="make one of wheels; sessions use it where Sandbox:Environment names it")
    making.add_argument("name")
    what = making.add_mutually_exclusive_group(required=True)
    what.add_argument("-r", "--requirements", type=Path, metavar="FILE", help="a requirements.txt")
    what.add_argument("--like", choices=["azure"], help="what Azure's own sessions have, in the same versions")
    making.add_argument("--skip-missing", action="store_true", help="with --like: leave out what has no wheel for this Python")
    making.add_argument("--python", metavar="PATH", help="the Python to make it with, in place of this program's own")
    making.set_defaults(act=create)
    own.add_parser("list", help="those that there are").set_defaults(act=show)
    removing = own.add_parser("remove", help="remove one")
    removing.add_argument("name")
    removing.set_defaults(act=remove)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise ConfigurationError(f"-r {path} is no file: name a requirements.txt")
    return path.absolute()
