"""Takes code out of Markdown fences, and does nothing else to it."""

import re

_FENCED = re.compile(r"\A\s*(?P<fence>`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*\r?\n(?P<code>.*?)\r?\n?[ \t]*(?P=fence)\s*\Z", re.DOTALL)


def sanitize(code: str) -> str:
    """The code inside a fence that encloses the whole text; any other text as it is."""
    fenced = _FENCED.match(code)
    return fenced["code"] if fenced else code
