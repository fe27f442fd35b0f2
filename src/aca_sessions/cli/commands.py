"""The commands of `aca-sessions` and their options. Modules that a command needs are imported only when it runs."""

import argparse
import asyncio
import inspect
import ipaddress
import logging
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Never, cast

from .. import __version__
from ..contract.records import MAX_ASYNCHRONOUS_SECONDS
from ..errors import ACASessionsError, ConfigurationError, imports_of
from ..guest_text import printable
from ..hosting import Hosting
from . import kernel, keys, logs, sessions
from .streams import flush, output_problem, prepare, silence, write_error

_FAILED, _UNUSABLE = 1, 2
_BROKEN_PIPE = 128 + 13  # a shell's exit code for SIGPIPE, which not every system has
_MOST_SESSIONS = 100_000
_HOST = "the address to listen on (default: %(default)s)"
_PORT = "the port to listen on; 0 takes a free one (default: %(default)s)"
_ALLOWED_HOST = "a host name that requests may use, besides those of loopback; * allows all; may be repeated"
_STORE = "save sessions that end in this store, and restore them when they are used again: file:///FOLDER, redis://… or azure-blob://…"
_NETWORK = "what sessions can reach: nothing, everything that this host reaches, or these domains; or rules, as a JSON object with Rules"
_PLAYGROUND_IDLE_SECONDS = 1800.0  # a person thinks for longer than a program


def execute(arguments: Sequence[str] | None) -> int:
    """Run a command, by default the one of this process's command line, and return its exit code.

    The code is 2 if the command could not run, and 130 after Ctrl-C.
    """
    try:
        status = _execute(arguments)
        flush()
    except ACASessionsError as error:
        write_error(f"aca-sessions: {printable(str(error), colours=False)}")
        status = _UNUSABLE
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        status = _output_failed(error)
    silence()
    return status


def _execute(arguments: Sequence[str] | None) -> int:
    prepare()
    try:
        options = build_parser().parse_args(arguments)
    except SystemExit as ended:  # after --help, or an error that argparse has printed
        return cast(int, ended.code)
    # A program that calls `main` with arguments of its own has its own command line, which must not be started again.
    if arguments is None:
        keys.hide()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    acting = options.act(options)
    return cast(int, asyncio.run(acting) if inspect.iscoroutine(acting) else acting)


def _output_failed(error: OSError) -> int:
    """Return the exit code if `error` is a failed write to standard output. Print a message unless the reader has ended.

    Raise any other error again, because it is a bug.
    """
    problem = output_problem()
    if isinstance(error, BrokenPipeError) or isinstance(problem, BrokenPipeError):
        return _BROKEN_PIPE  # the reader is gone
    if problem is None:
        raise error
    write_error(f"aca-sessions: standard output cannot be written: {problem.strerror}: redirect it to another file")
    return _UNUSABLE


async def _run(options: argparse.Namespace) -> int:
    from . import run

    return await run.run(options)


def _repl(options: argparse.Namespace) -> int:
    with imports_of("cli"):
        from .repl import repl

    return repl(options)


async def _serve(options: argparse.Namespace) -> int:
    with imports_of("server"):
        from .serving import serve

    return await serve(options)


async def _playground(options: argparse.Namespace) -> int:
    with imports_of("server"):
        from .serving import playground

    return await playground(options)


async def _mcp(options: argparse.Namespace) -> int:
    from ..mcp.server import serve_http, serve_stdio

    return await (serve_http(options) if options.http else serve_stdio(options))


async def _doctor(options: argparse.Namespace) -> int:
    if options.endpoint:
        from ..settings import Settings
        from .endpoints import check

        return 0 if await check(Settings(Endpoint=options.endpoint)) else _FAILED
    from ..connect import isolation_report
    from ..settings import Settings

    if Settings().SessionsHttpClient.Endpoint:
        write_error("this report is about this machine, and not about the Endpoint that is set: `doctor --endpoint URL` checks that")
    report = await isolation_report()
    print(report)
    if report.full:
        print("ready: aca-sessions run 'print(6*7)'")
    return 0 if report.full else _FAILED


async def _keys(options: argparse.Namespace) -> int:
    return keys.show(options)


async def _conformance(options: argparse.Namespace) -> int:
    from ..settings import Settings
    from .endpoints import compare

    return 0 if await compare(Settings(Endpoint=options.endpoint), options.report) else _FAILED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, from which the reference of the commands is made, too."""
    parser: argparse.ArgumentParser = _Parser(prog="aca-sessions", description="Isolated Python sessions.")
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version of this program and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_repl(commands)
    _add_serve(commands)
    doctor = commands.add_parser("doctor", help="report the isolation that this host gives, item by item; exit 1 if it is not full")
    doctor.add_argument("--endpoint", metavar="URL", help="check a server or pool instead, step by step; exit 1 if a step fails")
    doctor.set_defaults(act=_doctor)
    shown = commands.add_parser("keys", help="print the digits that the audit log has for each key in a key file, and its comment")
    shown.add_argument("file", type=Path, metavar="FILE", help="the file of --api-key-file")
    shown.set_defaults(act=_keys)
    _add_playground(commands)
    sessions.add(commands)
    _add_environments(commands)
    kernel.add(commands)
    _add_mcp(commands)
    conformance = commands.add_parser("conformance", help="compare an endpoint's API with that of `serve`; exit 1 if they differ")
    conformance.add_argument("--endpoint", metavar="URL", required=True, help="the server or pool to examine")
    conformance.add_argument("--report", type=Path, metavar="FILE", help="write all observations to a file, as JSON")
    conformance.set_defaults(act=_conformance)
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser("run", help="run one cell or file; exit with its exit code, 1 if it fails")
    run.add_argument(
        "code",
        metavar="CODE|FILE|-",
        help="Python source, or a file of it, or a folder with __main__.py, or - to read it from standard input",
    )
    arguments = run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="all that follows FILE, for its sys.argv")
    arguments.required = False  # otherwise an error about missing code names it, too
    run.add_argument("-c", dest="is_code", action="store_true", help="CODE is Python source, even if it looks like the name of a file")
    run.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="PATH[=NAME]",
        help="a file or folder to copy to /mnt/data, under its own name or NAME, which may have folders in front; may be repeated",
    )
    run.add_argument(
        "--get", action="append", default=[], metavar="FILE", help="a file of the session to copy here afterwards; may be repeated"
    )
    run.add_argument("--force", action="store_true", help="with --get: replace files that exist")
    run.add_argument(
        "--with",
        dest="packages",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package to install first, if missing; may be repeated",
    )
    run.add_argument("--session", metavar="NAME", help="the session to run in; needs an Endpoint")
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="interrupt the cell after this time")
    run.add_argument("--network", metavar="none|host|DOMAIN,…", help=_NETWORK)
    run.add_argument("--full-traceback", action="store_true", help="show the frames in libraries of a traceback, too")
    shown = run.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the whole result as JSON when the cell has ended")
    shown.add_argument("--live", action="store_true", help=argparse.SUPPRESS)  # the default, which earlier versions had as an option
    run.add_argument("--endpoint", metavar="URL", help="the server or pool to use, by default the configured one")
    run.set_defaults(act=_run)


def _add_repl(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    repl = commands.add_parser("repl", help="use a session at the terminal")
    repl.add_argument("--session", metavar="NAME", help="the session to continue, which is not ended; needs an Endpoint")
    history = repl.add_mutually_exclusive_group()
    history.add_argument("--history", type=Path, metavar="FILE", help="keep typed cells in this file, by default a private one")
    history.add_argument("--no-history", action="store_true", help="do not keep typed cells when the command ends")
    repl.add_argument("--endpoint", metavar="URL", help="the server or pool to use, by default the configured one")
    repl.set_defaults(act=_repl)


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser("serve", help="serve sessions over HTTP, with Azure's API")
    serve.add_argument("--host", default="127.0.0.1", help=_HOST)
    serve.add_argument("--port", type=int, default=8080, help=_PORT)
    serve.add_argument("--socket", type=Path, metavar="PATH", help="listen on a socket file of this user alone, and not on a port")
    keys.add(serve)
    serve.add_argument(
        "--no-api-key", action="store_true", help="accept requests without a key; use it only behind a proxy that checks callers"
    )
    serve.add_argument(
        "--max-sessions",
        type=_count,
        metavar="N",
        help=f"the most sessions (default: {Hosting().max_sessions}); one more ends the least recently used, or is refused with --plain",
    )
    serve.add_argument(
        "--cooldown",
        type=_seconds,
        metavar="SECONDS",
        help=f"end a session that was not used for this time (default: {Hosting().cooldown:g})",
    )
    serve.add_argument(
        "--drain-seconds",
        type=partial(_seconds, least=0.0),
        default=0.0,
        metavar="SECONDS",
        help="on SIGTERM, wait up to this time until sessions have ended; cells that still run then get 5 s more (default: 0, do not wait)",
    )
    serve.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=_ALLOWED_HOST)
    serve.add_argument("--tls", action="store_true", help="use HTTPS, with a self-signed certificate that is made once")
    serve.add_argument(
        "--tls-dir",
        type=Path,
        default=Path(".aca-sessions"),
        metavar="DIR",
        help="the folder of cert.pem and key.pem (default: %(default)s)",
    )
    logs.add(serve)
    serve.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        type=_proxy,
        metavar="ADDRESS|CIDR|unix",
        help="a proxy whose X-Forwarded-For names its client, for the logs; `unix` for the one on --socket; may be repeated",
    )
    serve.add_argument("--access-log", action="store_true", help="log each request to standard error, with hashed names and keys")
    serve.add_argument("--metrics", action="store_true", help="serve metrics at /metrics, in Prometheus's text format")
    metrics_key = os.environ.get(keys.METRICS_KEY)
    serve.add_argument(
        "--metrics-key", default=metrics_key, metavar="KEY", help=f"a key that is accepted for /metrics only; better in ${keys.METRICS_KEY}"
    )
    serve.add_argument("--store", metavar="URL", help=_STORE)
    serve.add_argument("--audit", metavar="FILE", help="write a JSON line for each event, with hashed names and without code")
    serve.add_argument("--audit-code", action="store_true", help="write the code of cells to the audit log, too")
    serve.add_argument("--network", metavar="none|host|DOMAIN,…", help=_NETWORK)
    serve.add_argument(
        "--session-rules", action="store_true", help="let clients give their sessions networks with rules, for public addresses only"
    )
    serve.add_argument("--plain", action="store_true", help="offer Azure's API only, without extensions")
    serve.add_argument("--shell", action="store_true", help="serve shells: executions are commands, and their results have exit codes")
    serve.add_argument("--no-page", action="store_true", help="do not serve the playground at /")
    serve.add_argument("--lenient", action="store_true", help="accept requests that Azure refuses but some of its clients send")
    serve.set_defaults(act=_serve)


def _add_playground(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `playground`.

    It runs the code of `serve`. So options that only `serve` has are set to their defaults here.
    """
    playground = commands.add_parser("playground", help="use this machine's sandbox from a page in the browser, until Ctrl-C")
    playground.set_defaults(**vars(commands.choices["serve"].parse_args([])))
    playground.set_defaults(act=_playground, api_key=None, cooldown=_PLAYGROUND_IDLE_SECONDS)
    playground.add_argument("--port", type=int, default=0, help=_PORT)
    playground.add_argument(
        "--network", metavar="none|host|DOMAIN,…", help="what sessions reach: these domains, or all that this host does"
    )
    playground.add_argument("--store", metavar="URL", help=_STORE)
    playground.add_argument("--no-browser", action="store_true", help="print the address and open no browser")


def _add_mcp(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    mcp = commands.add_parser("mcp", help="serve sessions to MCP clients, on standard input and output or over HTTP")
    mcp.add_argument(
        "--tools",
        choices=("session", "all"),
        default="session",
        help="which tools to offer: `all` adds files, variables, checkpoints and more (default: %(default)s)",
    )
    mcp.add_argument("--http", action="store_true", help="serve streamable HTTP at /mcp, for many clients")
    mcp.add_argument("--host", help=_HOST % {"default": "127.0.0.1"})
    mcp.add_argument("--port", type=int, help=_PORT % {"default": 8000})
    keys.add(mcp)
    mcp.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=_ALLOWED_HOST)
    logs.add(mcp)
    mcp.set_defaults(act=_mcp)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)  # a later option with the same beginning would break scripts

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, but fail on unknown ones, so that the error comes with the usage of the command and not of the whole program."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def error(self, message: str) -> Never:
        super().error(message.replace(": CODE|FILE|-", ": CODE|FILE|- (code, a file, or - for code from standard input)"))


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{parser.prog} {__version__}")
        parser.exit()


def _seconds(text: str, *, least: float | None = None) -> float:
    """Return a number of seconds from an option: at least `least`, or above 0 if that is None."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 if least is None else least <= seconds) or seconds > MAX_ASYNCHRONOUS_SECONDS:
        lower = "above 0 and up" if least is None else f"from {least:g}"
        raise argparse.ArgumentTypeError(f"must be a number of seconds {lower} to {MAX_ASYNCHRONOUS_SECONDS:g}, got {text!r:.80}")
    return seconds


def _proxy(text: str) -> str:
    """Validate a trusted proxy from an option: an IP address, a network such as 10.0.0.0/8, or `unix` for a proxy on a socket file."""
    try:
        return text if text == "unix" else str(ipaddress.ip_network(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be an IP address, a network such as 10.0.0.0/8 without bits behind its prefix, or `unix`, got {text!r:.80}"
        ) from None


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST_SESSIONS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {_MOST_SESSIONS}, got {text!r:.80}")
    return int(text)


async def _create_environment(options: argparse.Namespace) -> int:
    """Create a Python environment from wheels. Print how to use it, and which packages it lacks because they have no wheel."""
    from ..connect import environments
    from ..settings import Settings

    own, missing = environments(Settings(), _print_progress), list[str]()
    if options.like:
        missing = await own.create_like(options.name, options.like, python=options.python, skip_missing=options.skip_missing)
    else:
        await own.create(options.name, requirements_file=_readable(options.requirements), python=options.python)
    if missing:
        print(f"left out, because they have no wheel: {', '.join(missing)}")
    print(
        f"created: to use it, `export ACASessions__Sandbox__Environment={options.name}`, or write into appsettings.json "
        f'{{"ACASessions": {{"Sandbox": {{"Environment": "{options.name}"}}}}}}'
    )
    return 0


async def _show_environments(_options: argparse.Namespace) -> int:
    """Print one line for each environment: name, version of Python, number of packages."""
    from ..connect import environments
    from ..settings import Settings

    listed = environments(Settings(), _print_progress).list_all()
    if not listed:
        _print_progress("no environments: `aca-sessions env create NAME -r requirements.txt` creates one")
    for one in listed:
        print(f"{one.name}  Python {one.python}  {one.packages} packages")
    return 0


async def _remove_environment(options: argparse.Namespace) -> int:
    """Remove a Python environment by its name."""
    from ..connect import environments
    from ..settings import Settings

    environments(Settings(), _print_progress).remove(options.name)
    _print_progress(f"[environment removed: {options.name}]")
    return 0


def _add_environments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `env` with its subcommands."""
    env = commands.add_parser("env", help="create, list and remove Python environments for sessions")
    own = env.add_subparsers(required=True, metavar="create|list|remove")
    making = own.add_parser("create", help="create an environment from wheels; sessions use it if Sandbox:Environment names it")
    making.add_argument("name", metavar="NAME", help="a name for the environment")
    what = making.add_mutually_exclusive_group(required=True)
    what.add_argument("-r", "--requirements", type=Path, metavar="FILE", help="a requirements.txt")
    what.add_argument("--like", choices=["azure"], help="the packages of Azure's own sessions, in the same versions")
    making.add_argument("--skip-missing", action="store_true", help="with --like: leave out packages that have no wheel for this Python")
    making.add_argument("--python", metavar="PATH", help="the Python of the environment, by default the one that runs this program")
    making.set_defaults(act=_create_environment)
    own.add_parser("list", aliases=["ls"], help="list environments").set_defaults(act=_show_environments)
    removing = own.add_parser("remove", aliases=["rm"], help="remove an environment")
    removing.add_argument("name", metavar="NAME", help="the name of the environment")
    removing.set_defaults(act=_remove_environment)


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr)


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise ConfigurationError(f"-r must name a file that exists, got {path}: name a requirements.txt")
    return path.absolute()
