"""50 clients with 20 cells each, over TCP against one `aca-sessions serve`: how long a cell takes, and whether any answer was another's."""

import asyncio
import statistics
import subprocess
import sys
import time

from aca_sessions import Settings, open_interpreter

CLIENTS, CELLS = 50, 20


async def client(number: int, settings: Settings, times: list[float], crossed: list[str]) -> None:
    async with open_interpreter(settings) as interpreter:
        for round in range(CELLS):
            start = time.perf_counter()
            result = await interpreter.execute(f"bench-{number:03}", f"({number}, {round})")
            times.append(time.perf_counter() - start)
            if result.text != f"({number}, {round})":
                crossed.append(str(result))


async def measure(settings: Settings) -> None:
    times: list[float] = []
    crossed: list[str] = []
    start = time.perf_counter()
    await asyncio.gather(*(client(number, settings, times, crossed) for number in range(CLIENTS)))
    elapsed = time.perf_counter() - start
    cuts = statistics.quantiles(times, n=100)
    print(
        f"{len(times)} cells by {CLIENTS} clients in {elapsed:.2f} s ({len(times) / elapsed:.0f} a second, starting the sessions included)"
    )
    print(f"a cell: p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms; crossed answers: {len(crossed)}")


def main() -> None:
    command = [sys.executable, "-m", "aca_sessions.cli.main", "serve", "--port", "0", "--api-key", "key"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        endpoint = server.stdout.readline().partition(": ")[2].strip()
        asyncio.run(measure(Settings(Endpoint=endpoint, ApiKey="key")))
        server.terminate()


if __name__ == "__main__":
    main()
