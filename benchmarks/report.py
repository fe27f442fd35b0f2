"""Writes results.md: the machine, what was compared, the numbers, where ours is slower, and what was not run."""

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil
from results import OURS, ROWS, Results, Row, Stage

CONTENDERS = {
    OURS: (
        "aca-sessions",
        "`open_pool()`, the embedded sandbox: each session in namespaces, a seccomp filter and limits of its own, reached through the "
        "whole stack (client, HTTP in process, server, sandbox)",
    ),
    "ipykernel": ("ipykernel", "a kernel process, through `jupyter_client.AsyncKernelManager`; not isolated"),
    "AutoGen": ("autogen-ext", "`JupyterCodeExecutor`: an ipykernel through nbclient; not isolated"),
    "smolagents": (
        "smolagents",
        "`LocalPythonExecutor`: walks syntax trees in the caller's own process, a subset of Python; no process boundary, not isolated",
    ),
    "ipybox": ("ipybox", "`CodeExecutor(sandbox=False)`: an ipykernel behind a Kernel Gateway of its own; not isolated"),
    "llm-sandbox": ("llm-sandbox", "`InteractiveSandboxSession`: IPython in a container"),
}
_GIB = 1 << 30
_MEMORY_IS_NOISE_BELOW = 100  # sessions


def markdown(results: Results) -> str:
    sections = [
        "# Measured: `make bench`",
        "`benchmarks/compare.py` writes this file. Every number is of one run on one machine.",
        _machine(results),
        _compared(results),
        _numbers(results),
        _many(results),
        _slower(results),
        _lacking(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(results: Results) -> str:
    """Medians, and behind each in brackets how many times better ours is."""
    names = names_in(results)
    rows = [[f"{row.title}, {row.unit}", *(_cell(results, row, name) for name in names)] for row in ROWS]
    return _lines(["", *names], rows)


def names_in(results: Results) -> list[str]:
    return [name for name in CONTENDERS if name not in results.not_run]


def stages_table(results: Results) -> str:
    head = ["sessions alive", "answering", "started a second", "a cell, median ms", "memory of the host for each, MB"]
    return _lines(head, [_stage(stage) for stage in results.stages])


def _machine(results: Results) -> str:
    memory = psutil.virtual_memory().total / _GIB
    return (
        f"**Machine.** {os.cpu_count()} CPUs ({_processor()}), {memory:.0f} GiB of memory, Linux {platform.release()}, "
        f"Python {platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}; load average {results.load:.1f} before. "
        "The machine is shared: compare within a row, not with other runs."
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _compared(results: Results) -> str:
    rows = [[name, metadata.version(package), what] for name, (package, what) in CONTENDERS.items() if name not in results.not_run]
    return "## What is compared\n\n" + _lines(["", "version", "what runs"], rows)


def _numbers(results: Results) -> str:
    return f"""## Side by side

Medians. In brackets: how many times better ours is (below 1: how much worse), the median of the ratios within each round. Contenders take
turns, in one process, with BLAS at one thread for all. A cell's time runs from the call to the whole result in the caller's hands, with a
pause since the contender's last cell; a wrong reply is left out.

{table(results)}

- *Cold*: a new session by fork, none kept ready; of the others a new kernel process. Opening the pool itself takes
  {results.opening_seconds:.1f} s, once for a program, libraries included.
- *Warm*: a session of a pool that was left alone for half a second; of the others a kernel that was started before, for this one user.
- *Memory*: private pages (USS) of all processes of a session; of ipybox the gateway too, which each executor has. Not in it: the parent
  that all our sessions are forked from, {results.shared_megabytes:.0f} MB resident, once.
- *Cells a second*: one right after the other in each session, without a pause; all clients share one process.
- *Interrupt*: the reply is that of a next cell, which must know a variable from before.
- *`os._exit(1)`*: ours says by itself that the variables are lost and goes on. A client of ipykernel has to look at the process and restart
  it; AutoGen's raises an error, and it is restarted; ipybox tells nothing, a time limit of 0.2 s does, and it is reset."""


def _many(results: Results) -> str:
    text = "## Many sessions of aca-sessions at once\n\n" + stages_table(results)
    text += "\n\nEach was asked for its own variable, in turn. The memory is what the host has less, kernel structures included."
    return "\n".join([text, *(f"Not run: {why}." for why in results.not_reached)])


def _slower(results: Results) -> str:
    lines = [f"- {name}: {', '.join(rows)}" for name in names_in(results) if (rows := _better_at(results, name))]
    text = "## Where ours is slower\n\n" + ("\n".join(lines) or "Nowhere in this run.")
    if not _better_at(results, "smolagents"):
        return text
    return f"{text}\n\nsmolagents calls a function of the caller's process: a cell crosses no boundary there, and nothing holds it back."


def _better_at(results: Results, name: str) -> list[str]:
    ratios = {row: results.ratio(row, name) for row in ROWS}
    return [f"{row.title} ({_times(ratio)})" for row, ratio in ratios.items() if ratio is not None and ratio < 1 and name != OURS]


def _lacking(results: Results) -> str:
    lines = [f"- {name}: {why}." for name, why in results.not_run.items()]
    lines += [f"- {name}, {row.title}: {why}." for row in ROWS for name, why in results.missing[row].items()]
    lines += [_lost(results, row, name, why) for row, name, why in results.lost]
    few = "- Cells a second: peers with 1 session, ipykernel with 4 as well; more were not run."
    return "## Not run, or without a number\n\n" + "\n".join([*lines, few])


def _lost(results: Results, row: Row, name: str, why: str) -> str:
    all_lost = sum(count for (of, who, _), count in results.lost.items() if (of, who) == (row, name))
    rounds = all_lost + len(results.rounds[row].get(name, {}))
    return f"- {name}, {row.title}: {results.lost[row, name, why]} of {rounds} rounds left out, {why}."


def _cell(results: Results, row: Row, name: str) -> str:
    median, ratio = results.median(row, name), results.ratio(row, name)
    if median is None:
        return "–"
    return number(median) if name == OURS or ratio is None else f"{number(median)} ({_times(ratio)})"


def _stage(stage: Stage) -> list[str]:
    memory = "–" if stage.sessions < _MEMORY_IS_NOISE_BELOW else number(stage.host_megabytes)
    return [f"{stage.sessions:,}", f"{stage.answering:,}", number(stage.starts_per_second), number(stage.cell_milliseconds), memory]


def number(value: float) -> str:
    """About three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"


def _lines(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
