"""How long a session waits for packages: the first one that asks for a set, and the others. `make bench`; the bar for those is 50 ms."""

import asyncio
import shutil
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

from aca_sessions import PackageSource, Policy, Session, SessionPool, open_pool

SESSIONS, WHEELS = 20, 10


def make_wheels(folder: Path) -> None:
    """Ten packages that need each other, a megabyte each."""
    for number in range(WHEELS):
        name, needs = f"bench_{number}", f"Requires-Dist: bench-{number + 1}\n" if number + 1 < WHEELS else ""
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", f"number = {number}\n")
            for part in range(100):
                wheel.writestr(f"{name}/part_{part}.py", "#" * 10_000)
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: bench-{number}\nVersion: 1.0\n{needs}")
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


async def installed(session: Session) -> float:
    """Milliseconds of one install, in a session that lives."""
    await session.run("1")
    started = time.perf_counter()
    (await session.install("bench-0")).raise_for_error()
    milliseconds = (time.perf_counter() - started) * 1000
    (await session.run("import bench_9")).raise_for_error()
    return milliseconds


async def later(pool: SessionPool) -> float:
    async with pool.session() as session:
        return await installed(session)


async def measured(wheels: Path, cache: str) -> dict[str, float]:
    policy = Policy(packages=PackageSource(wheels=str(wheels), cache=cache))
    async with open_pool(policy=policy) as pool:
        first = await later(pool)
        shutil.rmtree(wheels)
        others = [await later(pool) for _ in range(SESSIONS)]
    async with open_pool(policy=policy) as pool:
        fresh = await later(pool)
    return {
        "the first session that asks for ten packages": first,
        f"the same set in another session, without its wheels (median of {SESSIONS}; bar 50)": statistics.median(others),
        "the same set in another pool": fresh,
    }


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as wheels, tempfile.TemporaryDirectory() as cache:
        make_wheels(Path(wheels))
        rows = asyncio.run(measured(Path(wheels), cache))
    width = max(map(len, rows))
    for name, milliseconds in rows.items():
        print(f"{name:<{width}}  {milliseconds:8.2f} ms")


if __name__ == "__main__":
    main()
