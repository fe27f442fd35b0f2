"""Run everything and write docs/reference/security-evidence.md: `python -m tests.redteam`, or `make redteam`.

Ends with 1 if an attempt is contained less than expected, if fuzzing leaves something, or if too few of Python's tests pass in a session.
"""

import argparse
import asyncio
import getpass
import os
import platform
import re
import shlex
import sys
from pathlib import Path

from aca_sessions.connect import isolation_report

from ..conftest import ROOT
from . import fuzz, places, python_suites
from .escapes import ATTEMPTS, MECHANISMS, PUBLIC, Attempt
from .places import Host, Place, Verdict

_PAGE = ROOT / "docs" / "reference" / "security-evidence.md"
_LEAST_SHARE = 99.5
_SHOWN = {"not": "**not**", "none": "", "broken": "no answer"}
_INTRODUCTION = """# Evidence

`make redteam` writes this page, in under 30 minutes. Run it as root, and again as an ordinary user: each run replaces its own half.
`.ci/packages redteam` installs the tools that it compares with. The code is in `tests/redteam`. If a tool is missing on a machine, the page
names it.

**How to read the tables.** An attempt has a precondition, the door that a flaw used, and a harm.

- *contained*: the precondition was refused, or the harm is impossible.
- *partly*: the precondition was met, but the harm was not done. The kernel's fix for that flaw, or a second barrier, prevented it.
- ***not***: the harm was done. It is harmless here: the flag is a file of the host that every user may read, settings are opened
  and not changed, modules are empty.

The 18 mechanisms are those of SandboxEscapeBench (Marchand and others, "Quantifying Frontier LLM Capabilities for Container Sandbox
Escape", arXiv 2603.02277), as its description at airuntimesecurity.io lists them by layer. The benchmark's own images were not
available. Sessions run the attempts without the vulnerable set-up that the benchmark adds, such as a mounted Docker socket. The question
is whether the mechanism exists at all. The column *no sandbox* is the control: it shows that an attempt can succeed. A sandbox that shows
the host's files at their usual paths, as plain bubblewrap does with the command below, fails each attempt that ends with the flag.
"""


def main() -> None:
    """Run what the command line requests."""
    parser = argparse.ArgumentParser(prog="python -m tests.redteam", description=__doc__)
    parser.add_argument("--page", type=Path, default=_PAGE, help="the page to write; its other half is kept")
    parser.add_argument("--fuzz", type=float, default=600, metavar="SECONDS", help="how long to fuzz (600); 0 leaves it out")
    parser.add_argument(
        "--python", type=float, default=660, metavar="SECONDS", help="how long Python's own tests may take (660); 0 leaves them out"
    )
    chosen = parser.parse_args()
    section, problems = asyncio.run(_everything(chosen.fuzz, chosen.python))
    _write(chosen.page, section)
    for problem in problems:
        print(f"PROBLEM: {problem}")
    sys.exit(1 if problems else 0)


async def _everything(fuzz_seconds: float, python_seconds: float) -> tuple[str, list[str]]:
    isolation = await isolation_report()
    with places.host() as host:
        print("attempts in sessions", flush=True)
        tried = [attempt for attempt in ATTEMPTS if not attempt.reason]
        columns = [("session", dict(zip((one.name for one in tried), await places.in_sessions(tried, host), strict=True)))]
        absent: dict[str, str] = {}
        for place in places.places():
            print(f"attempts: {place.name}", flush=True)
            if reason := places.missing(place):
                absent[place.name] = reason
            else:
                columns.append((place.name, _tried_in(place, tried, host)))
    parts = [_machine(str(isolation)), _attempts(columns), _commands(absent)]
    problems = [problem for one in tried if (problem := _problem(one, columns[0][1][one.name]))]
    if fuzz_seconds:
        print(f"fuzzing, {fuzz_seconds:.0f} seconds", flush=True)
        fuzzed = await fuzz.fuzz(fuzz_seconds)
        parts.append(_fuzzing(fuzzed))
        problems += [f"fuzzing left {fuzzed.left}"] * bool(fuzzed.left) + [f"the kernel said {fuzzed.kernel}"] * bool(fuzzed.kernel)
        problems += [f"{fuzzed.failed} cells of another session failed"] * bool(fuzzed.failed)
    if python_seconds:
        print(f"Python's own tests, at most {python_seconds:.0f} seconds", flush=True)
        ran = await python_suites.suites(python_seconds)
        parts.append(_suites(ran))
        problems += [
            f"{suite.name}: {suite.share:.2f} % pass in a session" for suite in ran if suite.outside and suite.share < _LEAST_SHARE
        ]
    return "\n\n".join(parts), problems


def _tried_in(place: Place, attempts: list[Attempt], host: Host) -> dict[str, Verdict]:
    verdicts = {}
    for attempt in attempts:
        verdicts[attempt.name] = place.run(attempt, host)
    return verdicts


def _problem(attempt: Attempt, verdict: Verdict) -> str:
    grades = ("contained", "partly", "not")
    if verdict.word in grades and grades.index(verdict.word) <= grades.index(attempt.expected):
        return ""
    return f"{attempt.name}: {verdict.word} {verdict.detail}, expected {attempt.expected}"


def _user() -> str:
    return "root" if os.geteuid() == 0 else "an ordinary user"


def _machine(isolation: str) -> str:
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    line = f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} processors, {system}, CPython {platform.python_version()}."
    return f"## As {_user()}\n\n{line}"


def _cell(verdict: Verdict | None) -> str:
    return "" if verdict is None else _SHOWN.get(verdict.word, verdict.word)


def _attempts(columns: list[tuple[str, dict[str, Verdict]]]) -> str:
    own = columns[0][1]
    head = ["attempt", "source", *(name for name, _ in columns), "in a session it ends with"]
    lines = ["### Attempts", "", _row(head), _row(["---"] * len(head))]
    for attempt in (*ATTEMPTS[:1], *MECHANISMS, *PUBLIC):
        if attempt.reason:
            lines.append(_row([attempt.name, attempt.source, *(["no attempt"] + [""] * (len(columns) - 1)), attempt.reason]))
            continue
        detail = own[attempt.name].detail
        lines.append(
            _row(
                [
                    attempt.name,
                    attempt.source,
                    *(_cell(by.get(attempt.name)) for _, by in columns),
                    "; ".join(filter(None, (detail, attempt.note))),
                ]
            )
        )
    counts = [[f"{sum(v.word == word for v in by.values())}" for _, by in columns] for word in ("contained", "partly", "not")]
    lines += [_row([f"*{word}*", "", *row, ""]) for word, row in zip(("contained", "partly", "not"), counts, strict=True)]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _commands(absent: dict[str, str]) -> str:
    lines = [
        "### What the columns are",
        "",
        _row(["column", "version", "command, in front of `python3 SHARED/attempt.py`"]),
        _row(["---"] * 3),
    ]
    lines.append(_row(["session", "", '`open_pool(policy=Policy(mounts=(Mount(SHARED, "/mnt/shared"),)))`, a session for each attempt']))
    for place in places.places():
        shown = place.shown or shlex.join(place.command).replace("{shared}", "SHARED").replace("'", "")
        name = absent.get(place.name)
        lines.append(_row([place.name, "" if name else places.version(place), f"`{shown}`" + (f": {name}" if name else "")]))
    return "\n".join(lines)


def _fuzzing(done: fuzz.Fuzzed) -> str:
    kinds = ", ".join(f"{count} {said}" for said, count in fuzz.counted(done.stressors).items())
    numbers = {"before": done.quiet, "during": done.during}
    rows = [
        _row([f"{len(times)} cells {name}", *(f"{fuzz.percentile(times, share):.1f} ms" for share in (50, 99))])
        for name, times in numbers.items()
    ]
    return "\n".join(
        [
            "### System calls at random",
            "",
            f"For {done.seconds:.0f} seconds two sessions at a time attacked, while a third ran small cells. "
            f"The machine's load was {done.load:.1f} before:",
            "",
            f"- random calls with odd arguments: {done.calls:,} in {done.rounds} rounds, {done.answered:,} of them past the filter; "
            f"{done.sessions_lost} sessions ended by it;",
            f"- stress-ng, classes {', '.join(fuzz.CLASSES)}, a second each: "
            + (f"{len(done.stressors)} stressors, {kinds};" if done.stressors else "not installed here: apt install stress-ng;"),
            f"- trinity: {done.trinity}.",
            "",
            _row(["other session", "p50", "p99"]),
            _row(["---"] * 3),
            *rows,
            "",
            f"Cells of the other session that failed: {done.failed}. "
            f"Left afterwards (processes, descriptors, mounts, control groups): {done.left or 'nothing'}. "
            f"New warnings of the kernel: {done.kernel or 'none'}.",
        ]
    )


def _suites(ran: list[python_suites.Suite]) -> str:
    lines = ["### Python's own tests", "", "What passes outside has to pass in a session."]
    lines += ["", _row(["suite", "modules or folders", "passed outside", "of these in a session", "share"]), _row(["---"] * 5)]
    for suite in ran:
        numbers = [str(suite.modules), f"{suite.outside:,}", f"{suite.inside:,}", f"{suite.share:.2f} %"]
        lines.append(_row([suite.name, *(numbers if not suite.missing else [suite.missing, "", "", ""])]))
    for suite in ran:
        if suite.differences:
            lines += ["", f"Differences, {suite.name}:", "", _row(["test", "in a session"]), _row(["---"] * 2)]
            lines += [_row([f"`{name}`", f"`{said.replace('`', '')}`"]) for name, said in sorted(suite.differences.items())]
        for reason, names in suite.left_out.items():
            lines += ["", f"Left out, {suite.name}, {reason}: {', '.join(sorted(names))}."]
    return "\n".join(lines)


def _write(page: Path, section: str) -> None:
    """Replace this user's half of the page, and keep the other."""
    text = page.read_text() if page.exists() else ""
    halves = dict(re.findall(r"^## As (root|an ordinary user)\n(.*?)(?=^## As |\Z)", text, re.MULTILINE | re.DOTALL))
    halves[_user()] = section.partition("\n")[2]
    kept = [f"## As {name}\n{halves[name].rstrip()}\n" for name in ("root", "an ordinary user") if name in halves]
    page.write_text("\n".join([_INTRODUCTION, *kept]))
    print(f"wrote {page} as {getpass.getuser()}")


if __name__ == "__main__":
    main()
