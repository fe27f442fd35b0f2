"""Kill every part of the sandbox at every step."""

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from aca_sessions import Policy, Session, open_pool
from aca_sessions.errors import ACASessionsError
from aca_sessions.models import CodeExecutionResult
from aca_sessions.sandbox.forkserver import ForkServer

from ..conftest import IMAGE, descendants, mostly_long
from .attempts import is_well

pytestmark = pytest.mark.slow
OWN = Policy(image=IMAGE, preload=("colorsys",), spares=0)
STEPS: dict[str, Callable[[Session], Awaitable[object]]] = {
    "a first cell": lambda session: session.run("x = 1"),
    "a display": lambda session: session.run("display('shown')"),
    "an upload": lambda session: session.upload_file("a.txt", b"a"),
    "a second cell": lambda session: session.run("x + 1"),
    "a listing": lambda session: session.list_files(),
    "a download": lambda session: session.download_file("a.txt"),
    "a reset": lambda session: session.reset(),
    "a last cell": lambda session: session.run("'x' in globals()"),
}


def kill(depth: int, server: ForkServer) -> None:
    """Kill the processes of one depth below a fork server's launcher: helpers, the zygote, inits, interpreters."""
    generation = {server.process.pid}
    for _ in range(depth):
        below = {child for pid in generation for child in descendants(pid)}
        generation = below - {child for pid in below for child in descendants(pid)}
    for pid in generation:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("depth", mostly_long([0, 2, 3, 4], 0, 3))
@pytest.mark.parametrize("step", mostly_long(STEPS, "a second cell"))
async def test_each_part_may_die_before_each_step(depth: int, step: str) -> None:
    """Whatever of the sandbox dies before whatever step, each later step succeeds, says truthfully what was lost, or fails clearly."""
    async with open_pool(policy=OWN) as pool:
        server = next(one for key, one in ForkServer._shared.items() if key.preload == OWN.preload)
        async with pool.session() as session:
            losses = []
            for name, act in STEPS.items():
                if name == step:
                    kill(depth, server)
                try:
                    became = await act(session)
                except ACASessionsError:
                    continue
                if isinstance(became, CodeExecutionResult) and became.state.kind != "kept":
                    losses.append(str(became.state))
            assert len(losses) <= 3, "told by the cell that was lost, by those that found no fork server, and by the fresh session"
        async with pool.session() as fresh:
            assert await is_well(fresh) or await is_well(fresh)
