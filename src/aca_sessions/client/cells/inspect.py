"""Print what IPython shows about a name."""

import json

TOLD = 20_000


def main(user: dict, code: str, cursor: int, detail: int) -> None:
    """Print the text, of at most 20,000 characters, as one line of JSON. It is null if the name is unknown."""
    from IPython.utils.tokenutil import token_at_cursor

    name = token_at_cursor(code, max(0, min(cursor, len(code))))
    try:
        shown = user["get_ipython"]().object_inspect_mime(name, detail_level=detail)["text/plain"]
    except KeyError:
        shown = None
    print(json.dumps({"text": plain(shown[:TOLD]) if shown else None}))


def plain(text: str) -> str:
    """Return the text without a terminal's colours."""
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)
