"""Attack the notebook through variables that a session passes out."""

import json
import pickle

import pytest

from aca_sessions import Session
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.transfer import pass_out

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
