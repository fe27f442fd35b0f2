"""Takes code out of Markdown, and does nothing else to it: code without a fence around the whole is not touched."""

import re
import textwrap

_FENCED = re.compile(r"\A\s*(?P<fence>`{3,}|~{3,})[ \t]*[\w+.-]*[ \t]*\n(?P<code>.*?)\n?[ \t]*(?P=fence)\s*\Z", re.DOTALL)
_QUOTED = re.compile(r"\A\s*`(?P<code>[^`\n]+)`\s*\Z")
_MARK = "\ufeff"


def sanitize(code: str) -> str:
    """The code that a model meant: out of a fence or backticks around the whole, without a byte order mark and Windows line ends."""
    text = code.removeprefix(_MARK)
    text = text.replace("\r\n", "\n") if "\r\n" in text else text
    if fenced := _FENCED.match(text):
        return textwrap.dedent(fenced["code"])
    quoted = _QUOTED.match(text)
    return quoted["code"] if quoted else text
