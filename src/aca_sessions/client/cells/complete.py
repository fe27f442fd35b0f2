"""Complete a text as IPython does at its prompt."""

import json
import warnings

TOLD = 200
LONGEST = 500


def main(user: dict, code: str, cursor: int) -> None:
    """Print the completions as one line of JSON: at most 200, of at most 500 characters each."""
    cursor = max(0, min(cursor, len(code)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # IPython calls its own completions provisional
        found = list(user["get_ipython"]().Completer.completions(code, cursor)) if "get_ipython" in user else []
    start, end = (found[0].start, found[0].end) if found else (cursor, cursor)
    texts = [one.text[:LONGEST] for one in found if (one.start, one.end) == (start, end)]
    print(json.dumps({"matches": texts[:TOLD], "start": start, "end": end}))
