"""Attack sessions whose root is an image. `ACA_TEST_IMAGE` runs all other tests of this folder in such sessions as well."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aca_sessions import Policy, Session, open_pool
from aca_sessions.sandbox.images.images import root_of

from ..conftest import ROOT
from ..roots import ASKED_FOR, root_tar
from .attempts import PRELUDE, outcome
from .test_host_files import REFUSALS, WRITES, _attributes

pytestmark = pytest.mark.slow


@pytest.fixture
def root() -> str:
    return root_of(str(root_tar("bookworm")))


@pytest.fixture
async def inside(root: str) -> AsyncIterator[Session]:
    async with open_pool(policy=Policy(image=root, preload=(), spares=0)) as pool, pool.session() as session:
        yield session


async def test_a_session_sees_the_image_and_not_the_host(inside: Session, root: str) -> None:
    """A session of an image sees the image's files in the place of the host's /usr, settings and Python; of the
    host's only copies of IPython's packages, read-only.
    """
    seen = await inside.run("import os; print(*(f'{d.name} {d.stat().st_ino}' for d in os.scandir('/usr')))")
    image = {entry.name: entry.stat().st_ino for entry in os.scandir(f"{root}/usr")}
    assert dict(zip(seen.stdout.split()[::2], map(int, seen.stdout.split()[1::2]), strict=True)) == image
    for path in (sys.prefix, str(ROOT), root, str(Path(root).parent)):
        assert await outcome(inside, f"import os; os.stat({path!r})") in ("ENOENT", "EACCES") or path == "/usr"
    shown = await inside.run("import os; print(*sorted(name.partition('-')[0] for name in os.listdir('/.ipython')))")
    assert {"IPython", "traitlets"} <= set(shown.stdout.split())
    assert not {"aca_sessions", "httpx", "numpy", "pip", "bin"} & set(shown.stdout.split())
    for attempt in ("open('/.ipython/IPython/__init__.py', 'a')", "os.mkdir('/.ipython/x')", "os.chmod('/.ipython/IPython', 0o777)"):
        assert await outcome(inside, f"import os; {attempt}") in ("EROFS", "EACCES", "EPERM")


async def test_the_image_is_read_only(inside: Session, root: str) -> None:
    """What a session sees of its image it can neither write to nor change in mode, time, owner or name."""
    watched = [Path(root, path) for path in ("usr/bin/true", "usr/bin", "usr/lib/python3.11/os.py", "etc/passwd", "etc")]
    before = [_attributes(path) for path in watched]
    for name, write in WRITES.items():
        assert await outcome(inside, write, prelude=PRELUDE) in REFUSALS, name
    assert [_attributes(path) for path in watched] == before


async def test_an_image_brings_no_special_right_and_no_device(inside: Session, root: str) -> None:
    """An image's tar brings no set-user-id program and no device, and belongs to no session's user where the host is root."""
    found = "import os; print(*{hex(os.lstat(os.path.join(p, n)).st_mode & 0o6000) for p, d, f in os.walk('/usr') for n in d + f})"
    assert (await inside.run(found)).stdout == "0x0\n"
    assert await outcome(inside, "import os; print(*sorted(os.listdir('/dev')))") == (
        "got: fd full null ptmx pts random shm stderr stdin stdout tty urandom zero\n"
    )
    owners = {path.lstat().st_uid for path in Path(root, "usr/bin").iterdir()}
    assert owners == {os.geteuid()}


async def test_a_link_of_an_image_leads_nowhere_on_the_host(tmp_path: Path, root: str) -> None:
    """A link in an image leads to a place in the image, whatever lies there on the host."""
    (tmp_path / "secret.txt").write_text("the host's own")
    image = tmp_path / "image"
    await asyncio.to_thread(subprocess.run, ["cp", "-a", "--reflink=auto", root, str(image)], check=True)
    for name in ("srv", "opt"):
        (image / name).rmdir()
        (image / name).symlink_to(tmp_path)
    (image / "etc/hosts").unlink(missing_ok=True)
    (image / "etc/hosts").symlink_to(tmp_path / "secret.txt")
    (image / "etc/linked").symlink_to(tmp_path / "secret.txt")
    async with open_pool(policy=Policy(image=str(image), preload=(), spares=0)) as pool, pool.session() as session:
        for path in ("/srv/secret.txt", "/opt/secret.txt", "/etc/linked", "/.etc/hosts"):
            assert await outcome(session, f"open({path!r}).read()") == "ENOENT"
        assert (await session.run("print(open('/etc/hosts').readline())")).stdout.startswith("127.0.0.1")


@pytest.mark.skipif(not ASKED_FOR, reason="takes minutes: make test-containers")
@pytest.mark.parametrize("suite", ["bookworm", "bullseye", "trixie"])
async def test_every_other_claim_holds_for_images(suite: str) -> None:
    """Every other claim for full isolation holds in sessions of an image, with Python 3.9, 3.11 and 3.13."""
    left_out = {"test_images", "test_without_namespaces"}
    others = [path for path in sorted(Path(__file__).parent.glob("test_*.py")) if path.stem not in left_out]
    told = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, others)],
        cwd=ROOT,
        env=os.environ | {"ACA_TEST_IMAGE": root_of(str(root_tar(suite)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout[-4000:]
