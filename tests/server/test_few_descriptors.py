"""Test a process with few descriptors: a session that would run out is refused with an error, and existing sessions continue."""

import re
import subprocess
import sys

import pytest

from ..conftest import mostly_long

pytestmark = pytest.mark.slow

POOL = """
import asyncio
from aca_sessions import Policy, Settings, open_pool
from aca_sessions.errors import RateLimitedError

async def main():
    settings = Settings(SessionsHttpClient={"PatienceSeconds": 1})
    async with open_pool(settings, policy=Policy(preload=(), spares=0), max_concurrent_sessions=200) as pool:
        sessions = []
        try:
            while True:
                sessions.append(await pool.get_or_create(str(len(sessions))))
                await sessions[-1].run(f"x = {len(sessions)}")
        except RateLimitedError as error:
            refused = sessions.pop()
            print(error)
        print(len(sessions))
        for number, session in enumerate(sessions):
            result = await session.run("x")
            assert (result.value, str(result.state)) == (number + 1, "kept"), result
        await sessions[0].upload_file("a.txt", b"hello")
        await sessions[0].checkpoint()
        await sessions[0].reset()
        assert await sessions[0].download_file("a.txt") == b"hello"
        await pool.terminate("1")
        print((await refused.run("6 * 7")).value)

asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "limit", mostly_long(["ulimit -n 256", "ulimit -Sn 100; ulimit -Hn 200"], "ulimit -n 256"), ids=["both limits", "a lower soft limit"]
)
def test_a_session_is_refused_before_descriptors_run_out(limit: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{limit}; exec {sys.executable} -c '{POOL}'"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stderr == ""
    refusal, count, again = done.stdout.splitlines()
    assert re.fullmatch(
        r"the service answered 429 SessionsCountExceedsLimit: \d+ file descriptors are open on the server, .*raise `ulimit -n` .*", refusal
    )
    assert int(count) >= 10
    assert again == "42"
