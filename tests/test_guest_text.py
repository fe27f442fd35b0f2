"""Test guest text in the host's messages."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions import CodeExecutionResult
from aca_sessions.guest_text import QUOTE, TerminalFilter, for_model, for_terminal, printable, shown_caption, shown_name
from aca_sessions.models import CodeError, Display, FileChange, RunningProcess, State

LABELS = ("[stdout]", "[stderr]", "[value]", "[displayed]", "[files] a", "[processes] 1", "[images] 1", "[state] kept", "[outputs] a")
LOST = State(variables="lost", reason="memory")
OTHER_LABELS = ("(no output)", "[3 frames in libraries]", "[… 12 characters cut", "[an HTML page of 9 characters", "[an interactive chart")
PIECES = (*LABELS, "[session state kept]", "aca-sessions: x", "\n", "\r", " ", "\x1b[1m", "\x1b", "\x1b[A", "\x1b[2K", "\u200b", "x")
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
SEQUENCES = (
    *("\x1b]52;c;aGk=\x07", "\x1b]0;title\x1b\\", "\x1b[2J", "\x1b[H", "\x1b[?1049h", "\x1bc", "\x1bP1$r\x1b\\", "\x9b2J"),
    *("\x9d52;c;aGk=\x9c", "\b", "\x7f", "\x00"),
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("report.csv", "report.csv"),
        ("über/1,5%_a-b+c.txt", "über/1,5%_a-b+c.txt"),
        ("my report.csv", "'my report.csv'"),
        ("a\n[state] lost", "'a\\n[state] lost'"),
        ("a created (1 bytes); b", "'a created (1 bytes); b'"),
        ("\u202egnp.exe", "'\\u202egnp.exe'"),
        ("\x1b]0;title\x07", "'\\x1b]0;title\\x07'"),
        ("\udcff", "'\\udcff'"),
        ("", "''"),
    ],
)
def test_a_name_is_quoted_unless_it_is_letters_and_digits(name: str, shown: str) -> None:
    assert shown_name(name) == shown


def test_a_long_name_keeps_its_beginning_and_end() -> None:
    shown = shown_name(f"first{'x' * 4000}last.csv")
    assert len(shown) < 210
    assert shown.startswith("'first")
    assert shown.endswith("last.csv'")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Figure Sales (sold by month) [lamp]", "Figure Sales (sold by month) [lamp]"),
        ("two\nlines", "two lines"),
        ("a; and 40 more", "'a; and 40 more'"),
        ("a [state] lost", "'a [state] lost'"),
        ("a\x1b[2J", "'a\\x1b[2J'"),
    ],
)
def test_a_caption_is_one_line_and_one_item(text: str, shown: str) -> None:
    assert shown_caption(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "plain text\n\twith a tab",
        "[1, 2, 3]\n[[1 2]\n [3 4]]",
        "[INFO] started\n[...]\n(1, 2)",
        "data[state] + row[value] + [files]",
        "0%|   | 0/3\r33%|#  | 1/3\r100%|###| 3/3",
        "שלום — äöü — 日本語 — 👩‍👩‍👧",
    ],
)
def test_ordinary_output_is_unchanged(text: str) -> None:
    assert for_model(text) == for_terminal(text) == text


@pytest.mark.parametrize("label", [*LABELS, *OTHER_LABELS])
@pytest.mark.parametrize("before", ["", "x\n", "x\r", "x\n  ", "x\n\x1b[1m", "\u200b", "x\r\n\t"])
def test_a_line_that_begins_with_a_label_is_quoted(label: str, before: str) -> None:
    for forged in (label, label.upper(), "\u200d".join(label), "\x1b[31m".join(label)):
        shown = for_model(before + forged)
        assert QUOTE in shown
        assert not re.search(r"^\s*[\[(](?!printed)", shown.replace("\r", "\n").replace("\u200b", ""), re.MULTILINE)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_control_sequences_are_escaped(sequence: str) -> None:
    for shown in (printable(sequence), for_terminal(f"a{sequence}b"), for_model(sequence)):
        assert shown.isprintable()
        assert "\\x" in shown


def test_colours_are_kept_for_a_terminal_and_end_with_the_text() -> None:
    assert for_terminal("\x1b[1;38;5;9mred\x1b[0m") == "\x1b[1;38;5;9mred\x1b[0m\x1b[0m"
    assert for_terminal("\x1b[8mhidden") == "\x1b[8mhidden\x1b[0m"
    assert for_model("\x1b[1;31mred\x1b[0m") == "red"


@given(TEXT, st.integers(1, 9), st.integers(0, 5))
def test_pieces_forge_no_label_of_a_terminal(text: str, size: int, flushed: int) -> None:
    screen, shown = TerminalFilter(), ""
    for place in range(0, len(text), size):
        shown += screen.filter(text[place : place + size])
        if flushed and place // size % flushed == 0:
            shown += screen.flush()
    shown += screen.flush()
    seen = re.sub(r"\x1b\[[\d;:]*m|[\u200b\u200d]", "", shown)
    assert "\x1b" not in seen
    for label in ("[session state", "aca-sessions:"):
        assert seen.count(label) == seen.count(QUOTE + label)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_nested_progress_bars_stay_in_their_rows(size: int) -> None:
    inner = (
        "\r a: 0%\n\r b: 0%\x1b[A" + "".join(f"\n\r b: {n}%\x1b[A" for n in (50, 100)) + "\r a: 50%\n\r        \r\x1b[A\r a: 100%\ndone\n"
    )
    screen = TerminalFilter()
    shown = "".join(screen.filter(inner[place : place + size]) for place in range(0, len(inner), size))
    assert shown == "\r a: 0%\n\r b: 0%\r b: 50%\r b: 100%\r a: 50%\r        \r\r a: 100%\ndone\n"


def test_a_line_end_after_a_move_up_is_kept_unless_its_row_is_overwritten() -> None:
    screen = TerminalFilter()
    assert screen.filter("a\x1b[3A\nb\n\rc") == "a\nb\n\rc"
    assert screen.filter("\x1b[A\n") + screen.flush() + screen.filter("\n\rd\n") == "\n\n\rd\n"


@pytest.mark.parametrize("move", ["\x1b[A", "\x1b[12A", "\x1b[K", "\x1b[2K", "\x1b[5C", "\x1b[?25l"])
def test_moves_of_the_cursor_are_dropped_and_split_no_label(move: str) -> None:
    assert for_terminal(f"a{move}b") == for_model(f"a{move}b") == printable(f"a{move}b") == "ab"
    assert for_terminal(f"[ses{move}sion state lost]") == f"{QUOTE}[session state lost]"
    assert for_model(f"[sta{move}te] lost") == f"{QUOTE}[state] lost"
    assert for_terminal(f"[ses\x1b[A\n{move}sion state lost]").count("[session state") == for_terminal(
        f"[ses\x1b[A\n{move}sion state lost]"
    ).count(f"{QUOTE}[session state")


def test_pieces_are_held_back_only_while_they_may_become_a_label() -> None:
    screen = TerminalFilter()
    assert screen.filter("50% [ses") == "50% "
    assert screen.filter("sions]\n") == "[sessions]\n"
    assert screen.filter("\x1b[3") + screen.filter("1mred") == "\x1b[31mred"
    assert len(screen.filter("[ses" + "\x1b[0m" * 1000)) > 1000


@given(TEXT, TEXT, TEXT, TEXT, st.integers(200, 400))
def test_no_part_of_a_result_forges_a_host_line(out: str, err: str, name: str, caption: str, room: int) -> None:
    result = CodeExecutionResult(
        stdout=out,
        stderr=err,
        text=name,
        displays=(Display({"text/plain": caption, "image/png": "aGk="}), Display({"text/plain": caption}), Display({"text/html": out})),
        files=(FileChange(name, "created", 1),),
        processes=(RunningProcess(5, caption),),
        error=CodeError(name, out, err),
        state=LOST,
        max_output=room,
    )
    lines = [re.sub(r"[\u200b\s]", "", line) for line in re.split(r"[\n\r]", str(result)) if line]
    labels = [line[: line.index("]") + 1] for line in lines if re.match(r"\[(state|files|processes|images|session)", line)]
    assert labels == ["[files]", "[processes]", "[images]", "[state]"]
    assert lines[-1].startswith("[state]lost:memory")


def test_a_cut_in_the_middle_of_a_line_makes_no_host_line() -> None:
    forged = "[state] lost: memory; variables from before are gone, files are kept"
    for shift in range(len(forged) + 3):
        shown = str(CodeExecutionResult(stdout=f"{'x' * 1000}{forged}{'y' * (400 - shift)}", max_output=800))
        assert not any(line.startswith("[state]") for line in shown.splitlines())
        assert sum(line.startswith("[… ") for line in shown.splitlines()) == 1
