"""Test docs/reference/hosts.md: make each condition that one machine can make, and check the row and the line that the page has for it."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from aca_sessions.sandbox import hosts
from aca_sessions.sandbox.hosts import HostCondition

from .conftest import COMMAND, ROOT, mostly_long

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "reference" / "hosts.md").read_text()
ROWS = {anchor: (name, line) for anchor, name, line in re.findall(r'^\| <a id="([\w-]+)"></a>(.*?) \|.*?\| `(.*?)` \|', PAGE, re.MULTILINE)}
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has the rights that this condition takes away")
REFUSED = [
    pytest.param("no_user_namespaces", hosts.NO_USER_NAMESPACES, id="no user namespaces"),
    pytest.param("debian+ordinary_user", hosts.DEBIAN, id="Debian's switch", marks=pytest.mark.long),
    pytest.param("ubuntu+ordinary_user", hosts.UBUNTU, id="Ubuntu's switch", marks=pytest.mark.long),
    pytest.param("debian", hosts.DEBIAN, id="Debian's switch, as root", marks=[only_root, pytest.mark.long]),
    pytest.param("ubuntu_as_root", hosts.UBUNTU, id="Ubuntu's switch, as root", marks=[only_root, pytest.mark.long]),
    pytest.param("refuse_namespaces", hosts.FILTERED, id="a container's filter", marks=pytest.mark.long),
    pytest.param("masked_proc", hosts.MASKED_PROC, id="masked /proc", marks=pytest.mark.long),
    pytest.param("podman", hosts.PODMAN, id="Podman", marks=pytest.mark.long),
    pytest.param("no_capabilities", hosts.NO_CAPABILITIES, id="no capabilities", marks=[only_root, pytest.mark.long]),
    pytest.param("lone_root", hosts.LONE_ROOT, id="one uid", marks=[only_root, pytest.mark.long]),
    pytest.param("no_landlock", hosts.NO_LANDLOCK, id="no Landlock", marks=pytest.mark.long),
    pytest.param("landlock_not_booted", hosts.NO_LANDLOCK, id="Landlock is not booted", marks=pytest.mark.long),
    pytest.param("no_seccomp", hosts.NO_SECCOMP, id="no seccomp"),
]


def where(condition: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line under a condition of tests/conditions.py."""
    command = [sys.executable, "-m", "tests.conditions", condition, *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT, env=os.environ | environment)


def doctor_and_run(condition: str) -> "tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]":
    """Run both at the same time."""
    with ThreadPoolExecutor() as threads:
        doctor, run = threads.submit(where, condition, "doctor"), threads.submit(where, condition, "run", "print('ran')")
        return doctor.result(), run.result()


@pytest.mark.parametrize(("condition", "host"), REFUSED)
def test_a_host_that_cannot_isolate_gets_its_row_and_line_and_runs_nothing(condition: str, host: HostCondition) -> None:
    doctor, run = doctor_and_run(condition)
    assert (doctor.returncode, run.returncode, run.stdout) == (1, 2, "")
    for told in (doctor.stdout, run.stderr):
        assert f": {host.line}" in told
        assert host.row in told.partition(" See ")[2]


def test_a_pod_gets_the_lines_for_its_spec() -> None:
    told = where("masked_proc", "doctor", KUBERNETES_SERVICE_HOST="10.0.0.1").stdout
    assert f": {hosts.KUBERNETES.line}" in told
    assert hosts.KUBERNETES.row in told


@pytest.mark.long
def test_without_control_groups_isolation_is_full_and_memory_is_polled() -> None:
    doctor = where("no_cgroups", "doctor")
    assert (doctor.returncode, doctor.stdout.splitlines()[-2]) == (0, "isolation: full")
    assert hosts.NO_CGROUPS.row in doctor.stdout


@pytest.mark.parametrize("condition", mostly_long(["refuse_namespaces", "masked_proc", "ubuntu+ordinary_user"], "ubuntu+ordinary_user"))
@pytest.mark.long
def test_the_lesser_level_works_if_chosen_on_a_host_that_refuses_namespaces(condition: str, public_python: str) -> None:
    chosen = {"ACASessions__Sandbox__Isolation": "no-namespaces", "ACASessions__Sandbox__Python": public_python}
    run = where(condition, "run", "1 + 1", **chosen)
    assert (run.returncode, run.stdout) == (0, "2\n"), run.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("condition", "host"),
    [
        ("no_landlock", hosts.NO_LANDLOCK),
        ("no_seccomp", hosts.NO_SECCOMP),
        pytest.param("no_capabilities", hosts.NO_CAPABILITIES, marks=only_root),
        pytest.param("lone_root", hosts.LONE_ROOT, marks=only_root),
    ],
)
def test_the_lesser_level_too_needs_landlock_seccomp_and_another_user(condition: str, host: HostCondition) -> None:
    run = where(condition, "run", "1 + 1", ACASessions__Sandbox__Isolation="no-namespaces")
    assert (run.returncode, run.stdout) == (2, "")
    assert host.row in run.stderr
    assert "Or accept less" not in run.stderr


def test_the_page_has_every_row_that_errors_name() -> None:
    assert {host.anchor: (host.name, host.line) for host in hosts.ALL} == {host.anchor: ROWS.get(host.anchor) for host in hosts.ALL}


def test_no_two_rows_have_one_anchor() -> None:
    anchors = re.findall(r'<a id="([\w-]+)">', PAGE)
    assert sorted(anchors) == sorted(ROWS)


def test_each_row_marked_as_tried_has_a_test_here() -> None:
    tried = {anchor for anchor, rest in re.findall(r'^\| <a id="([\w-]+)"></a>(.*)$', PAGE, re.MULTILINE) if rest.endswith("| tried |")}
    elsewhere = {"guests-python"}  # tests/sandbox/test_isolation.py
    assert tried - elsewhere <= {parameter.values[1].anchor for parameter in REFUSED}
