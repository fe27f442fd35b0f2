"""Attack the notebook through variables that a session passes out."""

import json
import pickle
import subprocess
import sys

import pytest

from aca_sessions import Session
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.transfer import pass_out

from ..conftest import ROOT

FORGED = (
    {"frame": 5},
    {"frame": {"rows": 1 << 70, "name": None, "index": [], "columns": []}},
    {"frame": {"rows": 1, "name": None, "index": [], "columns": [["a", "object", "x"]]}},
    {"frame": {"rows": 2, "name": None, "index": [], "columns": [["a", "int64", [1]]]}},
    {"frame": {"rows": 1, "name": None, "index": [], "columns": [["a", "datetime64[ns, dateutil//dev/zero]", [1]]]}},
    {"frame": {"rows": 1, "name": None, "index": [], "columns": [["a", "datetime64[ns, ../../etc/passwd]", [1]]]}},
    {"frame": {"rows": 1, "name": None, "index": [], "columns": [["a", "period[D]", [1]]]}},
    {"frame": {"rows": 1, "name": None, "index": [], "columns": [["a", "category", [[9], ["int64", [1]], False]]]}},
    {"neither": 1},
    [1],
)
FORGES = """
import builtins, io
real = io.open
def forge(path, *rest, **options):
    if ".variable-" not in str(path):
        return real(path, *rest, **options)
    with real(path, "wb") as file:
        file.write({content!r})
    return io.BytesIO()
builtins.open = forge
x = 1
"""


async def forge(session: Session, content: bytes) -> None:
    """Let the session write something else in the place of a variable."""
    result = await session.run(FORGES.format(content=content))
    assert result.success, result.stderr


async def test_a_session_passes_no_object_that_its_data_does_not_hold(session: Session) -> None:
    """A variable that a session passes to a notebook is JSON or a flat Arrow table: nothing of it is unpickled, and its size is bounded."""
    contents = [b"json\n" + json.dumps(forged).encode() for forged in FORGED]
    contents += [pickle.dumps([1]), b"", b"json\n" + b"[" * 100_000, b"json\n{", b"arrow\nARROW1"]
    for content in contents:
        await forge(session, content)
        with pytest.raises(InvalidArgumentError, match="its data is malformed"):
            await pass_out(session, "x")
    assert [file.name for file in await session.list_files()] == []


async def test_the_message_of_a_refused_variable_is_one_line_without_controls(session: Session) -> None:
    """The message of a variable that cannot be passed is one line without control characters, whatever the session calls its types."""
    await session.run("x = type('[session state lost: memory]\\n\\x1b]0;title\\x07' * 50, (), {})()")
    with pytest.raises(InvalidArgumentError) as raised:
        await pass_out(session, "x")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


ARROW = """
import io, sys
sys.path.append(sys.argv[1])
import pandas, pyarrow
from aca_sessions.client.snippets import encode_variable
from aca_sessions.transfer import _unpacked
frame = pandas.DataFrame({"n": [1, 2], "t": ["a", None], "c": pandas.Categorical(["x", "y"])}, index=pandas.Index([5, 6], name="row"))
data = encode_variable(frame, True)
assert data.startswith(b"arrow"), data[:10]
assert encode_variable(pandas.DataFrame({"l": [[1]]}).map(str), True).startswith(b"arrow")
pandas.testing.assert_frame_equal(_unpacked(data), frame, check_dtype=False)

def stream(table, **options):
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return b"arrow\\n" + sink.getvalue()

zeros = pyarrow.table({"a": pyarrow.array([0] * 1_000_000)})
bad = {
    "compressed": stream(zeros, compression="zstd"),
    "compressed dictionary": stream(pyarrow.table({"a": pyarrow.array(["x" * 10_000]).dictionary_encode()}), compression="lz4"),
    "null": stream(pyarrow.table({"a": pyarrow.nulls(10**9)})),
    "list": stream(pyarrow.table({"a": [[1]]})),
    "cut": data[:-200],
    "text": b"arrow\\nx",
}
for name, content in bad.items():
    try:
        _unpacked(content)
    except Exception as error:
        print(name, type(error).__name__)
    else:
        sys.exit(f"{name} was accepted")
"""


@pytest.mark.long
def test_an_arrow_table_that_could_grow_in_memory_is_refused() -> None:
    """An Arrow table of a session that is compressed, or has values that take no room in its file, is refused before it is unpacked."""
    libraries = [*(ROOT / ".venv-jupyterlab" / "lib").glob("python3*/site-packages")]
    if not libraries or not (libraries[0] / "pyarrow").exists():
        pytest.skip("needs pyarrow in .venv-jupyterlab: make test-long installs it")
    done = subprocess.run([sys.executable, "-c", ARROW, libraries[0]], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 6
