"""An event loop in a thread of its own, for callers without `await`."""

from concurrent.futures import Future
from threading import Thread

import anyio
from anyio.from_thread import BlockingPortal


class LoopThread:
    """A portal whose event loop runs in a thread, for the block.

    It is not a generator, unlike `anyio.from_thread.start_blocking_portal`: Python closes forgotten generators. In a process that was
    forked from this one, which has no such thread, closing would wait forever.
    """

    def __init__(self) -> None:
        self._started: Future[BlockingPortal] = Future()
        self._thread = Thread(target=self._work, daemon=True, name="aca-sessions-loop")

    def __enter__(self) -> BlockingPortal:
        self._thread.start()
        return self._started.result()

    def __exit__(self, *_: object) -> None:
        portal = self._started.result()
        portal.call(portal.stop)
        self._thread.join()

    def _work(self) -> None:
        try:
            anyio.run(self._run)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)  # for example: no descriptor is left for a loop

    async def _run(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()
