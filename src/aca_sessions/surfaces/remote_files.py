"""`aca-sessions files`: the files of a session that outlives this command."""

import argparse
import sys
from pathlib import Path, PurePosixPath

from ..client.session import Session
from ..connect import open_interpreter
from ..errors import InvalidArgumentError, NotFoundError
from ..guest_text import for_terminal, shown_name
from .endpoints import lasting
from .standard_streams import standard_input

_STANDARD = "-"
_LONGEST_NAME = 4096  # names are printed whole, because `get` and `rm` need the whole name


async def show(options: argparse.Namespace) -> int:
    """Print one line for each file: size, time of the last change, name."""
    async with open_interpreter(lasting(options.endpoint, "files")) as interpreter:
        try:
            files = await interpreter.list_files(options.session, options.folder)
        except NotFoundError:
            raise _missing(options.folder) from None
    for one in files:
        print(f"{one.size:>12}  {one.modified:%Y-%m-%d %H:%M:%S}  {shown_name(one.name, _LONGEST_NAME)}{'/' if one.is_directory else ''}")
    return 0


async def get(options: argparse.Namespace) -> int:
    """Copy a file to a path on this machine, or to standard output."""
    target = None if options.target == _STANDARD else _free(options.name, options.target, force=options.force)
    async with open_interpreter(lasting(options.endpoint, "files")) as interpreter:
        session = Session(interpreter, options.session)
        try:
            if target is not None:
                await _save(session, options.name, target)
            else:
                _write(await session.download_file(options.name))
        except NotFoundError:
            raise _missing(options.name) from None
    return 0


async def put(options: argparse.Namespace) -> int:
    """Copy a file of this machine, or standard input, into the session."""
    name = options.name or Path(options.source).name
    if options.source == _STANDARD and not options.name:
        raise InvalidArgumentError("standard input has no name: give one, as in `aca-sessions files put - data.csv`")
    data = standard_input().read() if options.source == _STANDARD else Path(options.source)
    async with open_interpreter(lasting(options.endpoint, "files")) as interpreter:
        try:
            await interpreter.upload_file(options.session, name, data)
        except OSError as error:
            raise InvalidArgumentError(f"{options.source} cannot be read: {error.strerror}") from None
    return 0


async def remove(options: argparse.Namespace) -> int:
    """Delete files. If one is missing, those before it are deleted already."""
    async with open_interpreter(lasting(options.endpoint, "files")) as interpreter:
        for name in options.name:
            try:
                await interpreter.delete_file(options.session, name)
            except NotFoundError:
                raise _missing(name) from None
    return 0


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its subcommands."""
    own = commands.add_parser("files", help="the files of a session at an Endpoint").add_subparsers(required=True, metavar="ls|get|put|rm")
    listing = own.add_parser("ls", help="size, time and name of each")
    listing.add_argument("folder", nargs="?", default="", metavar="FOLDER")
    listing.set_defaults(act=show)
    getting = own.add_parser("get", help="copy one to this machine")
    getting.add_argument("name", metavar="NAME")
    getting.add_argument("target", nargs="?", default=".", metavar="PATH|-", help="a path, a folder, or - for standard output")
    getting.add_argument("--force", action="store_true", help="replace a file that is there already")
    getting.set_defaults(act=get)
    putting = own.add_parser("put", help="copy one into the session; one of that name is replaced")
    putting.add_argument("source", metavar="PATH|-", help="a file, or - for standard input")
    putting.add_argument("name", nargs="?", metavar="NAME", help="its name in the session, which may have folders in front")
    putting.set_defaults(act=put)
    removing = own.add_parser("rm", help="delete files")
    removing.add_argument("name", nargs="+", metavar="NAME")
    removing.set_defaults(act=remove)
    for parser in (listing, getting, putting, removing):
        parser.add_argument("--session", required=True, metavar="NAME", help="the session whose files they are")
        parser.add_argument("--endpoint", metavar="URL", help="a server or pool, in place of the configured one")


def _free(name: str, target: str, *, force: bool) -> Path:
    """Return the path that a file is written to on this machine. Raise InvalidArgumentError if something is there.

    With `force` an existing file is accepted, but nothing else.
    """
    path = Path(target)
    path = path / PurePosixPath(name).name if path.is_dir() else path
    if (path.exists() or path.is_symlink()) and not (force and path.is_file()):
        advice = "choose another path, or add --force" if path.is_file() else "it is no file: choose another path, or - for standard output"
        raise InvalidArgumentError(f"{path} is there already: {advice}")
    return path


async def _save(session: Session, name: str, target: Path) -> None:
    try:
        await session.save_file(name, target)
    except OSError as error:
        raise InvalidArgumentError(f"{target} cannot be written: {error.strerror}") from None


def _write(data: bytes) -> None:
    """Write a file to standard output. A terminal gets it as text, without control sequences."""
    if sys.stdout.isatty():
        print(for_terminal(data.decode("utf-8", "backslashreplace")), end="")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _missing(name: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{shown_name(name)} is not in the session: `aca-sessions files ls` shows what is")
