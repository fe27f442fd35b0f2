"""Test what cells display: by MIME type, in order, once, and in its last state."""

import json

import pytest

from aca_sessions import CodeExecutionResult, Session
from aca_sessions.sandbox import wire
from aca_sessions.sandbox.session.cell import Cell

from ..conftest import PATIENT, mostly_long

pytestmark = pytest.mark.preloaded
TABLE = "application/vnd.dataresource+json"


def texts(result: CodeExecutionResult) -> list[object]:
    return [display.data["text/plain"] for display in result.displays]


async def test_an_update_shows_the_last_state_in_its_place(session: Session) -> None:
    result = await session.run("h = display('a', display_id='bar'); display('z')\nfor n in range(50): h.update(n)")
    assert texts(result) == ["49", "'z'"]
    assert [display.name for display in result.displays] == ["bar", None]


async def test_an_update_of_an_earlier_cells_display_belongs_to_this_cell_with_the_same_name(session: Session) -> None:
    await session.run("display('a', display_id='bar')")
    result = await session.run("from IPython.display import update_display\nupdate_display('b', display_id='bar')")
    assert [(display.name, display.data["text/plain"]) for display in result.displays] == [("bar", "'b'")]


@pytest.mark.slow
async def test_updates_do_not_use_up_the_budget(session: Session) -> None:
    code = "from IPython.display import HTML\nh = display(HTML('x'), display_id=True)\nfor n in range(40): h.update(HTML('x' * 1_000_000))"
    (display,) = (await session.run(code)).displays
    assert len(display.data["text/html"]) == 1_000_000


async def test_states_of_a_display_and_its_removal_arrive_while_the_cell_runs(session: Session) -> None:
    is_read = "input()"  # a reader who answers has read what came before
    code = f"h = display('a', display_id='bar'); {is_read}; h.update('b'); {is_read}; clear_output(); display('c')"
    code = f"from IPython.display import clear_output\n{code}"
    events = [event async for event in session.stream(code, on_input=lambda _: "")]
    shown = [event for event in events[:-1] if event.kind not in ("input", "stdout")]
    told = [(event.kind, event.display and (event.display.name, event.display.data["text/plain"])) for event in shown]
    assert told == [("display", ("bar", "'a'")), ("display", ("bar", "'b'")), ("clear", None), ("display", (None, "'c'"))]
    assert texts(events[-1].result) == ["'c'"]


async def test_a_display_over_the_budget_keeps_its_smaller_forms(session: Session) -> None:
    (display,) = (await session.run("display({'text/plain': 'd', 'text/html': 'x' * (25 << 20), 'text/latex': '$x$'}, raw=True)")).displays
    assert display.data == {"text/plain": "d", "text/latex": "$x$"}


async def test_clear_output_removes_what_was_displayed(session: Session) -> None:
    result = await session.run("from IPython.display import clear_output\nprint(1); display('a'); clear_output(); print(2); display('b')")
    assert (texts(result), result.stdout) == (["'b'"], "1\n2\n")


async def test_clear_output_can_wait_for_the_next_output(session: Session) -> None:
    await session.run("from IPython.display import clear_output")
    result = await session.run("for n in range(5): clear_output(wait=True); display(n)\nclear_output(wait=True)")
    assert texts(result) == ["4"]
    assert texts(await session.run("display('a'); clear_output(wait=True); print(1)")) == []


async def told(session: Session, code: str) -> list[str]:
    """Return the text and the displays of a cell in the order of its events. Text that arrived in pieces is joined."""
    pieces: list[tuple[str, str]] = []
    async for event in session.stream(f"from IPython.display import clear_output\nimport os, sys\n{code}"):
        piece = (event.kind, event.display.data["text/plain"] if event.display else event.text)
        if event.kind == "stdout" and pieces and pieces[-1][0] == "stdout":
            piece = ("stdout", pieces.pop()[1] + event.text)
        if event.kind != "result":
            pieces.append(piece)
    return [text.strip() or kind for kind, text in pieces]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('A'); display(1); print('B'); display(2); print('C')", ["A", "1", "B", "2", "C"]),
        ("print('A'); clear_output(); print('B')", ["A", "clear", "B"]),
        ("display(1); print('A'); clear_output(wait=True); print('B')", ["1", "A", "clear", "B"]),
        (
            "for n in range(3): clear_output(wait=True); display(n); print(n, 'done')",
            ["clear", "0", "0 done", "clear", "1", "1 done", "clear", "2", "2 done"],
        ),
        ("os.system('echo A'); display(1); os.system('echo B')", ["A", "1", "B"]),
        ("print('A' * 100_000); display(1); print('B')", ["A" * 100_000, "1", "B"]),
    ],
)
async def test_events_keep_the_order_of_text_and_displays(session: Session, code: str, expected: list[str]) -> None:
    for _ in range(3):
        assert await told(session, code) == expected


IN_TURN = [("stdout", "a"), ("stderr", "b"), ("stdout", "c"), ("stderr", "d")]


@pytest.mark.parametrize(
    "code",
    [
        "print('a'); print('b', file=sys.stderr); print('c'); print('d', file=sys.stderr)",
        "print('a', end=''); print('b', end='', file=sys.stderr); print('c', end=''); print('d', end='', file=sys.stderr)",
        "out, err = sys.stdout.write, sys.stderr.write; out('a\\n'); err('b\\n'); out('c\\n'); err('d\\n')",
        "out = sys.stdout.buffer\nfor a, b in (b'a', 'b'), (b'c', 'd'): out.write(a); out.flush(); print(b, file=sys.stderr)",
        "print('a'); logging.warning('b'); print('c'); logging.warning('d')",
    ],
)
async def test_events_keep_the_order_of_stdout_and_stderr(session: Session, code: str) -> None:
    await session.run(f"import logging, sys; logging.basicConfig(format='%(message)s')\n{PATIENT}")
    for _ in range(3):
        pieces = [(event.kind, event.text.strip()) async for event in session.stream(code) if event.text.strip()]
        assert pieces == IN_TURN


async def test_only_a_change_of_the_stream_waits_for_the_host(session: Session) -> None:
    code = "print(1); print(2, file=sys.stderr); [{*vars(one), *vars(one.buffer.raw)} for one in (sys.stdout, sys.stderr)]"
    assert (await session.run(f"import sys; {code}")).text == "[{'mode', 'name', 'write'}, {'mode', 'name'}]"


async def test_streams_that_the_host_does_not_read_hold_up_the_cell_once(session: Session) -> None:
    code = "r, w = os.pipe(); kept = os.dup(1); os.dup2(w, 1)\nfor n in range(1000): print(n); print(n, file=sys.stderr)\nos.dup2(kept, 1)"
    result = await session.run(f"import os, sys; {code}", timeout=60)
    assert (result.error, result.stderr) == (None, "".join(f"{n}\n" for n in range(1000)))


async def test_a_process_that_prints_without_a_pause_holds_up_no_display(session: Session) -> None:
    code = "import subprocess; chatty = subprocess.Popen(['yes'])\nfor n in range(20): display(n)\nchatty.kill(); chatty.wait()"
    result = await session.run(code, timeout=60)
    assert (result.error, texts(result)) == (None, [str(n) for n in range(20)])


async def test_displays_come_although_stdout_is_a_file_or_closed(session: Session) -> None:
    code = "import os, sys; kept = os.dup(1); os.dup2(os.open('out', os.O_CREAT | os.O_RDWR), 1); print('x' * 9, flush=True); display(1)"
    assert texts(await session.run(f"{code}\nos.dup2(kept, 1); kept = sys.stdout; sys.stdout = None; display(2); sys.stdout = kept")) == [
        "1",
        "2",
    ]


@pytest.mark.long
@pytest.mark.slow
async def test_too_many_displays_are_cut_and_reported(session: Session) -> None:
    result = await session.run("for n in range(2000): display(n)")
    assert (len(result.displays), str(result.state)) == (900, "kept")
    assert "further displays were dropped" in result.displays[-1].data["text/plain"]


@pytest.mark.slow
async def test_a_display_of_a_thread_between_cells_belongs_to_the_next_cell(session: Session) -> None:
    late = "def late():\n    while not os.path.exists('go'): time.sleep(0.01)\n    display('late'); shown.set()"
    await session.run(f"import os, threading, time\nshown = threading.Event()\n{late}\nthreading.Thread(target=late).start()")
    await session.run("None")
    await session.upload_file("go", b"")
    result = await session.run("shown.wait(); None")
    assert (texts(result), str(result.state)) == (["'late'"], "kept")


async def test_a_form_that_fails_is_reported_and_the_others_are_shown(session: Session) -> None:
    await session.run("class Both:\n    def _repr_html_(self): raise ValueError('no html')\n    def _repr_latex_(self): return '$x$'")
    result = await session.run("Both()")
    assert result.success
    assert result.displays[0].data["text/latex"] == "$x$"
    assert "ValueError: no html" in result.stderr


async def test_a_value_whose_repr_fails_fails_the_cell(session: Session) -> None:
    result = await session.run("class Broken:\n    def __repr__(self): raise ValueError('no text')\nBroken()")
    assert (result.error.name, result.text) == ("ValueError", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "shown"),
    mostly_long(
        [
            ("fig, ax = plt.subplots(); ax.plot([1]); fig", 1),
            ("fig, ax = plt.subplots(); ax.plot([1]); display(fig)", 1),
            ("plt.plot([1]); plt.show()", 1),
            ("plt.plot([1]); plt.show(); plt.plot([2]); plt.show()", 2),
            ("fig, ax = plt.subplots(); ax.plot([1]); display(fig); ax.plot([3, 1])", 2),
            ("plt.plot([1]); plt.figure(); plt.plot([2])", 2),
        ],
        every=3,
    ),
)
async def test_a_figure_is_shown_once_in_each_state(session: Session, code: str, shown: int) -> None:
    await session.run("import matplotlib.pyplot as plt")
    assert len((await session.run(code)).images) == shown
    assert (await session.run("plt.get_fignums()")).text == "[]"


async def test_an_image_is_a_png(session: Session) -> None:
    result = await session.run("from PIL import Image; Image.new('RGB', (4, 4))")
    assert result.displays[0].data.keys() == {"text/plain", "image/png"}


@pytest.mark.parametrize(
    ("made", "mime"),
    [
        ("SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')", "image/svg+xml"),
        ("HTML('<b>')", "text/html"),
        ("JSON({'a': 1})", "application/json"),
        ("Latex('$x$')", "text/latex"),
        ("Markdown('# h')", "text/markdown"),
        ("Image(data=bytes.fromhex('ffd8ffe0'), format='jpeg')", "image/jpeg"),
    ],
)
async def test_what_ipython_can_display_has_its_mime_type(session: Session, made: str, mime: str) -> None:
    (display,) = (await session.run(f"from IPython.display import *\ndisplay({made})")).displays
    assert mime in display.data


async def table(session: Session, code: str) -> dict[str, object]:
    (display,) = (await session.run(code)).displays
    assert "text/html" in display.data
    return json.loads(display.data[TABLE])


async def test_a_frame_is_html_and_data(session: Session) -> None:
    code = "import pandas as pd\npd.DataFrame({'n': [1, 2], 'x': [0.5, None], 's': ['a', 'b'], 't': pd.to_datetime(['2026-01-01'] * 2)})"
    resource = await table(session, code)
    assert [(field["name"], field["type"]) for field in resource["schema"]["fields"]] == [
        ("index", "integer"), ("n", "integer"), ("x", "number"), ("s", "string"), ("t", "datetime")
    ]  # fmt: skip
    assert resource["data"][1] == {"index": 1, "n": 2, "x": None, "s": "b", "t": "2026-01-01 00:00:00"}
    assert (resource["rowCount"], resource["columnCount"]) == (2, 4)


async def test_a_series_is_shown_like_a_frame(session: Session) -> None:
    resource = await table(session, "import pandas as pd\npd.Series([1.5, 2.5], name='x')")
    assert resource["data"] == [{"index": 0, "x": 1.5}, {"index": 1, "x": 2.5}]


@pytest.mark.slow
async def test_a_sample_of_a_large_frame_is_shown_cheaply(session: Session) -> None:
    await session.run(
        "import numpy as np, pandas as pd\nlarge = pd.DataFrame({'a': np.arange(1_000_000), 'b': 'x' * 100_000})\nlarge.head()"
    )
    measured = "import tracemalloc; tracemalloc.start(); get_ipython().display_formatter.format(large); tracemalloc.get_traced_memory()[1]"
    assert (await session.run(measured)).value < 4 << 20  # one column alone has 8 MB
    resource = await table(session, "large")
    assert (resource["rowCount"], len(resource["data"]), len(resource["data"][0]["b"])) == (1_000_000, 20, 201)


@pytest.mark.long
async def test_a_wide_frame_and_odd_names_are_bounded(session: Session) -> None:
    resource = await table(
        session, "import pandas as pd\npd.DataFrame([range(500)], columns=pd.MultiIndex.from_product([['a'], range(500)]))"
    )
    assert (resource["columnCount"], len(resource["schema"]["fields"])) == (500, 51)
    assert resource["schema"]["fields"][1]["name"] == "a, 0"


@pytest.mark.parametrize(
    ("made", "names", "titles", "row"),
    [
        ("[[1, 2, 3]], columns=['a', 'a', 'a.1']", ["index", "a", "a.2", "a.1"], ["a"], [0, 1, 2, 3]),
        ("[[1, 2]], columns=['index', 'b'], index=[7]", ["index.1", "index", "b"], ["index"], [7, 1, 2]),
        ("[[1, 2]], columns=[1, '1']", ["index", "1", "1.1"], ["1"], [0, 1, 2]),
    ],
)
async def test_columns_of_equal_names_are_all_in_the_data(
    session: Session, made: str, names: list[str], titles: list[str], row: list[int]
) -> None:
    resource = await table(session, f"import pandas as pd\npd.DataFrame({made})")
    fields = resource["schema"]["fields"]
    assert [field["name"] for field in fields] == names
    assert [field["title"] for field in fields if "title" in field] == titles
    assert resource["data"] == [dict(zip(names, row, strict=True))]


async def test_objects_in_a_frame_are_shown_by_their_type(session: Session) -> None:
    await session.run("import pandas as pd\nclass Loud:\n    def __repr__(self): global said; said = 1; return 'loud'")
    resource = await table(session, "pd.DataFrame({'o': [Loud()], 'l': [[1]]})")
    assert resource["data"] == [{"index": 0, "o": "<Loud>", "l": "<list>"}]


@pytest.mark.slow
async def test_a_plotly_chart_is_json_and_a_document(session: Session) -> None:
    if not (await session.run("import importlib.util; importlib.util.find_spec('plotly') is not None")).value:
        pytest.skip("plotly is not installed")
    for code in (
        "import plotly.graph_objects as go\nfigure = go.Figure(go.Bar(x=[1], y=[2], name='lamps'), dict(title='Sales'))\nfigure",
        "figure.show()",
    ):
        (display,) = (await session.run(code)).displays
        assert json.loads(display.data["application/vnd.plotly.v1+json"])["data"][0]["type"] == "bar"
        assert display.data["text/plain"] == "plotly Figure Sales [bar lamps]"
        assert "src=" not in display.data["text/html"].partition("<body>")[2][:500]
        assert display.data["text/html"].startswith("<!doctype html>")


@pytest.mark.slow
async def test_an_altair_chart_is_json_and_a_document(session: Session) -> None:
    if not (await session.run("import importlib.util; importlib.util.find_spec('altair') is not None")).value:
        pytest.skip("altair is not installed")
    code = "import altair, pandas as pd\naltair.Chart(pd.DataFrame({'a': [1], 'b': [2]}), title='T').mark_line().encode(x='a', y='b')"
    (display,) = (await session.run(code)).displays
    (mime,) = [mime for mime in display.data if mime.startswith("application/vnd.vegalite.")]
    assert json.loads(display.data[mime])["mark"]["type"] == "line"
    assert display.data["text/plain"] == "altair Chart T line (x: a, y: b)"
    assert display.data["text/html"].startswith("<!DOCTYPE html>")


async def test_a_class_with_its_own_bundle_is_shown_by_it(session: Session) -> None:
    code = (
        "class Chart:\n    def _repr_mimebundle_(self, **_): return {'application/vnd.chart+json': {'a': [1]}, 'text/html': '<p>'}\nChart()"
    )
    (display,) = (await session.run(code)).displays
    assert json.loads(display.data["application/vnd.chart+json"]) == {"a": [1]}
    assert display.data["text/html"] == "<p>"


async def test_updates_over_the_hosts_budget_are_refused() -> None:
    cell = Cell("1")
    cell.add_display(wire.Shown("1", {"text/plain": "x"}, "bar"))
    with pytest.raises(wire.WireError):
        cell.add_display(wire.Shown("1", {"text/plain": "x" * (33 << 20)}, "bar", True))


async def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(wire.WireError):
        Cell("1").add_display(wire.Shown("1", {}, "x" * 201))


async def test_a_display_of_more_forms_than_a_guest_sends_is_refused() -> None:
    with pytest.raises(wire.WireError):
        Cell("1").add_display(wire.Shown("1", {str(number): "" for number in range(51)}))
