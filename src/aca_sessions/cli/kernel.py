"""Install and remove the Jupyter kernel whose cells run in a session."""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from ..errors import ConfigurationError, imports_of

_MODULE = "aca_sessions.integrations.jupyter_kernel"
_NAME, _DISPLAY_NAME = "aca-sessions", "Python in a session"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `kernel` with its subcommands."""
    own = commands.add_parser("kernel", help="install and remove a Jupyter kernel whose cells run in a session").add_subparsers(
        required=True, metavar="install|remove"
    )
    installing = own.add_parser("install", help="make the kernel known to Jupyter, or replace it if it is installed")
    installing.add_argument("--display-name", default=_DISPLAY_NAME, metavar="TEXT", help="its name in menus (default: %(default)s)")
    installing.add_argument(
        "--settings",
        type=Path,
        metavar="FOLDER",
        help="the folder whose appsettings.json it reads (default: none, only environment variables)",
    )
    installing.add_argument(
        "--html",
        choices=("clean", "raw"),
        default="clean",
        help="raw lets scripts in outputs run, in frames, with your network (default: %(default)s)",
    )
    installing.set_defaults(act=_install)
    removing = own.add_parser("remove", help="remove the kernel")
    removing.set_defaults(act=_remove)
    for parser in (installing, removing):
        parser.add_argument("--name", type=_checked_name, default=_NAME, help="its name in notebooks (default: %(default)s)")
        parser.add_argument("--prefix", type=Path, metavar="FOLDER", help="an environment to install it in, instead of for this user")


def _install(options: argparse.Namespace) -> int:
    with imports_of("jupyter"):
        import ipykernel  # noqa: F401 - the kernel needs it
    folder = _folder(options)
    if options.settings is not None and not options.settings.is_dir():
        raise ConfigurationError(f"--settings must be a folder that exists, got {options.settings}")
    settings = "{resource_dir}" if options.settings is None else str(options.settings.absolute())
    # -P: Jupyter starts it in the notebook's folder, which may be a stranger's. Python must not import modules from there.
    command = [sys.executable, "-P", "-m", _MODULE, "--folder", settings, "--html", options.html, "-f", "{connection_file}"]
    described = {"argv": command, "display_name": options.display_name, "language": "python", "interrupt_mode": "message"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernel.json").write_text(json.dumps(described, indent=1) + "\n")
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}: name another folder with --prefix") from error
    print(f"installed: {folder}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    folder = _folder(options)
    if not folder.exists():
        raise ConfigurationError(f"no kernel is installed in {folder}: `jupyter kernelspec list` lists the kernels and their folders")
    shutil.rmtree(folder)
    print(f"removed: {folder}")
    return 0


def _folder(options: argparse.Namespace) -> Path:
    """Return the folder of the kernel's description. Raise ConfigurationError if another program's kernel is there."""
    with imports_of("jupyter"):
        from jupyter_core.paths import jupyter_data_dir
    data = Path(jupyter_data_dir()) if options.prefix is None else options.prefix.absolute() / "share" / "jupyter"
    folder: Path = data / "kernels" / options.name
    if folder.exists() and _MODULE not in _read(folder / "kernel.json"):
        raise ConfigurationError(f"{folder} is the kernel of another program: choose another --name")
    return folder


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _checked_name(text: str) -> str:
    if re.fullmatch(r"[a-z0-9._-]+", text) is None or not text.strip("."):
        raise argparse.ArgumentTypeError(f"must consist of small letters, digits, '.', '_' and '-', got {text!r:.80}")
    return text
