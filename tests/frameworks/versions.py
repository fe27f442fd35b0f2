"""Print the versions of the frameworks that `make test-integrations` ran, and what passed, for tests/frameworks/versions.txt."""

import re
import sys
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
BESIDE = ("langchain-core", "mcp", "pydantic", "pytest")  # which decide what can be installed together


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    return "expected to fail" if "xfail" in skipped.get("type", "") else "skipped"


def count_outcomes(results: Path) -> dict[str, Counter[str]]:
    """Return how many tests of each file passed, failed, were skipped and were expected to fail, from pytest's JUnit file."""
    counts: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        (file,) = re.findall(r"^tests\.frameworks\.(\w+)", case.get("classname", ""))
        counts.setdefault(file, Counter())[_outcome(case)] += 1
    return counts


if __name__ == "__main__":
    print("# Written by `make test-integrations`: the versions that were installed, and what tests/frameworks gave with them.")
    group = tomllib.loads(PROJECT.read_text())["dependency-groups"]["integrations"]
    for name in (*(re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0] for requirement in group), *BESIDE):
        print(f"{name} {installed(name)}")
    for file, counts in sorted(count_outcomes(Path(sys.argv[1])).items()):
        print(f"{file}.py: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}")
