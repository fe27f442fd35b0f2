"""Test the reported changes of the user's variables."""

import sys

import pytest

from aca_sessions import CodeExecutionResult, Session
from aca_sessions.sandbox import wire
from aca_sessions.sandbox.session import cell


def changes_in(result: CodeExecutionResult) -> list[tuple[object, ...]]:
    return [(change.kind, change.name, change.type, change.shape) for change in result.variables]


async def test_added_changed_and_deleted_variables_are_reported(session: Session) -> None:
    added = await session.run("n = 1; text = 'abc'; items = [1]; import math; _hidden = 1\ndef f(): pass\nclass Own: pass\no = Own()")
    assert changes_in(added) == [
        ("added", "n", "int", None), ("added", "text", "str", (3,)), ("added", "items", "list", (1,)),
        ("added", "f", "function", None), ("added", "Own", "type", None), ("added", "o", "Own", None),
    ]  # fmt: skip
    changed = await session.run("n += 1; items.append(2); o = Own(); del text")
    assert changes_in(changed) == [
        ("changed", "n", "int", None), ("changed", "o", "Own", None), ("changed", "items", "list", (2,)), ("deleted", "text", "", None)
    ]  # fmt: skip
    assert (await session.run("n; n = 2")).variables == ()


async def test_arrays_and_frames_have_shapes_and_sizes(session: Session) -> None:
    result = await session.run("import numpy as np, pandas as pd\na = np.zeros((2, 3)); frame = pd.DataFrame({'a': a[0]})")
    assert changes_in(result) == [("added", "a", "ndarray", (2, 3)), ("added", "frame", "DataFrame", (3, 1))]
    assert result.variables[0].size == 48
    assert changes_in(await session.run("frame['b'] = 1")) == [("changed", "frame", "DataFrame", (3, 2))]


async def test_a_failed_cell_reports_the_variables_it_changed_before(session: Session) -> None:
    assert changes_in(await session.run("x = 1\n1 / 0")) == [("added", "x", "int", None)]


async def test_a_variable_bound_to_another_object_of_another_length_is_reported_once(session: Session) -> None:
    await session.run("items = (1,)")
    assert changes_in(await session.run("items = items + (2,)")) == [("changed", "items", "tuple", (2,))]


async def test_a_reset_deletes_and_a_new_value_at_the_same_address_is_noticed(session: Session) -> None:
    await session.run("x = 1.5")
    assert changes_in(await session.run("x = 2.5; x = 3.5")) == [("changed", "x", "float", None)]
    assert changes_in(await session.run("%reset -f")) == [("deleted", "x", "", None)]


async def test_the_comparison_runs_no_user_code(session: Session) -> None:
    trap = """
class Meta(type):
    __name__ = property(lambda self: 1 / 0)
    def __eq__(self, other): raise SystemExit
    __hash__ = __instancecheck__ = __eq__
class Trap(metaclass=Meta):
    def __eq__(self, other): raise SystemExit
    __hash__ = __len__ = __repr__ = __sizeof__ = __ne__ = __eq__
    def __getattribute__(self, name): raise SystemExit
class List(list):
    __len__ = __eq__ = __sizeof__ = lambda *_: 1 / 0
t, l = Trap(), List()
"""
    assert changes_in(await session.run(trap))[-2:] == [("added", "t", "Trap", None), ("added", "l", "List", None)]
    assert changes_in(await session.run("l.append(1); t = Trap()")) == [("changed", "t", "Trap", None)]


async def test_names_and_types_of_any_kind_are_reported_as_far_as_possible(session: Session) -> None:
    result = await session.run("globals().update({'two words': 1, 'a\\nb': 2, 5: 3}); T = type('a b', (), {}); t = T(); T.__name__ = ''")
    assert {(change.name, change.type) for change in result.variables} >= {("two words", "int"), ("a\nb", "int")}


async def test_too_many_variables_are_not_reported_until_there_are_fewer(session: Session) -> None:
    assert len((await session.run("for i in range(1000): globals()[f'v{i}'] = i")).variables) == 200
    assert (await session.run("for i in range(5000): globals()[f'v{i}'] = i")).variables == ()
    assert (await session.run("for i in range(5000): del globals()[f'v{i}']")).variables == ()
    assert changes_in(await session.run("x = 1")) == [("added", "x", "int", None)]


async def test_sizes_of_any_order_are_reported(session: Session) -> None:
    """Each of these was once refused as forged, or ended the interpreter's own loop."""
    assert changes_in(await session.run("r = range(10**18)")) == [("added", "r", "range", (10**18,))]
    assert changes_in(await session.run("r = range(10**30)")) == [("changed", "r", "range", (sys.maxsize,))]
    assert changes_in(await session.run("import numpy; a = numpy.ones((1,) * 64)")) == [("added", "a", "ndarray", (1,) * 64)]


@pytest.mark.parametrize(
    "finished",
    [
        {"variables": [("added", -1, [], "int", "a")]},
        {"variables": [("added", 1 << 63, [], "int", "a")]},
        {"variables": [("added", 1, [2, -1], "int", "a")]},
        {"variables": [("added", 1, [1] * 65, "int", "a")]},
        {"variables": [("added", 1, [], "int", "a")] * 201},
        {"files": [("created", -1, "a")]},
        {"files": [("created", 1, "a")] * 1001},
        {"processes": [(-1, "a")]},
        {"processes": [(1, "a")] * 4097},
    ],
)
async def test_an_impossible_change_is_refused(finished: dict) -> None:
    running = cell.Cell("1")
    with pytest.raises(wire.WireError):
        running.finish(wire.Finished("1", None, None, None, "", "", **{"files": [], "processes": [], **finished}))
    assert not running.finished.done()
