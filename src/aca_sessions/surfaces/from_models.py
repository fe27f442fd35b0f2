"""Checks of what models send. An error is worded so that the model can correct its call."""

import base64
import json
import re
from collections.abc import Mapping

from ..models import CodeError

Files = dict[str, str | bytes]

_MOST_CODE = 1_000_000
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*;base64,([A-Za-z0-9+/=\s]*)")
_EXAMPLE = '{"data.csv": "a,b\\n1,2\\n"}'


def checked_code(code: object) -> CodeError | None:
    """Return the error if this is not code, or None."""
    # A framework may have turned a missing argument into text.
    if not isinstance(code, str) or code.strip() in ("None", "null"):
        return CodeError("ValueError", "the argument 'code' is missing: send the Python source text")
    if len(code) > _MOST_CODE:
        return CodeError("ValueError", f"the code is {len(code)} characters long, of at most {_MOST_CODE}: put data into files")
    return None


def checked_files(files: object) -> Files | CodeError:
    """Return the names and contents of files, or the error. The mapping may be JSON text, and binary contents may be data URIs."""
    if isinstance(files, str):
        try:
            files = json.loads(files)
        except ValueError:
            return CodeError("TypeError", f"the argument 'files' is text that is no JSON object: send an object such as {_EXAMPLE}")
    if not isinstance(files, Mapping):
        return CodeError("TypeError", f"the argument 'files' maps file names to their text: send an object such as {_EXAMPLE}")
    for name, text in files.items():
        if not isinstance(name, str) or not isinstance(text, str):
            return CodeError(
                "TypeError", f"the content of the file {name!r} is a {type(text).__name__}, not text: send an object such as {_EXAMPLE}"
            )
    try:
        return {name: _content(text) for name, text in files.items()}
    except ValueError:
        return CodeError("ValueError", "a file's data URI is not valid base64: encode the whole file again")


def _content(text: str) -> str | bytes:
    uri = _DATA_URI.fullmatch(text)
    return base64.b64decode("".join(uri[1].split()), validate=True) if uri else text
