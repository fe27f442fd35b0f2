"""Test sessions whose root and Python come from a container image."""

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aca_sessions import Policy, Session, Settings, open_pool
from aca_sessions.errors import ConfigurationError
from aca_sessions.sandbox.guest.isolation import root as guest_root
from aca_sessions.sandbox.guest.isolation.root import RefusalError
from aca_sessions.sandbox.images.image_python import ImagePython
from aca_sessions.sandbox.images.images import root_of
from aca_sessions.sandbox.policy import PackageSource

from ..roots import RECIPES, VERSIONS, root_tar
from ..wheels import make_wheel

pytestmark = pytest.mark.slow
ENGINE = shutil.which("podman")


@pytest.fixture(params=RECIPES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(suite: str) -> str:
    return root_of(str(root_tar(suite)))


@pytest.fixture
def bookworm() -> str:
    return root_of(str(root_tar("bookworm")))


@asynccontextmanager
async def session_of(image: str, python: str | None = None) -> AsyncIterator[Session]:
    async with open_pool(policy=Policy(image=image, python=python, preload=(), spares=0)) as pool, pool.session() as session:
        yield session


async def test_a_session_runs_the_images_python_and_ipython(root: str, suite: str) -> None:
    async with session_of(root) as session:
        told = await session.run("import sys, IPython; print(sys.version_info[:2], IPython.__version__, sys.executable)")
        assert told.stdout == f"{VERSIONS[suite][0]} {VERSIONS[suite][1]} /usr/bin/python3\n"
        assert f"VERSION_CODENAME={suite}" in (await session.run("print(open('/etc/os-release').read())")).stdout


async def test_cells_work_as_they_do_on_the_hosts_python(root: str) -> None:
    async with session_of(root) as session:
        assert (await session.run("x = 20; x + 22")).value == 42
        failed = await session.run("def f(): return x / 0\nf()")
        assert (failed.error.name if failed.error else None, failed.state.kind) == ("ZeroDivisionError", "kept")
        assert "site-packages" not in failed.stderr
        assert (await session.run("import asyncio\nasync def g(): await asyncio.sleep(0); return x\nawait g()")).value == 20
        shown = await session.run("from IPython.display import display, HTML; display(HTML('<b>x</b>'))\n!echo from a shell")
        assert [display.data["text/html"] for display in shown.displays] == ["<b>x</b>"]
        assert shown.stdout == "from a shell\n"
        assert (await session.run("exit()")).state.kind == "kept"
        assert [variable.name for variable in await session.variables() if variable.name == "x"] == ["x"]


async def test_rollback_and_interrupt_work(root: str) -> None:
    async with session_of(root) as session:
        await session.run("x = 1")
        checkpoint = await session.checkpoint()
        await session.run("x = 2; open('made.txt', 'w').write('2')")
        await session.rollback(checkpoint)
        assert (await session.run("import os; x, os.listdir()")).text == "(1, [])"
        late = await session.run("while True: pass", timeout=0.5)
        assert (late.success, late.state.kind) == (False, "kept")


async def test_a_program_of_the_image_runs_instead_of_the_hosts(bookworm: str) -> None:
    async with session_of(bookworm) as session:
        told = await session.run(
            "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import IPython; print(IPython.__file__)'])"
        )
        assert told.stdout == "/usr/lib/python3/dist-packages/IPython/__init__.py\n"
        told = await session.run("import getpass, os; getpass.getuser(), os.getuid(), os.stat('/usr/bin/env').st_uid")
        assert told.text == str(("user", 1000, 65534 if os.geteuid() == 0 else 1000))


async def test_numpy_of_the_image_is_preloaded() -> None:
    image = root_of(str(root_tar("trixie")))
    async with open_pool(policy=Policy(image=image, preload=("numpy",))) as pool, pool.session() as session:
        assert (await session.run("import sys; 'numpy' in sys.modules")).value is True
        assert (await session.run("import numpy; numpy.arange(4).sum()")).text == "6"


async def test_health_reports_the_images_python_and_full_isolation(bookworm: str) -> None:
    async with session_of(bookworm) as session:
        health = await session.health()
        assert health.python.startswith("3.11")
        assert health.isolation["level"] == "full"
        assert [how for how in health.isolation.values() if how.startswith("NOT ENFORCED")] == []


def test_a_tar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tar = str(root_tar("bookworm"))
    first = root_of(tar)
    made = os.stat(first).st_ctime_ns
    assert root_of(tar) == first
    assert os.stat(first).st_ctime_ns == made
    assert [path.name for path in Path(first).parent.iterdir() if path.is_dir()] == [Path(first).name]


@pytest.fixture(scope="session")
def known_to_podman() -> Iterator[str]:
    """An image in podman's own store, which is removed again."""
    if ENGINE is None or os.geteuid() != 0:
        pytest.skip("needs root and podman: sudo apt install podman")
    name = "localhost/aca-sessions-test-root:latest"
    subprocess.run([ENGINE, "import", "--quiet", str(root_tar("bookworm")), name], check=True, capture_output=True)
    yield name
    subprocess.run([ENGINE, "rmi", "--force", name], check=True, capture_output=True)


async def test_an_image_that_podman_knows_is_exported_once(known_to_podman: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(ContainerImage=known_to_podman, Sandbox={"Preload": [], "Spares": 0})
    async with open_pool(settings) as pool, pool.session() as session:
        assert (await session.run("import IPython; IPython.__version__")).value == VERSIONS["bookworm"][1]
    root = root_of(known_to_podman)
    made = os.stat(root).st_ctime_ns
    assert (root_of(known_to_podman), os.stat(root).st_ctime_ns) == (root, made)
    assert subprocess.run([str(ENGINE), "ps", "--all", "--quiet"], check=True, capture_output=True).stdout == b""


def linked_copy(root: str, folder: Path) -> Path:
    """Return a root whose files are links to those of another, so that removing a file here leaves the other unchanged."""
    subprocess.run(["cp", "-al", root, str(folder)], check=True)
    return folder


@pytest.fixture(params=["bookworm", "trixie"])
def bare_python(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A root with Python 3.11 or 3.13 and none of its packages, as images of Python alone are."""
    image = linked_copy(root_of(str(root_tar(request.param))), Path(os.environ["XDG_CACHE_HOME"], "bare"))
    shutil.rmtree(image / "usr/lib/python3/dist-packages")
    yield image
    shutil.rmtree(image)


async def test_an_image_without_ipython_gets_only_this_hosts_ipython(bare_python: Path) -> None:
    async with session_of(str(bare_python)) as session:
        assert (await session.run("import IPython; IPython.__version__, IPython.__file__")).text == str(
            (importlib.metadata.version("ipython"), "/.ipython/IPython/__init__.py")
        )
        assert (await session.run("x = 20; await __import__('asyncio').sleep(0); x + 22")).value == 42
        missing = (
            "import importlib.util as u; [n for n in ('numpy', 'pandas', 'httpx', 'pydantic', 'aca_sessions.server') if u.find_spec(n)]"
        )
        assert (await session.run(missing)).text == "[]"
        refused = await session.run("open('/.ipython/IPython/__init__.py', 'a')")
        assert refused.error is not None
        assert refused.error.name in ("OSError", "PermissionError")
        packages = await session.run("import importlib.metadata as m; m.version('ipython'), 'numpy' in {d.name for d in m.distributions()}")
        assert packages.text == str((importlib.metadata.version("ipython"), False))


async def test_an_older_python_without_ipython_is_refused_with_the_version_that_is_needed(tmp_path: Path) -> None:
    image = linked_copy(root_of(str(root_tar("bullseye"))), Path(os.environ["XDG_CACHE_HOME"], "older"))
    shutil.rmtree(image / "usr/lib/python3/dist-packages/IPython")
    with pytest.raises(
        ConfigurationError, match=r"lacks IPython \(this host's needs Python 3\.\d+ or newer, the image has 3\.9\)\. Add it with"
    ):
        async with session_of(str(image)):
            pass
    shutil.rmtree(image)


async def test_packages_of_the_image_that_are_too_old_for_ipython_are_named(bookworm: str) -> None:
    image = linked_copy(bookworm, Path(os.environ["XDG_CACHE_HOME"], "mixed"))
    shutil.rmtree(image / "usr/lib/python3/dist-packages/IPython")
    (image / "usr/lib/python3/dist-packages/traitlets/__init__.py").unlink()
    (image / "usr/lib/python3/dist-packages/traitlets/__init__.py").write_text("raise ImportError('too old')")
    with pytest.raises(
        ConfigurationError, match=r"lacks IPython \(this host's does not work with the image's packages: ImportError: too old\)"
    ):
        async with session_of(str(image)):
            pass
    shutil.rmtree(image)


@pytest.fixture
def slim(bare_python: Path, tmp_path: Path) -> Iterator[str]:
    """An image as in the registry, in podman's own store."""
    if ENGINE is None or os.geteuid() != 0:
        pytest.skip("needs root and podman: sudo apt install podman")
    name = "localhost/aca-sessions-test-python:3.11-slim"
    subprocess.run(["tar", "-C", str(bare_python), "-cf", str(tmp_path / "root.tar"), "."], check=True)
    subprocess.run([ENGINE, "import", "--quiet", str(tmp_path / "root.tar"), name], check=True, capture_output=True)
    yield name
    subprocess.run([ENGINE, "rmi", "--force", name], check=True, capture_output=True)


async def test_an_image_with_python_alone_runs_by_its_name(slim: str) -> None:
    settings = Settings(ContainerImage=slim.removeprefix("localhost/"), Sandbox={"Preload": [], "Spares": 0})
    async with open_pool(settings) as pool, pool.session() as session:
        assert (await session.run("6 * 7")).value == 42


async def test_an_image_that_cannot_be_pulled_is_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    if ENGINE is None or os.geteuid() != 0:
        pytest.skip("needs root and podman: sudo apt install podman")
    name = "localhost:1/nobody/python:3.11-slim"  # nothing listens there
    with pytest.raises(
        ConfigurationError, match=f"does not have the image {name} and cannot pull it .*Run `podman pull {name}` where its registry"
    ):
        async with open_pool(Settings(ContainerImage=name)):
            pass


async def test_what_an_image_lacks_is_named_with_the_lines_that_add_it(bookworm: str, tmp_path: Path) -> None:
    image = linked_copy(bookworm, Path(os.environ["XDG_CACHE_HOME"], "without"))
    shutil.rmtree(image / "usr/lib/python3/dist-packages/IPython")
    next((image / "usr/lib/python3.11/lib-dynload").glob("_ctypes.*")).unlink()
    with pytest.raises(ConfigurationError) as refused:
        async with session_of(str(image)):
            pass
    told = str(refused.value)
    shutil.rmtree(image)
    assert told.startswith("ACASessions:ContainerImage: it lacks the module ctypes of the standard library, IPython. ")
    assert "FROM your-image\n  RUN apt-get update" in told


async def test_an_old_python_is_named_with_advice(bookworm: str) -> None:
    image = linked_copy(bookworm, Path(os.environ["XDG_CACHE_HOME"], "old"))
    old = image / "usr/local/bin/python3"
    old.write_text("#!/bin/sh\nexec /usr/bin/python3 -I -S -c 'import sys; sys.version_info = (3, 8, 18); exec(sys.argv[1])' \"$5\"\n")
    old.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"lacks Python 3.9 or newer \(it has 3.8\)\. .*\n  FROM python:3.12-slim"):
        async with session_of(str(image)):
            pass
    shutil.rmtree(image)


@pytest.mark.parametrize("said", ["", "3.11", "[" * 100_000])
def test_a_python_of_an_image_that_describes_itself_wrongly_is_refused(said: str) -> None:
    with pytest.raises(ConfigurationError, match="expected a JSON description"):
        ImagePython.parse(said)


def test_a_python_of_an_image_that_hangs_is_refused_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_root, "_CHECK_SECONDS", 0.1)
    program = tmp_path / "python3"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    with pytest.raises(RefusalError) as refused:
        guest_root.find_image_python(str(program))
    assert refused.value.report.message == f"a Python that starts within 0.1 s: {program} did not"


@pytest.mark.long
async def test_an_image_without_any_python_is_reported_with_the_paths_searched(tmp_path: Path) -> None:
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"(?s)lacks python3 \(sought at /usr/local/bin/python3, .*install .* python3 ipython3"):
        async with session_of(str(tmp_path)):
            pass


async def test_a_configured_python_is_a_path_in_the_image(bookworm: str) -> None:
    with pytest.raises(ConfigurationError, match=r"lacks /no/python \(sought at /no/python\)"):
        async with session_of(bookworm, "/no/python"):
            pass
    async with session_of(bookworm, "/usr/bin/python3.11") as session:
        assert (await session.run("import sys; sys.executable")).value == "/usr/bin/python3.11"


async def test_packages_are_resolved_for_the_images_python_and_not_for_the_hosts(root: str, suite: str, tmp_path: Path) -> None:
    major, minor = VERSIONS[suite][0]
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "needed-by-old")
    make_wheel(wheels, "choosy", requires=["needed-by-old; python_version < '3.10'", "decorator"])
    make_wheel(wheels, "compiled", "1.0")
    make_wheel(wheels, "compiled", "2.0", tag=f"cp{major}{minor}-cp{major}{minor}-manylinux_2_17_{os.uname().machine}")
    make_wheel(wheels, "compiled", "3.0", tag=f"cp312-cp312-manylinux_2_17_{os.uname().machine}")
    policy = Policy(image=root, packages=PackageSource(wheels=str(wheels)), preload=(), spares=0)
    async with open_pool(policy=policy) as pool, pool.session() as session:
        installed = await session.install("choosy", "compiled")
        assert installed.success, installed.error
        names = {package.name: package.version for package in await session.packages() if package.name in ("needed-by-old", "compiled")}
        assert names == {"compiled": "2.0"} | ({"needed-by-old": "1.0"} if (major, minor) < (3, 10) else {})
        assert (await session.run("import choosy, compiled; choosy.version, compiled.version")).text == "('1.0', '2.0')"


async def test_a_package_of_the_image_is_not_replaced(bookworm: str, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "decorator", "99.0")
    policy = Policy(image=bookworm, packages=PackageSource(wheels=str(tmp_path / "wheels")), preload=(), spares=0)
    async with open_pool(policy=policy) as pool, pool.session() as session:
        refused = await session.install("decorator>=99")
        assert refused.error is not None
        assert refused.error.name == "PackageConflictError"
