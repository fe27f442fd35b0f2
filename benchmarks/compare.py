"""Ours beside other people's ways to run Python with state, in the same run: `make bench`.

Writes results.md beside this file, and its charts in docs/pictures; `--quick` stops at 100 sessions at once.
"""

import argparse
import asyncio
import logging
import os
import resource
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import chart
import crowd
import measures
import report
from measures import Maker
from peers import AutoGen, Ipybox, Ipykernel, LlmSandbox, Ours, Smolagents
from results import OURS, Results

from aca_sessions import Policy, SessionPool, open_pool

POLICY = Policy(preload=("numpy", "pandas", "matplotlib.pyplot"))
PEERS: dict[str, Maker] = {
    "ipykernel": Ipykernel,
    "AutoGen": AutoGen,
    "smolagents": Smolagents,
    "ipybox": Ipybox,
    "llm-sandbox": LlmSandbox,
}
STAGES = (10, 100, 300, 1000)
QUICK = (10, 100)


async def side_by_side(results: Results) -> None:
    """Everything that more than one contender can do."""
    async with AsyncExitStack() as stack:
        start = time.perf_counter()
        pool = await stack.enter_async_context(open_pool(policy=POLICY, max_concurrent_sessions=200))
        results.opening_seconds = time.perf_counter() - start
        without_spares = await stack.enter_async_context(open_pool(policy=replace(POLICY, spares=0), max_concurrent_sessions=10))
        makers = await measures.tried(results, {OURS: partial(Ours, pool)} | PEERS)
        results.shared_megabytes = await crowd.shared_megabytes(pool)
        await _measure(results, makers, without_spares)


async def _measure(results: Results, makers: dict[str, Maker], without_spares: SessionPool) -> None:
    await measures.fresh_sessions(results, makers | {OURS: partial(Ours, without_spares)}, rounds=5)
    await measures.ready_sessions(results, makers, rounds=4)
    await measures.round_trips(results, makers)
    await measures.interrupts(results, makers, rounds=5)
    await measures.recoveries(results, makers, rounds=3)
    await crowd.throughput(results, makers, rounds=3)


async def measure(targets: tuple[int, ...]) -> Results:
    """The crowd comes first: what it takes of the host is told best before anything else was there."""
    results = Results(load=os.getloadavg()[0])
    async with open_pool(policy=POLICY, max_concurrent_sessions=max(targets)) as pool:
        await crowd.stages(results, pool, targets)
    await side_by_side(results)
    return results


def _same_for_all() -> None:
    """Sessions need many descriptors, and the threads of BLAS would be counted as memory of some contenders only."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _leave_out_what_kernels_say() -> None:
    """What went wrong is in the table; our own tracebacks still reach the terminal."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # peers leave tasks behind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="stop at 100 sessions at once")
    targets = QUICK if parser.parse_args().quick else STAGES
    _same_for_all()
    _leave_out_what_kernels_say()
    results = asyncio.run(measure(targets))
    chart.REPORT.write_text(report.markdown(results), encoding="utf-8")
    chart.draw()
    print(report.table(results), report.stages_table(results), sep="\n\n")


if __name__ == "__main__":
    main()
