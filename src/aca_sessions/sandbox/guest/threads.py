"""End threads that libraries have started before the interpreter is forked, and start them again after the fork.

Only the thread that calls fork(2) exists in the fork, so other threads make a checkpoint impossible. This module ends only threads that can
be started again with nothing lost: tqdm's monitor, IPython's history writer, the thread of its `%%bash --bg` and such, and the workers
of `asyncio.to_thread`. It never ends others.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .notebook.loop import Loop
    from .notebook.shell import Shell

_PATIENCE = 2.0  # seconds for a thread to end
_LOOKS = 2000  # at half a millisecond
_ended: list[Callable[[], object]] = []  # functions that start the threads which `pause` ended


def pause(shell: Shell) -> None:
    """End the threads that can be started again. If others run, end only that of `%%bash --bg`: the interpreter is not forked then."""
    _end_script_loop(shell)
    loop = shell.loop_runner
    if lasting(loop):
        return
    found = others()
    for thread in found:
        if (end := _ENDINGS.get(_class_of(thread))) is not None:
            _ended.append(end(thread))
    loop.drop_workers()
    deadline = time.monotonic() + _PATIENCE
    for thread in found:
        thread.join(max(0.0, deadline - time.monotonic()))


def go_on() -> None:
    """Restart the threads that `pause` ended. A fork calls this as well, because only one thread exists in it."""
    while _ended:
        with contextlib.suppress(RuntimeError):  # no thread can be started: their libraries work without
            _ended.pop()()


def others() -> list[threading.Thread]:
    """Return all Python threads of this process except the calling one."""
    return [thread for thread in threading.enumerate() if thread is not threading.current_thread()]


def lasting(loop: Loop) -> list[threading.Thread]:
    """Return the threads, other than the calling one, that cannot be ended and started again."""
    workers = loop.workers()
    return [thread for thread in others() if _class_of(thread) not in _ENDINGS and thread not in workers]


def count_in_kernel() -> int:
    """Return how many threads besides the calling one the kernel has. Wait a few seconds for threads that have just ended."""
    # `join` returns a moment before the kernel's thread is gone. Looks are counted, because this process may be stopped between two.
    for _ in range(_LOOKS):
        if not (count := len(os.listdir("/proc/self/task")) - 1):
            break
        time.sleep(0.0005)
    return count


def names_in_kernel() -> list[str]:
    """Return the names of the threads besides the calling one that the kernel has, which libraries give them, such as `polars-0`."""
    found = []
    for number in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has just ended
            if int(number) != threading.get_native_id():
                with open(f"/proc/self/task/{number}/comm", errors="replace") as name:
                    found.append(name.read().strip())
    return sorted(found)


def renew_locks() -> None:
    """Give tqdm a new lock in a fork. Its default lock is shared with the parent, which may have been killed while it held the lock."""
    std = sys.modules.get("tqdm.std")
    lock = getattr(std, "TqdmDefaultWriteLock", None)
    if std is None or lock is None or getattr(lock, "mp_lock", None) is None or type(std.tqdm.get_lock()) is not lock:
        return
    del lock.mp_lock
    std.tqdm.set_lock(lock())


def _end_script_loop(shell: Shell) -> None:
    """End the thread that waits for the programs of `%%bash --bg` and such, if none runs. The next such cell starts another."""
    scripts: Any = shell.magics_manager.registry.get("Scripts")
    loop = getattr(scripts, "event_loop", None)
    if loop is None or not hasattr(scripts, "stop_event_loop"):  # older releases of IPython cannot end the thread
        return
    if not asyncio.all_tasks(loop) and all(process.returncode is not None for process in scripts.bg_processes):
        scripts.stop_event_loop()


def _class_of(thread: threading.Thread) -> tuple[str, str]:
    return type(thread).__module__, type(thread).__qualname__


def _end_monitor(thread: Any) -> Callable[[], object]:
    """End the thread that redraws tqdm's bars. Return a function that starts it again."""
    thread.was_killed.set()
    for name in ("exit", "_atexit_signal"):  # each monitor registers one of them, which would keep all monitors in memory
        atexit.unregister(getattr(thread, name, None))  # type: ignore[arg-type]

    def start() -> None:
        bars = thread.tqdm_cls
        replacement = type(thread)(bars, thread.sleep_interval)
        if bars.monitor is thread:
            bars.monitor = replacement

    return start


def _end_history(thread: Any) -> Callable[[], object]:
    """End the thread that writes the history of an IPython shell to its database. Return a function that starts it again."""
    thread.stop()

    def start() -> None:
        held = thread.history_manager
        manager = held() if isinstance(held, weakref.ref) else held
        # IPython 9 ends the thread by itself before a fork, then sets None, and starts another in the parent only.
        if manager is not None and manager.save_thread in (thread, None):
            manager.save_thread = type(thread)(manager)
            manager.save_thread.start()

    return start


_ENDINGS: dict[tuple[str, str], Callable[[Any], Callable[[], object]]] = {
    ("tqdm._monitor", "TMonitor"): _end_monitor,
    ("IPython.core.history", "HistorySavingThread"): _end_history,
}
