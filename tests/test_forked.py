"""Test a process that is forked from a host program: it is refused at once, closes nothing of its parent's, and blocks nothing."""

import subprocess
import sys

import pytest

from .conftest import mostly_long

HEAD = """
import asyncio, gc, multiprocessing, os, sys, warnings
import httpx
from aca_sessions import InteractiveSession, Policy, open_pool, open_server
from aca_sessions.errors import ForkedProcessError

POLICY = Policy(preload=(), spares=0)
FORK = multiprocessing.get_context("fork")
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # from 3.12 on: it is what is tested here

def refused(*uses):
    for use in uses:
        try:
            asyncio.run(use())
        except ForkedProcessError as error:
            print("refused:", str(error).partition(":")[2].strip(), flush=True)

async def ended(child):
    await asyncio.to_thread(child.join)
    print("the child ended with", child.exitcode, flush=True)
"""

POOL = """
def child(opening, pool, session):
    refused(lambda: session.run("1"), lambda: session.upload_file("f", b""), lambda: pool.get_or_create(), lambda: pool.terminate("s"))
    async def close():
        await pool.release("s")
        await pool.close()
        await opening.__aexit__(None, None, None)
    asyncio.run(close())
    del opening, pool, session
    gc.collect()

async def main():
    opening = open_pool(policy=POLICY)
    async with opening as pool, pool.session("s") as session:
        await session.run("x = 42")
        process = FORK.Process(target=child, args=(opening, pool, session))
        process.start()
        await ended(process)
        print((await session.run("x")).value)

asyncio.run(main())
"""

INTERACTIVE = """
with InteractiveSession(policy=POLICY) as session:
    session.run("x = 42")
    live = session.stream("1")
    sys.stdout.flush()
    if os.fork() == 0:
        async def run(): session.run("1")
        async def follow(): next(iter(live))
        async def read(): session.write_script("script.py")
        async def upload(): session.upload_file("f", b"")
        refused(run, follow, read, upload)
        session.close()
        del session, live
        gc.collect()
        sys.exit(0)
    print("the child ended with", os.wait()[1])
    for event in live:
        pass
    print(session.run("x").value)
"""

SERVER = """
async def ask(app):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return (await client.get("/health")).status_code

async def main():
    async with open_server(policy=POLICY) as app:
        process = FORK.Process(target=lambda: refused(*4 * [lambda: ask(app)]))
        process.start()
        await ended(process)
        print(42 if await ask(app) == 200 else "the server is in the way")

asyncio.run(main())
"""

CLOSED = """
async def main():
    opening = open_pool(policy=POLICY)
    pool = await opening.__aenter__()
    async with pool.session() as session:
        await session.run("1")
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    await opening.__aexit__(None, None, None)
    print("closed")  # the child lives, and has every descriptor of the pool open
    os.close(writing)
    os.wait()

asyncio.run(main())
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", HEAD + program], capture_output=True, text=True, timeout=240, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("program", mostly_long([POOL, INTERACTIVE, SERVER], POOL), ids=["pool", "interactive", "server"])
def test_a_forked_process_is_refused_and_ends_nothing(program: str) -> None:
    advice = "refused: open another one here, or start processes with multiprocessing's 'spawn'\n"
    text = run(program)
    assert "was forked" not in text  # the advice follows the colon
    assert text == 4 * advice + "the child ended with 0\n42\n"


def test_a_pool_closes_while_a_forked_process_lives() -> None:
    assert run(CLOSED) == "closed\n"
