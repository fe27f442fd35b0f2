"""Test sessions that are saved as notebooks and scripts, and replayed."""

import base64
import json
import shlex
from pathlib import Path

import nbformat
import pandas
import pytest

from aca_sessions import Session, SessionPool, open_pool, replay
from aca_sessions.client import history as notebook
from aca_sessions.client.history import CellStep, DeleteStep, History, InstallStep, ResetStep, UploadStep
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.transfer import pass_in

from ..scenarios.endpoints import settings_of

STEADY = (
    "import pandas as pd\nprint('out')\nfigures = pd.read_csv('data/figures.csv')\nfigures",
    "figures.n.sum()",
    "object()",
    "import sys; print('careful', file=sys.stderr)",
    "1 / 0",
    "def f(:",
    "",
    "# nothing",
    "from IPython.display import *\ndisplay(Markdown('# h'), Latex('$x$'), HTML('<b>'), JSON({'a': [1]}))",
    "import warnings; warnings.warn('careful')",
    "%%writefile written.txt\ncontent",
    "open('written.txt').read()",
)
FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


async def recorded(session: Session, *cells: str) -> dict[str, object]:
    await session.upload_file("data/figures.csv", "n\n1\n2\n")
    for cell in cells:
        await session.run(cell, sanitize=False)
    return session.to_notebook()


async def again(pool: SessionPool, source: object) -> str:
    async with pool.session() as fresh:
        return str(await replay(source, fresh))


@pytest.mark.slow
@pytest.mark.preloaded
async def test_a_notebook_is_valid_and_replays_identically_in_a_fresh_session(pool: SessionPool, session: Session, tmp_path: Path) -> None:
    written = await recorded(session, *STEADY)
    nbformat.validate(nbformat.from_dict(written))
    session.write_notebook(tmp_path / "a.ipynb")
    nbformat.validate(nbformat.read(tmp_path / "a.ipynb", as_version=4))
    async with pool.session() as fresh:
        report = await replay(tmp_path / "a.ipynb", fresh)
        assert (str(report), report.same) == (f"{len(STEADY)} of {len(STEADY)} cells came out the same", True)
        assert [cell["source"] for cell in fresh.to_notebook()["cells"]] == [cell["source"] for cell in written["cells"] if cell["source"]]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("endpoint", ["plain", "tls"])
@pytest.mark.preloaded
async def test_a_notebook_replays_at_another_endpoint_and_back(pool: SessionPool, session: Session, endpoint: str, tmp_path: Path) -> None:
    there = await recorded(session, FIGURE, "figure = 1\nprint('out')", "[1, 2]", "1 / 0", "import warnings; warnings.warn('careful')")
    with settings_of(endpoint, tmp_path) as settings, pytest.MonkeyPatch.context() as patch:
        if endpoint == "tls":
            patch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        async with open_pool(settings) as other, other.session() as elsewhere:
            report = await replay(there, elsewhere)
            assert str(report) == "5 of 5 cells came out the same"
            back = elsewhere.to_notebook()
    assert await again(pool, back) == "5 of 5 cells came out the same"


async def test_a_cell_that_draws_a_random_number_differs_and_is_named(pool: SessionPool, session: Session) -> None:
    written = await recorded(session, "1", "import random; random.random()", "1 / (random.random() > 2)", "2")
    lines = (await again(pool, written)).splitlines()
    assert lines[0] == "3 of 4 cells came out the same"
    assert lines[1].startswith("cell 2: output differs; shown was ['0.")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("print(1)", "print(2)", "cell 1: output differs; stdout was '1', is '2'"),
        (
            "1 / 0",
            "[][0]",
            "cell 1: error differs; error was 'ZeroDivisionError: division by zero', is 'IndexError: list index out of range'",
        ),
        ("1 / 0", "1", "cell 1: error differs; shown was [], is ['1']; error was 'ZeroDivisionError: division by zero', is None"),
    ],
)
async def test_differences_are_reported(pool: SessionPool, session: Session, before: str, after: str, said: str) -> None:
    await session.run(before)
    written = session.to_notebook()
    written["cells"][0]["source"] = after
    assert (await again(pool, written)).splitlines()[1] == said


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.preloaded
async def test_images_are_compared_by_size(pool: SessionPool, session: Session) -> None:
    await session.run("import matplotlib.pyplot as plt\nplt.figure(figsize=(2, 1)); plt.plot([1, 2])")
    written = session.to_notebook()
    written["cells"][0]["source"] = "import matplotlib.pyplot as plt\nplt.figure(figsize=(2, 1)); plt.plot([2, 1])"
    assert await again(pool, written) == "1 of 1 cells came out the same"
    written["cells"][0]["source"] = "import matplotlib.pyplot as plt\nplt.figure(figsize=(4, 1)); plt.plot([1, 2])"
    assert "output differs" in await again(pool, written)


async def test_a_display_of_json_lists_is_compared(pool: SessionPool, session: Session) -> None:
    shown = "display({'application/json': [1, 2], 'application/x+json': ['a', 'b']}, raw=True)"
    await session.run(shown)
    written = session.to_notebook()
    nbformat.validate(nbformat.from_dict(written))
    assert await again(pool, written) == "1 of 1 cells came out the same"
    written["cells"][0]["source"] = shown.replace("'a', 'b'", "'ab'")
    assert "cell 1: output differs" in await again(pool, written)


async def test_resets_and_deletions_are_replayed(pool: SessionPool, session: Session) -> None:
    await session.upload_file("a.txt", "a")
    await session.run("x = 1")
    await session.reset()
    await session.delete_file("a.txt")
    await session.run("'x' in globals()")
    await session.run("import os; os.listdir()")
    assert [type(step) for step in session.history.steps] == [UploadStep, CellStep, ResetStep, DeleteStep, CellStep, CellStep]
    assert await again(pool, session.to_notebook()) == "3 of 3 cells came out the same"


async def test_a_file_that_is_too_large_is_named_and_not_saved(pool: SessionPool, session: Session, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(b"x" * (5 << 20))
    await session.upload_file("large.bin", tmp_path / "large.bin")
    await session.upload_file("small.bin", b"x")
    (large, small) = session.history.steps
    assert (large.size, large.content, len(large.sha256), small.content) == (5 << 20, None, 64, b"x")
    written = session.to_notebook()
    assert len(json.dumps(written)) < 10_000
    nbformat.validate(nbformat.from_dict(written))
    assert "not restored: large.bin, which the notebook does not hold" in await again(pool, written)


async def test_a_file_that_was_tampered_with_is_not_restored(pool: SessionPool, session: Session) -> None:
    await session.upload_file("a.txt", "a")
    written = session.to_notebook()
    written["cells"][0]["attachments"]["a.txt"]["application/octet-stream"] = base64.b64encode(b"b").decode()
    async with pool.session() as fresh:
        report = await replay(written, fresh)
        assert (report.same, report.missing, await fresh.list_files()) == (False, ("a.txt, which the notebook does not hold",), [])


async def test_streamed_cells_are_in_the_history(session: Session) -> None:
    async for _ in session.stream("print(1)"):
        pass
    await (await session.start("2")).wait()
    assert [(cell.code, cell.result.output) for cell in session.history.cells] == [("print(1)", "1\n"), ("2", "2")]


async def test_the_history_holds_what_ran_and_drops_the_oldest(session: Session) -> None:
    for number in range(999):
        session.history.add(CellStep(str(number)))
    for code in ("first", "second", "third"):
        await session.run(f"```python\n{code!r}\n```")
    codes = [cell.code for cell in session.history.cells]
    assert (len(codes), codes[0], codes[-3:]) == (1000, "2", ["'first'", "'second'", "'third'"])
    assert session.history.left_out == 2
    assert session.to_notebook()["metadata"]["aca_sessions"] == {"left_out": 2}


async def test_the_history_is_bounded_in_bytes() -> None:
    kept = History()
    for _ in range(20):
        kept.add(UploadStep("a", 4 << 20, "", b"x" * (4 << 20)))
    assert len(kept) == 8


async def test_the_history_knows_a_bounded_number_of_checkpoints() -> None:
    kept = History()
    for number in range(1001):
        kept.mark_checkpoint(str(number))
    left_out = []
    for checkpoint in ("1", "0"):
        kept.add(CellStep("1"))
        kept.drop_after(checkpoint)
        left_out.append((len(kept), kept.left_out))
    assert left_out == [(0, 0), (0, 1)]


async def test_a_script_has_the_cells_without_ipython_syntax(session: Session, tmp_path: Path) -> None:
    await recorded(session, "x = 1", "%pwd", "%%bash\necho hello", "files = !ls\ny = 2", "len?")
    session.write_script(tmp_path / "a.py")
    text = (tmp_path / "a.py").read_text()
    assert text.split("\n\n") == [
        "# %% [markdown]\n# `data/figures.csv` was uploaded: 6 bytes.",
        "# %%\nx = 1",
        "# %%\n# %pwd",
        "# %%\n# %%bash\n# echo hello",
        "# %%\n# files = !ls\ny = 2",
        "# %%\n# len?\n",
    ]
    compile(text, "a.py", "exec")


async def test_a_notebook_of_another_program_is_replayed(session: Session) -> None:
    other = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("1 + 1")])
    assert str(await replay(other, session)).splitlines()[1] == "cell 1: output differs; shown was [], is ['2']"


async def test_a_replay_stops_when_the_session_cannot_be_reached() -> None:
    async with open_pool() as pool, pool.session() as session:
        written = await recorded(session, "1", "2")
        gone = await pool.get_or_create()
    report = await replay(written, gone)
    assert [cell.verdict for cell in report.cells] == ["not run", "not run"]


@pytest.mark.long
async def test_a_failed_install_is_reported_and_the_cells_are_run(session: Session) -> None:
    session.history.add(InstallStep(("no-package-of-that-name-anywhere",)))
    session.history.add(CellStep("1"))
    written = session.to_notebook()
    nbformat.validate(nbformat.from_dict(written))
    report = await replay(written, session)
    assert [missing.partition(":")[0] for missing in report.missing] == ["no-package-of-that-name-anywhere"]
    assert [cell.verdict for cell in report.cells] == ["output differs"]


async def test_an_installation_is_a_cell_that_jupyter_and_a_replay_run(session: Session, tmp_path: Path) -> None:
    requirements = ("pip>=1", "no-package-of-that-name; python_version < '3'")
    session.history.add(InstallStep(requirements))
    session.history.add(CellStep("1"))
    (installs, runs) = session.to_notebook()["cells"]
    assert (installs["cell_type"], installs["execution_count"], runs["cell_type"]) == ("code", None, "code")
    words = shlex.split(installs["source"])
    assert words == ["%pip", "install", *requirements]
    read = notebook.read_notebook(session.to_notebook())
    assert [step for step, _ in read] == [InstallStep(requirements), CellStep("1")]
    edited = with_cell(**installs | {"source": "%pip install pip"})
    assert [step for step, _ in notebook.read_notebook(edited)] == [CellStep("%pip install pip")]
    session.write_script(tmp_path / "a.py")
    assert (tmp_path / "a.py").read_text().startswith(f"# %%\n# {installs['source']}\n\n# %%\n1")


@pytest.mark.long
async def test_a_frame_that_was_passed_in_is_named_and_reported_as_missing(pool: SessionPool, session: Session) -> None:
    frame = pandas.DataFrame({"n": [1, 2]})
    await session.run("import pandas")
    await pass_in(session, "frame", frame)
    await session.run("frame.n.sum()")
    written = session.to_notebook()
    nbformat.validate(nbformat.from_dict(written))
    assert written["cells"][1]["source"].startswith("`frame` was set from outside the session")
    async with pool.session() as fresh:
        report = await replay(written, fresh)
    assert report.missing == ("frame, whose data the notebook does not hold",)
    assert [cell.verdict for cell in report.cells] == ["same", "error differs"]


@pytest.mark.slow
async def test_cells_undone_by_a_rollback_are_not_in_the_history(pool: SessionPool, session: Session) -> None:
    await session.run("x = 1")
    await session.checkpoint()
    await session.run("x = 2")
    await session.rollback()
    await session.run("x")
    (branch,) = await session.branch()
    async with branch:
        await branch.run("x + 1")
        assert [cell.code for cell in branch.history.cells] == ["x = 1", "x", "x + 1"]
    assert [cell.code for cell in session.history.cells] == ["x = 1", "x"]
    assert await again(pool, session.to_notebook()) == "2 of 2 cells came out the same"


async def test_a_cell_that_was_rolled_back_is_not_run_again(pool: SessionPool, session: Session) -> None:
    await session.run("x = 1")
    await session.run("x = 2\n1 / 0", transactional=True)
    await session.run("x")
    assert await again(pool, session.to_notebook()) == "3 of 3 cells came out the same"


async def test_malformed_code_can_be_saved(session: Session, tmp_path: Path) -> None:
    await session.run("'\ud800'")
    session.write_notebook(tmp_path / "a.ipynb")
    session.write_script(tmp_path / "a.py")
    assert (await replay(tmp_path / "a.ipynb", session)).same


NOTEBOOK = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}


def with_cell(**cell: object) -> dict[str, object]:
    return NOTEBOOK | {"cells": [cell]}


async def test_a_notebook_says_that_jupyter_does_not_write_an_uploaded_file(session: Session) -> None:
    written = await recorded(session)
    assert written["cells"][0]["source"] == (
        "`data/figures.csv` was uploaded: 6 bytes. Jupyter does not write it: put it beside this notebook first."
    )


def upload(path: str, attachments: object = None) -> dict[str, object]:
    told = {"aca_sessions": {"upload": path, "size": 1, "sha256": "0"}}
    return with_cell(cell_type="markdown", source="", metadata=told, attachments=attachments)


@pytest.mark.parametrize(
    "source",
    [
        5,
        None,
        {},
        NOTEBOOK | {"nbformat": 3},
        NOTEBOOK | {"cells": {}},
        NOTEBOOK | {"cells": [5]},
        NOTEBOOK | {"cells": [{}] * 10_001},
        with_cell(cell_type="code"),
        with_cell(cell_type="code", source=5, outputs=[]),
        with_cell(cell_type="code", source=[1], outputs=[]),
        with_cell(cell_type="code", source="1", outputs=5),
        with_cell(cell_type="code", source="1", outputs=[{"output_type": "stream", "name": "log", "text": ""}]),
        with_cell(cell_type="code", source="1", outputs=[{"output_type": "display_data", "data": []}]),
        with_cell(cell_type="other", source=""),
        upload("../"),
        upload('a"b', None),
        upload("a", {"a": {"application/octet-stream": "no base64"}}),
        upload("a", []),
        with_cell(cell_type="markdown", source="", metadata={"aca_sessions": {"rename": "a"}}),
        with_cell(cell_type="markdown", source="", metadata={"aca_sessions": {"install": ["--index-url=http://example.org"]}}),
    ],
)
def test_a_file_that_is_not_a_notebook_is_refused(source: object) -> None:
    with pytest.raises(InvalidArgumentError):
        notebook.read_notebook(source)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_a_refused_notebook_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_bytes(content)
    with pytest.raises(InvalidArgumentError):
        notebook.read_notebook(tmp_path / "a.ipynb")
    with pytest.raises(InvalidArgumentError, match=r"nothing\.ipynb"):
        notebook.read_notebook(str(tmp_path / "nothing.ipynb"))
