"""Test that Arrow tables of a session are validated before they are unpacked. It needs pyarrow, which `make test-long` installs."""

import subprocess
import sys

import pytest

from ..conftest import ROOT

ARROW = """
import io, sys
sys.path.append(sys.argv[1])
import numpy, pandas, pyarrow
from aca_sessions.client.snippets.values import encode_variable
from aca_sessions.transfer import _unpacked
frame = pandas.DataFrame({"n": [1, 2], "t": ["a", None], "c": pandas.Categorical(["x", "y"])}, index=pandas.Index([5, 6], name="row"))
data = encode_variable(frame, True)
assert data.startswith(b"arrow"), data[:10]
assert encode_variable(pandas.DataFrame({"l": [[1]]}).map(str), True).startswith(b"arrow")
series = pandas.Series(pandas.date_range("2024-01-01", periods=2, tz="Europe/Oslo"), name="when")
pandas.testing.assert_series_equal(_unpacked(encode_variable(series, True)), series, check_freq=False)
array = numpy.arange(6, dtype="int16").reshape(1, 2, 3)
copied = encode_variable(array, True)
assert copied.startswith(b"arrow array 1,2,3\\n") and _unpacked(copied).tolist() == array.tolist()
copied_shapes = {shape: copied.replace(b"1,2,3", shape) for shape in (b"1,2,4", b"-1", b"", b"x", b"0,1000000000000")}
pandas.testing.assert_frame_equal(_unpacked(data), frame, check_dtype=False)

def stream(table, **options):
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return b"arrow frame\\n" + sink.getvalue()

zeros = pyarrow.table({"a": pyarrow.array([0] * 1_000_000)})
bad = {
    "compressed": stream(zeros, compression="zstd"),
    "compressed dictionary": stream(pyarrow.table({"a": pyarrow.array(["x" * 10_000]).dictionary_encode()}), compression="lz4"),
    "null": stream(pyarrow.table({"a": pyarrow.nulls(10**9)})),
    "list": stream(pyarrow.table({"a": [[1]]})),
    "cut": data[:-200],
    "time zone": stream(pyarrow.table({"a": pyarrow.array([0], pyarrow.timestamp("ns", "dateutil//dev/zero"))})),
    "columns": data.replace(b"frame", b"series"),
    **copied_shapes,
    "text": b"arrow frame\\nx",
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
    libraries = [*(ROOT / ".venv-others" / "lib").glob("python3*/site-packages")]
    if not libraries or not (libraries[0] / "pyarrow").exists():
        pytest.skip("needs pyarrow in .venv-others: make test-long installs it")
    done = subprocess.run([sys.executable, "-c", ARROW, libraries[0]], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 13
