"""Tells how the interpreter fares."""

import json
import os
import platform
import threading
import time


def main(user: dict) -> None:
    """Prints one line of JSON."""
    memory, uptime = measured()
    told = {"python": platform.python_version(), "memory": memory, "uptime": max(0.0, uptime)}
    print(json.dumps({**told, "threads": threading.active_count(), "cpu": time.process_time()}))


def measured() -> tuple:
    """Memory and time since the start; a session without a view of its own process knows neither."""
    try:
        with open("/proc/self/statm") as file:
            memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/stat") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except PermissionError:
        return 0, 0.0
    return memory, time.clock_gettime(time.CLOCK_BOOTTIME) - started
