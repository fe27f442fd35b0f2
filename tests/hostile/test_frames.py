"""Attack the pipe by which a session's frames reach the host."""

import asyncio

from aca_sessions import SessionPool
from aca_sessions.sandbox.policy import Policy
from aca_sessions.sandbox.sandboxes import Sandboxes

from ..conftest import IMAGE
from .attempts import is_well

BY_HAND = """
import gc, os, struct, threading, time
from aca_sessions.sandbox.wire import Cleared, frame
from aca_sessions.sandbox.guest.link import Link
link = next(one for one in gc.get_objects() if type(one) is Link)
"""
FLOOD = f"""{BY_HAND}
some = frame(Cleared(get_ipython().collected.execution)) * 200
for _ in range(100): os.write(link._said, some)
"""
TOO_LARGE_BETWEEN_CELLS = f"""{BY_HAND}
def later():
    while not link._being_read: time.sleep(0.001)
    os.write(link._said, struct.pack("<I", 3 << 20))
threading.Thread(target=later).start()
"""


async def test_a_flood_of_frames_slows_no_other_session(pool: SessionPool) -> None:
    """A session that floods its host with frames leaves others their turn: its own frames are held up."""
    async with pool.session() as bad, pool.session() as good:
        await good.run("1")
        flooding, cells = asyncio.create_task(bad.run(FLOOD)), 0
        while not flooding.done():
            assert (await good.run("6 * 7")).value == 42
            cells += 1
        assert (await flooding).success
        assert cells > 3  # of 20,000 frames that were read as they arrive, each of these cells would wait for a thousand
        assert await is_well(bad)


async def test_a_frame_may_not_exceed_the_current_limit() -> None:
    """The host limits each message of a session to what is possible at that moment: a larger one between two cells ends the interpreter."""
    async with Sandboxes(Policy(image=IMAGE, preload=(), spares=0)) as sandboxes:
        sandbox = await sandboxes.open()
        interpreter = await sandbox.interpreter()
        assert (await interpreter.run("1", TOO_LARGE_BETWEEN_CELLS, 60.0)).success
        async with asyncio.timeout(120):
            while interpreter.alive:
                await asyncio.sleep(0.01)
        fresh = await sandbox.interpreter()
        assert (await fresh.run("2", "6 * 7", 60.0)).value == 42
        assert interpreter.cause_of_death == "crash"
        await sandbox.close()
