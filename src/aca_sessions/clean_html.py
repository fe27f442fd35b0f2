"""Convert guest HTML, Markdown and LaTeX to HTML that is safe in a notebook, because it runs nothing and loads nothing.

No tag is copied from the input. The tags of the output are written anew: only those in the lists below, balanced and at most 300 deep. All
text is escaped.

An element is written only at a position where a browser keeps it. For example, a browser closes a paragraph before a block, and moves an
element that does not belong in a table out of the table. If such an element were written at its original position, its end tag would close
an element of the page, outside the box that `cleaned` puts around the output. If a browser still reads the output differently, that changes
how it looks, not what it can do.

The notebook's style sheets apply to the output. The output has neither classes nor ids, with which it could look like a part of the
notebook. The playground has the same lists in `clean.js`.

Formulas become MathML, which browsers draw themselves. The class of the box keeps the page's MathJax from reading the output: MathJax
follows `\\href`, and a macro that a guest defines would change all later formulas of the notebook, including the user's own.

nh3 (Ammonia) was tried instead: 40,000 nested elements from a guest took it 10 s, and it drops pandas' styles of single cells.
"""

import contextlib
import re
from collections.abc import Iterator, Set
from html import escape, unescape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEPT = _words(
    "a abbr article aside b bdi bdo big blockquote br caption center cite code col colgroup dd del details dfn div dl dt em figcaption "
    "figure font footer h1 h2 h3 h4 h5 h6 header hr i img ins kbd li main mark meter ol p pre progress q s samp section small span strike "
    "strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
VOID = _words("br col hr img wbr")
ATTRIBUTES = _words(
    "align alt border colspan dir height high lang low max min open optimum rowspan scope span start title valign value width"
)
_TEXT_ONLY = _words("script style title textarea iframe noembed noframes noscript xmp plaintext")  # tags inside them are text
_DROPPED = _words("template object applet frameset math svg audio video select")  # with everything inside them
_BLOCKS = _words(
    "article aside blockquote center dd details div dl dt figcaption figure footer h1 h2 h3 h4 h5 h6 header hr li main ol p pre section "
    "summary table ul"
)
_HEADINGS = _words("h1 h2 h3 h4 h5 h6")
_PARENTS = dict.fromkeys(("caption", "colgroup", "thead", "tbody", "tfoot"), _words("table")) | {
    "col": _words("colgroup table"),
    "tr": _words("thead tbody tfoot table"),
    "td": _words("tr"),
    "th": _words("tr"),
}
_PARTS_ONLY = _words("table colgroup thead tbody tfoot tr")  # nothing but parts of a table may be in these
_CELLS = _words("td th caption")
_DEEPEST = 300

_TAG = re.compile(r"""<(/?)([a-z][^\s/>]*+)((?:[^>"'=]++|=\s*+"[^"]*+"|=\s*+'[^']*+'|["'=])*+)>""", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([^\s"'>/=]++)(?:\s*+=\s*+("[^"]*+"|'[^']*+'|[^\s"'>]*+))?""")
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml)[;,]", re.IGNORECASE)
_RULE = re.compile(r"([^{}]{1,1000})\{([^{}]{0,4000})\}")
_BY_ID = re.compile(r"#([\w-]{1,100})", re.ASCII)
_PROPERTIES = _words(
    "background background-color border border-bottom border-collapse border-color border-left border-right border-top color font-style "
    "font-weight max-width min-width padding text-align text-decoration vertical-align white-space width"
)
_VALUE = re.compile(r"(?:(?:rgba?|hsla?|linear-gradient)\(|[\w\s.,#%)+-])+", re.ASCII)  # no url(), no escape, nothing quoted
_LONGEST_VALUE = 300
_BOX = (
    '<div class="mathjax_ignore tex2jax_ignore" style="border-left: 3px solid #8888; padding-left: 0.6em; '
    'overflow: auto hidden; box-sizing: border-box; width: fit-content; max-width: 100%">{}</div>'
)


def cleaned(html: str) -> str:
    """Return the safe part of HTML, in a box (a `<div>` with a line at its left). Return '' if the safe part shows nothing."""
    return _in_a_box(html, {})


def _in_a_box(html: str, formulas: dict[int, str]) -> str:
    cleaner = _Cleaner(formulas)
    cleaner.read(html)
    content = cleaner.written()
    return _BOX.format(content) if cleaner.shows_anything else ""


_LONGEST_MARKUP = 16_000  # characters; the time for hostile Markdown grows with their square: here about a second
_MOST_CELLS = 20_000  # of tables: a header makes cells in each row, also in an empty one
_LONGEST_FORMULA = 2_000  # the same for formulas
_PLACE = re.compile("\ue000([0-9]{1,5})\ue001")  # stands in HTML for a formula, which only `_Cleaner` writes, and only into text
_MACROS = re.compile(r"\\(?:[a-z]*def|let|[a-z]*command|[a-z]*environment|Declare|require)", re.IGNORECASE)  # can grow without bounds
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|(\\begin\{([a-z]{1,20}\*?)\}.+?\\end\{\4\})|\$([^$]+)\$|\\\((.+?)\\\)", re.DOTALL)
_MATH = _words(
    "math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow mspace msqrt mstyle msub msubsup msup mtable "
    "mtd mtext mtr munder munderover none"
)
_MATH_ATTRIBUTES = _words(
    "accent accentunder columnalign columnlines columnspacing depth display displaystyle fence form height largeop linethickness lspace "
    "mathbackground mathcolor mathsize mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace scriptlevel separator "
    "stretchy symmetric voffset width"
)
_MATH_VALUE = re.compile(r"[\w.+%# -]{1,60}", re.ASCII)


def cleaned_markdown(source: str) -> str:
    """Return Markdown as safe HTML in a box, with its formulas as MathML.

    Return '' if it is too long to be rendered in a second, or if the extra `notebook` is not installed: its source is shown then.
    """
    try:
        from markdown_it import MarkdownIt
        from mdit_py_plugins.amsmath import amsmath_plugin
        from mdit_py_plugins.dollarmath import dollarmath_plugin
    except ModuleNotFoundError:
        return ""

    lines = source.split("\n")
    if len(source) > _LONGEST_MARKUP or max(line.count("|") for line in lines) * len(lines) > _MOST_CELLS:
        return ""
    formulas: dict[int, str] = {}

    def place(content: str, options: dict[str, Any]) -> str:
        formulas[len(formulas)] = _formula(content, block=bool(options.get("display_mode")))
        return f"\ue000{len(formulas) - 1}\ue001"

    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    markdown.use(dollarmath_plugin, allow_digits=False, double_inline=True, renderer=place)
    markdown.use(amsmath_plugin, renderer=lambda content: place(content, {"display_mode": True}))
    return _in_a_box(markdown.render(source), formulas)


def cleaned_latex(source: str) -> str:
    """Return LaTeX as safe HTML in a box: formulas as MathML, and the text between them. Return '' if it is too long."""
    if len(source) > _LONGEST_MARKUP:
        return ""
    formulas: dict[int, str] = {}
    parts, end = [], 0
    for found in _FORMULA.finditer(source):
        block = found[1] or found[2] or found[3]
        formulas[len(formulas)] = _formula(block or found[5] or found[6], block=bool(block))
        parts += [escape(source[end : found.start()]), f"\ue000{len(formulas) - 1}\ue001"]
        end = found.end()
    return _in_a_box("".join([*parts, escape(source[end:])]), formulas)


def _formula(source: str, *, block: bool) -> str:
    """Convert a LaTeX formula to MathML. If that is impossible, return its source as HTML. `block` puts it on a line of its own."""
    if len(source) <= _LONGEST_FORMULA and not _MACROS.search(source):
        # The converter raises errors of many types for what it does not understand, RecursionError and StopIteration among them.
        # Without the extra `notebook` its import fails.
        with contextlib.suppress(Exception):
            from latex2mathml.converter import convert_to_element

            return _mathml(convert_to_element(source, display="block" if block else "inline"))
    return f"<code>{escape(source)}</code>"


def _mathml(element: "Element") -> str:
    """Convert a MathML element to text, with only allowed tags and attributes: the converter passes on what `\\href` and `\\text` hold."""
    inside = escape(unescape(element.text or "")) + "".join(_mathml(child) + escape(unescape(child.tail or "")) for child in element)
    if element.tag not in _MATH:
        return inside
    kept = {key: value for key, value in element.attrib.items() if key in _MATH_ATTRIBUTES and _MATH_VALUE.fullmatch(value)}
    return "".join([f"<{element.tag}", *(f' {key}="{value}"' for key, value in kept.items()), f">{inside}</{element.tag}>"])


class _Cleaner:
    """A parser that reads HTML once, from beginning to end, and writes the safe part of it."""

    def __init__(self, formulas: dict[int, str]) -> None:
        self.shows_anything = False
        self._formulas = formulas
        self._parts: list[str] = []
        self._open: list[str] = []
        self._styles: dict[str, str] = {}  # by the id of an element, which is how pandas lays out single cells
        self._dropping, self._depth = "", 0

    def read(self, html: str) -> None:
        """Parse HTML and collect its safe part. Like browsers, drop a tag or comment that has no end, and everything after it."""
        place = 0
        while (start := html.find("<", place)) >= 0:
            self._text(html[place:start])
            if tag := _TAG.match(html, start):
                place = self._tag(html, tag)
            elif html.startswith(("<!", "<?", "</"), start):
                end = "-->" if html.startswith("<!--", start) else ">"
                place = html.find(end, start) + len(end)
                if place < start + len(end):
                    return
            elif html[start + 1 : start + 2].isalpha():
                return
            else:
                self._text("<")
                place = start + 1
            if not place:
                return
        self._text(html[place:])

    def written(self) -> str:
        """Return the safe HTML that `read` has collected, with end tags for the elements that are still open."""
        return "".join([*self._parts, *(f"</{name}>" for name in reversed(self._open))])

    def _text(self, text: str) -> None:
        if text and not self._dropping:
            self._parts.append(_PLACE.sub(self._formula_at, escape(unescape(text))))
            self.shows_anything = self.shows_anything or not text.isspace()

    def _formula_at(self, place: re.Match[str]) -> str:
        return self._formulas.pop(int(place[1]), "")  # once: a guest that knows the marks could repeat a formula a thousand times

    def _tag(self, html: str, tag: re.Match[str]) -> int:
        """Process one tag: write it, close the elements that it ends, or leave it out.

        Return the position in `html` at which to continue, or 0 if the rest must be dropped.
        """
        closes, name = bool(tag[1]), tag[2].lower()
        if name in _TEXT_ONLY and not closes:
            end = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(html, tag.end())
            if name == "style" and end and not self._dropping:
                self._styles.update(_rules(html[tag.end() : end.start()]))
            return end.start() if end else 0
        if self._dropping:
            self._depth += 0 if name != self._dropping else -1 if closes else 1
            self._dropping = self._dropping if self._depth else ""
        elif name in _DROPPED and not closes:
            self._dropping, self._depth = name, 1
        elif name in KEPT:
            self._close(name) if closes else self._begin(name, tag[3])
        return tag.end()

    def _begin(self, name: str, attributes: str) -> None:
        if len(self._open) >= _DEEPEST or not self._make_room(name):
            return
        given: dict[str, str] = {}
        for attribute, value in _ATTRIBUTE.findall(attributes):
            given.setdefault(attribute.lower(), unescape(value[1:-1] if value[:1] in ("'", '"') else value))
        kept = {key: value for key, value in given.items() if key in ATTRIBUTES}
        if name == "img" and _PICTURE.match(given.get("src", "")):
            kept["src"] = given["src"]
            self.shows_anything = True
        if style := "; ".join(filter(None, (self._styles.get(given.get("id", "")), _declarations(given.get("style", ""))))):
            kept["style"] = style
        self._parts.append("".join([f"<{name}", *(f' {key}="{escape(value)}"' for key, value in kept.items()), ">"]))
        if name not in VOID:
            self._open.append(name)

    def _make_room(self, name: str) -> bool:
        """Close the elements that a browser closes before an element `name` begins. Return False if `name` is not allowed here."""
        if name in _PARENTS:
            place = self._find(_PARENTS[name], until={"table"})
            if place is not None:
                self._close_to(place + 1)
            return place is not None
        if self._open and self._open[-1] in _PARTS_ONLY:
            return False
        for names, until in _closed_by(name):
            while (place := self._find(names, until=_CELLS | until)) is not None:
                self._close_to(place)
        return True

    def _close(self, name: str) -> None:
        until = {"table"} if name in _PARENTS or name == "table" else _CELLS
        if (place := self._find({name}, until=until)) is not None:
            self._close_to(place)

    def _find(self, names: Set[str], *, until: Set[str]) -> int | None:
        """Return the index of the innermost open element whose name is in `names`, or None. Stop the search at an element in `until`."""
        for place in range(len(self._open) - 1, -1, -1):
            if self._open[place] in names:
                return place
            if self._open[place] in until:
                return None
        return None

    def _close_to(self, place: int) -> None:
        while len(self._open) > place:
            self._parts.append(f"</{self._open.pop()}>")


def _closed_by(name: str) -> Iterator[tuple[Set[str], Set[str]]]:
    """Yield the rules by which a browser closes open elements before an element `name` begins, such as a `<p>` before a `<div>`.

    Each rule is a pair of sets of names. The browser closes an open element with a name in the first set, unless an element with a name in
    the second set is open inside it.
    """
    if name in _BLOCKS:
        yield {"p"}, set()
    if name == "li":
        yield {"li"}, {"ul", "ol"}
    elif name in ("dd", "dt"):
        yield {"dd", "dt"}, {"dl"}
    elif name == "a":
        yield {"a"}, set()
    elif name in _HEADINGS:
        yield _HEADINGS, set()


def _rules(sheet: str) -> Iterator[tuple[str, str]]:
    for selectors, text in _RULE.findall(sheet):
        if declarations := _declarations(text):
            yield from ((found[1], declarations) for one in selectors.split(",") if (found := _BY_ID.fullmatch(one.strip())))


def _declarations(text: str) -> str:
    pairs = (part.partition(":")[::2] for part in text.split(";"))
    kept = ((name.strip().lower(), " ".join(value.split())) for name, value in pairs)
    return "; ".join(
        f"{name}: {value}" for name, value in kept if name in _PROPERTIES and len(value) <= _LONGEST_VALUE and _VALUE.fullmatch(value)
    )
