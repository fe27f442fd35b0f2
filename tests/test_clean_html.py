"""Test HTML of guests in the page of a notebook."""

import random
import re

import pytest

from aca_sessions.clean_html import _MATH, ATTRIBUTES, KEPT, VOID, cleaned, cleaned_latex, cleaned_markdown

from .conftest import ROOT

OPENING = (
    '<div class="mathjax_ignore tex2jax_ignore" style="border-left: 3px solid #8888; padding-left: 0.6em; '
    'overflow: auto hidden; box-sizing: border-box; width: fit-content; max-width: 100%">'
)
WRITTEN = re.compile(r"""<(/?)([a-z0-9]+)((?: [a-z]+="[^"<>]*")*)>|[^<>]+""")
WORDS = (
    *("<div>", "<p ", "</p>", "<table>", "<td>", "<svg>", "<style>", "</style>", "<script>", "</script>", "<!--", "-->", "<SCRIPT\n>"),
    *("<img src=x onerror=x>", "title='", '"', ">", "<", "=", "&lt;script&gt;", "<template>", "<math>", "<select>", "<noscript>", "\0"),
    *("</noscript>", "<b/onclick=x>", "<iframe srcdoc=", "<a href=javascript:x>", "<xmp>", "</", "<?", "<![CDATA[", "]]>", "<plaintext>"),
    *("<a>", "</a>", "<li>", "</table>", "<caption>", "<colgroup>", "<tr>", "</div>", "<b>", "<p style='color:red;background:url(//x)'>"),
)


def inside(html: str) -> str:
    written = cleaned(html)
    assert not written or (written.startswith(OPENING) and written.endswith("</div>"))
    return written[len(OPENING) : -6]


@pytest.mark.parametrize(
    ("html", "left"),
    [
        ("<p>a &amp; b &lt;i&gt; &#x41;</p>", "<p>a &amp; b &lt;i&gt; A</p>"),
        ("<script>alert(1)</script><b onclick='x'>b</b>", "<b>b</b>"),
        ("<img src=//x.example><img src='data:image/png;base64,aa'>", '<img><img src="data:image/png;base64,aa">'),
        ("<a href='javascript:x'>a</a>", "<a>a</a>"),
        ("<form action=//x><input name=a>text<button>b</button></form>", "textb"),
        ("<svg><image href=//x /><circle/></svg>after<svg>", "after"),
        ("<object data=//x><p>inside</p></object>x<iframe src=//x>inside</iframe>", "x"),
        ("<style>@import '//x'; p { background: url(//x) }</style><p class=c id=i>x</p>", "<p>x</p>"),
        ("<p style='color: red; position: fixed; background: url(//x); width: 1\\30 px'>x</p>", '<p style="color: red">x</p>'),
        ("</div></div><p>outside?</div>", "<p>outside?</p>"),
        ("<table><div><table></table></div></table>x", "<table></table>x"),
        ("<p>a<div>b</p></div>c", "<p>a</p><div>b</div>c"),
        ("<ul><li>a<li><div>b<li>c</ul>", "<ul><li>a</li><li><div>b</div></li><li>c</li></ul>"),
        ("<tr>x<table><tr><td>a<td>b<tr><th>c</table>", "x<table><tr><td>a</td><td>b</td></tr><tr><th>c</th></tr></table>"),
        ("a < b <3 <!-- c --> <? d > e", "a &lt; b &lt;3   e"),
        ("x<p title='", "x"),
        ("x<!-- <p>", "x"),
        ("<script>x", ""),
        ("<div><p></p></div>", ""),
        ("", ""),
    ],
)
def test_elements_that_run_or_load_something_are_removed(html: str, left: str) -> None:
    assert inside(html) == left


def test_output_is_known_and_balanced_whatever_the_input() -> None:
    generator = random.Random(5)
    for _ in range(3000):
        written = inside("x" + "".join(generator.choices(WORDS, k=generator.randint(1, 12))))
        still_open, end = [], 0
        for token in WRITTEN.finditer(written):
            assert token.start() == end
            end = token.end()
            if token[2] is None:
                continue
            assert token[2] in KEPT
            assert set(re.findall(r" ([a-z]+)=", re.sub(r'"[^"]*"', "", token[3]))) <= ATTRIBUTES | {"style", "src"}
            if token[1]:
                assert still_open.pop() == token[2]
            elif token[2] not in VOID:
                still_open.append(token[2])
        assert (end, still_open) == (len(written), [])


def test_formulas_have_only_known_elements_and_appear_once() -> None:
    cases = {
        r"$\href{javascript:x}{y}$": '<math display="inline"><mrow><mrow><mrow><mi>y</mi></mrow></mrow></mrow></math>',
        r"$\text{</math><script>}$": "&lt;/math&gt;&lt;script&gt;",
        r"$\style{position:fixed}{\class{c}{\cssId{i}{x}}}$": "<mi>x</mi>",
        r"$\def\frac{x}$": r"<code>\def\frac{x}</code>",
        r"$\newcommand{\a}{\a\a}\a$": r"<code>\newcommand",
        r"$\frac$": r"<code>\frac</code>",
        "$" + "{" * 500 + "$": "<code>{{{",
        "$a\ue0000\ue001$ \ue0000\ue001": "<mi>a</mi>",
        r"costs $5 and more": "costs $5 and more",
    }
    for source, left in cases.items():
        for written in (cleaned_latex(source), cleaned_markdown(source)):
            assert left in written, source
            found = re.findall(r"<([a-z]+)((?: [a-z]+=\"[^\"<>]*\")*)>", written.removeprefix(OPENING))
            assert {name for name, _ in found} <= _MATH | KEPT
            assert not re.search("href|class|style|position| id=", "".join(attributes for _, attributes in found))
    assert cleaned_latex("$x$" + "\ue0000\ue001" * 1000).count("<math") == 1
    assert cleaned_latex("$" + "x" * 3_000 + "$").startswith(f"{OPENING}<code>xxx")
    assert cleaned_latex("x" * 20_000) == cleaned_markdown("x" * 20_000) == cleaned_markdown("|" * 300 + "\n" * 300) == ""


def test_tables_of_pandas_look_as_before() -> None:
    import pandas as pd

    frame = pd.DataFrame({"name": ["<b>", "b"], "size": [1, 2]})
    plain = inside(frame._repr_html_())
    assert (plain.count("<td>"), plain.count("<th>")) == (4, 5)
    assert "<td>&lt;b&gt;</td>" in plain
    assert '<tr style="text-align: right">' in plain
    styled = inside(frame.style.background_gradient().bar(subset=["size"]).to_html())
    assert styled.count("background-color: #") == styled.count("linear-gradient(90deg, #") == 2
    assert "T_" not in styled


def test_any_depth_and_size_is_handled() -> None:
    assert inside("<div>" * 100_000 + "x").count("<div>") == 300
    assert inside("x" + "<b " * 300_000) == "x"
    assert inside("x" + '<p ="' * 300_000 + ">") in ("x", "x<p></p>")
    assert inside("x" + "<style>" * 300_000) == "x"
    assert inside("x" + "</b>" * 300_000) == "x"


def test_the_playground_has_the_same_lists_of_allowed_elements() -> None:
    source = (ROOT / "src/aca_sessions/server/playground/clean.js").read_text()
    words = {
        name: set("".join(re.findall(r'"([^"]*)"', text)).split()) for name, text in re.findall(r"const (\w+) = words\(([^)]*)\)", source)
    }
    assert words["KEPT"] == KEPT
    assert words["VOID"] == VOID
    assert words["ATTRIBUTES"] == ATTRIBUTES | {"class"}  # in a frame no other style sheet applies
