"""Attack the notebook through variables that a session passes out."""

import base64
import json
import pickle
import struct

import pytest

from aca_sessions import Session
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.transfer import pass_out

BYTES = base64.b64encode(struct.pack("<q", 1)).decode()
COLUMN = {"rows": 1, "names": [None], "index": []}
FRAMES = (
    5,
    [1],
    COLUMN | {"names": [None, None], "columns": [["a", "int64", BYTES]]},
    {"rows": 1 << 70, "names": [None], "index": [], "columns": []},
    {"rows": 2, "names": [None], "index": [], "columns": [["a", "int64", BYTES]]},
    *(
        COLUMN | {"columns": [["a", *column]]}
        for column in (
            ["object", "x"],
            ["object", BYTES],
            ["str", BYTES],
            ["int64", BYTES[:-4]],
            ["int64", BYTES * 2],
            ["int8", BYTES],
            ["Int64", BYTES],
            ["bool", "no base64"],
            ["category", BYTES],
            ["object", [{"Path": ["/etc/passwd"]}]],
            ["datetime64[ns, dateutil//dev/zero]", BYTES],
            ["datetime64[ns, ../../etc/passwd]", BYTES],
            ["period[D]", [1]],
            ["category", [[9], ["int64", [1]], False]],
        )
    ),
)
VALUES = (
    {},
    {"neither": 1},
    {"list": [], "tuple": []},
    {"eval": ["1"]},
    {"tuple": 5},
    {"dict": [[["unhashable"], 1]]},
    {"dict": [[n << 61, 0] for n in range(10_001)]},
    {"set": [*range(10_001)]},
    {"date": [10**9, 1, 1]},
    {"datetime": ["\x07\xe8\x01\xff\xff\xff\x00\x00\x00\x00", None]},  # a pickled state
    {"datetime": ["\x07\xe8\x01\xff\xff\xff\x00\x00\x00\x00"]},
    {"time": [1, "x"]},
    {"timedelta": [1e300]},
    {"timezone": ["x"]},
    {"ZoneInfo": ["../../etc/passwd"]},
    {"ZoneInfo": ["/dev/zero"]},
    {"Timestamp": ["2024", "ns"]},
    {"Timestamp": [1, "ns", "dateutil//dev/zero"]},
    {"Timestamp": [1 << 80, "ns"]},
    {"Timedelta": [1, "Y"]},
)
ONE = COLUMN | {"columns": [["a", "int64", BYTES]]}
SHAPES = ("", "2", "-1", "1,x", "1," * 70 + "1", "0,1000000000000", "0,20000,20000")
FORMS = (
    ("series", COLUMN | {"columns": []}),
    ("series", COLUMN | {"columns": [["a", "int64", BYTES]] * 2}),
    ("nosuch 1", ONE),
    ("array 1", COLUMN | {"columns": [["a", "object", ["x"]]]}),
    *((f"array {shape}", ONE) for shape in SHAPES),
    *((f"array {shape}", COLUMN | {"rows": 0, "columns": [["a", "int64", ""]]}) for shape in SHAPES),
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


@pytest.mark.long
async def test_a_session_passes_no_object_that_its_data_does_not_hold(session: Session) -> None:
    """A variable that a session passes to a notebook is JSON or a flat Arrow table: nothing of it is unpickled, and its size is bounded."""
    forged = [*FORMS, *(("frame", frame) for frame in FRAMES), *(("value", value) for value in VALUES)]
    contents = [f"json {form}\n{json.dumps(content)}".encode() for form, content in forged]
    contents += [
        pickle.dumps([1]),
        b"",
        b"json value\n" + b"[" * 100_000,
        b"json value\n{",
        b"json value\n[" + b"0," * (8 << 20) + b"0]",
        b"arrow frame\nARROW1",
        b"\xff\n[]",
        b"json\n1",
    ]
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
