"""Run our command line, or a program that uses our package, in a process that pretends to run on another system.

`python -m tests.elsewhere darwin|win32 COMMAND …`, or `… PROGRAM.py`. Other projects' libraries detect the system themselves and are loaded
before. Our package is loaded after. It finds no module that only Unix has, and may load nothing of the sandbox or the server but plain
data.
"""

import builtins
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

OF_UNIX = {"fcntl", "resource", "grp", "pwd", "termios", "tty", "pty"}
OTHERS = ("asyncio", "ctypes", "multiprocessing", "ssl", "httpx", "anyio._backends._asyncio", "pydantic_settings")
OTHERS_OF = {
    "mcp": ("mcp.client.stdio", "mcp.server.stdio"),
    "serve": ("starlette.applications", "uvicorn", "cryptography.x509"),
    "plugin.py": ("semantic_kernel",),
}
PLAIN = {"", ".policy", ".hosts", ".remedy", ".named_environments", ".environment"}

_import = builtins.__import__


def _import_without_unix(
    name: str, importer: Mapping[str, Any] | None = None, local: Any = None, names: Any = (), level: int = 0
) -> ModuleType:
    if name.partition(".")[0] in OF_UNIX and str((importer or {}).get("__name__")).startswith("aca_sessions"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _import(name, importer, local, names, level)


def become(platform: str, command: str) -> None:
    """Pretend from here on that this process runs on another system."""
    for name in (*OTHERS, *OTHERS_OF.get(Path(command).name, ())):
        __import__(name)
    sys.platform = platform
    builtins.__import__ = _import_without_unix


def loaded_of_the_wall() -> set[str]:
    """Return the modules of the sandbox and the server that were loaded and are more than data."""
    own = {name.removeprefix("aca_sessions.sandbox") for name in sys.modules if name.startswith("aca_sessions.sandbox")}
    return (own - PLAIN) | {name for name in sys.modules if name.startswith("aca_sessions.server")}


if __name__ == "__main__":
    become(sys.argv[1], sys.argv[2])
    if sys.argv[2].endswith(".py"):
        runpy.run_path(sys.argv[2], run_name="__main__")
    else:
        from aca_sessions.cli.main import main

        try:
            main(sys.argv[2:])
        finally:
            assert not loaded_of_the_wall(), loaded_of_the_wall()
