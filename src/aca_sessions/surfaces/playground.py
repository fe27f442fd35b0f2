"""`aca-sessions playground`: a server of its own on loopback, and its page in a browser."""

import argparse
import html
import os
import sys
import tempfile
import threading
import webbrowser
from functools import partial
from pathlib import Path

from ..settings import Settings

_IDLE_SECONDS = 1800.0  # a person thinks for longer than a program
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
_NOT_THE_ENDPOINT = (
    "The Endpoint of the settings is not used: these sessions run in this machine's sandbox. An `aca-sessions serve` has a playground of "
    "its own, at the Endpoint itself."
)
_LEADING_THERE = (
    '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>aca-sessions playground</title>'
    '<meta http-equiv="refresh" content="0; url={address}"><a href="{address}">The playground</a>'
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its options. Options of `serve` that it does not have keep the defaults of `serve`."""
    own = commands.add_parser("playground", help="a page in the browser over this machine's sandbox, until Ctrl-C")
    own.set_defaults(**vars(commands.choices["serve"].parse_args([])))
    own.set_defaults(act=_open, api_key=None, cooldown=_IDLE_SECONDS)
    own.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    own.add_argument("--network", metavar="none|host|DOMAIN,…", help="what sessions reach: these domains, or all that this host does")
    own.add_argument("--no-browser", action="store_true", help="print the address only")


async def _open(options: argparse.Namespace) -> int:
    from .serving import serve

    if Settings().SessionsHttpClient.Endpoint:
        print(_NOT_THE_ENDPOINT, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="aca-sessions-") as folder:
        return await serve(options, partial(_welcome, Path(folder), browse=not options.no_browser))


def _welcome(folder: Path, endpoint: str, key: str | None, *, browse: bool) -> None:
    """Print the address of the page, and open it in a browser if there is a display."""
    # A browser sends the part after `#` to no server (RFC 9110, 7.1), and the page removes it from the address bar.
    address = f"{endpoint}/#key={key}"
    print(f"Playground: {address}\nCtrl-C ends it, with its sessions and their files.", flush=True)
    if browse and any(name in os.environ for name in _DISPLAYS):
        threading.Thread(target=_show, args=(folder, address), daemon=True).start()


def _show(folder: Path, address: str) -> None:
    """Open the address in a browser, by way of a file that only this user can read.

    The address holds the key, and every user of this machine can read the arguments of programs, the browser's included (proc(5)).
    """
    # The folder comes from `tempfile`, with mode 0700.
    file = folder / "playground.html"
    file.write_text(_LEADING_THERE.format(address=html.escape(address)))
    webbrowser.open(file.as_uri())
