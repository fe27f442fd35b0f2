"""Test that a server with 1,000 sessions ends within its documented time when it is asked to."""

import asyncio
import os
import signal
import time

import pytest

from aca_sessions import Settings, open_interpreter

from ..cli.test_cli import Server

SESSIONS = 1000
KEY = "the-key-of-these-tests"
MEMORY = 20 << 30  # bytes, of which the sessions take about half


@pytest.mark.long
@pytest.mark.skipif(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < MEMORY, reason="1,000 sessions need a machine with 20 GB")
async def test_a_server_with_a_thousand_sessions_ends_when_asked() -> None:
    with Server("--port", "0", "--api-key", KEY, "--max-sessions", str(SESSIONS)) as server:
        settings = Settings(SessionsHttpClient={"Endpoint": server.endpoint, "ApiKey": KEY})
        async with open_interpreter(settings) as interpreter:
            some = asyncio.Semaphore(16)

            async def run(number: int) -> object:
                async with some:
                    return (await interpreter.execute(f"s{number}", f"{number} + 1")).value

            assert await asyncio.gather(*map(run, range(SESSIONS))) == [number + 1 for number in range(SESSIONS)]
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 120) == 0
        print(f"{SESSIONS} sessions ended in {time.monotonic() - asked:.1f} s")
