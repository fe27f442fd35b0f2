"""Test what a model reads of a result."""

from html import unescape

import pytest

from aca_sessions import CodeExecutionResult, Session
from aca_sessions.models import NO_REPLY, CodeError, Display, FileChange, State
from aca_sessions.rendering import trusted

from .conftest import mostly_long
from .test_clean_html import OPENING


def read(**parts: object) -> str:
    return str(CodeExecutionResult(**parts))


def test_one_kind_of_output_needs_no_heading() -> None:
    assert read(stdout="hello\n") == "hello"
    assert read(text="42", value=42) == "42"


def test_several_kinds_of_output_have_headings() -> None:
    assert read(stdout="hello\n", stderr="careful\n", text="42") == "[stdout]\nhello\n[stderr]\ncareful\n[value]\n42"


def test_a_result_without_output_has_a_text() -> None:
    assert read() == "(no output)"


def test_an_error_is_shown_once() -> None:
    assert read(stdout="a\n", stderr="ValueError: no", error=CodeError("ValueError", "no")) == "a\nValueError: no"


async def test_an_exception_without_a_message_ends_with_its_name(session: Session) -> None:
    assert str(await session.run("raise MemoryError")).endswith("\nMemoryError")


def test_files_are_named_with_sizes() -> None:
    files = (FileChange("a.csv", "created", 12), FileChange("b.png", "changed", 25_000), FileChange("c", "deleted"))
    assert read(files=files) == "[files] a.csv created (12 bytes); b.png changed (25 kB); c deleted"


def test_many_files_are_counted() -> None:
    assert read(files=tuple(FileChange(f"{n}", "created", 1) for n in range(50))).endswith("; and 40 more")


def test_images_are_described_and_never_sent() -> None:
    shown = read(displays=(Display({"image/png": "iVBORw0KGgo=", "text/plain": "Figure Sales"}),))
    assert shown == "[images] 1 image, not in this text: Figure Sales"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"text/plain": "   n\n0  1", "text/html": "<table>"}, "   n\n0  1"),
        ({"text/plain": "<IPython.core.display.Markdown object>", "text/markdown": "# h"}, "# h"),
        ({"text/plain": "<IPython.core.display.Latex object>", "text/latex": "$x$"}, "$x$"),
        ({"text/plain": "<IPython.core.display.JSON object>", "application/json": '{"a": 1}'}, '{"a": 1}'),
        ({"text/plain": "<IPython.core.display.HTML object>", "text/html": "<b>"}, "[an HTML page of 3 characters, not in this text]"),
        ({"text/plain": "<IPython.core.display.SVG object>", "image/svg+xml": "<svg/>"}, "[images] 1 image, not in this text"),
        (
            {"text/plain": "plotly Figure [bar]", "text/html": "<script>", "application/vnd.plotly.v1+json": "{}"},
            "plotly Figure [bar]\n[an interactive chart, not in this text]",
        ),
        ({"application/vnd.vegalite.v5+json": "{}"}, "[an interactive chart, not in this text]"),
        ({}, "(no output)"),
    ],
)
def test_displays_are_described_in_words(data: dict[str, str], said: str) -> None:
    assert read(displays=(Display(data),)).startswith(said.strip("\n"))


def test_a_value_with_several_forms_is_shown_once() -> None:
    assert read(text="   n\n0  1", displays=(Display({"text/plain": "   n\n0  1", "text/html": "<table>"}),)) == "   n\n0  1"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"image/svg+xml": "<svg onload='alert(1)'/>"}, '<img src="data:image/svg+xml;base64,'),
        ({"text/markdown": "# a\n<img src=x onerror=alert(1)>"}, f"{OPENING}<h1>a</h1>\n<img>"),
        (
            {"text/markdown": "[a](javascript:x) ![b](//x)\n\n- $y$"},
            f'{OPENING}<p>[a](javascript:x) <img alt="b"></p>\n<ul>\n<li><span><math',
        ),
        ({"text/markdown": "| a |" * 10_000}, "<pre>| a |"),
        ({"text/latex": "$x$</pre><script>"}, f'{OPENING}<math display="inline"><mrow><mi>x</mi></mrow></math>&lt;/pre&gt;&lt;script&gt;'),
        ({"application/json": '{"a": "<script>"}'}, "<pre>{&quot;a&quot;: &quot;&lt;script&gt;&quot;}</pre>"),
        ({"application/javascript": "alert(1)"}, "<pre>alert(1)</pre>"),
        ({"image/jpeg": "/9j/"}, '<img src="data:image/jpeg;base64,/9j/">'),
        ({"image/png": '"><script>alert(1)</script>'}, ""),
        ({"application/vnd.jupyter.widget-view+json": '{"model_id": "x"}'}, ""),
        ({"text/html": "<script>alert(1)</script>", "text/plain": "Figure"}, "<pre>Figure</pre><p><i>Scripts of this output do not run"),
        (
            {"text/html": "<b onclick=alert(1)>bold"},
            f"{OPENING}<b>bold</b>",
        ),
        ({"text/plain": "hi\x1b]0;title\x07"}, "<pre>hi\\x1b]0;title\\x07</pre>"),
    ],
)
def test_a_notebook_shows_a_display_in_isolation_from_the_page(data: dict[str, str], shown: str) -> None:
    html = CodeExecutionResult(displays=(Display(data),))._repr_mimebundle_()["text/html"]
    assert html.startswith(shown)
    assert "<script>" not in html
    assert "onload" not in html
    assert "onclick" not in html
    assert "<img src=x" not in html


def test_a_notebook_shows_a_value_once_and_the_error_last() -> None:
    table = Display({"text/plain": "   n\n0  1", "text/html": "<table><tr><td>1</td></tr></table>"})
    html = CodeExecutionResult(stdout="out\n", text="   n\n0  1", displays=(table,))._repr_mimebundle_()["text/html"]
    assert html.startswith("<pre>out\n</pre>\n")
    assert "<td>1</td>" in html
    assert "0  1" not in html
    error = CodeError("ValueError", "no", "Traceback\nValueError: no")
    failed = CodeExecutionResult(stderr="warning\nTraceback\nValueError: no", displays=(table,), error=error)
    html = failed._repr_mimebundle_()["text/html"]
    assert html.startswith("<pre>warning\n</pre>\n")
    assert html.endswith("</div>\n<pre>Traceback\nValueError: no</pre>")
    assert html.count("ValueError") == 1
    assert CodeExecutionResult(stdout="out\n", text="42")._repr_mimebundle_()["text/html"] == "<pre>out\n</pre>\n<pre>42</pre>"


def test_the_note_on_scripts_can_be_typed() -> None:
    result = CodeExecutionResult(displays=(Display({"text/html": "<script>1</script>"}),))
    typed = unescape(result._repr_mimebundle_()["text/html"].partition("<code>")[2].partition("</code>")[0])
    shown: list[dict[str, str]] = []
    exec(typed, {"result": result, "display": lambda data, raw: shown.append(data)})
    assert "&lt;script&gt;1&lt;/script&gt;" in shown[0]["text/html"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State(variables="lost", reason="crash"), "[state] lost: crash; variables from before are gone, files are kept"),
        (State("lost", "lost", "ended", "expired"), "[state] lost: expired; variables and files from before are gone"),
        (NO_REPLY, "[state] unknown: no reply; variables and files may have changed: look at one before you rely on it"),
        (State(processes="ended"), "[state] kept; variables and files are kept; background processes were ended"),
        (
            State("rolled_back", reason="exit, to the last checkpoint", checkpoint="1"),
            "[state] rolled_back: exit, to the last checkpoint; variables are as at the last checkpoint, files are kept",
        ),
        (State("rolled_back", "rolled_back"), "[state] rolled_back; variables and files are as before the cell that failed"),
        (
            State("rolled_back", "rolled_back", reason="rollback", checkpoint="1"),
            "[state] rolled_back: rollback; variables and files are as at an earlier checkpoint",
        ),
        (
            State("lost", "rolled_back", reason="reset"),
            "[state] lost: reset; variables from before are gone, files are as at an earlier moment",
        ),
    ],
)
def test_a_changed_state_is_described(state: State, said: str) -> None:
    assert read(state=state) == f"{said}"


@pytest.mark.parametrize("part", ["stdout", "stderr", "text"])
def test_long_output_is_cut_to_the_budget_with_head_and_tail(part: str) -> None:
    shown = read(**{part: "first" + "x" * 100_000 + "last"}, max_output=2000)
    assert len(shown) < 2300
    assert "first" in shown
    assert "last" in shown
    assert "characters cut" in shown


def test_the_budget_is_shared_by_all_parts() -> None:
    flood = "x" * 100_000
    error = CodeError("ValueError", flood, flood)
    assert len(read(stdout=flood, stderr=flood, text=flood, error=error, max_output=3000)) < 6000


async def test_a_traceback_is_trimmed_to_the_users_code(session: Session) -> None:
    result = await session.run("import json\ndef parse(text):\n    return json.loads(text)\nparse('{')")
    shown = str(result)
    assert "return json.loads(text)" in shown
    assert "parse('{')" in shown
    assert "JSONDecodeError" in shown
    assert "[3 frames in libraries]" in shown
    assert "site-packages" not in shown
    assert "json/decoder.py" not in shown
    assert "json/decoder.py" in result.error.traceback


async def test_a_module_of_the_user_is_user_code(session: Session) -> None:
    await session.upload_file("mine.py", "def f():\n    raise ValueError('no')\n")
    shown = str(await session.run("import mine; mine.f()"))
    assert "raise ValueError('no')" in shown
    assert "libraries" not in shown


async def test_a_syntax_error_shows_where(session: Session) -> None:
    shown = str(await session.run("x = 1\ny = = 2"))
    assert "y = = 2" in shown
    assert "SyntaxError" in shown


async def test_changed_files_are_described(session: Session) -> None:
    await session.upload_file("changed.txt", "old")
    await session.upload_file("deleted.txt", "old")
    result = await session.run(
        "import os; open('new.txt', 'w').write('12345'); open('changed.txt', 'a').write('x'); os.remove('deleted.txt')"
    )
    assert [(file.path, file.kind, file.size) for file in result.files] == [
        ("changed.txt", "changed", 4), ("deleted.txt", "deleted", 0), ("new.txt", "created", 5)
    ]  # fmt: skip
    assert (await session.run("1")).files == ()


@pytest.mark.long
async def test_a_figure_is_described_in_words(session: Session) -> None:
    await session.run("import matplotlib.pyplot as plt")
    code = "plt.plot([1, 2], label='lamp'); plt.title('Sales'); plt.xlabel('month'); plt.ylabel('sold'); plt.legend(); plt.show()"
    assert str(await session.run(code)) == "[images] 1 image, not in this text: Figure Sales (sold by month) [lamp]"


@pytest.mark.parametrize(
    ("code", "read"),
    mostly_long(
        [
            ("from IPython.display import HTML; HTML('<b>x</b>')", "[an HTML page of 8 characters, not in this text]"),
            ("from IPython.display import SVG; SVG('<svg/>')", "[images] 1 image, not in this text: <IPython.core.display.SVG object>"),
            ("from IPython.display import Markdown; display(Markdown('# h')); Markdown('# i')", "# h\n# i"),
            ("display({'text/plain': '42', 'text/html': '<b>'}, raw=True); 42", "42"),
            ("display({'text/plain': 'a', 'text/html': '<b>'}, raw=True); 42", "[displayed]\na\n[value]\n42"),
        ],
        every=3,
    ),
)
async def test_a_last_value_that_was_displayed_is_read_once(session: Session, code: str, read: str) -> None:
    assert str(await session.run(code)) == read


def test_the_repr_of_a_result_has_no_long_display_and_one_traceback() -> None:
    display = Display({"image/png": "iVBO" * 1000, "text/plain": "Figure"}, name="a")
    assert repr(display) == f"Display(data={{'image/png': '{'iVBO' * 20}… (4000 characters)', 'text/plain': 'Figure'}}, name='a')"
    error = CodeError("ValueError", "no", "File a.py\nValueError: no")
    shown = repr(CodeExecutionResult(displays=(display,), stderr=error.traceback, error=error))
    assert (shown.count("File a.py"), len(shown) < 1000) == (1, True)


@pytest.mark.parametrize(("html", "is_framed"), [("<img src = 'data:image/png;base64,aGk='>", False), ("<img src=http://x.example>", True)])
def test_raw_html_is_framed_if_it_loads_something(html: str, is_framed: bool) -> None:
    assert ("<iframe" in trusted(Display({"text/html": html}), "raw")["text/html"]) is is_framed
