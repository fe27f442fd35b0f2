"""Run CPython's own tests, and numpy's and pandas', in a session and outside: a test that passes outside must pass inside."""

import asyncio
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aca_sessions import SessionPool, open_pool

_OUTSIDE_SECONDS = 15  # a module that takes longer outside is left out, by name
_INSIDE_SECONDS = 100
_TOGETHER = 2
_REPORT = "/tmp/report.xml"
# Left out by name, since they do not concern a sandbox, or need something that not every machine has.
LEFT_OUT = {
    "need a screen": ("test_idle", "test_tk", "test_tcl", "test_ttk_guionly", "test_ttk_textonly", "test_turtle", "test_tix"),
    "need the network or the machine's name": ("test_urllib2net", "test_urllibnet", "test_timeout", "test_robotparser", "test_getaddrinfo"),
    "install packages, build or debug Python": (
        "test_venv",
        "test_ensurepip",
        "test_distutils",
        "test_gdb",
        "test_tools",
        "test_peg_generator",
    ),
}
# pytest's own way to name a folder of an installed package. numpy and pandas call `-m "not slow"` quick.
LIBRARIES = {
    "numpy": ("numpy.linalg", "numpy.fft", "numpy.random", "numpy.ma", "numpy.lib"),
    "pandas": ("pandas.tests.tools", "pandas.tests.strings", "pandas.tests.reductions", "pandas.tests.reshape"),
}


@dataclass(slots=True)
class Suite:
    """One suite's outcome.

    Args:
        name: CPython, numpy or pandas, with the version.
        outside: How many tests passed outside.
        inside: How many of these passed in a session.
        differences: By test: what it ended with inside.
        left_out: By reason: modules.
        missing: Why it was not run.
    """

    name: str
    outside: int = 0
    inside: int = 0
    modules: int = 0
    differences: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    missing: str = ""

    @property
    def share(self) -> float:
        """Return the share of the tests passed outside that passed inside, in percent."""
        return 100 * self.inside / self.outside if self.outside else 0.0


async def suites(seconds: float) -> list[Suite]:
    """Run all suites within the time."""
    ends = time.monotonic() + seconds
    python = Suite(f"CPython {sys.version.split()[0]}")
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_list") is None:
        package = f"apt install libpython{sys.version_info.major}.{sys.version_info.minor}-testsuite"
        advice = package if sys.base_prefix == "/usr" else "use a Python that was installed with them, as pyenv and Debian can"
        python.missing = f"its tests are not installed here: {advice}"
    found = [python]
    async with open_pool() as pool:
        if not python.missing:
            await _compare(pool, python, {name: _regrtest(name) for name in _modules(python)}, ends - 0.4 * seconds, _OUTSIDE_SECONDS)
        for place, (name, folders) in enumerate(LIBRARIES.items(), start=1):
            found.append(await _of_library(pool, name, folders, ends - 0.4 * seconds + 0.2 * seconds * place))
    return found


async def _of_library(pool: SessionPool, name: str, folders: Iterable[str], ends: float) -> Suite:
    absent = [module for module in (name, f"{name}.conftest", "pytest", "hypothesis") if importlib.util.find_spec(module) is None]
    if absent:
        return Suite(name, missing=f"not installed here: pip install {' '.join(sorted({one.partition('.')[0] for one in absent}))}")
    suite = Suite(f"{name} {importlib.metadata.version(name)}")
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", f"--junitxml={_REPORT}", "--pyargs"]
    await _compare(pool, suite, {folder: ["-m", "pytest", *options, folder] for folder in folders}, ends, _INSIDE_SECONDS)
    return suite


def _modules(suite: Suite) -> list[str]:
    listed = subprocess.run([sys.executable, "-m", "test", "--list-tests"], capture_output=True, text=True, check=True).stdout.split()
    suite.left_out |= {reason: list(names) for reason, names in LEFT_OUT.items()}
    out = {name for names in LEFT_OUT.values() for name in names}
    return sorted(name for name in listed if name not in out)


def _regrtest(name: str) -> list[str]:
    return ["-m", "test", "--junit-xml", _REPORT, name]


async def _compare(pool: SessionPool, suite: Suite, commands: dict[str, list[str]], ends: float, seconds: float) -> None:
    """Run each module outside and then inside, a few at a time."""
    turns = asyncio.Semaphore(_TOGETHER)

    async def one(name: str, arguments: list[str]) -> None:
        async with turns:
            if time.monotonic() > ends:
                suite.left_out.setdefault("came after the time that this run had", []).append(name)
                return
            outside = await asyncio.to_thread(_outside, arguments, seconds)
            if outside is None:
                suite.left_out.setdefault(f"take longer than {seconds:.0f} seconds outside", []).append(name)
                return
            passed = {test for test, said in outside.items() if said == "passed"}
            if not passed:
                suite.left_out.setdefault("pass no test outside either, on this machine", []).append(name)
                return
            inside = await _inside(pool, arguments)
        suite.modules += 1
        suite.outside += len(passed)
        suite.inside += sum(inside.get(test) == "passed" for test in passed)
        suite.differences |= {test: inside.get(test) or inside[""] for test in sorted(passed) if inside.get(test) != "passed"}

    await asyncio.gather(*(one(name, arguments) for name, arguments in commands.items()))


def _outside(arguments: list[str], seconds: float) -> dict[str, str] | None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, *(argument.replace(_REPORT, str(report)) for argument in arguments)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True
        ) as run:
            try:
                run.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, 9)
                return None
        return outcomes(report.read_text()) if report.exists() else {}


async def _inside(pool: SessionPool, arguments: list[str]) -> dict[str, str]:
    code = f"""import os, shutil, subprocess, sys
command = [sys.executable, *{arguments!r}]
done = subprocess.run(command, capture_output=True, text=True, errors='replace', cwd='/mnt/data', stdin=subprocess.DEVNULL)
if os.path.exists({_REPORT!r}):
    shutil.copy({_REPORT!r}, '/mnt/data/report.xml')
else:
    print('no report, status', done.returncode, done.stderr[-300:])"""
    async with pool.session() as session:
        result = await session.run(code, timeout=_INSIDE_SECONDS + 60)
        names = [file.name for file in await session.list_files()]
        found = outcomes((await session.download_file("report.xml")).decode()) if "report.xml" in names else {}
    ended = result.stdout.strip() or str(result.error or "")
    return found | {"": f"not run: {' '.join(ended.split())[:200]}" if not found else "not run"}


def outcomes(report: str) -> dict[str, str]:
    """Return the outcome of each test of a JUnit report: passed, how it failed, or why it was skipped."""
    found = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        said = next((part for kind in ("error", "failure", "skipped") if (part := case.find(kind)) is not None), None)
        if said is None:
            found[name] = "passed"
        else:
            last = said.get("message") or (said.text or "").strip().splitlines()[-1:] or [""]
            said_last = (last if isinstance(last, str) else last[0]).strip()
            found[name] = f"{said.tag}: {said_last.replace(sys.prefix, '…').replace(sys.base_prefix, '…')[:120]}"
    return found


if __name__ == "__main__":
    for suite in asyncio.run(suites(float(sys.argv[1]))):
        print(suite.name, suite.modules, suite.outside, suite.inside, f"{suite.share:.2f}", suite.missing)
        print(*(f"  {name}: {said}" for name, said in suite.differences.items()), sep="\n")
        print(suite.left_out)
