"""Measure the interpreter."""

import json
import os
import platform
import threading
import time


def main(user: dict) -> None:
    """Print version, memory, uptime, threads and processor time as one line of JSON."""
    memory, uptime = measured()
    told = {"python": platform.python_version(), "memory": memory, "uptime": max(0.0, uptime)}
    print(json.dumps({**told, "threads": threading.active_count(), "cpu": time.process_time()}))


def measured() -> tuple:
    """Return memory in bytes and seconds since the start, or zeros if /proc cannot be read: some sessions do not see their own process."""
    try:
        with open("/proc/self/statm") as file:
            # The second field is the resident set size in pages (proc_pid_statm(5)).
            memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/stat") as file:
            # Field 22 of proc_pid_stat(5), the start in clock ticks after boot. The second field, a name in parentheses, may hold spaces.
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except PermissionError:
        return 0, 0.0
    return memory, time.clock_gettime(time.CLOCK_BOOTTIME) - started
