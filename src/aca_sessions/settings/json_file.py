"""Read JSON files as .NET does, with comments and trailing commas, and find the lines of their keys."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError

_STRING = r'"(?:\\.|[^"\\\n])*"'
_COMMENT = re.compile(rf"{_STRING}|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TRAILING_COMMA = re.compile(rf'(?:{_STRING}|[^\s,"[{{])\s*,(?=\s*[}}\]])|{_STRING}')  # only after a value: .NET refuses [,] as well
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class JsonFile:
    """A parsed JSON file, and its text, in which `line_of` finds the line of a key."""

    path: Path
    content: Any
    text: str

    @classmethod
    def read(cls, path: Path) -> "JsonFile":
        """Parse a file, which may have comments and trailing commas.

        If this fails, raise ConfigurationError with the file and the bad line.
        """
        try:
            text = _as_plain_json(path.read_text(encoding="utf-8-sig"))
            return cls(path, json.loads(text), text)
        # Not chained: the cause holds the text of the file, which may have keys and passwords.
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{path}, line {error.lineno}: cannot be read as JSON ({error.msg})") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"{path} cannot be read as JSON ({error})") from None

    def line_of(self, keys: Sequence[str | int]) -> int:
        """Return the line number of the key at the path `keys`. If the file lacks that key, return the line of its nearest parent."""
        line, position = 1, _skip_space(self.text, 0)
        for key in keys:
            found = [entry for entry in _entries(self.text, position) if entry[0] == key]
            if not found:
                break
            _, begin, position = found[-1]  # if a key occurs twice, the last one wins
            line = self.text.count("\n", 0, begin) + 1
        return line


def _as_plain_json(text: str) -> str:
    """Replace comments and trailing commas with spaces, so that the text is JSON and every line keeps its number."""
    text = _COMMENT.sub(lambda found: found[0] if found[0][0] == '"' else re.sub(r"[^\n]", " ", found[0]), text)
    return _TRAILING_COMMA.sub(lambda found: found[0][:-1] + " " if found[0][-1] == "," else found[0], text)


def _entries(text: str, position: int) -> Iterator[tuple[str | int, int, int]]:
    """Yield the entries of the JSON object or list that begins at `position` of a text.

    Each entry is its key or index, the position of the key, and the position of the value.
    """
    opening, index = text[position], 0
    if opening not in "{[":
        return
    position = _skip_space(text, position + 1)
    while text[position] not in "}]":
        key, begin = index, position
        if opening == "{":
            key, position = _DECODER.raw_decode(text, position)
            position = _skip_space(text, _skip_space(text, position) + 1)  # the colon
        yield key, begin, position
        position = _skip_space(text, _DECODER.raw_decode(text, position)[1])
        if text[position] == ",":
            position = _skip_space(text, position + 1)
        index += 1


def _skip_space(text: str, position: int) -> int:
    while text[position].isspace():
        position += 1
    return position
