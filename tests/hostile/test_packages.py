"""Attack with hostile packages and names of packages, and attack what sessions share."""

import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aca_sessions import CodeInterpreter, PackageSource, Policy, Session, SessionPool, open_interpreter, open_pool
from aca_sessions.client.http import SessionsHttpClient
from aca_sessions.contract import extensions

from ..conftest import IMAGE, mostly_long
from ..wheels import index_of, make_wheel
from .attempts import outcome

pytestmark = pytest.mark.slow


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    make_wheel(folder, "alpha")
    return folder


@pytest.fixture
async def pool(wheels: Path) -> AsyncIterator[SessionPool]:
    async with open_pool(policy=Policy(image=IMAGE, packages=PackageSource(wheels=str(wheels)), preload=(), spares=0)) as opened:
        yield opened


@pytest.fixture
async def interpreter(wheels: Path) -> AsyncIterator[CodeInterpreter]:
    async with open_interpreter(policy=Policy(image=IMAGE, packages=PackageSource(wheels=str(wheels)), preload=(), spares=0)) as opened:
        yield opened


@pytest.mark.long
async def test_no_code_of_a_package_runs_on_the_host(session: Session, wheels: Path, tmp_path: Path) -> None:
    """What a package brings to run while it is built, installed or found runs in no other place than the session."""
    mark = tmp_path / "mark"
    leave = f"open({str(mark)!r}, 'w')"
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text("[build-system]\nrequires = []\nbuild-backend = 'own'\nbackend-path = ['.']\n")
    (source / "own.py").write_text(leave)
    hooks = {"hooked.pth": f"import os; {leave}\n", "sitecustomize.py": leave, "hooked.py": leave, "pip.py": leave, "ssl.py": leave}
    scripts = {"hooked-1.0.dist-info/entry_points.txt": "[console_scripts]\npython3 = hooked:main\n[distutils.commands]\nx = hooked:x\n"}
    make_wheel(wheels, "built", requires=[f"source @ file://{source}"])
    make_wheel(wheels, "fetched", requires=[f"source @ git+file://{source}"])
    make_wheel(wheels, "hooked", files=hooks | scripts)
    assert [(await session.install(name)).success for name in ("built", "fetched", "hooked")] == [False, False, True]
    assert (await session.install("alpha")).success
    assert not mark.exists()


PLACES = ["a/../../..", "", "..", "../../../../../../../../../..", "n-1.0.data/scripts/../../..", "n-1.0.data/data/../../../.."]


@pytest.mark.long
@pytest.mark.parametrize("places", mostly_long([PLACES[:1], PLACES[1:]], PLACES[:1]), ids=["one", "the others"])
async def test_a_wheel_writes_nothing_outside_its_folder(session: Session, wheels: Path, tmp_path: Path, places: list[str]) -> None:
    """Whatever the members of a wheel are called, nothing is written outside its own folder in the cache."""
    for number, place in enumerate(places):
        make_wheel(wheels, f"climbs{number}", files={f"{place}{tmp_path}/climbed": "", f"{place}/climbed{number}": ""})
    with zipfile.ZipFile(make_wheel(wheels, "linked"), "a") as wheel:
        link = zipfile.ZipInfo("out")
        link.external_attr = 0o120777 << 16
        wheel.writestr(link, str(tmp_path))
        wheel.writestr("out/climbed", "")
    names = [*(f"climbs{number}" for number in range(len(places))), "linked"]
    results = [await session.install(name) for name in names]
    assert not any((tmp_path / name).exists() for name in ("climbed", *(f"climbed{number}" for number in range(len(places)))))
    assert [result.success for result in results].count(False) >= len(places) - 1


@pytest.mark.long
async def test_shared_packages_can_be_neither_changed_nor_listed(session: Session, pool: SessionPool) -> None:
    """What sessions share in /.packages none of them changes, and none learns which packages others have."""
    await session.install("alpha")
    path = str((await session.run("import alpha; alpha.__file__")).value)
    assert await outcome(session, f"open({path!r}, 'w')") == "EROFS"
    assert await outcome(session, f"import os; os.unlink({path!r})") == "EROFS"
    assert await outcome(session, f"import os; os.chmod({path!r}, 0o777)") in ("EROFS", "EPERM")
    assert await outcome(session, f"import os; os.rename({path!r}, '/.packages/x')") in ("EROFS", "EXDEV")
    assert await outcome(session, "import os; os.mkdir('/.packages/x')") in ("EROFS", "EACCES")
    assert await outcome(session, "import os; os.chmod('/.packages', 0o777)") in ("EROFS", "EPERM")
    assert await outcome(session, "import os; os.listdir('/.packages')") == "EACCES"
    assert await outcome(session, "import subprocess; subprocess.run(['ls', '/.packages'], check=True)") == "CalledProcessError"
    async with pool.session() as other:
        await other.install("alpha")
        assert (await other.run("import alpha; alpha.version")).value == "1.0"


@pytest.mark.parametrize(
    "requirement",
    [
        "--index-url=http://127.0.0.1:9/",
        "-e .",
        "-r /etc/passwd",
        "/etc/passwd",
        "alpha @ file:///etc/passwd",
        "alpha @ http://169.254.169.254/",
        "alpha\n-r /etc/passwd",
        "${HOME}",
        "alpha==$HOME",
        "alpha===1/../..",
    ],
)
async def test_a_requirement_can_only_name_a_package(interpreter: CodeInterpreter, requirement: str) -> None:
    """What names a package names nothing else: options, files, addresses, variables and further lines are refused from every caller."""
    http: SessionsHttpClient = interpreter._http
    body = extensions.encode_install_request([requirement], 60)
    answer = await http.request("POST", extensions.PACKAGES_PATH, identifier="s", json=body)
    result = extensions.decode_package_result(answer.json())
    assert result.error is not None
    assert result.error.name == "InvalidRequirementError"
    assert "root:" not in str(result)


@pytest.mark.long
async def test_the_password_of_an_index_is_not_disclosed(wheels: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The address of an index, which may hold a password, is in no result, no session, no log and no argument of a program."""
    results = []
    caplog.set_level("DEBUG")
    with index_of(wheels, password="s3cret-word") as address:
        wrong = address.replace("s3cret-word", "another-word")
        for url in (address, wrong):
            async with (
                open_pool(policy=Policy(image=IMAGE, packages=PackageSource(index_url=url), preload=(), spares=0)) as pool,
                pool.session() as session,
            ):
                results += [await session.install(name) for name in ("alpha", "no-such-package")]
                results.append(await session.run("import os; dict(os.environ), os.listdir('/.guest')"))
    assert [result.success for result in results] == [True, False, True, False, False, True]
    assert results[3].error is not None
    assert results[3].error.name == "IndexRefusedError"
    told = "".join(map(repr, results)) + caplog.text
    assert not any(secret in told for secret in ("s3cret-word", "another-word", "reader", address.rpartition("@")[2]))


_CONFINED = """
import subprocess, sys
from aca_sessions.sandbox.packages.pip_launcher import confine
confine(sys.argv[1])
def attempt(act):
    try:
        act()
        return "done"
    except OSError as error:
        return error.errno
print(attempt(lambda: open(sys.argv[1] + "/inside", "w")), attempt(lambda: open(sys.argv[2] + "/outside", "w")),
      attempt(lambda: open(sys.argv[2] + "/there", "a")), attempt(lambda: subprocess.run(["/bin/true"])),
      attempt(lambda: subprocess.run([sys.executable, "-c", ""])))
"""


def test_the_program_that_fetches_packages_writes_to_its_own_folder_and_starts_nothing(tmp_path: Path) -> None:
    """The program that fetches packages writes below one folder of the cache alone, and starts no program."""
    (tmp_path / "own").mkdir()
    (tmp_path / "there").write_text("")
    arguments = [sys.executable, "-c", _CONFINED, str(tmp_path / "own"), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["done", "13", "13", "13", "13"]
