"""`aca-sessions mcp`: the server for one client on standard input and output, or for many over HTTP."""

import argparse

from .. import keys


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its options."""
    mcp = commands.add_parser("mcp", help="serve sessions to MCP clients, on standard input and output or over HTTP")
    mcp.add_argument("--tools", choices=("session", "all"), default="session", help="all adds files, variables, checkpoints and more")
    mcp.add_argument("--http", action="store_true", help="streamable HTTP at /mcp, for many clients")
    mcp.add_argument("--host", default="127.0.0.1")
    mcp.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    keys.add(mcp)
    mcp.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="a Host to accept besides loopback; * for all")
    mcp.set_defaults(act=_mcp)


async def _mcp(options: argparse.Namespace) -> int:
    from .serving import serve_http, serve_stdio

    return await (serve_http(options) if options.http else serve_stdio(options))
