"""Test that the judge of `make redteam` distinguishes an escape from a refusal."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from .conftest import ROOT
from .redteam.escapes import ATTEMPTS
from .redteam.places import Host, host, in_sessions, places, program

pytestmark = pytest.mark.slow
FLAG, *_ = ATTEMPTS


async def test_the_flag_can_be_read_outside_and_not_in_a_session() -> None:
    with host() as made:
        assert replace(places()[-1], command=()).run(FLAG, made).word == "not"
        (verdict,) = await in_sessions([FLAG], made)
    assert verdict.word == "contained"


@pytest.mark.parametrize("attempt", [one for one in ATTEMPTS if not one.reason], ids=lambda one: one.name)
def test_every_attempt_is_a_valid_program(attempt, tmp_path) -> None:
    compile(program(attempt, Host(tmp_path), str(tmp_path)), "attempt", "exec")


async def test_a_mistake_in_an_attempt_is_not_a_refusal() -> None:
    with host() as made:
        (verdict,) = await in_sessions([replace(FLAG, escape="no_such_name")], made)
    assert verdict.word == "broken"


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs the Python of a distribution")
def test_a_user_who_cannot_install_pythons_tests_gets_instructions(tmp_path: Path) -> None:
    for name in ("bash", "env", "id"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)  # and no apt-get
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "__init__.py").touch()  # found before the Python that may have tests
    done = subprocess.run(
        [ROOT / ".ci" / "packages", "redteam", "/usr/bin/python3"],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    *_, last = done.stdout.splitlines()
    assert "skipped without these packages: sudo apt install" in last
    assert "libpython3." in last
    assert last.endswith("-testsuite")
