"""Make guest text safe to show beside the host's text: escape control sequences, quote odd names, and mark imitated lines of the host.

The host's lines begin with a label: `[state]` in the text for a model, `[session state` at a terminal. Guest text that begins with a label
gets `QUOTE` in front, so a label without `QUOTE` is always from the host. A label is recognized in upper and lower case, and with invisible
characters and colours between its letters. Letters that only look like those of a label, such as Cyrillic ones, are not recognized,
because no list of them is complete.
"""

import re
from functools import cache

QUOTE = "(printed) "
RESET = "\x1b[0m"

_MAX_CAPTION = 200
_MAX_PENDING = 1000  # characters
_PLAIN_NAME = re.compile(r"[\w.,/@%+=:~#-]+")
_COLOUR = r"\x1b\[[\d;:]{0,64}m"
# Moves of the cursor, erasing to the end of a line, and hiding the cursor. They are dropped: nested progress bars are full of them.
_MOVE = r"\x1b\[(?:\d{0,4}[A-GK]|\?25[hl])"
_UP = r"\x1b\[(?P<rows>\d{0,4})A"
_INVISIBLE = "\u00ad\u034f\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef"
# All of C0 except tab, newline and carriage return; DEL; all of C1; what ends a line or changes the direction of text; lone surrogates.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
_CONTROL_OR_COLOUR = re.compile(f"({_COLOUR})|({_MOVE})|{_CONTROL}")
_UP_OR_LINE = re.compile(rf"{_UP}|\n(?P<goes_on>(?=[\r\n]|{_UP.replace('?P<rows>', '')}))?")
_TERMINAL_LABELS = (
    *(
        "[session state",
        "[hint]",
        "[network]",
        "[image saved",
        "[image not saved",
        "[file saved",
        "[file sent",
        "[not copied",
        "aca-sessions:",
    ),
    *("[0 frame in libraries", "[0 frames in libraries"),
)
_MODEL_LABELS = (
    *("[stdout]", "[stderr]", "[displayed]", "[value]", "[files]", "[processes]", "[images]", "[state]", "[outputs]", "(no output)"),
    *("[exit code]", "[… 0 characters cut", "[an HTML page of 0 characters", "[displayed:"),
    *("[an interactive chart", "[some output is not shown", "[more output is not shown", *_TERMINAL_LABELS),
)


def shown_name(name: str, longest: int = 200) -> str:
    """Return a name for use in a message. Shorten a long one in the middle, and quote one with unusual characters."""
    if len(name) > longest:
        half = longest // 2
        name = f"{name[:half]}…{name[-half:]}"
    return name if _PLAIN_NAME.fullmatch(name) else repr(name)


def shown_caption(text: str) -> str:
    """Return the guest's description of an image as one line, truncated to 200 characters.

    Quote it with `repr` if a reader could misread it: if it contains "; ", which separates captions in a list, a label of the host, or
    unprintable characters.
    """
    line = " ".join(text.split())[:_MAX_CAPTION]
    return repr(line) if "; " in line or not line.isprintable() or _model_label().search(line) else line


def printable(text: str, *, colours: bool = True) -> str:
    """Escape the control characters of a text, except tabs and line ends, and remove the sequences that move the cursor.

    Keep the sequences that set colours if `colours` is true, otherwise remove them.
    """

    def replace(found: re.Match[str]) -> str:
        if found[1] or found[2]:
            return found[1] if found[1] and colours else ""
        return _escape(found[0])

    return _CONTROL_OR_COLOUR.sub(replace, text)


def for_model(text: str) -> str:
    """Make guest text safe for a model: remove colours and escape control characters.

    Also put `QUOTE` before each line that begins with a label of the host, such as `[state]`.
    """
    return _model_line().sub(QUOTE, printable(text, colours=False))


def for_terminal(text: str) -> str:
    """Make guest text safe for a terminal: escape control characters, and reset colours at the end.

    Also put `QUOTE` before labels of the host, such as `[session state`.
    """
    screen = TerminalFilter()
    return screen.filter(text) + screen.flush() + screen.reset()


class TerminalFilter:
    """A filter that makes guest text safe for one terminal, piece by piece. Pass stdout and stderr through the same filter.

    The host's labels are recognized at every position, not only at the beginning of lines: a long line wraps, so its middle may begin a
    row.

    A guest cannot move the cursor up, but nested progress bars stay in their row: after a move up, a line end that goes down again is
    dropped if the next text overwrites its row.
    """

    def __init__(self) -> None:
        self._above = 0  # how many rows the guest believes to be above the last one
        self._has_line_end = False  # at the end of the last piece, after a move up; it counts unless a carriage return follows
        self._pending = ""  # may become a label or a control sequence together with the next piece
        self._flushed_end = ""  # was written by `flush` and may still become a label
        self._coloured = False

    def filter(self, text: str) -> str:
        """Process a piece of guest text, and return the text to write to the terminal now.

        Keep back the end of the piece if it may be the beginning of a label of the host or of a control sequence.
        """
        pending, before = self._follow_moves(text), ""
        if self._flushed_end:
            whole = self._flushed_end + pending
            goes_on = (found := _incomplete_end().search(whole)) is not None and found.start() == 0
            if goes_on and len(whole) <= _MAX_PENDING:
                self._pending = pending
                return ""
            before = "\n" if goes_on or _terminal_label().match(whole) else ""
            self._flushed_end = ""
        found = _incomplete_end().search(pending)
        end = found.start() if found else len(pending)
        self._pending = pending[end:]
        shown = before + self._make_safe(pending[:end])
        return shown + QUOTE + self.flush() if len(self._pending) > _MAX_PENDING else shown

    def flush(self) -> str:
        """Return the text that `filter` kept back. Call this before other text is written, or when the cell waits for input."""
        shown, self._pending = self._make_safe(self._pending) + "\n" * self._has_line_end, ""
        self._above, self._has_line_end = 0, False
        found = _incomplete_end().search(self._flushed_end + shown)
        self._flushed_end = found[0] if found else ""
        return shown

    def reset(self) -> str:
        """Return the control sequence that ends the guest's colours, or '' if none is set. Call this before the host writes."""
        coloured, self._coloured, self._flushed_end = self._coloured, False, ""
        return RESET if coloured else ""

    def _follow_moves(self, text: str) -> str:
        """Return the pending text and `text` without moves up, and without the line ends that only undo them."""
        if self._has_line_end and not re.match(rf"[\r\n]|{_UP}", text):
            text, self._above = f"\n{text}", 0
        self._has_line_end = False
        return _UP_OR_LINE.sub(self._follow_move, self._pending + text)

    def _follow_move(self, found: re.Match[str]) -> str:
        if found[0] != "\n":
            self._above += int(found["rows"] or 1)
            return ""
        if not self._above:
            return "\n"
        self._above -= 1
        if found["goes_on"] is not None:
            return ""
        if found.end() == len(found.string):
            self._has_line_end = True
            return ""
        self._above = 0
        return "\n"

    def _make_safe(self, text: str) -> str:
        shown = printable(_terminal_label().sub(lambda found: QUOTE + found[0], text))
        self._coloured = self._coloured or "\x1b" in shown
        return shown


def _escape(control: str) -> str:
    return control.encode("unicode_escape").decode()


def _letter_patterns(label: str, gap: str) -> list[str]:
    patterns = {"0": rf"\d(?:{gap}\d)*", " ": r"[^\S\r\n]+"}
    return [patterns.get(letter, re.escape(letter)) for letter in label]


def _labels_pattern(labels: tuple[str, ...], gap: str) -> str:
    return "|".join(gap.join(_letter_patterns(label, gap)) for label in labels)


def _incomplete_pattern(label: str) -> str:
    """Return a regular expression for an incomplete label of the host: its first letter, its first two letters, and so on."""
    pattern = ""
    for letter in reversed(_letter_patterns(label, _GAP)[:-1]):
        pattern = f"(?:{letter}{_GAP}{pattern})?"
    return pattern.removesuffix("?")


_GAP = f"(?:{_COLOUR}|{_MOVE}|[{_INVISIBLE}])*"


# The patterns are compiled at their first use: compiling takes longer than many cells.
@cache
def _terminal_label() -> re.Pattern[str]:
    return re.compile(_labels_pattern(_TERMINAL_LABELS, _GAP), re.IGNORECASE)


@cache
def _incomplete_end() -> re.Pattern[str]:
    """Return a regular expression that finds, at the end of a text, an incomplete label of the host or an incomplete control sequence."""
    labels, sequence = "|".join(_incomplete_pattern(label) for label in _TERMINAL_LABELS), r"\x1b(?:\[\??[\d;:]{0,64})?"
    return re.compile(rf"(?:(?:{labels})(?:{sequence})?|{sequence})\Z", re.IGNORECASE)


@cache
def _model_label() -> re.Pattern[str]:
    return re.compile(_labels_pattern(_MODEL_LABELS, f"[{_INVISIBLE}]*"), re.IGNORECASE)


@cache
def _model_line() -> re.Pattern[str]:
    """Return a regular expression that matches the empty text before each line that begins with a label of the host, such as `[state]`.

    A line also begins after a carriage return.
    """
    indent = rf"(?:[^\S\r\n]|[{_INVISIBLE}])*"
    return re.compile(rf"(?:^|(?<=\r))(?={indent}(?:{_model_label().pattern}))", re.IGNORECASE | re.MULTILINE)
