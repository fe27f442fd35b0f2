"""What sessions of one `aca-sessions serve` take: memory, descriptors, processor time when idle, and how many cells run in a second.

It prints the table of docs/guides/operating.md for this machine: python benchmarks/sizing.py [SESSIONS …]
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from aca_sessions import CodeInterpreter, Settings, open_interpreter

MB = 1 << 20
KEY = "key"
WORK = {
    "empty": "x = 1",
    "pandas": "import pandas as pd; df = pd.DataFrame({'a': range(1000)}); df.a.sum()",
    "100 MB of numbers": "import numpy as np; data = np.ones(13_000_000); data.sum()",
}
AT_ONCE, IDLE_SECONDS, BUSY_SECONDS = 8, 5.0, 5.0


def gauge(endpoint: str, name: str) -> float:
    text = httpx.get(f"{endpoint}/metrics", headers={"authorization": f"Bearer {KEY}"}, timeout=120).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return next(sample.value for sample in samples if sample.name == f"aca_sessions_server_{name}")


def processor_seconds(pid: int) -> float:
    """Return the processor time of the server and all its descendants that live."""
    parents, spent = {}, {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry)], spent[int(entry)] = int(fields[1]), int(fields[11]) + int(fields[12])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sum(spent.get(one, 0) for one in found) / os.sysconf("SC_CLK_TCK")


async def row(interpreter: CodeInterpreter, server: int, endpoint: str, count: int, work: str) -> str:
    names = [f"{work}-{count}-{number}" for number in range(count)]
    turns, starts = asyncio.Semaphore(AT_ONCE), list[float]()
    memory, descriptors = gauge(endpoint, "memory_usage_bytes"), gauge(endpoint, "descriptors_usage")

    async def start(name: str) -> None:
        async with turns:
            begun = time.perf_counter()
            result = await interpreter.execute(name, WORK[work])
            assert result.success, result
            starts.append(time.perf_counter() - begun)

    await asyncio.gather(*(start(name) for name in names))
    memory, descriptors = gauge(endpoint, "memory_usage_bytes") - memory, gauge(endpoint, "descriptors_usage") - descriptors
    before = processor_seconds(server)
    await asyncio.sleep(IDLE_SECONDS)
    idle = (processor_seconds(server) - before) / IDLE_SECONDS
    end = time.perf_counter() + BUSY_SECONDS

    async def cells(name: str) -> int:
        ran = 0
        while time.perf_counter() < end:
            assert (await interpreter.execute(name, "6 * 7")).value == 42
            ran += 1
        return ran

    ran = sum(await asyncio.gather(*(cells(name) for name in names[:50])))
    await asyncio.gather(*(interpreter.delete_session(name) for name in names))
    return (
        f"| {count} | {work} | {memory / count / MB:.0f} MB | {descriptors / count:.1f} | {100 * idle / count:.2f} % | "
        f"{1000 * statistics.median(starts):.0f} ms | {ran / BUSY_SECONDS:.0f} |"
    )


async def measure(endpoint: str, server: int, counts: list[int]) -> None:
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the start (busy from {os.cpu_count()} on)")
    print("| sessions | each has run | memory each | descriptors each | a processor, idle, each | first cell, 8 at once | cells a second |")
    print("|---|---|---|---|---|---|---|", flush=True)
    async with open_interpreter(Settings(SessionsHttpClient={"Endpoint": endpoint, "ApiKey": KEY, "PatienceSeconds": 600})) as interpreter:
        await interpreter.execute("warm", "1")
        await asyncio.sleep(10)  # the usual libraries are imported in the background
        for work in WORK:
            for count in counts:
                print(await row(interpreter, server, endpoint, count, work), flush=True)


def main() -> None:
    counts = [int(count) for count in sys.argv[1:]] or [10, 100]
    command = [
        sys.executable,
        "-m",
        "aca_sessions.cli.main",
        "serve",
        "--port",
        "0",
        "--metrics",
        "--max-sessions",
        "1000",
        "--cooldown",
        "3600",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"ACA_SESSIONS_API_KEY": KEY}) as server:
        endpoint = server.stdout.readline().partition(": ")[2].strip()
        try:
            asyncio.run(measure(endpoint, server.pid, counts))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
