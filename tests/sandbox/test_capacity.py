"""How many further sessions fit on a machine, whose /proc and /sys are folders of plain files here."""

import re
from pathlib import Path

import pytest

from aca_sessions import Policy
from aca_sessions.sandbox.limits.capacity import capacity
from aca_sessions.sandbox.policy import MB

GROUPS = {"memory.max": "8589934592", "memory.current": "4294967296", "memory.stat": "anon 1\ninactive_file 1073741824\n"}
FIRST = {
    "memory/memory.limit_in_bytes": GROUPS["memory.max"],
    "memory/memory.usage_in_bytes": GROUPS["memory.current"],
    "memory/memory.stat": "inactive_file 1024\ntotal_inactive_file 1073741824\n",
}


def fits(system: Path, *, available: int = 15 << 20, running: int = 768, groups: dict[str, str] | None = None) -> tuple[int, int]:
    """Return for how many idle sessions of 1 MB there is memory, and for how many there are processes."""
    files = {
        "proc/meminfo": f"MemTotal:       {16 << 20} kB\nMemFree:        1 kB\nMemAvailable:   {available} kB\n",
        "proc/loadavg": f"0.1 0.2 0.3 2/{running} 4711\n",
        "proc/sys/kernel/pid_max": "32768\n",
        "proc/sys/kernel/threads-max": "4096\n",
    }
    for name, text in (files | {f"sys/fs/cgroup/{name}": text for name, text in (groups or {}).items()}).items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(text)
    found = re.search(r"memory for (\d+) that are idle .* processes for (\d+) ", str(capacity(Policy(), MB, system)))
    return int(found[1]), int(found[2])


def test_an_idle_machine_gives_its_sessions_their_share_of_the_memory(tmp_path: Path) -> None:
    assert fits(tmp_path)[0] == 12 << 10


def test_a_busy_machine_has_as_much_memory_as_is_free(tmp_path: Path) -> None:
    assert fits(tmp_path, available=3 << 20)[0] == 3 << 10


@pytest.mark.parametrize("groups", [GROUPS, FIRST], ids=["version 2", "version 1"])
def test_a_busy_container_has_what_it_does_not_use_and_its_cached_files(tmp_path: Path, groups: dict[str, str]) -> None:
    assert fits(tmp_path, groups=groups)[0] == 5 << 10


def test_processes_that_run_already_take_places(tmp_path: Path) -> None:
    assert fits(tmp_path)[1] == (4096 - 768) // 2
    assert fits(tmp_path, running=5000)[1] == 0


@pytest.mark.parametrize("folder", ["", "pids/"], ids=["version 2", "version 1"])
def test_processes_of_the_container_take_places(tmp_path: Path, folder: str) -> None:
    assert fits(tmp_path, groups={f"{folder}pids.max": "100\n", f"{folder}pids.current": "60\n"})[1] == 20
    assert fits(tmp_path, groups={f"{folder}pids.max": "max\n"})[1] == (4096 - 768) // 2
