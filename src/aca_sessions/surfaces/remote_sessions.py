"""`aca-sessions sessions`: the sessions that an endpoint keeps.

Names are secrets. Only `ls` prints them, because its user has the key and asked for them.
"""

import argparse

from ..connect import open_interpreter
from ..errors import ACASessionsError, InvalidArgumentError, ServiceError
from ..guest_text import shown_name
from .endpoints import lasting

_LONGEST_NAME = 1000  # names are printed whole, because `rm` needs the whole name


async def show(options: argparse.Namespace) -> int:
    """Print one line for each session: time of its last use, time of its end, name."""
    async with open_interpreter(lasting(options.endpoint, "sessions")) as interpreter:
        for one in await interpreter.list_sessions():
            ends = f"{one.expires:%Y-%m-%d %H:%M:%S}" if one.expires else "-"
            print(f"{one.last_used:%Y-%m-%d %H:%M:%S}  {ends:<19}  {shown_name(one.session_id, _LONGEST_NAME)}")
    return 0


async def remove(options: argparse.Namespace) -> int:
    """End sessions, each with its variables and files."""
    async with open_interpreter(lasting(options.endpoint, "sessions")) as interpreter:
        for place, name in enumerate(options.name, 1):
            try:
                await interpreter.delete_session(name)
            except ServiceError as error:
                raise _unknown(error, place) from None
    return 0


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its subcommands."""
    own = commands.add_parser("sessions", help="the sessions of an Endpoint").add_subparsers(required=True, metavar="ls|rm")
    listing = own.add_parser("ls", help="when each was used last, when it ends, and its name, which is a secret")
    listing.set_defaults(act=show)
    removing = own.add_parser("rm", help="end sessions, with their variables and files")
    removing.add_argument("name", nargs="+", metavar="NAME")
    removing.set_defaults(act=remove)
    for parser in (listing, removing):
        parser.add_argument("--endpoint", metavar="URL", help="a server or pool, in place of the configured one")


def _unknown(error: ServiceError, place: int) -> ACASessionsError:
    """Return the error of a name that is unknown. It gives the name's place in the command line, since only `ls` prints names."""
    if error.status_code == 404 or error.code == "SessionWithIdentifierNotFound":
        return InvalidArgumentError(f"name {place} is no session of this endpoint: `aca-sessions sessions ls` shows those that there are")
    return error
