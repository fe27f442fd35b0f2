"""Test `aca-sessions env`: separate environments for sessions. Their wheels are made from the packages installed here."""

import importlib.metadata
import os
import re
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from aca_sessions import Settings, open_pool
from aca_sessions.errors import ConfigurationError
from aca_sessions.sandbox.packages.environments import SERVICE_PACKAGES

from ..conftest import aca_sessions, mostly_long
from ..wheels import make_wheel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for name in needed("ipython", "matplotlib-inline"):
        pack_again(folder, importlib.metadata.distribution(name))
    make_wheel(folder, "alpha")
    return folder


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheels: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(wheels))
    (tmp_path / "requirements.txt").write_text("alpha\n")


def needed(*names: str) -> set[str]:
    found: set[str] = set()
    for name in names:
        wanted = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
        real = [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
        found |= {name, *needed(*real)}
    return found


def pack_again(folder: Path, distribution: importlib.metadata.Distribution) -> None:
    tags = re.findall(r"^Tag: (.+)-(.+)-(.+)$", distribution.read_text("WHEEL") or "", re.MULTILINE)
    tag = "-".join(".".join(sorted(set(part))) for part in zip(*tags, strict=True))
    name = distribution.metadata["Name"].replace("-", "_").replace(".", "_")
    with zipfile.ZipFile(folder / f"{name}-{distribution.version}-{tag}.whl", "w") as wheel:
        for file in distribution.files or ():
            if file.parts[0] != ".." and file.suffix != ".pyc" and Path(str(file.locate())).is_file():
                wheel.write(str(file.locate()), str(file))


@pytest.mark.long
async def test_a_session_in_its_own_environment_sees_no_package_of_the_host_program() -> None:
    made = aca_sessions("env", "create", "small", "-r", "requirements.txt")
    assert (made.returncode, '"Environment": "small"' in made.stdout) == (0, True)
    assert "`export ACASessions__Sandbox__Environment=small`" in made.stdout
    assert re.match(r"small  Python 3\.\d+\.\d+  \d+ packages\n", aca_sessions("env", "ls").stdout)
    async with open_pool(Settings(Sandbox={"Environment": "small"})) as pool, pool.session() as session:
        seen = "import importlib.util as u, alpha; [bool(u.find_spec(n)) for n in ('alpha', 'semantic_kernel', 'httpx', 'numpy')]"
        assert (await session.run(seen)).text == "[True, False, False, False]"
        assert (await session.install("numpy<0")).error is not None
    assert aca_sessions("env", "rm", "small").stderr == "[environment removed: small]\n"
    none = aca_sessions("env", "list")
    assert (none.stdout, "no environments: `aca-sessions env create" in none.stderr) == ("", True)


@pytest.mark.long
def test_an_environment_that_cannot_be_created_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("no-such-package\n")
    failed = aca_sessions("env", "create", "broken", "-r", "requirements.txt")
    assert failed.returncode == 2
    assert "cannot make the environment broken: the index does not have a package no-such-package" in failed.stderr
    assert os.listdir(tmp_path / "data" / "aca-sessions" / "environments") == []


@pytest.mark.long
def test_packages_of_azure_without_a_wheel_for_this_python_are_named() -> None:
    failed = aca_sessions("env", "create", "like-azure", "--like", "azure")
    assert failed.returncode == 2
    assert "pyarrow==16.1.0" in failed.stderr
    assert "--skip-missing" in failed.stderr


@pytest.mark.long
def test_packages_without_a_wheel_are_left_out_on_request(wheels: Path) -> None:
    name, _, version = SERVICE_PACKAGES["azure"][0].partition("==")
    make_wheel(wheels, name, version)
    made = aca_sessions("env", "create", "like-azure", "--like", "azure", "--skip-missing")
    assert made.returncode == 0
    assert "left out, because they have no wheel: pandas==2.2.2" in made.stdout
    assert name not in made.stdout
    assert aca_sessions("env", "create", "like-azure", "--like", "azure").returncode == 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "said"),
    mostly_long(
        [
            (["env", "create", "../x", "-r", "requirements.txt"], "lower-case letters"),
            (["env", "create", "new", "-r", "nothing.txt"], "-r must name a file that exists, got nothing.txt"),
            (["env", "create", "new", "-r", "requirements.txt", "--python", "/bin/false"], "venv module, got /bin/false"),
            (["env", "create", "new"], "required"),
            (["env", "remove", "new"], "aca-sessions: the environment new does not exist: `aca-sessions env list` lists"),
            (["env", "remove", "."], "lower-case letters"),
        ],
        every=4,
    ),
)
def test_a_mistake_is_reported_with_advice(arguments: list[str], said: str) -> None:
    run = aca_sessions(*arguments)
    assert run.returncode == 2
    assert said in run.stderr


async def test_a_missing_environment_is_named_with_the_command_that_creates_it() -> None:
    with pytest.raises(ConfigurationError, match="aca-sessions env create mine"):
        async with open_pool(Settings(Sandbox={"Environment": "mine"})):
            pass


async def test_an_environment_and_a_python_contradict_each_other() -> None:
    with pytest.raises(ConfigurationError, match=r"Sandbox:Python and .*Sandbox:Environment contradict"):
        async with open_pool(Settings(Sandbox={"Environment": "mine", "Python": "/usr/bin/python3"})):
            pass
