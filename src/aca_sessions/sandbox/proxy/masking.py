"""Mask secrets in the data that hosts send to sessions: replace each by as many `*`, so that lengths do not change."""

import html
import json
from base64 import b64encode
from collections.abc import Callable, Iterable
from itertools import groupby
from urllib.parse import quote, quote_plus

SHORTEST = 6  # characters: shorter values would match unrelated text
_MOST = 128  # values: each needs about 10 searches of all received data


class Masker:
    """Replaces some values, also in forms in which servers send them back: in base64, percent-encoded, in JSON and in HTML."""

    def __init__(self, values: Iterable[str]) -> None:
        """Replace these values. Values with fewer than 6 characters are not replaced. Only the last 128 count."""
        known = [value for value in dict.fromkeys(values) if len(value) >= SHORTEST][-_MOST:]
        self._forms = {form for value in known for form in _forms_of(value)}
        # One search for all values with the same beginning, such as the tokens of Azure, which are renewed each hour.
        groups = groupby(sorted(self._forms), key=lambda form: form[:8])
        self._groups = [(_beginning(group), group[::-1]) for group in ([*forms] for _, forms in groups)]
        self._longest = max(map(len, self._forms), default=0)
        self._starts = tuple({form[:3] for form in self._forms})

    def __bool__(self) -> bool:
        """Return whether there is anything to replace."""
        return bool(self._forms)

    def mask(self, data: bytes) -> bytes:
        """Return a complete text with the values replaced."""
        found = self._find(data)
        return _masked(data, found) if found else data

    def _find(self, data: bytes) -> list[tuple[int, int]]:
        """Return the positions of values, which may overlap."""
        found = []
        for beginning, forms in self._groups:
            at = data.find(beginning)
            while at >= 0:
                # If one is the beginning of another, the longer one comes first.
                size = next((len(form) for form in forms if data.startswith(form, at)), 0)
                if size:
                    found.append((at, at + size))
                at = data.find(beginning, at + max(size, 1))
        return found

    def _find_tail(self, data: bytes) -> int:
        """Return the position from which the end of `data` may be the beginning of a value."""
        first = max(0, len(data) - self._longest + 1)
        best = len(data)
        for start in self._starts:
            at = data.find(start, first, best + len(start) - 1)
            while 0 <= at < best:
                tail = data[at:]
                if any(len(form) > len(tail) and form.startswith(tail) for form in self._forms):
                    best = at
                    break
                at = data.find(start, at + 1, best + len(start) - 1)
        for size in (2, 1):  # shorter than the beginnings that were searched
            if best == len(data) and size <= len(data) and data[-size:] in {start[:size] for start in self._starts}:
                best = len(data) - size
        return best


class MaskedStream:
    """Replaces the values in a stream. It holds back only what may be the beginning of a value."""

    def __init__(self, masker: Callable[[], Masker]) -> None:
        """Create a stream. `masker` returns what knows the values by now: others may be sent while the stream lasts."""
        self._masker = masker
        self._held = b""  # as it was received
        self._replaced = 0  # how much of that belongs to a value that began before

    def feed(self, data: bytes) -> bytes:
        """Return what can be sent after this part has been received."""
        data = self._held + data if self._held else bytes(data)
        masker = self._masker()
        found = masker._find(data)
        if self._replaced:
            found.append((0, self._replaced))
        at = masker._find_tail(data)
        self._held = bytes(data[at:])
        self._replaced = max(0, max((end for _, end in found), default=0) - at)
        if not found:
            return data[:at] if self._held else data
        return _masked(data, found)[:at]

    def finish(self) -> bytes:
        """Return the rest. Call this when everything was received."""
        rest, self._held = self._held, b""
        return b"*" * self._replaced + rest[self._replaced :]


def _beginning(forms: list[bytes]) -> bytes:
    """Return the beginning that sorted texts have in common."""
    first, last = forms[0], forms[-1]
    return first[: next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))]


def _masked(data: bytes, found: Iterable[tuple[int, int]]) -> bytes:
    masked = bytearray(data)
    for start, end in found:
        masked[start:end] = b"*" * (end - start)
    return bytes(masked)


def _forms_of(value: str) -> set[bytes]:
    plain = value.encode()
    in_json = json.dumps(value)[1:-1]
    texts = {in_json, in_json.replace("/", "\\/"), html.escape(value), html.escape(value, quote=False), value.replace('"', '\\"')}
    for text in (quote(value, safe=""), quote(value), quote_plus(value)):
        texts |= {text, _with_small_digits(text)}
    for numbered in ("<>&", "<>&'\"+`"):  # in JSON, libraries escape these for safety in HTML: Go's the first ones, .NET's all
        for digits in ("04x", "04X"):
            texts.add("".join(f"\\u{ord(char):{digits}}" if char in numbered else json.dumps(char)[1:-1] for char in value))
    return {plain, plain.lower(), *(text.encode() for text in texts), *_in_base64(plain)}


def _with_small_digits(quoted: str) -> str:
    parts = quoted.split("%")
    return parts[0] + "".join(f"%{part[:2].lower()}{part[2:]}" for part in parts[1:])


def _in_base64(value: bytes) -> set[bytes]:
    """Return what is the same in every text in base64 that holds the value, wherever in the text it begins."""
    found = set()
    for before in range(3):
        encoded = b64encode(b"\0" * before + value)
        # Without the characters that depend on the text before and after the value.
        inner = encoded[(before * 8 + 5) // 6 : (before + len(value)) * 8 // 6]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return found
