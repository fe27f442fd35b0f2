"""Takes code out of Markdown, and does nothing else to it: code without a fence around the whole is not touched."""

import re
import textwrap

# Possessive, and the end is found from the end: a model chooses this text, so it must never be scanned more than once.
_OPENING = re.compile(r"\s*+(?P<fence>`{3,}+|~{3,}+)[ \t]*+[\w+.-]*+[ \t]*+\n")
_QUOTED = re.compile(r"\A\s*+`(?P<code>[^`\n]++)`\s*+\Z")
_MARK = "\ufeff"


def sanitize(code: str) -> str:
    """Return the code that a model meant: without a fence or backticks around the whole, a byte order mark and Windows line ends."""
    text = code.removeprefix(_MARK)
    text = text.replace("\r\n", "\n") if "\r\n" in text else text
    fenced = _fenced(text)
    if fenced is not None:
        return textwrap.dedent(fenced)
    quoted = _QUOTED.match(text)
    return quoted["code"] if quoted else text


def _fenced(text: str) -> str | None:
    """Return what is between an opening fence and the same one at the end, or None."""
    opening = _OPENING.match(text)
    rest = text[opening.end() :].rstrip() if opening else ""
    if opening is None or not rest.endswith(opening["fence"]):
        return None
    return rest.removesuffix(opening["fence"]).rstrip(" \t").removesuffix("\n")
