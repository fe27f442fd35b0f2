"""Test the packages: what they contain, and that the wheel alone gives a newcomer what the README shows."""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from .conftest import ROOT

pytestmark = [pytest.mark.long, pytest.mark.defaults]
LARGEST = 200_000  # bytes of a file


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=580)
    return folder


def test_the_wheel_contains_the_package_and_an_sbom_and_no_tests(packages: Path) -> None:
    (path,) = packages.glob("*.whl")
    with ZipFile(path) as wheel:
        files = {one.filename: one.file_size for one in wheel.infolist()}
        (sbom,) = [name for name in files if "/sboms/" in name]
        components = json.loads(wheel.read(sbom))
    own = {str(one.relative_to(ROOT / "src")) for one in (ROOT / "src").rglob("*") if one.is_file() and "__pycache__" not in one.parts}
    assert {name for name in files if ".dist-info/" not in name} == own
    assert {name for name, size in files.items() if size > LARGEST} == set()
    assert components["metadata"]["component"]["purl"] == "pkg:pypi/aca-sessions@0.1.0"
    assert {one["name"]: one["scope"] for one in components["components"]}.items() >= {"httpx": "required", "pandas": "optional"}.items()


def test_the_sdist_contains_what_builds_the_wheel_and_no_tests(packages: Path) -> None:
    (path,) = packages.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        files = {one.name.partition("/")[2]: one.size for one in sdist.getmembers() if one.isfile()}
    top = {name.partition("/")[0] for name in files}
    others = {
        "PKG-INFO",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "SECURITY.md",
        "appsettings.example.json",
        "hatch_build.py",
    }
    assert top - {".gitignore"} == {"src", *others}
    assert {name for name, size in files.items() if size > LARGEST} == set()


def test_the_packages_pass_the_checks_of_the_index(packages: Path) -> None:
    files = sorted(map(str, packages.iterdir()))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, capture_output=True)
    wheel = next(one for one in files if one.endswith(".whl"))
    subprocess.run([Path(sys.executable).with_name("check-wheel-contents"), wheel], check=True, capture_output=True, cwd=packages)


@pytest.mark.long
def test_the_wheel_alone_runs_the_readme_and_draws_a_chart(packages: Path, tmp_path: Path) -> None:
    """In a fresh environment: first without the extra `data`, whose lack is explained, then with it."""
    (wheel,) = packages.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    program = tmp_path / "venv" / "bin"
    fetch = [program / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*fetch, wheel], check=True, timeout=580)
    code, output = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    environment = {name: value for name, value in os.environ.items() if not name.lower().startswith("acasessions")}

    def run(*command: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, capture_output=True, text=True, timeout=580, check=False, cwd=tmp_path, env=environment)

    assert run(program / "python", "-c", code).stdout == output
    missing = run(program / "aca-sessions", "run", "import pandas")
    assert missing.returncode == 1
    assert "[hint] install a missing package with --with PACKAGE" in missing.stderr
    subprocess.run([*fetch, f"{wheel}[data]"], check=True, timeout=580)
    drawn = run(program / "aca-sessions", "run", "import pandas as pd; pd.Series([1, 3, 2]).plot(title='Sales');")
    assert (drawn.returncode, drawn.stderr) == (0, "[image saved: image-1.png]\n")
