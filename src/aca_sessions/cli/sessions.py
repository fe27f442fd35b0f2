"""The commands `aca-sessions sessions` and `aca-sessions files`, for the sessions of an endpoint and the files in them.

Functions that carry out a command return its exit code. Names of sessions are secrets. Only `sessions ls` prints them, because its user has
the key and asked for them.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from ..client.interpreter import CodeInterpreter
from ..client.session import Session
from ..connect import open_interpreter
from ..errors import ACASessionsError, ConfigurationError, InvalidArgumentError, NotFoundError, ServiceError
from ..guest_text import for_terminal, shown_name
from ..models import SavedSession
from ..settings import Settings
from .streams import standard_input, write_error

_STANDARD = "-"
_LONGEST_NAME, _LONGEST_PATH = 1000, 4096  # names are printed whole, because `rm` and `get` need the whole name


def settings_at(endpoint: str | None) -> Settings:
    """Return the settings. If `endpoint` is given, use it instead of the configured Endpoint."""
    return Settings(**({"Endpoint": endpoint} if endpoint else {}))


def settings_with_endpoint(endpoint: str | None, what: str) -> Settings:
    """Return the settings as `settings_at` does, but raise ConfigurationError if they have no Endpoint.

    Call this for commands and options whose sessions must outlive this process. `what` is the name of the command or option, for the error.
    """
    settings = settings_at(endpoint)
    if not settings.SessionsHttpClient.Endpoint:
        raise ConfigurationError(
            f"{what} needs sessions that outlive this command: start `aca-sessions serve`, and set what it prints, for example with "
            "`export ACASessions__Endpoint=URL ACASessions__ApiKey=KEY`"
        )
    return settings


async def list_sessions(options: argparse.Namespace) -> int:
    """Print a table of the endpoint's sessions: when each was used last, when it ends, and its name."""
    async with open_interpreter(settings_with_endpoint(options.endpoint, "sessions")) as interpreter:
        listed = await interpreter.list_sessions()
    if not listed:
        write_error("no sessions")  # standard output stays empty for programs that read it
        return 0
    print(f"{'LAST USED (UTC)':<19}  {'ENDS (UTC)':<19}  NAME")
    for one in listed:
        print(f"{_shown_time(one.last_used)}  {_shown_time(one.expires):<19}  {shown_name(one.session_id, _LONGEST_NAME)}")
    return 0


async def end_sessions(options: argparse.Namespace) -> int:
    """End the named sessions, with their variables and files. Stop with an error at the first one that cannot be ended."""
    async with open_interpreter(settings_with_endpoint(options.endpoint, "sessions")) as interpreter:
        for place, name in enumerate(options.name, 1):
            try:
                await interpreter.delete_session(name)
            except ServiceError as error:
                raise _unknown(error, _place_of(place, len(options.name))) from None  # the cause may hold the name, which is a secret
    count = len(options.name)
    write_error(f"[{count} session{'s' if count > 1 else ''} ended]")
    return 0


async def save_session(options: argparse.Namespace) -> int:
    """Save a session in the store of its server, and print what was saved. List on standard error what cannot be saved."""
    async with open_interpreter(settings_with_endpoint(options.endpoint, "sessions")) as interpreter:
        await _require_session(interpreter, options.name, "NAME")
        saved = await interpreter.save(options.name)
    for name, why in saved.lost.items():
        write_error(f"[not saved: {shown_name(name)} ({for_terminal(why)})]")
    print(f"saved {saved.variables} variables, {saved.size} bytes, in {saved.seconds:.1f} s")
    return 0


async def list_saved(options: argparse.Namespace) -> int:
    """Print a table of the saved sessions: when each was saved, its size in bytes, its number of variables, and its name."""
    async with open_interpreter(settings_with_endpoint(options.endpoint, "sessions")) as interpreter:
        listed = await interpreter.saved()
    if not listed:
        write_error("no saved sessions")  # standard output stays empty for programs that read it
        return 0
    print(f"{'SAVED (UTC)':<19}  {'BYTES':>12}  {'VARIABLES':>9}  NAME")
    for one in listed:
        print(f"{_shown_time(one.created)}  {one.size:>12}  {one.variables:>9}  {shown_name(one.session_id, _LONGEST_NAME)}")
    return 0


async def forget_sessions(options: argparse.Namespace) -> int:
    """Delete the saves of the named sessions. Stop with an error at the first one that has none."""
    async with open_interpreter(settings_with_endpoint(options.endpoint, "sessions")) as interpreter:
        for place, name in enumerate(options.name, 1):
            try:
                await interpreter.forget(name)
            except ServiceError as error:
                raise _unknown(error, _place_of(place, len(options.name)), "saved") from None
    return 0


async def export_session(options: argparse.Namespace) -> int:
    """Write a session into a file, and print what it has. List on standard error what cannot be exported."""
    target = free_path(options.name, options.file, force=options.force)
    async with open_interpreter(settings_with_endpoint(options.endpoint, "sessions")) as interpreter:
        await _require_live_or_saved(interpreter, options.name)
        _print_moved("exported", await interpreter.export(options.name, target))
    return 0


async def import_session(options: argparse.Namespace) -> int:
    """Begin a session from a file, and print what it has. List on standard error what is missing."""
    async with open_interpreter(settings_with_endpoint(options.endpoint, "sessions")) as interpreter:
        try:
            saved = await interpreter.import_(options.file, options.name or Path(options.file).stem, trust=options.trust)
        except InvalidArgumentError:
            if options.trust:
                raise
            raise InvalidArgumentError(
                "restoring an exported session runs the code in its file, in the sandbox of the new session: if you trust where the file "
                "is from, add --trust"
            ) from None
    _print_moved("imported", saved)
    return 0


def _print_moved(what: str, saved: SavedSession) -> None:
    for name, why in saved.lost.items():
        write_error(f"[not {what}: {for_terminal(name)} ({for_terminal(why)})]")
    print(f"{what} {saved.variables} variables, {saved.size} bytes, in {saved.seconds:.1f} s")


async def _require_live_or_saved(interpreter: CodeInterpreter, name: str) -> None:
    """Raise InvalidArgumentError if the endpoint has no session of this name, live or saved: an export would begin an empty one."""
    try:
        await _require_session(interpreter, name, "NAME")
    except InvalidArgumentError:
        if not await interpreter.supports("save") or all(one.session_id != name for one in await interpreter.saved()):
            raise


async def list_files(options: argparse.Namespace) -> int:
    """Print a line for each file in a folder of a session: its size, when it was changed last, and its name."""
    async with open_interpreter(settings_with_endpoint(options.endpoint, "files")) as interpreter:
        await _require_session(interpreter, options.session)
        try:
            files = await interpreter.list_files(options.session, options.folder)
        except NotFoundError as error:
            raise _missing_file(options.folder) from error
    if not files:
        write_error("no files")  # standard output stays empty for programs that read it
    for one in files:
        print(f"{one.size:>12}  {one.modified:%Y-%m-%d %H:%M:%S}  {shown_name(one.name, _LONGEST_PATH)}{'/' if one.is_directory else ''}")
    return 0


async def get_file(options: argparse.Namespace) -> int:
    """Copy a file of a session to a path on this machine, or to standard output."""
    target = None if options.target == _STANDARD else free_path(options.name, options.target, force=options.force)
    async with open_interpreter(settings_with_endpoint(options.endpoint, "files")) as interpreter:
        await _require_session(interpreter, options.session)
        session = Session(interpreter, options.session)
        try:
            if target is not None:
                await _save_file(session, options.name, target, force=options.force)
                write_error(f"[file saved: {shown_name(str(target), _LONGEST_PATH)}]")
            else:
                _write_to_output(await session.download_file(options.name))
        except NotFoundError as error:
            raise _missing_file(options.name) from error
    return 0


async def put_file(options: argparse.Namespace) -> int:
    """Copy a file of this machine, or standard input, into a session."""
    name = options.name or Path(options.source).name
    if options.source == _STANDARD and not options.name:
        raise InvalidArgumentError("a file from standard input must have a name: add one, as in `aca-sessions files put - data.csv`")
    _refuse_folder(options.source)
    data = standard_input().read() if options.source == _STANDARD else Path(options.source)
    async with open_interpreter(settings_with_endpoint(options.endpoint, "files")) as interpreter:
        try:
            await interpreter.upload_file(options.session, name, data)
        except OSError as error:
            raise InvalidArgumentError(f"{options.source} cannot be read: {error.strerror}: name a file that you may read") from error
    write_error(f"[file sent: {shown_name(name, _LONGEST_PATH)}]")
    return 0


async def delete_files(options: argparse.Namespace) -> int:
    """Delete the named files of a session. Stop with an error at the first one that does not exist."""
    async with open_interpreter(settings_with_endpoint(options.endpoint, "files")) as interpreter:
        await _require_session(interpreter, options.session)
        for name in options.name:
            try:
                await interpreter.delete_file(options.session, name)
            except NotFoundError as error:
                raise _missing_file(name) from error
            except ServiceError as error:
                with suppress(ServiceError):
                    if await interpreter.list_files(options.session, name):
                        raise InvalidArgumentError(
                            f"{shown_name(name, _LONGEST_PATH)} is a folder with files: delete these first, or the whole folder with "
                            "`aca-sessions run --session NAME '!rm -r FOLDER'`"
                        ) from error
                raise
            write_error(f"[file deleted: {shown_name(name, _LONGEST_PATH)}]")
    return 0


def _shown_time(time: datetime | None) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if time else "-"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands `files` and `sessions` with their subcommands."""
    _add_files(commands)
    _add_sessions(commands)


def _add_sessions(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    own = commands.add_parser("sessions", help="list, end, save and move the sessions of an Endpoint").add_subparsers(
        required=True, metavar="ls|rm|save|saved|forget|export|import"
    )
    listing = own.add_parser("ls", help="list sessions: time of the last use, time of the end, name (a secret)")
    listing.set_defaults(act=list_sessions)
    removing = own.add_parser("rm", help="end sessions, with their variables and files")
    removing.add_argument("name", nargs="+", metavar="NAME", help="the name of a session")
    removing.set_defaults(act=end_sessions)
    saving = own.add_parser("save", help="save a session in the server's store")
    saving.add_argument("name", metavar="NAME", help="the name of the session")
    saving.set_defaults(act=save_session)
    saved = own.add_parser("saved", help="list saved sessions: time, size, number of variables, name (a secret)")
    saved.set_defaults(act=list_saved)
    forgetting = own.add_parser("forget", help="delete the saves of sessions; sessions that run go on")
    forgetting.add_argument("name", nargs="+", metavar="NAME", help="the name of a session")
    forgetting.set_defaults(act=forget_sessions)
    exporting = own.add_parser("export", help="write a session into a file: its variables, files, packages and settings")
    exporting.add_argument("name", metavar="NAME", help="the name of the session")
    exporting.add_argument("file", metavar="FILE", help="the file; it has what the session has, and is not encrypted")
    exporting.add_argument("--force", action="store_true", help="replace a file that exists")
    exporting.set_defaults(act=export_session)
    importing = own.add_parser("import", help="begin a session from a file that `export` wrote, here or elsewhere")
    importing.add_argument("file", metavar="FILE", help="the file")
    importing.add_argument(
        "name", nargs="?", metavar="NAME", help="the name of the new session, by default that of the file without its end"
    )
    importing.add_argument("--trust", action="store_true", help="run the code in the file, which restores the session, in its sandbox")
    importing.set_defaults(act=import_session)
    for parser in (listing, removing, saving, saved, forgetting, exporting, importing):
        parser.add_argument("--endpoint", metavar="URL", help="the server or pool to use, by default the configured one")


def _add_files(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    own = commands.add_parser("files", help="list, copy and delete the files of a session at an Endpoint").add_subparsers(
        required=True, metavar="ls|get|put|rm"
    )
    listing = own.add_parser("ls", help="list files with their size and time")
    listing.add_argument("folder", nargs="?", default="", metavar="FOLDER", help="a folder below /mnt/data, by default all of it")
    listing.set_defaults(act=list_files)
    getting = own.add_parser("get", help="copy a file to this machine")
    getting.add_argument("name", metavar="NAME", help="the path of the file in the session")
    getting.add_argument("target", nargs="?", default=".", metavar="PATH|-", help="a path, a folder, or - for standard output")
    getting.add_argument("--force", action="store_true", help="replace a file that exists")
    getting.set_defaults(act=get_file)
    putting = own.add_parser("put", help="copy a file into the session, and replace one of that name")
    putting.add_argument("source", metavar="PATH|-", help="a file, or - for standard input")
    putting.add_argument("name", nargs="?", metavar="NAME", help="its name in the session, which may have folders in front")
    putting.set_defaults(act=put_file)
    removing = own.add_parser("rm", help="delete files")
    removing.add_argument("name", nargs="+", metavar="NAME", help="the path of a file in the session")
    removing.set_defaults(act=delete_files)
    for parser in (listing, getting, putting, removing):
        parser.add_argument("--session", required=True, metavar="NAME", help="the session")
        parser.add_argument("--endpoint", metavar="URL", help="the server or pool to use, by default the configured one")


async def _require_session(interpreter: CodeInterpreter, name: str, argument: str = "--session") -> None:
    """Raise InvalidArgumentError if the endpoint has no session of this name. Do nothing if its api-version cannot look up sessions.

    Call this before a request about files, because that would start a missing session.
    """
    if interpreter.can_end_sessions:
        try:
            await interpreter.get_session(name)
        except ServiceError as error:
            raise _unknown(error, argument) from None  # the cause may hold the name, which is a secret


def _place_of(place: int, count: int) -> str:
    return "NAME" if count == 1 else f"NAME {place} of {count}"


def _unknown(error: ServiceError, argument: str, listed_by: str = "ls") -> ACASessionsError:
    """If the error is about an unknown session, return another error, which does not contain the session's name: the name is secret.

    The new error says which `argument` of the command is wrong. Return any other error unchanged.
    """
    if error.status_code == 404 or error.code == "SessionWithIdentifierNotFound":
        return InvalidArgumentError(
            f"{argument} must be the name of a session of this endpoint, and is not: `aca-sessions sessions {listed_by}` lists them"
        )
    return error


def free_path(name: str, target: str, *, force: bool) -> Path:
    """Return the path on this machine to which the session's file `name` is copied.

    It is `target`. But if that is an existing folder, it is a path in this folder with the file's name, without the session's folders.
    Raise InvalidArgumentError if something exists at the path, unless it is a file and `force` is true: this file will be replaced.
    """
    path = Path(target)
    path = path / PurePosixPath(name).name if path.is_dir() else path
    if (path.exists() or path.is_symlink()) and not (force and path.is_file()):
        advice = "choose another path, or add --force" if path.is_file() else "choose the path of a file"
        raise InvalidArgumentError(f"{path} exists{'' if path.is_file() else ' and is not a file'}: {advice}")
    return path


@contextmanager
def reserved(path: Path, *, force: bool) -> Iterator[None]:
    """Create an empty file at `path`, to be filled in a `with` block, so that no file of another program is replaced meanwhile.

    Raise FileExistsError if `path` exists. Delete the file if the block fails. If `force` is true, do nothing.
    """
    if force:
        yield
        return
    path.open("xb").close()
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


async def _save_file(session: Session, name: str, target: Path, *, force: bool) -> None:
    try:
        with reserved(target, force=force):
            await session.save_file(name, target)
    except OSError as error:
        raise InvalidArgumentError(
            f"{target} cannot be written: {error.strerror}: choose another path, or - for standard output"
        ) from error


def _write_to_output(data: bytes) -> None:
    """Write a file's content to standard output: unchanged, or if that is a terminal, as text without control sequences."""
    if sys.stdout.isatty():
        print(for_terminal(data.decode("utf-8", "backslashreplace")), end="")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _refuse_folder(source: str) -> None:
    if Path(source).is_dir():
        advice = "name a file, or copy the folder with `aca-sessions run --session NAME --file FOLDER ''`"
        raise InvalidArgumentError(f"{shown_name(source, _LONGEST_PATH)} is a folder: {advice}")


def _missing_file(name: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the session has no file or folder {shown_name(name)}: `aca-sessions files ls` lists its files")
