"""Test what a session promises at every kind of endpoint. With ACA_TEST_ENDPOINT set, and signed in, an Azure pool is tested as well."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aca_sessions import Session, Settings, open_pool
from aca_sessions.errors import ExecutionError, InvalidArgumentError, NotFoundError, NotSupportedError

from .endpoints import NAMES, settings_of, trusted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=NAMES)
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    with settings_of(request.param, folder) as settings:
        yield settings, folder / "cert.pem"


@pytest.fixture
async def session(endpoint: tuple[Settings, Path]) -> AsyncIterator[Session]:
    settings, certificate = endpoint
    with trusted(certificate):
        async with open_pool(settings) as pool, pool.session() as session:
            yield session


async def test_state_is_kept_between_cells(session: Session) -> None:
    await session.run("x = 20")
    result = await session.run("print('out')\nx + 22")
    assert (result.output, result.value, str(result.state)) == ("out\n42", 42, "kept")


async def test_a_failed_cell_is_a_result_and_the_session_continues(session: Session) -> None:
    result = await session.run("y = 1\n1 / 0")
    assert (result.success, result.error and result.error.name) == (False, "ZeroDivisionError")
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert (await session.run("y")).value == 1


async def test_code_is_taken_out_of_its_fence(session: Session) -> None:
    assert (await session.run("```python\n6 * 7\n```")).value == 42


async def test_a_figure_is_an_image(session: Session) -> None:
    result = await session.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert [image[:4] for image in result.images] == [b"\x89PNG"]


async def test_awaiting_works_at_the_top_of_a_cell(session: Session) -> None:
    assert (await session.run("import asyncio\nawait asyncio.sleep(0, 'slept')")).value == "slept"


async def test_files_go_in_and_out(session: Session) -> None:
    await session.upload_file("a b.csv", b"n\n1\n2\n")
    assert (await session.run("sum(int(line) for line in open('a b.csv').readlines()[1:])")).value == 3
    await session.run("open('out.bin', 'wb').write(bytes(range(256)))")
    assert await session.download_file("out.bin") == bytes(range(256))
    assert {"a b.csv", "out.bin"} <= {file.name for file in await session.list_files()}
    await session.delete_file("out.bin")
    with pytest.raises(NotFoundError):
        await session.download_file("out.bin")


async def test_an_uploaded_module_can_be_imported(session: Session) -> None:
    await session.upload_file("figures.py", "answer = 42")
    assert (await session.run("import figures; figures.answer")).value == 42


async def test_a_cell_over_its_time_ends_and_the_reported_state_is_true(session: Session) -> None:
    await session.run("x = 1")
    overran = await session.run("while True: pass", timeout=1)
    assert not overran.success
    after = await session.run("'x' in globals()")
    assert after.value is (str(overran.state) == "kept" or after.state.kind == "kept")


async def test_a_dead_interpreter_loses_variables_and_no_file(session: Session) -> None:
    await session.upload_file("kept.txt", "kept")
    await session.run("x = 1")
    died = await session.run("import os; os._exit(1)")
    assert (died.success, died.state.kind) == (False, "lost")
    assert (await session.run("('x' in globals(), open('/mnt/data/kept.txt').read())")).text == "(False, 'kept')"


async def test_reset_clears_the_variables_and_keeps_the_files(session: Session) -> None:
    await session.upload_file("kept.txt", "kept")
    await session.run("x = 1; import os; os.chdir('/tmp')")
    await session.reset()
    result = await session.run("('x' in globals(), open('kept.txt').read())")
    assert (result.text, str(result.state)) == ("(False, 'kept')", "kept")


async def test_variables_are_listed_with_type_and_shape(session: Session) -> None:
    await session.run("import math, numpy as np\nn = 3; s = 'abc'; a = np.zeros((2, 3)); _hidden = 1\nclass Own: pass\no = Own()")
    found = {variable.name: variable for variable in await session.variables()}
    assert sorted(found) == ["Own", "a", "n", "o", "s"]
    assert (found["n"].type, found["n"].text, found["s"].shape, found["o"].type) == ("int", "3", (3,), "Own")
    assert (found["a"].type, found["a"].shape, found["a"].size) == ("ndarray", (2, 3), 48)


async def test_listing_variables_runs_no_user_code_and_changes_nothing(session: Session) -> None:
    trap = "class Trap:\n    def __repr__(self): raise SystemExit\n    __len__ = __sizeof__ = __repr__\nt, l = Trap(), [Trap()]\n41 + 1"
    await session.run(trap)
    found = {variable.name: variable for variable in await session.variables()}
    assert (found["t"].text, found["l"].text) == ("", "[<Trap>]")
    assert (await session.run("_")).value == 42


async def test_health_is_reported_by_the_interpreter_itself(session: Session) -> None:
    await session.run("1")
    health = await session.health()
    assert health.responsive
    assert health.python.startswith("3.")
    assert health.memory > 1_000_000
    if await session.supports("isolation"):
        assert {"user namespace", "seccomp", "Landlock", "memory of a session"} <= health.isolation.keys()
        assert not any("NOT ENFORCED" in how for how in health.isolation.values())
    else:
        assert health.isolation is None


async def test_packages_are_installed_only_if_an_index_is_reachable(session: Session) -> None:
    with pytest.raises(InvalidArgumentError):
        await session.install("--index-url=http://example.org")
    if not await session.supports("install"):
        with pytest.raises(NotSupportedError, match="reaches no package index"):
            await session.install("humanize")
    else:
        assert (await session.run("import humanize; humanize.intcomma(12345)", libraries=["humanize"])).text in ("12,345", "'12,345'")
        assert (await session.install("humanize")).success
        assert (await session.run("import humanize; humanize.intcomma(12345)")).text in ("12,345", "'12,345'")


@pytest.mark.long
async def test_an_installed_library_needs_no_index(session: Session) -> None:
    assert (await session.run("import numpy; 6 * 7", libraries=["numpy>=1"])).value == 42


async def test_installed_packages_are_listed_and_uninstalled_if_the_endpoint_supports_it(session: Session) -> None:
    if not await session.supports("packages"):
        with pytest.raises(NotSupportedError, match="list installed packages"):
            await session.packages()
        with pytest.raises(NotSupportedError, match="uninstall packages"):
            await session.uninstall("humanize")
    else:
        await session.install("humanize")
        assert [package.name for package in await session.packages()] == ["humanize"]
        assert (await session.uninstall("humanize")).success
        assert await session.packages() == []


@pytest.mark.long
async def test_user_code_that_breaks_the_clients_own_cells_is_undone_by_a_reset(session: Session) -> None:
    await session.run("import builtins; builtins.exec = None")
    with pytest.raises(ExecutionError):
        await session.variables()
    assert not (await session.health()).responsive
