"""The interpreter's main loop: it receives cells, runs them and sends their results."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

from ..wire import Command, Extend, Finished, Fork, Ping, Restore, Run, Save, Started, WarmUp
from . import saves, snapshots, threads
from .folders import CERTIFICATE_VARIABLES, session_folders
from .link import Link, flush_streams, interrupts, restore_streams
from .notebook import commands, modules

if TYPE_CHECKING:
    from .notebook.shell import Shell


def serve(link: Link, shell: Shell, *, proxy: tuple[str, int, str] | None, has_authority: bool) -> None:
    """Run cells and send their results, until the host closes the link.

    `proxy` is the host and port of the session's HTTP proxy, and the hosts that are reached without it. `has_authority` is true if the
    session trusts the authority of that proxy.
    """
    snapshots.reseed()
    gc.enable()
    os.environ.clear()
    os.environ.update(_environment() | (_proxy_variables(*proxy) if proxy else {}) | (CERTIFICATE_VARIABLES if has_authority else {}))
    saves.environment.update(os.environ)
    interrupts.install_handler()
    snapshots.count_own_sockets()
    own_pid = os.getpid()
    for cell in link.cells(shell.loop_runner):
        snapshots.leave_deleted_folder()
        saves.reap_forks()
        if isinstance(cell, Fork):
            finished = snapshots.fork(cell, link, shell)
            if finished is None:
                own_pid = os.getpid()
                continue
        elif isinstance(cell, (Save, Restore)):
            finished = saves.save(cell, link, shell) if isinstance(cell, Save) else saves.restore(cell, link, shell)
        else:
            finished = _run(cell, link, shell)
        interrupts.forbid()  # again: an interrupt may have come just before the cell's end did this
        snapshots.remember_folder()
        flush_streams()
        restore_streams()
        if os.getpid() != own_pid:
            os._exit(0)  # a child of os.fork() in a cell, which ran on to the cell's end: only the parent sends the result
        link.send(finished)


def _run(cell: Run | Command | WarmUp | Ping | Extend, link: Link, shell: Shell) -> Finished:
    if isinstance(cell, Run):
        threads.go_on()
        return shell.run(cell, link.send, link.ask)
    if isinstance(cell, Command):
        return commands.run_command(cell, link.send)
    if isinstance(cell, Extend):
        return modules.use_packages(cell, link.send)
    link.send(Started(cell.execution))
    if isinstance(cell, WarmUp):
        shell.warm_up()
    return Finished(cell.execution, None, None, None, "", "", [], [])


def _environment() -> dict[str, str]:
    own = session_folders.temporary
    return {
        "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin",
        "HOME": session_folders.data,
        "USER": "user",
        "LOGNAME": "user",
        "SHELL": "/bin/bash",
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "TMPDIR": own,
        "XDG_CACHE_HOME": f"{own}/.cache",  # caches and settings of libraries do not belong among the session's files
        "XDG_CONFIG_HOME": f"{own}/.config",
        "IPYTHONDIR": f"{own}/.ipython",
        "MPLCONFIGDIR": f"{own}/.matplotlib",
        "PLOTLY_RENDERER": "plotly_mimetype",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": modules.CHILDREN,
        # One thread for each library: a thread pool would take every core, and threads do not survive the fork of a checkpoint.
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }


def _proxy_variables(host: str, port: int, no_proxy: str) -> dict[str, str]:
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    variables = dict.fromkeys(names, f"http://{host}:{port}") | {"NO_PROXY": no_proxy}
    return variables | {name.lower(): value for name, value in variables.items()}
