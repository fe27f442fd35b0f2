"""Removal of Markdown around code. Code without a fence is not changed."""

import ast
import re
import textwrap

# Possessive quantifiers, and the closing fence is looked for from the end: a model chooses this text, so matching must take linear time.
_OPENING = re.compile(r"\s*+(?P<fence>`{3,}+|~{3,}+)[ \t]*+[\w+.-]*+[ \t]*+\n")
_QUOTED = re.compile(r"\A\s*+`(?P<code>[^`\n]++)`\s*+\Z")
# Such a line is never Python, except inside a string of several lines. (A line of tildes can be Python: `~` inverts what follows.)
_FENCE = re.compile(r"^[ \t]*+`{3,}+[ \t]*+(?P<language>[\w+.-]*+)[ \t]*+$", re.MULTILINE)
_LANGUAGE_LINE = re.compile(r"\s*+(?:python3?|py)[ \t]*+\n(?=(?:[ \t]*+(?:#[^\n]*+)?\n)*+[ \t]*+[^\s#\\])", re.IGNORECASE)
_CELL_MAGIC = re.compile(r"\s*+%%")
_MARK = "\ufeff"
_MOST_PROSE = 2000  # characters that are parsed to see whether they are code: so few cannot exhaust Python's parser


def sanitize(code: str) -> str:
    """Return the code that a model meant: without a Markdown fence or backticks, byte order mark and Windows line ends.

    A first line that only names the language is dropped if a statement follows: as Python it has no effect. Text around a fence is dropped
    if it is not code. Text with several fences, and text whose fence may be inside a string, is left as it is.
    """
    text = code.removeprefix(_MARK)
    text = text.replace("\r\n", "\n") if "\r\n" in text else text
    fenced = _fenced(text)
    if fenced is not None:
        return textwrap.dedent(fenced)
    if quoted := _QUOTED.match(text):
        return quoted["code"]
    named = _LANGUAGE_LINE.match(text)
    return text[named.end() :] if named else text


def _fenced(text: str) -> str | None:
    """Return the text inside the only fence of a text, or None."""
    opening = _OPENING.match(text)
    if opening is not None:
        rest, fence = text[opening.end() :].rstrip(), opening["fence"]
        # Python may begin with three tildes, and end with them in a comment. It has no backticks, and no line of tildes alone at its end.
        if rest.endswith(fence) and (fence[0] == "`" or rest.rpartition("\n")[2].strip() == fence):
            return rest.removesuffix(fence).rstrip(" \t").removesuffix("\n")
    return _in_prose(text)


def _in_prose(text: str) -> str | None:
    """Return the text between a fence and the next one, or the end, if everything around it is prose. Return None otherwise."""
    fences = [found for found, _ in zip(_FENCE.finditer(text), range(3), strict=False)]
    if not 0 < len(fences) < 3 or _CELL_MAGIC.match(text) or any(fence["language"] for fence in fences[1:]):
        return None
    before, end = text[: fences[0].start()], fences[1] if len(fences) > 1 else None
    after = text[end.end() :] if end else ""
    if '"""' in before or "'''" in before or _is_code(before) or _is_code(after) or len(text) == fences[0].end():
        return None
    return text[fences[0].end() + 1 : end.start() if end else None].removesuffix("\n")


def _is_code(text: str) -> bool:
    """Return whether a text holds statements that have an effect. A single word is prose, and so is what cannot be parsed."""
    if len(text) > _MOST_PROSE:
        return True
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Name)) for one in statements)
