"""The command line: run a cell, serve sessions, report this host's isolation. Each command imports what it needs when it runs."""

import argparse
import asyncio
import inspect
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ..contract.records import MAX_ASYNCHRONOUS_SECONDS
from ..errors import ACASessionsError
from ..guest_text import printable
from . import environments, keys, playground, remote_files, remote_sessions
from .mcp import command as mcp_command
from .standard_streams import flush, output_problem, prepare, silence, tell

_FAILED, _UNUSABLE = 1, 2
_BROKEN_PIPE = 128 + 13  # a shell's exit code for SIGPIPE, which not every system has
_MOST_SESSIONS = 100_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of a command line and exit with its status: 2 if it could not be carried out, 130 after Ctrl-C."""
    try:
        status = _act(arguments)
        flush()
    except ACASessionsError as error:
        tell(f"aca-sessions: {printable(str(error), colours=False)}")
        status = _UNUSABLE
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        status = _output_failed(error)
    silence()
    sys.exit(status)


def _act(arguments: Sequence[str] | None) -> int:
    prepare()
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as ended:  # after --help, or an error that argparse has printed
        return cast(int, ended.code)
    # A program that calls `main` with arguments of its own has its own command line, which must not be started anew.
    if arguments is None:
        keys.hide()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    acting = options.act(options)
    return cast(int, asyncio.run(acting) if inspect.iscoroutine(acting) else acting)


def _output_failed(error: OSError) -> int:
    """Return the exit code if standard output cannot be written. Raise any other error again: it is a bug."""
    problem = output_problem()
    if isinstance(error, BrokenPipeError) or isinstance(problem, BrokenPipeError):
        return _BROKEN_PIPE  # the reader is gone
    if problem is None:
        raise error
    tell(f"aca-sessions: standard output cannot be written: {problem.strerror}")
    return _UNUSABLE


async def _run(options: argparse.Namespace) -> int:
    from . import running

    return await running.run(options)


def _repl(options: argparse.Namespace) -> int:
    from .repl import repl

    return repl(options)


async def _serve(options: argparse.Namespace) -> int:
    from .serving import serve

    return await serve(options)


async def _doctor(options: argparse.Namespace) -> int:
    if options.endpoint:
        from ..settings import Settings
        from .remote_doctor import examine

        return 0 if await examine(Settings(Endpoint=options.endpoint)) else _FAILED
    from ..connect import isolation_report

    report = await isolation_report()
    print(report)
    return 0 if report.full else _FAILED


async def _conformance(options: argparse.Namespace) -> int:
    from ..settings import Settings
    from .conformance import examine

    return 0 if await examine(Settings(Endpoint=options.endpoint), options.report) else _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aca-sessions", description="Isolated Python sessions.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_repl(commands)
    _add_serve(commands)
    doctor = commands.add_parser("doctor", help="what isolation this host gives, item by item; exit 1 if it is not full")
    doctor.add_argument("--endpoint", metavar="URL", help="look at a server or pool instead, step by step; exit 1 if one fails")
    doctor.set_defaults(act=_doctor)
    for group in (playground, remote_files, remote_sessions, environments, mcp_command):
        group.add(commands)
    conformance = commands.add_parser("conformance", help="what an endpoint's API answers, beside what ours does; exit 1 if they differ")
    conformance.add_argument("--endpoint", metavar="URL", required=True)
    conformance.add_argument("--report", type=Path, metavar="FILE", help="write all observations as JSON")
    conformance.set_defaults(act=_conformance)
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser("run", help="run one cell; exit 1 if it fails")
    run.add_argument("code", metavar="CODE|-", help="Python source, or - to read it from standard input")
    run.add_argument("--file", type=Path, action="append", default=[], metavar="PATH", help="a file for /mnt/data; may be repeated")
    run.add_argument("--session", metavar="NAME", help="the session to run in; needs an Endpoint")
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="interrupt the cell after this time")
    shown = run.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the whole result as JSON, when the cell is over")
    shown.add_argument("--live", action="store_true", help="print its output while it runs; Ctrl-C interrupts it, and its result is told")
    run.add_argument("--endpoint", metavar="URL", help="a server or pool, in place of the configured one")
    run.set_defaults(act=_run)


def _add_repl(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    repl = commands.add_parser("repl", help="a session at the terminal")
    repl.add_argument("--session", metavar="NAME", help="the session to go on with, which is not ended; needs an Endpoint")
    repl.add_argument("--history", type=Path, metavar="FILE", help="keep what is typed in a file, in place of forgetting it at the end")
    repl.add_argument("--endpoint", metavar="URL", help="a server or pool, in place of the configured one")
    repl.set_defaults(act=_repl)


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser("serve", help="serve sessions over HTTP, in Azure's own API")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    serve.add_argument("--socket", type=Path, metavar="PATH", help="a socket file of this user alone, in place of a port")
    keys.add(serve)
    serve.add_argument(
        "--no-api-key", action="store_true", help="answer all who reach it: where something in front checks them, as in Azure"
    )
    serve.add_argument(
        "--max-sessions",
        type=_count,
        metavar="N",
        help="the least recently used one ends when there are more; with --plain one more is refused",
    )
    serve.add_argument("--cooldown", type=_seconds, metavar="SECONDS", help="an unused session ends after this time")
    serve.add_argument(
        "--drain-seconds",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="on SIGTERM, let sessions end by themselves for so long; cells that still run then get 5 s more",
    )
    serve.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="a Host to accept besides loopback; * for all")
    serve.add_argument("--tls", action="store_true", help="HTTPS, with a certificate of its own that is made once")
    serve.add_argument("--tls-dir", type=Path, default=Path(".aca-sessions"), metavar="DIR", help="where cert.pem and key.pem are kept")
    serve.add_argument("--access-log", action="store_true", help="a line for each request on standard error; names of sessions are hashed")
    serve.add_argument("--metrics", action="store_true", help="numbers in Prometheus's text at /metrics")
    metrics_key = os.environ.get(keys.METRICS_KEY)
    serve.add_argument("--metrics-key", default=metrics_key, metavar="KEY", help=f"opens /metrics alone; better in ${keys.METRICS_KEY}")
    serve.add_argument("--audit", metavar="FILE", help="a JSON line for each event; names are hashed, and no code is in it")
    serve.add_argument("--audit-code", action="store_true", help="the code of cells as well")
    serve.add_argument("--network", metavar="none|host|DOMAIN,…", help="what sessions reach: these domains, or all that this host does")
    serve.add_argument("--plain", action="store_true", help="what Azure has and no more: no extensions")
    serve.add_argument("--shell", action="store_true", help="a pool of shells: executions are commands, answered with their exit code")
    serve.add_argument("--no-page", action="store_true", help="without the playground, which is at / else")
    serve.add_argument("--lenient", action="store_true", help="take requests that Azure refuses, as some of its clients send them")
    serve.set_defaults(act=_serve)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_ASYNCHRONOUS_SECONDS:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0 and up to {MAX_ASYNCHRONOUS_SECONDS:g}")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST_SESSIONS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {_MOST_SESSIONS}")
    return int(text)


if __name__ == "__main__":
    main()
