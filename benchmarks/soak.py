"""Opens and closes sessions by the thousand, and counts what is left of them: `make soak`."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

from aca_sessions import open_pool
from aca_sessions.sandbox.limits.cgroup import Groups

TOTAL = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
AT_ONCE = 8


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found[1:]


def counted() -> dict[str, int]:
    """What a session that was not let go of would show in."""
    return {
        "processes": len(descendants(os.getpid())),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": sum(1 for groups in Groups._shared.values() for top in groups._folders for _ in top.glob("*/")),
        "folders in /tmp": len(os.listdir("/tmp")),
    }


async def main() -> None:
    async with open_pool(max_concurrent_sessions=AT_ONCE) as pool:

        async def one(number: int) -> None:
            async with pool.session() as session:
                assert (await session.run(f"x = {number}; x + 1")).value == number + 1

        async def some(numbers: range) -> None:
            for number in numbers:
                await one(number)

        await asyncio.gather(*(one(n) for n in range(AT_ONCE)))
        await asyncio.sleep(8)  # until the heavy generation has taken over
        await one(0)
        await asyncio.sleep(2)  # and its spares are made
        before, started = counted(), time.perf_counter()
        await asyncio.gather(*(some(range(n, TOTAL, AT_ONCE)) for n in range(AT_ONCE)))
        seconds = time.perf_counter() - started
        await asyncio.sleep(2)
        after = counted()
    print(f"{TOTAL} sessions in {seconds:.0f} s, {AT_ONCE} at a time: {TOTAL / seconds:.0f} a second")
    for name in before:
        print(f"{name:<16} before {before[name]:>6}  after {after[name]:>6}")


if __name__ == "__main__":
    asyncio.run(main())
