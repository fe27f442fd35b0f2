"""Test that a cell of the command line that lacks a package or the network ends with the option that helps."""

import json
from pathlib import Path

import pytest

from ..conftest import aca_sessions

pytestmark = pytest.mark.slow

MISSING = "[hint] install a missing package with --with PACKAGE"


def test_a_missing_package_ends_with_the_option_that_installs() -> None:
    run = aca_sessions("run", "print('[hint] do this'); import humanizzze")
    assert (run.returncode, run.stderr.splitlines()[-1]) == (1, MISSING)


@pytest.mark.long
def test_a_missing_module_beside_the_file_ends_with_the_option_that_brings_it_in(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("value = 1")
    (tmp_path / "uses.py").write_text("import helper")
    run = aca_sessions("run", "uses.py")
    assert run.stderr.splitlines()[-1] == "[hint] helper.py is not in the session: bring it in with --file helper.py"
    assert aca_sessions("run", "--file", "helper.py", "uses.py").returncode == 0


@pytest.mark.long
def test_a_missing_file_ends_with_the_option_that_brings_it_in() -> None:
    hint = "[hint] a session sees no files of this machine: bring them in with --file PATH"
    assert aca_sessions("run", "open('data.csv')").stderr.splitlines()[-1] == hint


@pytest.mark.long
def test_a_name_that_cannot_be_resolved_ends_with_the_option_that_brings_data_in() -> None:
    code = "import socket; socket.gethostbyname('example.org')"
    hint = "this session has no network, so trying again does not help: bring data in with --file PATH"
    assert aca_sessions("run", "--live", code).stderr.splitlines()[-1] == f"[hint] {hint}"
    assert json.loads(aca_sessions("run", "--json", code).stdout)["hint"] == hint
