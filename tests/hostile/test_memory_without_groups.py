"""Test memory outside of processes, of sockets and files, if control groups count it and if the host polls it."""

import functools
import json
import subprocess
import sys
from typing import Any

import pytest

from ..conftest import ROOT, mostly_long

pytestmark = pytest.mark.slow
EACH = pytest.mark.parametrize("groups", mostly_long([True, False], False), ids=["as it is", "without groups"])
_PROGRAM = '''
import asyncio, json, os
from aca_sessions import Limits, Policy, open_pool
from aca_sessions.sandbox.policy import MB, Together

FILL = """
import socket, struct, time
def unix():
    return socket.socketpair()
def tcp():
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return socket.create_connection(listener.getsockname()), listener.accept()[0]
def udp():
    ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for end in ends: end.bind(('127.0.0.1', 0)); end.connect(end.getsockname())
    return ends
def fill(end):
    end.setblocking(False)
    try:
        for _ in range(60): end.send(b'x' * 8192)
    except OSError: pass
def held_by(end):
    received, _, sent, _, _, queued = struct.unpack_from('6I', end.getsockopt(socket.SOL_SOCKET, 55, 64))
    return received + max(sent, queued)
kept = []
while len(kept) < 960:
    kept += {make}()
    fill(kept[-2]); fill(kept[-1])
held = sum(map(held_by, kept))
if held > 64 << 20: time.sleep(60)
held
"""
WRITE = """
written = 0
for path in ('/mnt/data/f', '/tmp/f', '/dev/shm/f'):
    try:
        with open(path, 'wb', buffering=0) as file:
            for _ in range(200): written += file.write(bytes(1 << 20))
    except OSError: pass
written
"""

def small(megabytes, **others):
    return open_pool(policy=Policy(limits=Limits(memory=megabytes * MB), preload=(), spares=0, **others))

async def sockets(kind):
    async with small(64) as pool, pool.session() as session, pool.session() as other:
        await other.run("x = 1")
        await session.upload_file("kept.txt", b"kept")
        result = await session.run(FILL.replace("{make}", kind), timeout=200)
        again = await session.run("open('kept.txt').read()")
        return str(result.state), result.value, str((await other.run("x")).state), again.value

async def files():
    async with small(128) as pool, pool.session() as session:
        written = (await session.run(WRITE)).value
        info, = await pool._interpreter.list_sessions()
        isolation = (await session.health()).isolation["memory of a session"]
        return written, info.memory, str((await session.run("written")).state), isolation

async def together():
    """A share of this machine's memory that is about 100 MB, and two sessions with 80 MB of files each."""
    share = 100 * MB / (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    async with small(1024, together=Together(memory_share=share)) as pool, pool.session() as one, pool.session() as two:
        write = "open('f', 'wb').write(bytes(80 << 20))"
        first = (await one.run(write)).value
        sleep = "import time; time.sleep(150)"
        running = [asyncio.create_task(run) for run in (one.run(sleep, timeout=200), two.run(f"{write}; {sleep}", timeout=200))]
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        return first, [str(task.result().state) for task in done]

async def main():
    told = {kind: await sockets(kind) for kind in ("unix", "tcp", "udp")}
    print(json.dumps(told | {"files": await files(), "together": await together()}))

asyncio.run(main())
'''


@functools.cache
def measured(*, groups: bool) -> dict[str, Any]:
    """Return the results of a program that opens sessions. Without groups it finds no control group."""
    condition = [] if groups else [sys.executable, "-m", "tests.conditions", "no_cgroups"]
    done = subprocess.run([*condition, sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=550, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@EACH
@pytest.mark.parametrize("kind", mostly_long(["unix", "tcp", "udp"], "unix"))
@pytest.mark.long
def test_memory_of_sockets_belongs_to_the_session(kind: str, groups: bool) -> None:
    """What a session's sockets hold is bounded by its memory limit: above it, the session ends or sends wait; others notice nothing."""
    state, held, *others = measured(groups=groups)[kind]
    assert state == "lost: memory" or held <= 64 << 20
    assert others == ["kept", "kept"]


@EACH
@pytest.mark.long
def test_files_take_no_more_memory_than_the_session_may(groups: bool) -> None:
    """A session's files have no more memory than the session may have, and are reported as its own memory."""
    written, memory, state, _ = measured(groups=groups)["files"]
    assert written >> 20 in range(100, 129)
    assert memory >= written
    assert state == "kept"


@pytest.mark.long
@EACH
def test_files_count_to_the_memory_of_all_sessions(groups: bool) -> None:
    """The files of all sessions count to the memory limit that the sessions share. Above it, one of the sessions ends."""
    assert measured(groups=groups)["together"] == [80 << 20, ["lost: memory"]]


@pytest.mark.long
@EACH
def test_uncounted_memory_is_reported(groups: bool) -> None:
    """A session's `isolation` lists the kinds of memory that are not counted, with and without control groups."""
    isolation = measured(groups=groups)["files"][3]
    assert ("branches and checkpoints included" in isolation) != ("; not counted: " in isolation)  # an ordinary user may make no groups
    assert groups or "processes and sockets, looked at" in isolation
