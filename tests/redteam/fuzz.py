"""Make random system calls inside sessions, and measure their effect on other sessions and the host."""

import asyncio
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from aca_sessions import Session, SessionPool, open_pool
from aca_sessions.errors import ACASessionsError

from ..conftest import settled

_ROUND = 10  # seconds of one cell; each runs in a session of its own
CLASSES = ("cpu", "cpu-cache", "filesystem", "interrupt", "io", "memory", "network", "os", "pipe", "scheduler", "security", "vm")
# Children make random calls with odd arguments. Most close what they inherited; every tenth keeps the descriptors that lead to the host.
_RANDOM_CALLS = """
import ctypes, errno, mmap, os, random, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
counts = mmap.mmap(-1, 4096)
total, answered = (ctypes.c_long.from_buffer(counts, 8 * place) for place in range(2))
x86 = os.uname().machine == 'x86_64'
ENDS_OR_WAITS = {34, 60, 130, 231} if x86 else {93, 94, 133}
TO_OTHERS = {62, 129, 200, 234, 297} if x86 else {129, 130, 131, 138, 240}
page = mmap.mmap(-1, 65536)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
paths = (b'/proc/self/mem', b'/mnt/data/file', b'/tmp', b'/', b'/dev/null', b'', b'x' * 5000)
names = [ctypes.create_string_buffer(path) for path in paths]
def odd():
    kind = random.randrange(8)
    if kind == 0:
        return random.choice((0, 1, 2, -1, -100, 4096, 2**31 - 1, -2**31, 2**32 - 1, 2**63 - 1, -2**63))
    if kind == 1:
        return random.randrange(24)
    if kind == 2:
        return address + random.choice((0, 8, 4095, 65535, 65536))
    if kind == 3:
        return ctypes.addressof(random.choice(names))
    if kind == 4:
        return 1 << random.randrange(63)
    if kind == 5:
        return random.getrandbits(32)
    return random.randrange(256)
kept = []
def child(seed):
    random.seed(seed)
    os.setpgid(0, 0)
    signal.alarm(3)
    if seed % 10:
        os.closerange(0, 1024)
    opened = [('/proc/self', 0), ('/dev/null', os.O_RDWR), (f'/mnt/data/{os.getpid()}', os.O_RDWR | os.O_CREAT)]
    made = [os.pipe, socket.socketpair, os.openpty, lambda: os.eventfd(0), lambda: os.memfd_create('m')]
    for make in made + [lambda file=file: os.open(*file) for file in opened]:
        try:
            kept.append(make())
        except OSError:  # what an earlier child changed, or what the kernel has no more of
            pass
    page.write(random.randbytes(65536))
    for _ in range(5000):
        number = random.randrange(480)
        if number in ENDS_OR_WAITS or number in TO_OTHERS and seed % 20:
            continue
        status = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(odd()) for _ in range(6)])
        total.value += 1
        answered.value += status >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)
ends, running, random_seeds = time.monotonic() + SECONDS, {}, random.Random(SEED)
while time.monotonic() < ends:
    while len(running) < 4:
        seed = random_seeds.getrandbits(30)
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            try:
                child(seed)
            finally:
                os._exit(0)
        running[pid] = time.monotonic()
    time.sleep(0.02)
    for pid, began in list(running.items()):
        if time.monotonic() - began > 5:
            for end in (os.killpg, os.kill):
                try:
                    end(pid, signal.SIGKILL)
                except OSError:
                    pass
        if os.waitpid(pid, os.WNOHANG)[0]:
            del running[pid]
print('CALLS', total.value, answered.value)
"""


@dataclass(slots=True)
class Fuzzed:
    """What fuzzing did, and what it left."""

    seconds: float = 0.0
    load: float = field(default_factory=lambda: os.getloadavg()[0])  # of others too
    rounds: int = 0
    calls: int = 0
    answered: int = 0  # with anything else than EPERM and ENOSYS
    sessions_lost: int = 0
    stressors: dict[str, str] = field(default_factory=dict)  # by name: the outcome of each
    trinity: str = ""
    quiet: list[float] = field(default_factory=list)  # seconds of a cell of another session, before
    during: list[float] = field(default_factory=list)
    failed: int = 0  # cells of the other session that failed
    left: str = ""  # what remains afterwards; empty if nothing does
    kernel: str = ""  # new messages of the kernel; empty if there are none


def percentile(values: list[float], share: int) -> float:
    """Return a percentile in milliseconds."""
    return 1000 * statistics.quantiles(values, n=100, method="inclusive")[share - 1] if len(values) > 1 else float("nan")


async def fuzz(seconds: float) -> Fuzzed:
    """Fuzz in two sessions at a time, and measure a third."""
    done = Fuzzed(seconds=seconds)
    async with open_pool() as warm, warm.session() as session:  # processes that live as long as this one must exist before they are counted
        await session.run("1")
    before, kernel = settled(), _kernel_says()
    async with open_pool() as pool, pool.session() as other:
        await _measure(other, done.quiet, time.monotonic() + min(10, seconds), done)
        ends = time.monotonic() + seconds
        await asyncio.gather(
            _measure(other, done.during, ends, done), _call_at_random(pool, ends, done), _stress(pool, ends, seconds, done)
        )
    after = settled()
    names = ("processes", "descriptors", "mounts", "control groups")
    done.left = ", ".join(f"{now - then} {name}" for name, then, now in zip(names, before, after, strict=True) if now > then)
    done.kernel = "; ".join(_kernel_says() - kernel)
    return done


async def _measure(session: Session, times: list[float], ends: float, done: Fuzzed) -> None:
    while time.monotonic() < ends:
        began = time.perf_counter()
        result = await session.run("sum(range(1000))")
        times.append(time.perf_counter() - began)
        done.failed += result.value != 499500
        await asyncio.sleep(0.05)


async def _call_at_random(pool: SessionPool, ends: float, done: Fuzzed) -> None:
    while (left := ends - time.monotonic()) > 1:
        constants = f"SECONDS = {min(_ROUND, left)}\nSEED = {random.getrandbits(30)}\n"
        async with pool.session() as session:
            result = await session.run(constants + _RANDOM_CALLS, timeout=_ROUND + 20)
        done.rounds += 1
        line = next((line for line in result.stdout.splitlines() if line.startswith("CALLS ")), None)
        if line is None:
            done.sessions_lost += 1
        else:
            calls, answered = map(int, line.split()[1:3])
            done.calls, done.answered = done.calls + calls, done.answered + answered


async def _stress(pool: SessionPool, ends: float, seconds: float, done: Fuzzed) -> None:
    """Run each of stress-ng's stressors for a second, as many as the time allows, then trinity for the last quarter."""
    until = ends - seconds / 4
    for name in _stressors():
        if time.monotonic() > until:
            done.stressors[name] = "not reached"
            continue
        done.stressors[name] = await _outcome(pool, ["stress-ng", f"--{name}", "1", "-t", "1", "--temp-path", "/mnt/data"], 15)
    if shutil.which("trinity"):
        left = ends - time.monotonic()
        done.trinity = await _outcome(pool, ["timeout", "-s", "KILL", f"{left:.0f}", "trinity", "-q", "-C", "4", "-l", "off"], left + 20)
    else:
        done.trinity = "not installed here: apt install trinity"


def _stressors() -> list[str]:
    if not shutil.which("stress-ng"):
        return []
    names: set[str] = set()
    for kind in CLASSES:
        said = subprocess.run(["stress-ng", "--class", f"{kind}?"], capture_output=True, text=True, check=False)
        names.update((said.stdout + said.stderr).partition(":")[2].split())
    return random.Random(1).sample(sorted(names), len(names))


async def _outcome(pool: SessionPool, command: list[str], seconds: float) -> str:
    code = f"""import subprocess
done = subprocess.run({command!r}, capture_output=True, cwd='/tmp', stdin=subprocess.DEVNULL)
print('ENDED', done.returncode)"""
    with contextlib.suppress(ACASessionsError):
        async with pool.session() as session:
            result = await session.run(code, timeout=min(seconds, 220))
            ended = next((line.split()[1] for line in result.stdout.splitlines() if line.startswith("ENDED")), None)
            if ended is not None:
                return {"0": "ran", "-9": "ran until it was ended"}.get(ended, f"ended with {ended}")
            return (
                "ended at the time limit"
                if result.error and "imeout" in f"{result.error.name}{result.error.message}"
                else "ended the session"
            )
    return "ended the session"


def counted(outcomes: dict[str, str]) -> dict[str, int]:
    """Return how many stressors had each outcome, most frequent first."""
    return dict(Counter(outcomes.values()).most_common())


def _kernel_says() -> set[str]:
    """Return warnings and faults in the kernel's log, as far as this user may read it, and its taint flags."""
    said = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", check=False).stdout
    faults = {
        line
        for line in said.splitlines()
        if any(word in line for word in ("BUG:", "WARNING:", "Oops", "general protection", "hung task"))
        and "] traps: " not in line  # a fault of a process, which its signal ends
    }
    return faults | {f"tainted {Path('/proc/sys/kernel/tainted').read_text().strip()}"}


if __name__ == "__main__":
    print(asyncio.run(fuzz(float(sys.argv[1]))))
