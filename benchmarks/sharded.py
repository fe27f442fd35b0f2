"""What several servers behind nginx give, and what nginx costs: cells and starts a second, in turns with one server asked directly."""

import asyncio
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from aca_sessions import CodeInterpreter, Settings, open_interpreter

sys.path.append(str(Path(__file__).parent.parent))

from tests.scaling.cluster import KEY, NGINX, Cluster

ROUNDS, SESSIONS, CELLS = 5, 8, 15
DIRECT = "one server, asked directly"


async def cells_a_second(interpreter: CodeInterpreter, names: list[str]) -> float:
    async def one(name: str) -> None:
        for number in range(CELLS):
            result = await interpreter.execute(name, f"{number} + 1")
            assert (result.value, str(result.state)) == (number + 1, "kept"), str(result.state)

    start = time.perf_counter()
    await asyncio.gather(*map(one, names))
    return len(names) * CELLS / (time.perf_counter() - start)


async def starts_a_second(interpreter: CodeInterpreter, names: list[str]) -> float:
    start = time.perf_counter()
    await asyncio.gather(*(interpreter.execute(name, "1") for name in names))
    return len(names) / (time.perf_counter() - start)


async def measure(settings: Settings, round: int, numbers: dict[str, list[float]]) -> None:
    names = [f"bench-{round}-{number}" for number in range(SESSIONS)]
    async with open_interpreter(settings) as interpreter:
        numbers["starts"].append(await starts_a_second(interpreter, names))
        numbers["cells"].append(await cells_a_second(interpreter, names))
        await asyncio.gather(*map(interpreter.delete_session, names))


async def run(cluster: Cluster) -> dict[str, dict[str, list[float]]]:
    """A round of each, then the next round, so that all meet the same noise."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    direct = Settings(Endpoint=f"http://127.0.0.1:{cluster.members[0].port}", ApiKey=KEY)
    for round in range(-1, ROUNDS):
        kept = found if round >= 0 else defaultdict(lambda: defaultdict(list))  # the first one warms up
        await measure(direct, round, kept[DIRECT])
        for count in (1, 2, 3):
            cluster.configure(cluster.members[:count])
            cluster.reload()
            await measure(cluster.settings(), round, kept[f"nginx over {count}"])
    return found


def report(found: dict[str, dict[str, list[float]]]) -> None:
    each = f"{ROUNDS} rounds in turns, {SESSIONS} sessions with {CELLS} cells each"
    print(f"Sessions on several servers: {each}, all on {os.cpu_count()} processors.")
    print("Clients, nginx and servers share them: with as few as two this shows what nginx costs, not what further machines give.")
    for what in ("cells", "starts"):
        direct = found[DIRECT][what]
        for name, numbers in found.items():
            ratio = statistics.median(number / base for number, base in zip(numbers[what], direct, strict=True))
            print(f"{name:28} {statistics.median(numbers[what]):7.0f} {what} a second, {ratio:.2f} times one server directly")


def main() -> None:
    if NGINX is None:
        print("Sessions on several servers: not measured, nginx is missing (sudo apt install nginx)")
        return
    with Cluster(3) as cluster:
        report(asyncio.run(run(cluster)))


if __name__ == "__main__":
    main()
