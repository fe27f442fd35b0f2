"""The command `aca-sessions env`: create, list and remove named Python environments for sessions."""

import argparse
import sys
from pathlib import Path

from ..errors import ConfigurationError


async def create(options: argparse.Namespace) -> int:
    """Create a Python environment from wheels. Print how to use it, and which packages it lacks because they have no wheel."""
    from ..connect import environments
    from ..settings import Settings

    own, missing = environments(Settings(), _print_progress), list[str]()
    if options.like:
        missing = await own.create_like(options.name, options.like, python=options.python, skip_missing=options.skip_missing)
    else:
        await own.create(options.name, requirements_file=_readable(options.requirements), python=options.python)
    if missing:
        print(f"left out, because there is no wheel: {', '.join(missing)}")
    print(f'created: to use it, write into the settings {{"ACASessions": {{"Sandbox": {{"Environment": "{options.name}"}}}}}}')
    return 0


async def show(_options: argparse.Namespace) -> int:
    """Print one line for each environment: name, version of Python, number of packages."""
    from ..connect import environments
    from ..settings import Settings

    listed = environments(Settings(), _print_progress).list_all()
    if not listed:
        _print_progress("no environments: `aca-sessions env create NAME -r requirements.txt` creates one")
    for one in listed:
        print(f"{one.name}  Python {one.python}  {one.packages} packages")
    return 0


async def remove(options: argparse.Namespace) -> int:
    """Remove a Python environment by its name."""
    from ..connect import environments
    from ..settings import Settings

    environments(Settings(), _print_progress).remove(options.name)
    return 0


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `env` with its subcommands."""
    env = commands.add_parser("env", help="create, list and remove Python environments for sessions")
    own = env.add_subparsers(required=True, metavar="create|list|remove")
    making = own.add_parser("create", help="create an environment from wheels; sessions use it if Sandbox:Environment names it")
    making.add_argument("name")
    what = making.add_mutually_exclusive_group(required=True)
    what.add_argument("-r", "--requirements", type=Path, metavar="FILE", help="a requirements.txt")
    what.add_argument("--like", choices=["azure"], help="the packages of Azure's own sessions, in the same versions")
    making.add_argument("--skip-missing", action="store_true", help="with --like: leave out packages that have no wheel for this Python")
    making.add_argument("--python", metavar="PATH", help="the Python of the environment, by default the one that runs this program")
    making.set_defaults(act=create)
    own.add_parser("list", aliases=["ls"], help="list environments").set_defaults(act=show)
    removing = own.add_parser("remove", aliases=["rm"], help="remove an environment")
    removing.add_argument("name")
    removing.set_defaults(act=remove)


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr)


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise ConfigurationError(f"-r must name a file, got {path}: name a requirements.txt")
    return path.absolute()
